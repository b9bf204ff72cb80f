"""Asking about somebody who has never written costs the same, whoever it is, and each relay of which that is untrue is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.broken_awareness import COSTLY
from tests.fuzz.stranger_cost import KINDS, differences, measure


def test_request_about_a_stranger_costs_the_same_whether_they_exist_or_not(tmp_path: Path, full: bool) -> None:
    costs = measure(tmp_path, 40 if full else 2)
    assert len(costs) >= 10 and all(set(by_kind) == set(KINDS) for by_kind in costs.values())
    assert all(cost["instructions"] > 1000 for by_kind in costs.values() for cost in by_kind.values())
    assert not differences(costs)


@pytest.mark.parametrize("what", COSTLY)
def test_relay_of_which_the_cost_tells_of_strangers_is_found(what: str, tmp_path: Path) -> None:
    breaks, kinds = COSTLY[what]
    with breaks():
        found = differences(measure(tmp_path, 2, kinds))
    print(f"{what}: {found}")
    assert found
