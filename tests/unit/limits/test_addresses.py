"""Proxies: which ones are trusted, and which client they name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.limits.addresses import TrustedProxies

TRUSTED = TrustedProxies(("10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "unix"))


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("9.255.255.255", False),
        ("11.0.0.0", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("::ffff:10.0.0.1", True),  # as a socket for both kinds shows it
        ("::10.0.0.1", False),
        ("2001:db8:ffff::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", False),
        (None, True),
    ],
)
def test_named_proxies_are_trusted(host: str | None, trusted: bool) -> None:
    assert TRUSTED.trusts(host) is trusted


def test_no_proxy_is_trusted_unless_named() -> None:
    nobody = TrustedProxies(())
    assert not nobody
    assert not any(nobody.trusts(host) for host in ("127.0.0.1", "::1", None))
    assert TRUSTED and TrustedProxies(("unix",)) and TrustedProxies(("::1",))
    assert not TrustedProxies(("10.0.0.0/8",)).trusts(None)


@pytest.mark.parametrize(
    "name", ["", "proxy", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8 ", "[::1]", "::ffff:10.0.0.0/104", "Unix"]
)
def test_name_that_is_not_a_proxy_raises_value_error(name: str) -> None:
    with pytest.raises(ConfigError, match="trusted-proxy: ") as refusal:
        Config(trusted_proxy=(name,))
    assert repr(name) in str(refusal.value)


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["198.51.100.1, 203.0.113.7"], "203.0.113.7"),  # everything left of the client was written by the client
        (["203.0.113.7, 10.0.0.2, 192.0.2.1"], "203.0.113.7"),
        (["203.0.113.7", "10.0.0.2"], "203.0.113.7"),  # several lines are one list
        (["203.0.113.7, 10.0.0.2", "198.51.100.1"], "198.51.100.1"),
        (["203.0.113.7,10.0.0.2"], "203.0.113.7"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # all are proxies: the furthest
        (["203.0.113.7:51234"], "203.0.113.7"),
        (["2001:DB9::7"], "2001:db9::7"),
        (["[2001:db9::7]:51234"], "2001:db9::7"),
        (["[2001:db9::7]"], "2001:db9::7"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["198.51.100.1, ::ffff:10.0.0.2"], "198.51.100.1"),
        # An unreadable entry ends the search at the last readable one.
        (["203.0.113.7, unknown"], "10.0.0.1"),
        (["203.0.113.7, _hidden, 10.0.0.2"], "10.0.0.2"),
        (["203.0.113.7, "], "10.0.0.1"),
        (["203.0.113.7,, 10.0.0.2"], "10.0.0.2"),
        (["203.0.113.256"], "10.0.0.1"),
        (["fe80::1%\x1b[2J"], "10.0.0.1"),
        (["2001:db9::7:51234:1:2:3:4:5:6"], "10.0.0.1"),
        (["\u0661.2.3.4"], "10.0.0.1"),
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
    ],
)
def test_header_is_read_from_the_right_past_trusted_proxies(forwarded: list[str], client: str) -> None:
    assert TRUSTED.client_of("10.0.0.1", forwarded) == client


def test_header_of_an_untrusted_peer_is_ignored() -> None:
    assert TRUSTED.client_of("203.0.113.9", ["198.51.100.1"]) == "203.0.113.9"
    assert TRUSTED.client_of(None, ["198.51.100.1"]) == "198.51.100.1"
    assert TRUSTED.client_of(None, ["unknown"]) is None
    assert TrustedProxies(("10.0.0.0/8",)).client_of(None, ["198.51.100.1"]) is None


@given(st.lists(st.text()))
def test_any_header_gives_an_address_or_none(forwarded: list[str]) -> None:
    client = TRUSTED.client_of("10.0.0.1", forwarded)
    assert client is not None
    TRUSTED.trusts(client)


@given(st.text(), st.ip_addresses(v=4))
def test_header_made_up_by_a_client_does_not_hide_its_address(made_up: str, address: object) -> None:
    seen = str(address)
    if not TRUSTED.trusts(seen):
        assert TRUSTED.client_of("10.0.0.1", [f"{made_up}, {seen}"]) == seen
