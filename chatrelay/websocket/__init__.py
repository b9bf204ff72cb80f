"""Connections: Autobahn on one side, a session on the other.

A connection is accepted, its handshake is checked, its frames are read, what it is sent is written, and it is closed.
This package is the only one that knows Autobahn. It must not know what a message means, how one is logged, or how the
session page is asked.
"""
