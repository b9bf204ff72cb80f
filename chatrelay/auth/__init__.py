"""Logins: whose session it is, whether it still lasts, and the requests to the site's session page about that.

This package asks the session page, shares and limits the requests, remembers by which session each connection logged
in, and re-checks these sessions. This package must not know WebSocket, frames or messages.
"""
