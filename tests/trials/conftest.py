"""Fixtures of the trials.

A trial does something to a real relay that the world may do to it, counts how often it did, and measures what came of it.
`make trials` runs each in full; every other run takes a short form where the full one would take over a minute, which its
docstring names.
"""

from tests.support.authorities import authorities
from tests.support.relay_fixtures import logged_in, relay, site, start_relay

__all__ = ["authorities", "logged_in", "relay", "site", "start_relay"]
