"""Token buckets: a limit on how many at once, and on how many a second in the long run.

Pure: the time is passed in. This module must not know what follows when there is no token.

The clock may be set back. Under twistd it only runs forward, but another program may use Twisted's own clock, which is
the wall clock.
"""

from __future__ import annotations

import math

MINUTE = 60.0
"""The seconds in a minute."""


class TokenBucket:
    """A bucket of tokens: it limits how many are taken at once, and how many a second in the long run.

    It begins full. `take` takes a token out, if there is one. Tokens come back as time passes, up to the burst. So in
    any period, no more are taken than the burst and what comes back in that period.

    A clock that is set back brings no tokens back. One that is set forward fills the bucket, and no more.

    Times are counted in tokens: seconds times `rate`.

    :param rate: tokens that come back a second; 0 for no limit.
    :param burst: tokens it holds when full, at least one; 0 for no limit.
    :ivar full_at: the time when it will be full, in tokens.
    :ivar room: how far ahead `full_at` may be while there is still a token to take.
    """

    # Only `full_at` changes. It is exact up to 2**53, which is reached only at a rate of millions a second.
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
        """Return how many whole tokens could be taken now; infinity if there is no limit."""
        if self.room == math.inf:
            return math.inf
        at = now * self.rate
        if self.full_at - at > self.room:
            self.refuse(at)
        return math.floor(self.room + 1.0 - max(0.0, self.full_at - at))

    def is_full(self, now: float) -> bool:
        """Return whether it holds as many tokens as a new one."""
        return self.room == math.inf or self.full_at <= now * self.rate

    @property
    def level(self) -> float:
        """A number that changes with each token that is taken."""
        return self.full_at

    @property
    def seconds_to_fill(self) -> float:
        """Seconds until an empty bucket is full; 0 if there is no limit."""
        return 0.0 if self.room == math.inf else (self.room + 1.0) / self.rate

    def refuse(self, at: float) -> bool:
        """Return False, because there is no token to take.

        :param at: the time, in tokens.
        """
        # If the clock was set back, more tokens are missing than the bucket holds. Then it counts as empty.
        self.full_at = min(self.full_at, at + self.room + 1.0)
        return False
