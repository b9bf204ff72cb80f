"""Logins: whose session it is, whether it lasts, and the requests to the site's session page about that.

It asks the session page, shares and bounds those requests, remembers which connection came in by which session, and
asks again later. This package must not know WebSocket, frames or messages.
"""
