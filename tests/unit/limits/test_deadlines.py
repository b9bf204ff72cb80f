"""Deadlines, compared with one timer for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.deadlines import Deadlines


class DeadlinesTests(SynchronousTestCase):
    """Deadlines without timers."""

    def test_passed_deadlines_are_returned_once_oldest_first(self) -> None:
        deadlines: Deadlines[str] = Deadlines(10)
        deadlines.start("a", 0)
        deadlines.start("b", 1)
        self.assertEqual(deadlines.expired(9.9), [])
        self.assertEqual(deadlines.expired(10), ["a"])
        self.assertEqual(deadlines.expired(10.9), [])
        self.assertEqual(deadlines.expired(99), ["b"])
        self.assertEqual(len(deadlines), 0)

    def test_cleared_deadlines_never_pass(self) -> None:
        deadlines: Deadlines[str] = Deadlines(10)
        deadlines.start("a", 0)
        deadlines.clear()
        self.assertEqual((deadlines.expired(99), len(deadlines)), ([], 0))

    def test_restarted_deadline_is_later_and_stopped_one_never_passes(self) -> None:
        deadlines: Deadlines[str] = Deadlines(10)
        deadlines.start("a", 0)
        deadlines.start("b", 0)
        deadlines.start("c", 0)
        deadlines.start("a", 5)
        deadlines.stop("b")
        deadlines.stop("never started")
        self.assertEqual(deadlines.expired(10), ["c"])
        self.assertEqual(deadlines.expired(15), ["a"])

    def test_deadline_of_zero_seconds_never_passes(self) -> None:
        deadlines: Deadlines[str] = Deadlines(0)
        deadlines.start("a", 0)
        self.assertEqual(deadlines.expired(1e9), [])

    @given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["start", "stop"]), st.integers(0, 5))))
    def test_any_steps_expire_as_one_timer_for_each_would(self, steps: list[tuple[str, str, int]]) -> None:
        deadlines: Deadlines[str] = Deadlines(7)
        timers: dict[str, int] = {}
        now = 0
        for key, what, passed in steps:
            now += passed
            self.assertEqual(set(deadlines.expired(now)), {key for key, due in timers.items() if due <= now})
            timers = {key: due for key, due in timers.items() if due > now}
            if what == "start":
                deadlines.start(key, now)
                timers[key] = now + 7
            else:
                deadlines.stop(key)
                timers.pop(key, None)
