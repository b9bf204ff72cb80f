"""The contract that every message log keeps, and the URL that names each."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase, TestCase

from chatrelay.interfaces import MessageLog, MessageReader
from chatrelay.messagelog import BadMessageLogURL, message_log, message_reader
from chatrelay.messagelog.memory import MemoryMessageLog, NoMessageLog
from chatrelay.messagelog.sqlite import SqliteMessageLog
from chatrelay.model import LoggedMessage, LogUnavailable
from chatrelay.testing import HeldMessageLog
from tests.support.message_logs import SteppedMessageLog, message


class MessageLogContract:
    """The contract of every message log."""

    assertEqual: Any
    assertFailure: Any

    def make(self) -> MessageLog:
        """Return a log that was not started."""
        raise NotImplementedError

    async def test_batches_are_numbered_in_order(self) -> None:
        log = self.make()
        log.start()
        first = await log.append([message(), message()])
        second = await log.append([message()])
        self.assertEqual([*first, *second], [1, 2, 3])
        await log.stop()

    async def test_waiting_batches_keep_their_order(self) -> None:
        log = self.make()
        log.start()
        answered: list[int] = []
        waiting = [log.append([message()]).addCallback(lambda numbers: answered.extend(numbers)) for _ in range(20)]
        stopped = log.stop()
        await gatherResults(waiting)
        await stopped
        self.assertEqual(answered, list(range(1, 21)))

    async def test_started_log_is_alive(self) -> None:
        log = self.make()
        log.start()
        self.addCleanup(log.stop)
        self.assertIs(log.is_alive, True)

    async def test_started_log_is_open(self) -> None:
        log = self.make()
        log.start()
        self.assertEqual(log.is_open, True)
        await log.stop()

    async def test_marking_a_committed_message_succeeds(self) -> None:
        log = self.make()
        log.start()
        (number,) = await log.append([message()])
        self.assertEqual(await log.mark_undelivered([number]), None)
        await log.stop()

    async def test_log_that_was_not_started_can_be_stopped(self) -> None:
        self.assertEqual(await self.make().stop(), None)


class MessageReaderContract(MessageLogContract):
    """The contract of every message log that can be read."""

    def reader_of(self, log: Any) -> MessageReader:
        """Return a reader of a started log."""
        raise NotImplementedError

    async def test_reader_yields_committed_messages_in_order(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("a", from_uid=7, to_uid="x", time_stamp=5), message("b", time_stamp="5")])
        await log.append([message("c")])
        await log.mark_undelivered([2])
        self.assertEqual(
            list(self.reader_of(log).messages()),
            [
                LoggedMessage(1, "7", "x", 5, "a", 1_700_000_000_123_456, True),
                LoggedMessage(2, "1", "2", "5", "b", 1_700_000_000_123_456, False),
                LoggedMessage(3, "1", "2", "23", "c", 1_700_000_000_123_456, True),
            ],
        )
        await log.stop()

    async def test_reader_that_is_closed_early_leaves_the_log_usable(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("a"), message("b")])
        messages = self.reader_of(log).messages()
        self.assertEqual(next(messages).content, "a")
        messages.close()
        await log.append([message("c")])
        self.assertEqual([each.content for each in self.reader_of(log).messages()], ["a", "b", "c"])
        await log.stop()

    async def test_reader_of_an_empty_log_yields_nothing(self) -> None:
        log = self.make()
        log.start()
        self.assertEqual(list(self.reader_of(log).messages()), [])
        await log.stop()


class MemoryLog(MessageReaderContract, TestCase):
    """``memory:``"""

    def make(self) -> MemoryMessageLog:
        return MemoryMessageLog()

    def reader_of(self, log: MemoryMessageLog) -> MessageReader:
        return log

    async def test_places_in_an_inbox_have_no_gaps(self) -> None:
        log = self.make()
        await log.append([message(), message(from_uid="2", to_uid=1), message(to_uid=1), message(to_uid=3)])
        self.assertEqual([(row.from_place, row.to_place) for row in log.rows], [(1, 1), (2, 2), (3, 3), (4, 1)])
        await log.mark_undelivered([2])
        self.assertEqual([row.delivered for row in log.rows], [True, False, True, True])


class NoLog(MessageLogContract, TestCase):
    """``none``"""

    def make(self) -> NoMessageLog:
        return NoMessageLog()


class HeldLog(MessageLogContract, TestCase):
    """The fake of `chatrelay.testing`, with its batches committed at once."""

    def make(self) -> HeldMessageLog:
        log = HeldMessageLog()
        held = log.append

        def append(messages: Any) -> Deferred[Any]:
            waiting = held(messages)
            log.commit()
            return waiting

        log.append = append  # type: ignore[method-assign]
        return log


class SteppedLog(MessageLogContract, TestCase):
    """The fake of the fuzzed scenarios, with each step done at once."""

    def make(self) -> SteppedMessageLog:
        log = SteppedMessageLog()
        held, held_marks = log.append, log.mark_undelivered

        def append(messages: Any) -> Deferred[Any]:
            waiting = held(messages)
            log.commit()
            return waiting

        def mark_undelivered(numbers: Any) -> Deferred[None]:
            waiting = held_marks(numbers)
            log.mark()
            return waiting

        log.append = append  # type: ignore[method-assign]
        log.mark_undelivered = mark_undelivered  # type: ignore[method-assign]
        return log

    def test_committed_and_refused_batch_is_marked_after_recovery(self) -> None:
        log = SteppedMessageLog()
        refused, late = log.append([message()]), log.append([message()])
        log.commit_and_forget()
        self.failureResultOf(refused, LogUnavailable)  # type: ignore[no-untyped-call]
        log.commit()
        self.assertEqual(self.successResultOf(late), [2])  # type: ignore[no-untyped-call]
        unmarked = log.mark_undelivered([2])
        log.fail_to_mark()
        self.failureResultOf(unmarked, LogUnavailable)  # type: ignore[no-untyped-call]
        self.assertEqual([row.delivered for row in log.rows], [True, True])
        log.recover()
        self.assertEqual([row.delivered for row in log.rows], [False, False])


class SqliteLog(MessageReaderContract, TestCase):
    """``sqlite:``"""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def make(self) -> SqliteMessageLog:
        return SqliteMessageLog(self.path, reactor)  # type: ignore[arg-type]

    def reader_of(self, log: SqliteMessageLog) -> MessageReader:
        return message_reader(f"sqlite:{self.path}")


class URLs(SynchronousTestCase):
    """The URLs of message logs."""

    def test_url_chooses_the_implementation(self) -> None:
        kinds = {"memory:": MemoryMessageLog, "none": NoMessageLog, "sqlite:x.sqlite3": SqliteMessageLog}
        for url, kind in kinds.items():
            self.assertIsInstance(message_log(url, reactor), kind)  # type: ignore[arg-type]

    def test_unknown_url_is_refused_with_the_remedy(self) -> None:
        for url in ("", "sqlite:", "x.sqlite3", "mysql://x", "None", "memory"):
            error = self.assertRaises(BadMessageLogURL, message_log, url, reactor)
            self.assertIn("use sqlite:PATH, memory: or none", str(error))

    def test_reader_of_a_log_without_a_file_is_refused(self) -> None:
        for url in ("memory:", "none"):
            error = self.assertRaises(BadMessageLogURL, message_reader, url)
            self.assertIn("can't be read from outside the relay", str(error))
        self.assertRaises(BadMessageLogURL, message_reader, "mysql://x")

    def test_path_with_nul_is_refused(self) -> None:
        self.assertIn("NUL", str(self.assertRaises(BadMessageLogURL, message_log, "sqlite:a\0b", reactor)))
