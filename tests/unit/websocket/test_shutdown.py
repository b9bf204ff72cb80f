"""The pace of closing when the relay stops: every connection in time, and no more at once than needed."""

from __future__ import annotations

import random
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.websocket.shutdown import FIRST_TURNS, MIN_TURNS_PER_SECOND, TURNS_SHARE, ShutdownPacer

BEGUN = 1_700_000_000.0
STEP = 0.05


def turns(count: int, limit: float, seed: int = 1) -> list[list[int]]:
    """Return the connections whose turn has come at each step, until all have had one."""
    pacer = ShutdownPacer(range(count), limit, BEGUN, random.Random(seed).random)
    closed = []
    while pacer:
        closed.append(pacer.due(BEGUN + len(closed) * STEP))
        assert len(closed) < 100_000
    return closed


class ShutdownPacerTests(SynchronousTestCase):
    """Turns, on a clock that the test controls."""

    def test_20_connections_have_their_turns_at_once(self) -> None:
        self.assertEqual([len(step) for step in turns(FIRST_TURNS, 10.0)], [20])
        self.assertEqual([len(step) for step in turns(FIRST_TURNS + 1, 10.0)], [20, 1])
        self.assertEqual(turns(0, 10.0), [])

    def test_400_connections_more_take_two_seconds(self) -> None:
        closed = turns(420, 10.0)
        self.assertEqual(len(closed), 1 + 2 / STEP)  # 20 at once, then 200 a second
        self.assertTrue(all(len(step) <= 20 for step in closed), closed)

    def test_10000_connections_are_spread_evenly_over_the_time(self) -> None:
        closed = [len(step) for step in turns(10_000, 10.0)]
        self.assertEqual(sum(closed), 10_000)
        self.assertLessEqual(abs(len(closed) * STEP - 10 * TURNS_SHARE), 2 * STEP)
        # No step has more than the average, rounded up.
        self.assertLessEqual(max(closed), 10_000 / len(closed) + 2)
        self.assertGreater(min(closed[:-1]), 0)

    def test_without_a_time_limit_turns_come_at_the_least_rate(self) -> None:
        closed = turns(10_000, 0.0)
        self.assertLessEqual(abs(len(closed) * STEP - 10_000 / MIN_TURNS_PER_SECOND), 1)

    def test_order_of_turns_is_random(self) -> None:
        first, again, other = (list(chain(*turns(1000, 10.0, seed))) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertNotEqual(first, sorted(first))
        self.assertEqual(sorted(first), list(range(1000)))

    def test_duration_is_the_time_from_the_first_turn_to_the_last(self) -> None:
        for count, limit in ((0, 10.0), (20, 10.0), (21, 10.0), (420, 10.0), (10_000, 10.0), (10_000, 0.0)):
            pacer = ShutdownPacer(range(count), limit, BEGUN, random.random)
            duration = pacer.duration
            pacer.due(BEGUN + max(0.0, duration - STEP))
            self.assertEqual(bool(pacer), count > FIRST_TURNS)
            pacer.due(BEGUN + duration + 0.001)
            self.assertEqual(len(pacer), 0)

    def test_disconnected_connections_use_up_turns(self) -> None:
        pacer = ShutdownPacer(range(10_000), 10.0, BEGUN, random.Random(1).random)
        self.assertEqual(len(pacer.due(BEGUN)), FIRST_TURNS)
        for number in range(10_000):
            if number in pacer and len(pacer) > 8_000:
                pacer.disconnected(number)
        pacer.disconnected(-1)
        self.assertEqual(pacer.due(BEGUN + 1.0), [])  # 2,000 are gone, where 1,267 turns were due
        self.assertGreater(len(pacer.due(BEGUN + 2.0)), 0)

    def test_clock_set_back_brings_no_turn_and_clock_set_forward_brings_all(self) -> None:
        pacer = ShutdownPacer(range(100), 10.0, BEGUN, random.random)
        self.assertEqual(len(pacer.due(BEGUN - 3600.0)), 0)
        self.assertEqual(len(pacer.due(BEGUN + 3600.0)), 100)
        self.assertEqual(pacer.due(BEGUN + 3601.0), [])

    @given(count=st.integers(0, 3000), limit=st.floats(0, 100))
    def test_each_connection_has_one_turn_in_time(self, count: int, limit: float) -> None:
        pacer = ShutdownPacer(range(count), limit, 0.0, random.random)
        seconds = limit * TURNS_SHARE if limit else count / MIN_TURNS_PER_SECOND
        times = [seconds * tenth / 10 for tenth in range(11)]
        closed = [pacer.due(now) for now in times]
        closed.append(pacer.due(seconds + 0.01))  # to allow for rounding
        self.assertEqual(sorted(chain(*closed)), list(range(count)))
