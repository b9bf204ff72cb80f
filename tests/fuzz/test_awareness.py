"""Receipts are true, strangers learn nothing, and both checks find each relay that breaks this."""

from __future__ import annotations

import pytest

from tests.fuzz.broken_awareness import TELLTALE, UNTRUE
from tests.fuzz.receipts import Story, Untrue
from tests.fuzz.strangers import Different, compare

SEEDS = 200
"""Scenarios in which each fault must be found."""


def test_receipts_say_what_people_have_said(request: pytest.FixtureRequest) -> None:
    seeds = 20_000 if request.config.getoption("full") else SEEDS
    receipts = sum(Story(seed).run() for seed in range(seeds))
    assert receipts > 5 * seeds


@pytest.mark.parametrize("what", UNTRUE)
def test_untrue_receipt_is_found(what: str) -> None:
    with UNTRUE[what](), pytest.raises(Untrue) as found:
        for seed in range(SEEDS):
            Story(seed).run()
    print(f"{what}: {found.value}")


def test_nothing_shows_whether_a_stranger_exists(request: pytest.FixtureRequest) -> None:
    done = compare(10_000 if request.config.getoption("full") else 1000)
    print(done)
    assert done.total() >= 10_000


@pytest.mark.parametrize("what", TELLTALE)
def test_relay_that_tells_strangers_is_found(what: str) -> None:
    with TELLTALE[what](), pytest.raises(Different) as found:
        compare(1000)
    print(f"{what}: {found.value}")
