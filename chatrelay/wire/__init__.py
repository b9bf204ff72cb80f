"""Bytes to values and back: frames, handshakes, requests and answers.

Everything here is pure: bytes come in, values go out, or the other way round. This package must not know connections,
users' sessions, limits that depend on time, or what a message is for.
"""
