"""Who is pinged when, and who is found silent, as values."""

from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.websocket.keepalive import MAX_SLOTS, SLOT, Pings, Turns


@attrs.define(eq=False)
class Somebody:
    """A connection."""

    signs: int = 0

    def signs_of_life(self) -> object:
        """How many came."""
        return self.signs


class TurnsTests(SynchronousTestCase):
    """Turns, spread over an interval."""

    @given(
        st.floats(0.05, 10_000),
        st.lists(st.floats(0, 1), min_size=1, max_size=20),
        st.lists(st.floats(0.001, 0.2), min_size=1, max_size=50),
    )
    def test_each_has_its_turn_once_in_an_interval(
        self, interval: float, chances: list[float], steps: list[float]
    ) -> None:
        drawn = iter(chances)
        turns: Turns[int] = Turns(interval, lambda: next(drawn))
        for key in range(len(chances)):
            turns.add(key)
        turns.come(0.0)
        came: Counter[int] = Counter()
        # By then, the last turn of the first interval has come, and no other.
        end = interval * (1 + 0.5 / min(MAX_SLOTS, max(1, round(interval / SLOT))))
        now = 0.0
        for step in [*steps, 1.0]:
            now = min(now + step * interval, end)
            came.update(turns.come(now))
        came.update(turns.come(end))
        self.assertEqual(set(came), set(range(len(chances))))
        self.assertEqual(set(came.values()), {1})

    def test_a_long_interval_needs_no_more_slots(self) -> None:
        turns: Turns[str] = Turns(2.0**31, lambda: 0.999)
        turns.add("a")
        turns.come(0)
        self.assertEqual(turns.come(2.0**31 * (1 - 2 / MAX_SLOTS)), [])
        self.assertEqual(turns.come(2.0**31), ["a"])

    def test_after_a_long_pause_each_has_one_turn(self) -> None:
        turns: Turns[int] = Turns(20, lambda: 0.5)
        for key in range(3):
            turns.add(key)
        turns.come(0)
        self.assertEqual(turns.come(1e6), [0, 1, 2])

    def test_a_clock_that_is_set_back_delays_turns_by_an_interval_at_most(self) -> None:
        turns: Turns[str] = Turns(20, lambda: 0.5)
        turns.add("a")
        turns.come(3600)
        self.assertEqual(turns.come(0), [])
        self.assertEqual(turns.come(20), ["a"])

    def test_who_has_left_has_no_turn(self) -> None:
        turns: Turns[str] = Turns(1, lambda: 0.5)
        turns.add("a")
        turns.add("a")
        turns.remove("a")
        turns.remove("a")
        turns.come(0)
        self.assertEqual((turns.come(10), len(turns)), ([], 0))

    def test_zero_is_never(self) -> None:
        turns: Turns[str] = Turns(0, lambda: 0.5)
        turns.add("a")
        turns.come(0)
        self.assertEqual((turns.come(1e9), len(turns)), ([], 0))


class PingsTests(SynchronousTestCase):
    """Pings and signs of life."""

    def setUp(self) -> None:
        self.pings: Pings[Somebody] = Pings(20, 15, lambda: 0.5)
        self.pings.due(0)
        self.anna = Somebody()
        self.pings.opened(self.anna)

    def test_who_is_asked_is_not_asked_again_before_the_time_is_over(self) -> None:
        pings: Pings[Somebody] = Pings(5, 12, lambda: 0.5)
        pings.due(0)
        pings.opened(self.anna)
        for now in range(5, 17):
            asked = pings.due(now)
            self.assertEqual(asked, [self.anna] if now == 5 else [])
            for connection in asked:
                pings.sent(connection, now)
            self.assertEqual(pings.unanswered(now), [])
        self.anna.signs = 1
        self.assertEqual(pings.unanswered(17), [])
        self.assertEqual([pings.due(now) for now in range(18, 22)].count([self.anna]), 1)

    def test_who_has_answered_is_asked_at_each_turn(self) -> None:
        pings: Pings[Somebody] = Pings(5, 12, lambda: 0.5)
        pings.due(0)
        pings.opened(self.anna)
        asked = 0
        for now in range(60):
            for connection in pings.due(now):
                asked += 1
                pings.sent(connection, now)
                self.anna.signs += 1
            self.assertEqual(pings.unanswered(now), [])
        self.assertEqual(asked, 12)

    def test_silence_is_told_once(self) -> None:
        self.pings.sent(self.anna, 0)
        told = [self.pings.unanswered(now) for now in (14.9, 15, 15.2, 15.4)]
        self.assertEqual(told, [[], [self.anna], [], []])

    def test_a_sign_before_the_look_is_one(self) -> None:
        self.pings.sent(self.anna, 0)
        self.assertEqual(self.pings.unanswered(14.9), [])
        self.anna.signs += 1
        self.assertEqual([self.pings.unanswered(now) for now in (15.2, 99)], [[], []])
        self.assertEqual(self.pings.due(40), [self.anna])

    def test_who_leaves_is_told_of_no_more(self) -> None:
        for leaves_at in (1.0, 14.9):
            anna = Somebody()
            self.pings.opened(anna)
            self.pings.sent(anna, 0)
            self.pings.unanswered(leaves_at)
            self.pings.left(anna)
            self.assertEqual([self.pings.unanswered(now) for now in (16, 17)], [[], []])
