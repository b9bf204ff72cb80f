"""The reads of the message log that one client has asked for: one at a time, and a few that wait.

Pure: a read is a callable that is passed in. This module must not know what is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger("chatrelay.relay")

MAX_WAITING_READS = 8
"""The most reads of a connection that may wait behind the one that is under way."""

Read = Callable[[], Deferred[None]]
"""Begins a read. Its Deferred fires when the client has been answered, and does not fail."""


class Reads:
    """The reads of one connection."""

    __slots__ = ("_is_reading", "_waiting")

    def __init__(self) -> None:
        self._is_reading = False
        self._waiting: deque[Read] = deque()

    def add(self, read: Read) -> bool:
        """Do a read, now or when its turn comes.

        :returns: whether it will be done: False if too many wait.
        """
        if self._is_reading and len(self._waiting) >= MAX_WAITING_READS:
            return False
        self._waiting.append(read)
        self._next()
        return True

    def clear(self) -> None:
        """Forget the reads that wait: the connection is closing or gone."""
        self._waiting.clear()

    def _next(self) -> None:
        # A loop, so that many reads that are done at once do not become as many nested calls.
        while self._waiting and not self._is_reading:
            self._is_reading = True
            reading = maybeDeferred(self._waiting.popleft())
            reading.addErrback(self._report)
            reading.addCallback(self._done)
            if self._is_reading:
                reading.addCallback(lambda _: self._next())

    def _done(self, _: None) -> None:
        self._is_reading = False

    def _report(self, failure: Failure) -> None:
        log.failure("answering a request from the message log failed; please report it", failure=failure)
