"""HTTP for operators and for the site: health, readiness, and ending sessions from outside.

This package must not know WebSocket connections, or how a message is delivered. It calls objects that are passed in.
"""
