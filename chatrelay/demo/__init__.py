"""The demo: a small website with people, sessions and a chat page, and the relay, in one process.

``python -m chatrelay.demo`` (or ``make run``) starts it. It stands where your own site will stand, so it knows the
relay only from outside, as a site does: it answers the one HTTP question and serves the page. Nothing else in
chatrelay imports it.
"""
