"""When the message log is told to delete old messages."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import LogUnavailable
from chatrelay.relay.trimming import FEW, FORGET_SECONDS, PAUSE_SECONDS, REPORT_SECONDS, ROUND_SECONDS, Trimming

NOW = 1_700_000_000.5
KEEP = 3600.0


class Log(MemoryMessageLog):
    """A log that trims when the test says so.

    :ivar calls: the times with which `trim` was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self._waiting: list[Deferred[int]] = []

    def trim(self, before: int) -> Deferred[int]:
        """Keep the call until `answer` or `fail`."""
        self.calls.append(before)
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def answer(self, count: int) -> None:
        """Say that so many messages were deleted."""
        self._waiting.pop(0).callback(count)

    def fail(self, error: Exception) -> None:
        """Fail the oldest call."""
        self._waiting.pop(0).errback(error)


class TrimmingTests(SynchronousTestCase):
    """Messages are kept for an hour."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.log = Log()
        self.forgotten = 0
        self.trimming = Trimming(self.log, KEEP, lambda: NOW + self.clock.seconds(), self.clock, self.forget)
        self.trimming.start()

    def forget(self) -> None:
        """Count the call."""
        self.forgotten += 1

    def trim(self, *counts: int) -> None:
        """Delete so many messages in each call of a round, with the next call under way at its end."""
        for count in (*counts, 0):
            self.log.answer(count)
            self.clock.advance(ROUND_SECONDS if count < FEW else PAUSE_SECONDS)

    def test_messages_older_than_keep_are_deleted_from_the_first_turn_on(self) -> None:
        self.assertEqual(self.log.calls, [])
        self.clock.advance(0)
        self.assertEqual(self.log.calls, [1_700_000_000_500_000 - 3600_000_000])

    def test_next_call_waits_for_the_last_one_and_a_pause(self) -> None:
        self.clock.advance(0)
        self.clock.advance(ROUND_SECONDS)
        self.assertEqual(len(self.log.calls), 1)
        self.log.answer(FEW)
        self.assertEqual(len(self.log.calls), 1)
        self.clock.advance(PAUSE_SECONDS)
        self.assertEqual(len(self.log.calls), 2)

    def test_round_ends_when_few_messages_or_none_were_deleted(self) -> None:
        self.clock.advance(0)
        for calls, count in enumerate((0, FEW - 1), 1):
            self.log.answer(count)
            self.clock.advance(ROUND_SECONDS - 0.001)
            self.assertEqual(len(self.log.calls), calls)
            self.clock.advance(0.001)
            self.assertEqual(self.log.calls[calls] - self.log.calls[calls - 1], ROUND_SECONDS * 1_000_000)

    def test_round_without_an_end_is_reported_and_people_are_forgotten_meanwhile(self) -> None:
        self.clock.advance(0)
        with capturedLogs() as events:
            self.log.answer(1000)
            self.clock.advance(FORGET_SECONDS)
            self.assertEqual((len(events), self.forgotten), (0, 0))
            self.log.answer(1000)
        self.assertEqual(([event["count"] for event in events], self.forgotten), ([2000], 1))

    def test_failed_call_is_repeated_in_the_next_round(self) -> None:
        self.clock.advance(0)
        self.log.fail(LogUnavailable("the disk is full"))
        self.clock.advance(ROUND_SECONDS)
        self.assertEqual(len(self.log.calls), 2)
        self.log.fail(ZeroDivisionError("a defect"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(ROUND_SECONDS)
        self.assertEqual(len(self.log.calls), 3)

    def test_nothing_is_called_after_the_stop(self) -> None:
        self.clock.advance(0)
        self.trimming.stop()
        self.log.answer(10)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.trimming.start()
        self.trimming.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deleted_messages_are_reported_at_the_end_of_a_round_at_most_once_an_hour(self) -> None:
        self.clock.advance(0)
        with capturedLogs() as events:
            self.trim()
            self.trim(1000, 2000)
            self.trim(5)
            self.assertEqual([event["count"] for event in events], [3000])
            self.clock.advance(REPORT_SECONDS)
            self.trim(6)
        self.assertEqual([event["count"] for event in events], [3000, 11])

    def test_known_people_are_forgotten_once_a_day_if_messages_were_deleted(self) -> None:
        self.clock.advance(0)
        self.trim(10)
        self.assertEqual(self.forgotten, 0)
        self.clock.advance(FORGET_SECONDS)
        self.trim()
        self.assertEqual(self.forgotten, 1)
        self.clock.advance(FORGET_SECONDS)
        self.trim()
        self.assertEqual(self.forgotten, 1)
        self.trim(1)
        self.assertEqual(self.forgotten, 2)
