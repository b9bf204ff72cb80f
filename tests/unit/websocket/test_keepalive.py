"""When each connection is due for a ping, and which ones are found silent."""

from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.websocket.keepalive import MAX_SLOTS, MIN_SLOT_SECONDS, Pings, PingSchedule


@attrs.define(eq=False)
class Peer:
    """A connection."""

    messages: int = 0

    def activity(self) -> object:
        """Return how many messages came."""
        return self.messages


class PingScheduleTests(SynchronousTestCase):
    """Slots, spread over an interval."""

    @given(
        st.floats(0.05, 10_000),
        st.lists(st.floats(0, 1), min_size=1, max_size=20),
        st.lists(st.floats(0.001, 0.2), min_size=1, max_size=50),
    )
    def test_each_key_is_due_once_in_an_interval(
        self, interval: float, chances: list[float], steps: list[float]
    ) -> None:
        drawn = iter(chances)
        schedule: PingSchedule[int] = PingSchedule(interval, lambda: next(drawn))
        for key in range(len(chances)):
            schedule.add(key)
        schedule.due(0.0)
        came: Counter[int] = Counter()
        # By then, the last slot of the first interval has passed, and no other.
        end = interval * (1 + 0.5 / min(MAX_SLOTS, max(1, round(interval / MIN_SLOT_SECONDS))))
        now = 0.0
        for step in [*steps, 1.0]:
            now = min(now + step * interval, end)
            came.update(schedule.due(now))
        came.update(schedule.due(end))
        self.assertEqual(set(came), set(range(len(chances))))
        self.assertEqual(set(came.values()), {1})

    def test_long_interval_has_max_slots(self) -> None:
        schedule: PingSchedule[str] = PingSchedule(2.0**31, lambda: 0.999)
        schedule.add("a")
        schedule.due(0)
        self.assertEqual(schedule.due(2.0**31 * (1 - 2 / MAX_SLOTS)), [])
        self.assertEqual(schedule.due(2.0**31), ["a"])

    def test_after_a_long_pause_each_key_is_due_once(self) -> None:
        schedule: PingSchedule[int] = PingSchedule(20, lambda: 0.5)
        for key in range(3):
            schedule.add(key)
        schedule.due(0)
        self.assertEqual(schedule.due(1e6), [0, 1, 2])

    def test_clock_set_back_delays_keys_by_one_interval(self) -> None:
        schedule: PingSchedule[str] = PingSchedule(20, lambda: 0.5)
        schedule.add("a")
        schedule.due(3600)
        self.assertEqual(schedule.due(0), [])
        self.assertEqual(schedule.due(20), ["a"])

    def test_removed_key_is_never_due(self) -> None:
        schedule: PingSchedule[str] = PingSchedule(1, lambda: 0.5)
        schedule.add("a")
        schedule.add("a")
        schedule.remove("a")
        schedule.remove("a")
        schedule.due(0)
        self.assertEqual((schedule.due(10), len(schedule)), ([], 0))

    def test_interval_0_makes_no_key_due(self) -> None:
        schedule: PingSchedule[str] = PingSchedule(0, lambda: 0.5)
        schedule.add("a")
        schedule.due(0)
        self.assertEqual((schedule.due(1e9), len(schedule)), ([], 0))


class PingsTests(SynchronousTestCase):
    """Pings and the activity after them."""

    def setUp(self) -> None:
        self.pings: Pings[Peer] = Pings(20, 15, lambda: 0.5)
        self.pings.due(0)
        self.anna = Peer()
        self.pings.opened(self.anna)

    def test_connection_is_not_due_again_before_its_timeout(self) -> None:
        pings: Pings[Peer] = Pings(5, 12, lambda: 0.5)
        pings.due(0)
        pings.opened(self.anna)
        for now in range(5, 17):
            pinged = pings.due(now)
            self.assertEqual(pinged, [self.anna] if now == 5 else [])
            for connection in pinged:
                pings.sent(connection, now)
            self.assertEqual(pings.unanswered(now), [])
        self.anna.messages = 1
        self.assertEqual(pings.unanswered(17), [])
        self.assertEqual([pings.due(now) for now in range(18, 22)].count([self.anna]), 1)

    def test_active_connection_is_due_in_each_interval(self) -> None:
        pings: Pings[Peer] = Pings(5, 12, lambda: 0.5)
        pings.due(0)
        pings.opened(self.anna)
        pinged = 0
        for now in range(60):
            for connection in pings.due(now):
                pinged += 1
                pings.sent(connection, now)
                self.anna.messages += 1
            self.assertEqual(pings.unanswered(now), [])
        self.assertEqual(pinged, 12)

    def test_silent_connection_is_returned_once(self) -> None:
        self.pings.sent(self.anna, 0)
        found = [self.pings.unanswered(now) for now in (14.9, 15, 15.2, 15.4)]
        self.assertEqual(found, [[], [self.anna], [], []])

    def test_activity_after_the_deadline_and_before_the_check_counts(self) -> None:
        self.pings.sent(self.anna, 0)
        self.assertEqual(self.pings.unanswered(14.9), [])
        self.anna.messages += 1
        self.assertEqual([self.pings.unanswered(now) for now in (15.2, 99)], [[], []])
        self.assertEqual(self.pings.due(40), [self.anna])

    def test_closing_connection_is_never_silent(self) -> None:
        for closes_at in (1.0, 14.9):
            anna = Peer()
            self.pings.opened(anna)
            self.pings.sent(anna, 0)
            self.pings.unanswered(closes_at)
            self.pings.closing(anna)
            self.assertEqual([self.pings.unanswered(now) for now in (16, 17)], [[], []])
