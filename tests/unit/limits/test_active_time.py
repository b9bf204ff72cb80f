"""Active time and timers: a hold-up of the process delays a deadline, but not without bound."""

from __future__ import annotations

import contextlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.active_time import (
    HELD_UP_SECONDS,
    LATE_SECONDS,
    MAX_HOLD_UPS,
    RECOVERY_SECONDS,
    SECONDS_PER_HOLD_UP,
    TICK_SECONDS,
    ActiveTime,
)
from chatrelay.limits.deadlines import Deadlines
from chatrelay.limits.timers import DeadlineTimer, TimeLimit

DEADLINE = 10.0
"""Seconds."""


class Process:
    """A process with one deadline, which ticks when it can.

    :ivar judged: what the last tick returned.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.active = ActiveTime(self.clock.seconds)
        self.judged = 0.0
        self.active.tick()  # the reactor runs

    def tick(self, *after: float) -> float:
        """Tick after each of these delays, and return what the last tick returns."""
        for seconds in after:
            self.clock.rightNow += seconds
            self.judged = self.active.tick()
        return self.judged

    def run(self, seconds: float) -> float:
        """Tick punctually."""
        return self.tick(*[TICK_SECONDS] * round(seconds / TICK_SECONDS))


class ActiveTimes(SynchronousTestCase):
    """Active time, which only counts."""

    def setUp(self) -> None:
        self.process = Process()

    def test_punctual_ticks_follow_the_clock(self) -> None:
        for _ in range(100):
            self.assertEqual(self.process.run(0.25), self.process.clock.seconds())
            self.assertEqual(self.process.active.now(), self.process.clock.seconds())

    def test_time_begins_with_the_first_tick(self) -> None:
        clock = Clock()
        active = ActiveTime(clock.seconds)
        for _ in range(2):
            before = active.now()
            clock.rightNow += 25
            self.assertEqual((active.tick(), active.held_up), (before, 0))
            clock.rightNow += 0.25
            self.assertEqual(active.tick(), before + 0.25)
            clock.rightNow += 3600
            active.begin()

    def test_tick_reports_a_hold_up(self) -> None:
        found = [(self.process.tick(seconds), self.process.active.held_up)[1] for seconds in (1.0, 1.25, 7.0, 0.25)]
        self.assertEqual(found, [0, 0, 7, 0])

    def test_time_goes_on_between_ticks(self) -> None:
        self.process.clock.advance(0.2)
        self.assertEqual(self.process.active.now(), 0.2)
        self.process.clock.advance(100)
        self.assertEqual(self.process.active.now(), HELD_UP_SECONDS)

    def test_late_tick_judges_by_the_time_of_the_previous_tick(self) -> None:
        self.process.run(1)
        self.assertEqual(self.process.tick(LATE_SECONDS), 1 + LATE_SECONDS)
        before = self.process.judged
        self.assertEqual(self.process.tick(0.5), before)
        self.assertEqual(self.process.tick(0.25), before + 0.75)

    def test_each_of_many_late_ticks_judges_by_its_previous_tick(self) -> None:
        for number in range(100):
            self.assertEqual(self.process.tick(1.0), number)

    def test_hold_up_and_recovery_do_not_count(self) -> None:
        for seconds in (HELD_UP_SECONDS + 0.01, 25.0, 3600.0):
            process = Process()
            process.run(5)
            self.assertEqual(process.tick(seconds), 5)
            self.assertEqual(process.active.now(), 5)
            self.assertEqual(process.run(RECOVERY_SECONDS), 5)
            self.assertEqual(process.active.now(), 5)
            self.assertEqual(process.run(0.25), 5.25)
            self.assertEqual(process.run(5), 10.25)

    def test_recovery_lasts_a_number_of_ticks(self) -> None:
        self.process.tick(25)
        # Ticks are late because reading takes long.
        self.assertEqual(self.process.tick(*[1.0] * 8), 0)
        self.assertEqual(self.process.tick(0.25), 0.25)

    def test_recovery_lasts_as_long_with_more_frequent_ticks(self) -> None:
        self.process.tick(25)
        self.assertEqual(self.process.tick(*[0.0625] * 32), 0)
        self.assertEqual(self.process.tick(0.0625), 0.0625)

    def test_hold_ups_in_a_row_do_not_count_up_to_a_limit(self) -> None:
        for _ in range(MAX_HOLD_UPS):
            self.assertEqual(self.process.tick(6.0, 0.25), 0)
        self.process.run(RECOVERY_SECONDS)
        self.process.run(SECONDS_PER_HOLD_UP)
        before = self.process.judged
        self.assertEqual(self.process.tick(6.0), before)
        self.assertEqual(self.process.active.now(), before)

    def test_busy_relay_does_not_extend_a_deadline_forever(self) -> None:
        for turn in (0.5, 1.0, 1.3, 2.0, 5.0):
            process = Process()
            while process.judged < DEADLINE:
                process.tick(turn)
                self.assertLess(process.clock.seconds(), 200)
            # The time that hold-ups add, and the last two ticks.
            most = (MAX_HOLD_UPS + DEADLINE / SECONDS_PER_HOLD_UP) * turn * (1 + RECOVERY_SECONDS / TICK_SECONDS)
            self.assertLessEqual(process.clock.seconds(), DEADLINE + most + 2 * turn)

    def test_attack_slows_time_by_less_than_half(self) -> None:
        # The worst there is: as soon as a hold-up does not count, there is one, and then everything is in time again.
        while self.process.clock.seconds() < 10_000:
            self.process.tick(HELD_UP_SECONDS + 0.01)
            self.process.run(RECOVERY_SECONDS)
        self.assertGreater(self.process.judged, 5_000)

    def test_clock_that_is_set_back_moves_no_deadline(self) -> None:
        self.process.run(1)
        self.assertEqual(self.process.tick(-3600), 1)
        self.assertEqual(self.process.run(1), 2)
        self.process.tick(3600)
        self.assertEqual(self.process.active.now(), 2)

    @given(st.lists(st.one_of(st.floats(-10, 100), st.just(TICK_SECONDS)), max_size=200))
    def test_time_never_goes_back_and_never_ahead_of_the_clock(self, ticks: list[float]) -> None:
        process = Process()
        judged, read, forward = [0.0], [0.0], 0.0
        for seconds in ticks:
            judged.append(process.tick(seconds))
            forward += max(0.0, seconds)
            read.append(process.active.now())
            self.assertLessEqual(read[-1], forward + 1e-6)
            self.assertLessEqual(judged[-1], read[-1])
        self.assertTrue(all(later >= earlier for earlier, later in (*pairwise(judged), *pairwise(read))))

    def test_deadlines_keep_their_order_through_a_hold_up(self) -> None:
        deadlines: Deadlines[str] = Deadlines(DEADLINE)
        self.process.run(1)
        deadlines.start("before", self.process.active.now())
        self.process.clock.rightNow += 100
        deadlines.start("as it goes on", self.process.active.now())
        self.process.tick(0)
        deadlines.start("after", self.process.active.now())
        self.assertEqual(deadlines.expired(self.process.run(RECOVERY_SECONDS + DEADLINE - 0.25)), [])
        self.assertEqual(deadlines.expired(self.process.run(0.25)), ["before"])
        self.assertEqual(deadlines.expired(self.process.run(HELD_UP_SECONDS)), ["as it goes on", "after"])


class DeadlineTimers(SynchronousTestCase):
    """Deadlines expire on time, and later after a hold-up."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.expired: list[tuple[str, float]] = []

    def expire(self, name: str) -> None:
        """Record that the deadline expired."""
        self.expired.append((name, self.clock.seconds()))

    def test_slow_deadline_does_not_delay_the_others(self) -> None:
        def expire(name: str) -> None:
            self.expire(name)
            if name == "first":
                timer.start("next")  # whose turn it is now that the first has been removed

        timer = DeadlineTimer[str](self.clock, 5, expire)
        timer.start("first")
        self.clock.pump([0.25] * 4)
        timer.start("second")
        self.clock.pump([0.25] * 60)
        self.assertEqual(self.expired, [("first", 5), ("second", 6), ("next", 10)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadline_between_two_ticks_is_not_late(self) -> None:
        timer = DeadlineTimer[str](self.clock, 0.625, self.expire)
        timer.start("a")
        self.clock.pump([0.125] * 10)
        self.assertEqual(self.expired, [("a", 0.625)])

    def test_deadline_stopped_during_recovery_does_not_expire(self) -> None:
        timer = DeadlineTimer[str](self.clock, 2, self.expire)
        for name in ("answered", "silent"):
            timer.start(name)
        self.clock.pump([0.25] * 4)
        self.clock.advance(25)
        self.clock.pump([0.25] * 7)
        self.assertEqual(self.expired, [])
        timer.stop("answered")
        self.clock.pump([0.25] * 10)
        # It had one second yet, and two of them do not count.
        self.assertEqual([name for name, _ in self.expired], ["silent"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cleared_deadlines_do_not_expire_and_leave_no_timer(self) -> None:
        timer = DeadlineTimer[str](self.clock, 2, self.expire)
        for name in ("a", "b"):
            timer.start(name)
        timer.clear()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        timer.start("c")
        self.clock.pump([0.25] * 20)
        self.assertEqual([name for name, _ in self.expired], ["c"])

    def test_late_timer_expires_at_the_second_check(self) -> None:
        timer = DeadlineTimer[str](self.clock, 2, self.expire)
        timer.start("a")
        self.clock.pump([0.25] * 7)
        self.clock.advance(0.75)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.01)
        self.assertEqual([name for name, _ in self.expired], ["a"])

    def test_deadline_stopped_by_another_one_does_not_expire(self) -> None:
        def expire(name: str) -> None:
            self.expire(name)
            timer.stop("b")
            timer.stop("c")
            timer.start("d")
            timer.stop("d")

        timer = DeadlineTimer[str](self.clock, 1, expire)
        timer.start("a")
        timer.start("b")  # at the same time as the one before
        self.clock.advance(0.25)
        timer.start("c")
        self.clock.pump([0.25] * 20)
        self.assertEqual(self.expired, [("a", 1)])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        timer.start("a")
        self.clock.pump([0.25] * 4)
        self.assertEqual(len(self.expired), 2)

    def test_error_at_one_deadline_does_not_stop_the_others(self) -> None:
        def expire(name: str) -> None:
            self.expire(name)
            raise ZeroDivisionError

        timer = DeadlineTimer[str](self.clock, 1, expire)
        timer.start("a")
        timer.start("b")  # at the same time as the one before
        self.clock.advance(0.25)
        timer.start("c")
        for _ in range(8):
            with contextlib.suppress(ZeroDivisionError):
                self.clock.advance(0.25)
        self.assertEqual([name for name, _ in self.expired], ["a", "b", "c"])

    def test_deadline_of_zero_seconds_never_expires(self) -> None:
        timer = DeadlineTimer[str](self.clock, 0, self.expire)
        timer.start("a")
        timer.stop("a")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class TimeLimits(SynchronousTestCase):
    """Steps that share one time limit."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.done: list[str] = []

    async def steps(self, seconds: float, *steps: Deferred[None]) -> None:
        """Wait for each step in turn."""
        with TimeLimit(self.clock, seconds) as limit:
            for number, step in enumerate(steps):
                await limit.wait(step)
                self.done.append(f"{number} at {self.clock.seconds()}")

    def test_steps_share_the_time_limit(self) -> None:
        first: Deferred[None] = Deferred()
        stopping = Deferred.fromCoroutine(self.steps(2, first, Deferred(), Deferred(), succeed(None)))
        self.clock.pump([0.25] * 4)
        first.callback(None)
        self.clock.pump([0.25] * 4)
        self.assertEqual(self.done, ["0 at 1.0", "1 at 2.0", "2 at 2.0", "3 at 2.0"])
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hold_up_does_not_count_for_steps(self) -> None:
        step: Deferred[None] = Deferred()
        stopping = Deferred.fromCoroutine(self.steps(2, step))
        self.clock.pump([0.25] * 7)
        self.clock.advance(25)
        self.clock.pump([0.25] * 8)
        self.assertEqual(self.done, [])
        step.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_error_of_a_step_is_raised_and_leaves_no_timer(self) -> None:
        step: Deferred[None] = Deferred()
        stopping = Deferred.fromCoroutine(self.steps(2, step))
        step.errback(ZeroDivisionError())
        self.failureResultOf(stopping, ZeroDivisionError)
        step = Deferred()
        stopping = Deferred.fromCoroutine(self.steps(2, step))
        step.cancel()
        self.failureResultOf(stopping, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_time_limit_of_zero_is_no_limit(self) -> None:
        stopping = Deferred.fromCoroutine(self.steps(0, Deferred()))
        self.clock.pump([0.25] * 400)
        self.assertNoResult(stopping)
