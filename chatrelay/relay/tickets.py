"""What has begun and is not finished yet, so that stopping can wait for it.

Pure. This module must not know what it is that has begun.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed


class Tickets:
    """The submissions that are not finished yet, so that stopping can wait for them.

    :ivar pending: their numbers, the oldest first.
    """

    def __init__(self) -> None:
        self._last = 0
        self.pending: dict[int, None] = {}
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def open(self) -> int:
        """Begin something, and return its number."""
        self._last += 1
        self.pending[self._last] = None
        return self._last

    def close(self, number: int) -> None:
        """Finish something."""
        del self.pending[number]
        waiting, self._waiting = self._waiting, []
        for last, all_closed in waiting:
            if next(iter(self.pending), last + 1) > last:
                all_closed.callback(None)
            else:
                self._waiting.append((last, all_closed))

    def all_closed(self) -> Deferred[None]:
        """Wait until everything that has begun is finished. Do not wait for what begins later."""
        if not self.pending:
            return succeed(None)
        self._waiting.append((self._last, Deferred()))
        return self._waiting[-1][1]
