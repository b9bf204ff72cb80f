"""Fixtures of the end-to-end tests."""

from tests.support.authorities import authorities
from tests.support.relay_fixtures import logged_in, relay, site, start_relay

__all__ = ["authorities", "logged_in", "relay", "site", "start_relay"]
