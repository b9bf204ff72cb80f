"""Which refused origins are logged.

Pure: the time is handed in. It must not know which origins are allowed, nor how a log message is written.

A page whose origin should have been allowed is refused each time somebody opens it, and tries again. A client that is
not a browser can make up an origin for each handshake. The operator must hear of the former, however many there are of
the latter.
"""

from __future__ import annotations

from chatrelay.limits.buckets import MINUTE, TokenBucket

MAX_TOLD = 100
"""Origins that are remembered as told; past that, all are forgotten and may be told again."""

MAX_SEEN = 10_000
"""Origins that are remembered as refused but not told; one more displaces the oldest."""

LINES_PER_MINUTE = 10
"""Origins that are told at once and each minute, of those refused for the first time and of the others each."""


class RefusedOrigins:
    """Refused origins that were told, and those that were only counted."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        # Their hashes do: an origin may be as long as a handshake.
        self._seen: dict[int, None] = {}
        self._first = TokenBucket(LINES_PER_MINUTE / MINUTE, LINES_PER_MINUTE)
        self._again = TokenBucket(LINES_PER_MINUTE / MINUTE, LINES_PER_MINUTE)
        self._untold = 0
        self._untold_since = 0.0

    def refused(self, origin: str, now: float) -> bool:
        """An origin was refused; whether the operator should be told."""
        if origin in self._told:
            return False
        seen = hash(origin)
        # What tries again has lines of its own: an origin made up for each handshake does not.
        if (self._again if seen in self._seen else self._first).take(now):
            self._seen.pop(seen, None)
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told.add(origin)
            return True
        if seen not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            self._seen[seen] = None
        if not self._untold:
            self._untold_since = now
        self._untold += 1
        return False

    def untold(self, now: float, at_least: float = MINUTE) -> int:
        """How many handshakes were refused for origins that were not told; each is counted once.

        :param at_least: seconds over which they are gathered; 0 until then.
        """
        if now < self._untold_since:  # the clock was set back
            self._untold_since = now
        if not self._untold or now - self._untold_since < at_least:
            return 0
        untold, self._untold = self._untold, 0
        return untold

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._told) + len(self._seen)
