"""Whose turn it is when a relay stops: all of them, in time, and no more at once than need be."""

from __future__ import annotations

import random
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.websocket.shutdown import AT_ONCE, LEAST_RATE, SHARE, Farewells

BEGUN = 1_700_000_000.0
STEP = 0.05


def turns(count: int, limit: float, seed: int = 1) -> list[list[int]]:
    """Who is told at each step until everybody is."""
    farewells = Farewells(range(count), limit, BEGUN, random.Random(seed).random)
    told = []
    while farewells:
        told.append(farewells.due(BEGUN + len(told) * STEP))
        assert len(told) < 100_000
    return told


class FarewellTests(SynchronousTestCase):
    """Turns, on a clock of the test's."""

    def test_few_are_told_at_once(self) -> None:
        self.assertEqual([len(step) for step in turns(AT_ONCE, 10.0)], [20])
        self.assertEqual([len(step) for step in turns(AT_ONCE + 1, 10.0)], [20, 1])
        self.assertEqual(turns(0, 10.0), [])

    def test_some_hundred_take_a_moment(self) -> None:
        told = turns(420, 10.0)
        self.assertEqual(len(told), 1 + 2 / STEP)  # the first at once, then 200 a second
        self.assertTrue(all(len(step) <= 20 for step in told), told)

    def test_ten_thousand_take_most_of_the_time(self) -> None:
        told = [len(step) for step in turns(10_000, 10.0)]
        self.assertEqual(sum(told), 10_000)
        self.assertLessEqual(abs(len(told) * STEP - 10 * SHARE), 2 * STEP)
        # Evenly: no step has more than the average, but for a fraction.
        self.assertLessEqual(max(told), 10_000 / len(told) + 2)
        self.assertGreater(min(told[:-1]), 0)

    def test_without_a_limit_the_rate_alone_counts(self) -> None:
        told = turns(10_000, 0.0)
        self.assertLessEqual(abs(len(told) * STEP - 10_000 / LEAST_RATE), 1)

    def test_the_order_is_chances(self) -> None:
        first, again, other = (list(chain(*turns(1000, 10.0, seed))) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertNotEqual(first, sorted(first))
        self.assertEqual(sorted(first), list(range(1000)))

    def test_who_leaves_alone_has_had_a_turn(self) -> None:
        farewells = Farewells(range(10_000), 10.0, BEGUN, random.Random(1).random)
        self.assertEqual(len(farewells.due(BEGUN)), AT_ONCE)
        for number in range(10_000):
            if number in farewells and len(farewells) > 8_000:
                farewells.left(number)
        farewells.left(-1)
        self.assertEqual(farewells.due(BEGUN + 1.0), [])  # 2,000 have gone, where 1,267 were to
        self.assertGreater(len(farewells.due(BEGUN + 2.0)), 0)

    def test_a_clock_that_is_set_back_brings_no_turn_and_one_set_forward_all(self) -> None:
        farewells = Farewells(range(100), 10.0, BEGUN, random.random)
        self.assertEqual(len(farewells.due(BEGUN - 3600.0)), 0)
        self.assertEqual(len(farewells.due(BEGUN + 3600.0)), 100)
        self.assertEqual(farewells.due(BEGUN + 3601.0), [])

    @given(count=st.integers(0, 3000), limit=st.floats(0, 100))
    def test_everybody_is_told_once_and_in_time(self, count: int, limit: float) -> None:
        farewells = Farewells(range(count), limit, 0.0, random.random)
        seconds = limit * SHARE if limit else count / LEAST_RATE
        times = [seconds * tenth / 10 for tenth in range(11)]
        told = [farewells.due(now) for now in times]
        told.append(farewells.due(seconds + 0.01))  # for what is rounded
        self.assertEqual(sorted(chain(*told)), list(range(count)))
