"""Token buckets: so many at once, and so many a second in the long run.

Pure: the time is handed in. This module must not know what follows when there is no token.

No clock is trusted to run forward only. Under twistd it does, but in another program it may be Twisted's own, the wall
clock, which somebody may set.
"""

from __future__ import annotations

import math

MINUTE = 60.0
"""Seconds."""


class TokenBucket:
    """A bucket of tokens: so many at once, and so many a second in the long run.

    It begins full. `take` takes a token out, if there is one. Tokens come back as time passes, up to the burst. So over
    any time no more are taken than the burst and what comes back in it.

    A clock that is set back brings no tokens back. One that is set forward fills the bucket, and no more.

    :param rate: tokens that come back a second; 0 for no limit.
    :param burst: tokens it holds when full, at least one; 0 for no limit.
    :ivar full_at: when it will be full, in tokens that come back.
    :ivar room: how far ahead that may be for there to be a token.
    """

    # All that changes is one number: when it will be full, with time counted in tokens that come back. Beyond 2**53 of
    # them, which takes a rate of millions a second, that is not exact.
    __slots__ = ("full_at", "rate", "room")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.room = max(1.0, burst) - 1.0 if rate and burst else math.inf
        self.full_at = 0.0

    def take(self, now: float) -> bool:
        """Take a token, and return whether there was one.

        :param now: seconds of any clock, the same at each call.
        """
        at = now * self.rate
        full_at = self.full_at
        if full_at < at:
            full_at = at
        elif full_at - at > self.room:
            return self.refuse(at)
        self.full_at = full_at + 1.0
        return True

    def remaining(self, now: float) -> float:
        """Return how many whole tokens could be taken now; infinity where there is no limit."""
        if self.room == math.inf:
            return math.inf
        at = now * self.rate
        if self.full_at - at > self.room:
            self.refuse(at)
        return math.floor(self.room + 1.0 - max(0.0, self.full_at - at))

    def is_full(self, now: float) -> bool:
        """Return whether it is as good as a new one."""
        return self.room == math.inf or self.full_at <= now * self.rate

    @property
    def level(self) -> float:
        """A number that changes with each token that is taken."""
        return self.full_at

    @property
    def seconds_to_fill(self) -> float:
        """Seconds until an empty bucket is full; 0 where there is no limit."""
        return 0.0 if self.room == math.inf else (self.room + 1.0) / self.rate

    def refuse(self, at: float) -> bool:
        """Return False, as there is no token to take.

        :param at: the time, in tokens that come back.
        """
        # More than all are missing where the clock was set back: then all are.
        self.full_at = min(self.full_at, at + self.room + 1.0)
        return False
