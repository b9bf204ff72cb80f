"""Limits on connections, as numbers; tests/unit/websocket/test_connecting.py tests what happens to refused clients."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrelay.limits.admission import Admission, LimitReached, Slot

OFF = {"unauthenticated": 0, "unauthenticated_per_address": 0, "connections_per_address": 0}


def admission(connections: int = 0, **options: int) -> Admission:
    """Return an admission with these limits and no others."""
    return Admission(connections, **{**OFF, **options})


def entered(counts: Admission, address: str | None) -> Slot:
    """Admit one more connection, and check that it is not refused."""
    slot = counts.admit(address)
    assert isinstance(slot, Slot)
    return slot


def refused(counts: Admission, address: str | None) -> str:
    """Return the name of the option by which one more connection is refused."""
    full = counts.admit(address)
    assert isinstance(full, LimitReached)
    assert full.limit == 3
    assert full.is_per_address == ("address" in full.option)
    return full.option


@pytest.mark.parametrize("option", ["connections", "unauthenticated"])
def test_connection_beyond_a_total_limit_is_refused(option: str) -> None:
    counts = admission(**{option: 3})
    slots = [entered(counts, address) for address in ("192.0.2.1", "192.0.2.2", None)]
    for address in ("192.0.2.1", "192.0.2.9", None):
        assert refused(counts, address) == option
    counts.disconnected(slots[0])
    entered(counts, "192.0.2.9")
    assert refused(counts, None) == option


@pytest.mark.parametrize("option", ["connections_per_address", "unauthenticated_per_address"])
def test_connection_beyond_a_limit_per_address_is_refused(option: str) -> None:
    counts = admission(**{option: 3})
    slots = [entered(counts, "192.0.2.1") for _ in range(3)]
    assert refused(counts, "192.0.2.1") == option.replace("_", "-")
    entered(counts, "192.0.2.2")
    for _ in range(4):
        entered(counts, None)  # a client without an address has no limit per address
    counts.disconnected(slots[0])
    entered(counts, "192.0.2.1")
    refused(counts, "192.0.2.1")


@pytest.mark.parametrize("option", ["unauthenticated", "unauthenticated_per_address"])
def test_login_frees_one_unauthenticated_slot_and_disconnecting_no_second(option: str) -> None:
    counts = admission(**{option: 3})
    slots = [entered(counts, "192.0.2.1") for _ in range(3)]
    counts.authenticated(slots[0])
    counts.authenticated(slots[0])  # logged in again
    entered(counts, "192.0.2.1")
    refused(counts, "192.0.2.1")
    counts.disconnected(slots[0])
    refused(counts, "192.0.2.1")


@pytest.mark.parametrize("option", ["connections", "connections_per_address"])
def test_logged_in_connection_still_counts_in_the_total(option: str) -> None:
    counts = admission(**{option: 3})
    for _ in range(3):
        counts.authenticated(entered(counts, "192.0.2.1"))
    refused(counts, "192.0.2.1")


def test_limits_of_zero_refuse_nothing_and_remember_no_address() -> None:
    counts = admission()
    for _ in range(10_000):
        entered(counts, "192.0.2.1")
    assert (counts.connections, counts.unauthenticated, counts.addresses()) == (10_000, 10_000, 0)


def test_address_that_becomes_known_later_counts_from_then_on() -> None:
    counts = admission(unauthenticated_per_address=3)
    slots = [entered(counts, None) for _ in range(4)]
    for slot in slots[:3]:
        assert counts.locate(slot, "192.0.2.1") is None
        assert counts.locate(slot, "192.0.2.2") is None  # it has one
        assert slot.address == "192.0.2.1"
    full = counts.locate(slots[3], "192.0.2.1")
    assert full is not None and full.option == "unauthenticated-per-address"
    assert slots[3].address is None
    # The refused one is still there, for a moment, but not of the address.
    assert (counts.connections, counts.unauthenticated) == (4, 4)
    counts.disconnected(slots[3])
    counts.disconnected(slots[0])
    assert counts.locate(entered(counts, None), "192.0.2.1") is None


def test_refused_connection_does_not_count() -> None:
    counts = admission(connections_per_address=1, unauthenticated_per_address=5)
    slot = entered(counts, "192.0.2.1")
    for _ in range(10):
        assert isinstance(counts.admit("192.0.2.1"), LimitReached)
    assert (counts.connections, counts.unauthenticated) == (1, 1)
    counts.disconnected(slot)
    assert (counts.connections, counts.unauthenticated, counts.addresses()) == (0, 0, 0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "locate", "log in", "leave"]), st.integers(0, 20), st.sampled_from("abc "))
)


@given(STEPS)
def test_counts_equal_a_list_of_the_connections(steps: list[tuple[str, int, str]]) -> None:
    limits = {"connections_per_address": 3, "unauthenticated": 6, "unauthenticated_per_address": 2}
    counts = admission(8, **limits)
    there: list[Slot] = []

    def of(address: str, **only: Any) -> int:
        return sum(slot.address == address and only.items() <= {"logged_in": slot.logged_in}.items() for slot in there)

    for what, which, name in steps:
        address = None if name == " " else name
        if what == "enter" or (what == "locate" and there):
            free = address is None or (of(address) < 3 and of(address, logged_in=False) < 2)
            if what == "enter":
                strangers = sum(not slot.logged_in for slot in there)
                came = counts.admit(address)
                assert isinstance(came, Slot) == (free and len(there) < 8 and strangers < 6)
                if isinstance(came, Slot):
                    there.append(came)
            else:
                slot = there[which % len(there)]
                if slot.address is None and not slot.logged_in:
                    assert (counts.locate(slot, address) is None) == free
        elif there and what == "log in":
            counts.authenticated(there[which % len(there)])
        elif there:
            counts.disconnected(there.pop(which % len(there)))
    assert counts.connections == len(there)
    assert counts.unauthenticated == sum(not slot.logged_in for slot in there)
    all = Counter(slot.address for slot in there if slot.address)
    strangers = Counter(slot.address for slot in there if slot.address and not slot.logged_in)
    assert counts.addresses() == len(all) + len(strangers)
