"""Connections: Autobahn on one side, a session on the other.

This package accepts connections, checks their handshakes, reads and writes their frames, and closes them. Only this
package knows Autobahn. It must not know what a message means, how one is logged, or how the session page is asked.
"""
