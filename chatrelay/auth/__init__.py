"""Whose session it is, and whether it still is: the requests to the site's session page and what follows from them.

It asks the session page, shares and bounds those requests, remembers which connection came in by which session, and
asks again later. This package must not know WebSocket, frames or messages.
"""
