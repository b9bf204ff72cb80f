"""The demo: a small website with people, sessions and a chat page, and the relay, in one process.

``python -m chatrelay.demo`` (or ``make run``) starts it. The website takes the place of your own site, so it knows the
relay only from outside: it has a session page and serves the chat page. This package must not know how the relay works
inside. No other package imports this one.
"""
