"""Alarms: deadlines that are judged by a timer of their own, in active time.

For what the sweep of connections does not look at: questions to the webserver, requests to the ops endpoint, steps of
stopping. It does not know what a deadline is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self

from twisted.internet.defer import CancelledError, Deferred

from chatrelay.limits.active_time import TICK_SECONDS, ActiveTime
from chatrelay.limits.deadlines import Deadlines, Key

SHORTEST_WAIT = 0.01
"""Seconds from one look to the next, which may have to be a second one at the same deadline."""


class Alarm(Generic[Key]):
    """Deadlines that all lie the same time ahead, with one timer for all of them.

    :param clock: for time and the timer.
    :param seconds: how far ahead a deadline lies; 0 means never.
    :param ring: called with each key whose deadline has passed.
    """

    def __init__(self, clock: Any, seconds: float, ring: Callable[[Key], object]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._deadlines: Deadlines[Key] = Deadlines(seconds)
        self._ring = ring
        self._timer: Any = None
        self._active: ActiveTime | None = None  # while there are deadlines
        self._is_ringing = False

    def set(self, key: Key) -> None:
        """Set the deadline of `key`."""
        if not self.seconds:
            return
        if self._active is None:
            self._active = ActiveTime(self._clock.seconds)
        self._deadlines.start(key, self._active.now())
        if self._timer is None and not self._is_ringing:
            self._wait(self._active)

    def lift(self, key: Key) -> None:
        """Lift the deadline of `key`, if it has one."""
        self._deadlines.stop(key)
        if not self._deadlines and self._timer is not None:
            self._timer.cancel()
            self._timer = self._active = None

    def _look(self) -> None:
        self._timer = None
        active = self._active
        assert active is not None
        self._is_ringing = True
        try:
            now = active.tick()
            # One by one: what rings may lift another that has passed as well, or fail, and the others ring then.
            while self._deadlines and self._deadlines.earliest() <= now:
                key = self._deadlines.first()
                self._deadlines.stop(key)
                self._ring(key)
        finally:
            # The calls above may have set another deadline, or lifted all the others.
            self._is_ringing = False
            if self._deadlines:
                self._wait(active)
            else:
                self._active = None

    def _wait(self, active: ActiveTime) -> None:
        """Look at the next tick, or when the first deadline has passed, where that is sooner."""
        left = self._deadlines.earliest() - active.now()
        self._timer = self._clock.callLater(min(max(left, SHORTEST_WAIT), TICK_SECONDS), self._look)


class TimeLimit:
    """One time limit for steps that follow each other; a context manager.

    :param clock: for time and the timer.
    :param seconds: from the beginning; 0 for no limit.
    """

    def __init__(self, clock: Any, seconds: float) -> None:
        self._alarm: Alarm[TimeLimit] = Alarm(clock, seconds, TimeLimit._pass)
        self._step: Deferred[Any] | None = None
        self._has_passed = False

    async def wait(self, step: Deferred[Any]) -> None:
        """Wait for a step until it is done or the time has passed; then it is cancelled.

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
        self._alarm.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.lift(self)
