"""Timers for deadlines that the sweep of connections does not check: requests to the site, and steps of the shutdown.

They count active time, which stands still while the process is held up. The clock is passed in. This module must not
know what a deadline is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self

from twisted.internet.defer import CancelledError, Deferred

from chatrelay.limits.active_time import TICK_SECONDS, ActiveTime
from chatrelay.limits.deadlines import Deadlines, Key

MIN_WAIT_SECONDS = 0.01
"""The shortest timer, in seconds. A timer may fire a little early; then the same deadline needs a second one."""


class DeadlineTimer(Generic[Key]):
    """Deadlines that are all set the same time ahead, with one timer for all of them.

    :param clock: for time and the timer.
    :param seconds: how far ahead each deadline is set; 0 for no deadlines.
    :param expired: called with each key whose deadline has passed.
    """

    def __init__(self, clock: Any, seconds: float, expired: Callable[[Key], object]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._deadlines: Deadlines[Key] = Deadlines(seconds)
        self._expired = expired
        self._timer: Any = None
        self._active: ActiveTime | None = None  # while there are deadlines
        self._is_expiring = False

    def start(self, key: Key) -> None:
        """Set the deadline of `key`."""
        if not self.seconds:
            return
        if self._active is None:
            self._active = ActiveTime(self._clock.seconds)
        self._deadlines.start(key, self._active.now())
        if self._timer is None and not self._is_expiring:
            self._wait(self._active)

    def stop(self, key: Key) -> None:
        """Remove the deadline of `key`, if it has one."""
        self._deadlines.stop(key)
        self._stop_if_idle()

    def clear(self) -> None:
        """Remove all deadlines."""
        self._deadlines.clear()
        self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if not self._deadlines and self._timer is not None:
            self._timer.cancel()
            self._timer = self._active = None

    def _check(self) -> None:
        self._timer = None
        active = self._active
        assert active is not None
        self._is_expiring = True
        try:
            now = active.tick()
            # One by one, because each call may stop another deadline that has passed. If a call fails, the others are
            # checked next time.
            while self._deadlines and self._deadlines.earliest() <= now:
                key = self._deadlines.first()
                self._deadlines.stop(key)
                self._expired(key)
        finally:
            # The calls may have set another deadline, or stopped all the others.
            self._is_expiring = False
            if self._deadlines:
                self._wait(active)
            else:
                self._active = None

    def _wait(self, active: ActiveTime) -> None:
        """Check at the next tick, or when the first deadline has passed if that is sooner."""
        seconds = self._deadlines.earliest() - active.now()
        self._timer = self._clock.callLater(min(max(seconds, MIN_WAIT_SECONDS), TICK_SECONDS), self._check)


class TimeLimit:
    """One time limit for all steps of a sequence; a context manager.

    :param clock: for time and the timer.
    :param seconds: the time for all steps together; 0 for no limit.
    """

    def __init__(self, clock: Any, seconds: float) -> None:
        self._timer: DeadlineTimer[TimeLimit] = DeadlineTimer(clock, seconds, TimeLimit._pass)
        self._step: Deferred[Any] | None = None
        self._has_passed = False

    async def wait(self, step: Deferred[Any]) -> None:
        """Wait until a step is done. If the time runs out first, cancel it.

        :raises Exception: what the step fails with.
        """
        self._step = step
        if self._has_passed:
            step.cancel()
        try:
            await step
        except CancelledError:
            if not self._has_passed:
                raise
        finally:
            self._step = None

    def _pass(self) -> None:
        self._has_passed = True
        if self._step is not None:
            self._step.cancel()

    def __enter__(self) -> Self:
        self._timer.start(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.stop(self)
