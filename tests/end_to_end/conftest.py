"""What end-to-end tests start from."""

from tests.support.authorities import authorities
from tests.support.relay_fixtures import logged_in, relay, site, start_relay

__all__ = ["authorities", "logged_in", "relay", "site", "start_relay"]
