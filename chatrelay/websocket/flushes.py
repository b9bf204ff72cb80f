"""The flushes: at the end of each turn of the reactor, what was sent in it is written.

The outboxes and the reactor's timer are passed in. This module must not know what is written, nor how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.logger import Logger

log = Logger("chatrelay.websocket")


class Flushed(Protocol):
    """An outbox with messages to write; `chatrelay.websocket.outbox.Outbox` is one."""

    def flush(self) -> None:
        """Write what was appended."""


class FlushScheduler:
    """Flushes, at the end of a turn of the reactor, the outboxes with new messages.

    :param call_soon: runs a callable in a later turn of the reactor.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._later = call_soon
        self._scheduled: list[Flushed] = []
        self._flushes_itself = False

    def schedule(self, outbox: Flushed) -> None:
        """Flush an outbox at the end of this turn."""
        if not self._scheduled and not self._flushes_itself:
            self._later(self._flush)
        self._scheduled.append(outbox)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run a callable in a later turn of the reactor, and flush what it has sent in that turn."""

        def call_and_flush() -> None:
            self._flushes_itself = True
            try:
                call()
            finally:
                self._flushes_itself = False
                self._flush()

        self._later(call_and_flush)

    def _flush(self) -> None:
        scheduled, self._scheduled = self._scheduled, []
        for outbox in scheduled:
            try:
                outbox.flush()
            # An error with one connection must not keep the others from being written to.
            except Exception:
                log.failure("writing to a connection failed; please report it")
