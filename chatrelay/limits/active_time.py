"""Active time: a clock for deadlines that stands still while the process is held up.

Pure: the clock that it reads is passed in, and the code that checks deadlines calls `tick`, four times a second. This
module must not know what a deadline is for, nor what follows when it has passed.

While a process is stopped, or its machine is suspended or migrated, it reads nothing, but clients and the site
continue. When the process continues, Twisted runs the timers that are due before it reads what has arrived, and it
reads one piece of each connection in each turn of the reactor. If deadlines were checked at that moment, connections
whose bytes came in time would be closed. So:

- A late tick checks deadlines by the time of the tick before it. A deadline that has passed since is checked again at
  the next tick.
- A very late tick shows that the process was held up. That time does not count, and neither do the two seconds after
  it, in which the process reads what has arrived.

An overloaded relay ticks late, too. Then the end of each deadline is noticed one tick later. The number of hold-ups
that do not count is limited, so that a client that keeps the relay busy can't keep its connection for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from chatrelay.limits.buckets import TokenBucket

TICK_SECONDS = 0.25
"""Seconds between two ticks."""

LATE_SECONDS = 0.375
"""If more seconds than this pass between two ticks, the second one is late."""

HELD_UP_SECONDS = 1.25
"""If more seconds than this pass between two ticks, the process was held up."""

RECOVERY_SECONDS = 2.0
"""Seconds after a hold-up in which time stands still. A late tick shortens them no more than one that is on time."""

MAX_HOLD_UPS = 5
"""The most hold-ups in a row whose time does not count."""

SECONDS_PER_HOLD_UP = 10.0
"""Active seconds after which the time of one more hold-up does not count."""


class ActiveTime:
    """The time in which the process was able to read.

    :param seconds: any clock, even one that may be set back or forward.
    :ivar held_up: seconds of the hold-up that the last tick has found; 0 if it found none, or one whose time counts.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.held_up = 0.0
        self._seconds = seconds
        self._ticked_at = seconds()
        self._has_ticked = False
        self._active = 0.0  # at the last tick
        self._recovery = 0.0  # seconds that remain of it
        self._hold_ups = TokenBucket(1 / SECONDS_PER_HOLD_UP, MAX_HOLD_UPS)

    def begin(self) -> None:
        """Begin to tick, at first or after a break in which nothing had a deadline."""
        self._ticked_at = self._seconds()
        self._has_ticked = False

    def now(self) -> float:
        """Return the active seconds so far, by which to set a deadline."""
        if self._recovery:
            return self._active
        return self._active + min(max(0.0, self._seconds() - self._ticked_at), HELD_UP_SECONDS)

    def tick(self) -> float:
        """Note that the reactor runs; return the active seconds by which to check deadlines now."""
        now = self._seconds()
        passed = max(0.0, now - self._ticked_at)
        self._ticked_at = now
        before, self.held_up = self._active, 0.0
        is_first, self._has_ticked = not self._has_ticked, True
        if is_first and passed > LATE_SECONDS:
            pass  # a deadline that was set before the reactor ran still has all its time
        elif passed > HELD_UP_SECONDS and self._hold_ups.take(before):
            self.held_up = passed
            self._recovery = RECOVERY_SECONDS
        elif self._recovery:
            self._recovery = max(0.0, self._recovery - min(passed, TICK_SECONDS))
        else:
            self._active = before + passed
        return before if passed > LATE_SECONDS else self._active
