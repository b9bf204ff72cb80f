"""The checker of scenarios finds each relay that breaks its promise."""

from __future__ import annotations

import pickle

import pytest

from tests.fuzz.broken import BROKEN
from tests.fuzz.scenarios import Broken, Scenario, run, spread
from tests.fuzz.seen import SEEN, asked_for

SEEDS = 200
"""Scenarios in which each must be found."""


@pytest.mark.parametrize("what", BROKEN)
def test_broken_relay_is_found(what: str) -> None:
    with BROKEN[what](), pytest.raises(Broken, match=r"python -m tests\.fuzz\.scenarios \d") as found:
        run(0, SEEDS)
    assert "TypeError" not in str(found.value), "what was broken is not what it was written for"
    print(f"{what}: found by seed {found.value.seed}")


def test_scenario_is_repeatable() -> None:
    for seed in range(20):
        one, other = Scenario(seed).run(), Scenario(seed).run()
        assert (one.doings, one.heard) == (other.doings, other.heard)
    with BROKEN["a batch is delivered in the wrong order"](), pytest.raises(Broken) as first:
        run(0, SEEDS)
    seed = first.value.seed
    with BROKEN["a batch is delivered in the wrong order"](), pytest.raises(Broken) as again:
        Scenario(seed).run()
    assert str(again.value) == str(first.value)


def test_several_processes_find_what_one_finds() -> None:
    counts = spread(300, 30)
    assert counts == run(300, 30)
    assert counts["scenarios"] == 30


def test_failure_survives_pickling() -> None:
    with BROKEN["a request is answered twice"](), pytest.raises(Broken) as found:
        run(0, SEEDS)
    again = pickle.loads(pickle.dumps(found.value))
    assert (type(again), str(again), again.seed) == (Broken, str(found.value), found.value.seed)


def test_required_counts_grow_with_the_scenarios() -> None:
    at_20_000 = {what: asked_for(20 * per_thousand) for what, per_thousand in SEEN.items()}
    assert min(at_20_000.values()) > 5
    assert asked_for(10) == 0
    assert asked_for(100_000) > 10 * asked_for(10_000) > 0
