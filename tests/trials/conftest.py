"""Fixtures of the trials.

A trial does something to a real relay that may happen in the world, counts how often it did so, and measures the
effect. `make trials` runs each in full. Every other run takes a short form if the full one would take over a minute;
the trial's docstring describes it.
"""

from tests.support.authorities import authorities
from tests.support.relay_fixtures import logged_in, relay, site, start_relay

__all__ = ["authorities", "logged_in", "relay", "site", "start_relay"]
