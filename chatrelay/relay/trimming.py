"""Trimming: have the message log delete messages that are older than the option ``keep`` says.

Pure: the message log and the clocks are passed in. This module must not know how a log deletes messages.

Each call of the log deletes few messages. The next call comes when that one is done and a moment has passed. So a batch
of new messages waits for at most one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import TrimmableLog
from chatrelay.model import LogUnavailable

log = Logger("chatrelay.relay")

FEW = 100
"""A call that deletes fewer messages ends a round. On a busy relay, some more are old enough after each pause."""

PAUSE_SECONDS = 0.05
"""Seconds between two calls of a round."""

ROUND_SECONDS = 60.0
"""Seconds until the next call after the end of a round, or when the log has failed."""

REPORT_SECONDS = 3600.0
"""Seconds between two log messages about what was deleted. The first one comes at the end of a round."""

FORGET_SECONDS = 24 * 3600.0
"""Seconds for which people may stay known after the last message that made them known was deleted."""

_MICROSECONDS = 1_000_000


class Trimming:
    """Deletes old messages from the start of the relay until its stop.

    :param message_log: where messages are deleted.
    :param keep: how long messages are kept, in seconds; more than 0.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param clock: for timers.
    :param forget: called at times, after messages were deleted: who is known to whom must be read again.
    """

    def __init__(
        self,
        message_log: TrimmableLog,
        keep: float,
        now: Callable[[], float],
        clock: Any,
        forget: Callable[[], object],
    ) -> None:
        self._log = message_log
        self._keep = int(keep * _MICROSECONDS)
        self._now = now
        self._clock = clock
        self._forget = forget
        self._timer: Any = None
        self._is_running = False
        self._unreported = 0
        self._report_at = 0.0
        self._is_outdated = False  # whether messages were deleted since `forget` was called
        self._forget_at = 0.0

    def start(self) -> None:
        """Begin in the next turn of the reactor. The log must be open."""
        self._is_running = True
        self._report_at = self._clock.seconds()
        self._forget_at = self._report_at + FORGET_SECONDS
        self._wait(0.0)

    def stop(self) -> None:
        """Stop. Do not wait for a call that the log has begun."""
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, seconds: float) -> None:
        if self._is_running:
            self._timer = self._clock.callLater(seconds, self._trim)

    def _trim(self) -> None:
        self._timer = None
        before = int(self._now() * _MICROSECONDS) - self._keep
        trimming = maybeDeferred(self._log.trim, before)
        trimming.addCallbacks(self._trimmed, self._failed)
        trimming.addErrback(self._report_defect)

    def _trimmed(self, count: int) -> None:
        self._unreported += count
        self._is_outdated = self._is_outdated or count > 0
        is_over = count < FEW
        self._follow_up(is_over)
        self._wait(ROUND_SECONDS if is_over else PAUSE_SECONDS)

    def _follow_up(self, is_over: bool) -> None:
        """Log how much was deleted, and call `forget`, if it is time.

        :param is_over: whether the round is over. A round may last for days, and must not put this off.
        """
        seconds = self._clock.seconds()
        if self._unreported and seconds >= self._report_at + (0.0 if is_over else REPORT_SECONDS):
            log.info(
                "deleted {count} messages that were older than keep ({seconds} s)",
                count=self._unreported,
                seconds=self._keep // _MICROSECONDS,
            )
            self._unreported = 0
            self._report_at = seconds + REPORT_SECONDS
        if self._is_outdated and seconds >= self._forget_at:
            self._is_outdated = False
            self._forget_at = seconds + FORGET_SECONDS
            self._forget()

    def _failed(self, failure: Failure) -> None:
        self._wait(ROUND_SECONDS)
        failure.trap(LogUnavailable)  # the message log has reported it itself

    def _report_defect(self, failure: Failure) -> None:
        log.failure("deleting old messages failed; please report it", failure=failure)
