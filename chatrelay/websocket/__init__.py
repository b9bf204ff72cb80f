"""Connections: Autobahn on one side, a session on the other.

A connection is accepted, its handshake is checked, its frames are read, what it is sent is written, and it is closed.
Only this package knows Autobahn. This package must not know what a message means, how one is logged, or how the session
page is asked.
"""
