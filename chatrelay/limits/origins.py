"""Refused origins: which of them are logged, and which are only counted.

Pure: the time is passed in. This module must not know which origins are allowed, nor how a log message is written.

A page whose origin should have been allowed is refused each time somebody opens it, and tries again. A client that is
not a browser can make up an origin for each handshake. The operator must see the origins of pages in the log, however
many made-up origins there are.
"""

from __future__ import annotations

from chatrelay.limits.buckets import MINUTE, TokenBucket

MAX_LOGGED = 100
"""The most origins that are remembered as logged. One more makes the relay forget all, so each may be logged again."""

MAX_SEEN = 10_000
"""The most origins that are remembered as refused but not logged. One more displaces the oldest."""

LINES_PER_MINUTE = 10
"""How many new origins may be logged, at once and per minute. Origins that were refused before have the same limit."""


class RefusedOrigins:
    """The refused origins that were logged, and the count of the others."""

    def __init__(self) -> None:
        self._logged: set[str] = set()
        # Only hashes of origins, because an origin may be as long as a handshake.
        self._seen: dict[int, None] = {}
        self._first = TokenBucket(LINES_PER_MINUTE / MINUTE, LINES_PER_MINUTE)
        self._again = TokenBucket(LINES_PER_MINUTE / MINUTE, LINES_PER_MINUTE)
        self._unlogged = 0
        self._unlogged_since = 0.0

    def refused(self, origin: str, now: float) -> bool:
        """Note that an origin was refused, and return whether to log it."""
        if origin in self._logged:
            return False
        seen = hash(origin)
        # Origins that were refused before have a separate limit, which made-up origins can't use up.
        if (self._again if seen in self._seen else self._first).take(now):
            self._seen.pop(seen, None)
            if len(self._logged) >= MAX_LOGGED:
                self._logged.clear()
            self._logged.add(origin)
            return True
        if seen not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            self._seen[seen] = None
        if not self._unlogged:
            self._unlogged_since = now
        self._unlogged += 1
        return False

    def take_unlogged(self, now: float, at_least: float = MINUTE) -> int:
        """Return how many handshakes were refused without a log message, and restart the count.

        :param at_least: the fewest seconds for which they must have been counted; before that, return 0.
        """
        if now < self._unlogged_since:  # the clock was set back
            self._unlogged_since = now
        if not self._unlogged or now - self._unlogged_since < at_least:
            return 0
        unlogged, self._unlogged = self._unlogged, 0
        return unlogged

    def __len__(self) -> int:
        """Return how many origins are remembered."""
        return len(self._logged) + len(self._seen)
