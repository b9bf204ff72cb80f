"""A bound on log messages that anybody can cause, such as one for each refused handshake.

It counts by kind, and logs how many messages it kept back. This module must not know what the messages say.
"""

from __future__ import annotations

from collections import Counter

from twisted.logger import Logger

log = Logger("chatrelay.websocket")

MAX_PER_SWEEP = 25
"""Log messages of one kind between two sweeps."""


class LogLimiter:
    """Allows so many log messages of one kind between two calls of `report`, and counts the others."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def allow(self, kind: str) -> bool:
        """Count one more log message, and return whether to log it.

        :param kind: what it is about, in words for the operator: ``handshakes refused``.
        """
        self._counts[kind] += 1
        return self._counts[kind] <= MAX_PER_SWEEP

    def report(self) -> None:
        """Log how many messages were not allowed, and restart the count."""
        counts, self._counts = self._counts, Counter()
        for kind, count in counts.items():
            if count > MAX_PER_SWEEP:
                log.info("too many log messages at once: {count} more {what}", count=count - MAX_PER_SWEEP, what=kind)
