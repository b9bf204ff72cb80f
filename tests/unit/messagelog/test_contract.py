"""The contract that every message log keeps, and the URL that names each."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from chatrelay.interfaces import CommitUnknown, InboxLog, MessageLog, MessageReader
from chatrelay.messagelog import BadMessageLogURL, message_eraser, message_log, message_reader
from chatrelay.messagelog.memory import MemoryMessageLog, NoMessageLog
from chatrelay.messagelog.postgres import PostgresMessageLog
from chatrelay.messagelog.sqlite import SqliteMessageLog, writer
from chatrelay.model import LogBusy, LoggedMessage, LogUnavailable, Mark, MarkKind
from chatrelay.testing import HeldMessageLog
from tests.support.erasure_contract import ErasureContract
from tests.support.inbox_log_contract import EVERYTHING
from tests.support.message_logs import SteppedMessageLog, message
from tests.support.postgres_server import shared_server
from tests.support.trimming_contract import TrimmingContract


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
                LoggedMessage(1, "7", "x", 5, "a", 1_700_000_000_123_456, True, 1, 1),
                LoggedMessage(2, "1", "2", "5", "b", 1_700_000_000_123_456, False, 1, 1),
                LoggedMessage(3, "1", "2", "23", "c", 1_700_000_000_123_456, True, 2, 2),
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


class MemoryLog(MessageReaderContract, TrimmingContract, ErasureContract, TestCase):
    """``memory:``"""

    def make(self) -> MemoryMessageLog:
        return MemoryMessageLog()

    def reader_of(self, log: MemoryMessageLog) -> MessageReader:
        return log

    async def erase(self, log: Any, user: str, *, received: bool = False) -> None:
        log.erase(user, received=received)

    async def test_replay_copies_each_message_once(self) -> None:
        copied: list[int] = []

        class Inbox(list[Any]):
            def __getitem__(self, index: Any) -> Any:
                found = super().__getitem__(index)
                copied.append(len(found) if isinstance(index, slice) else 1)
                return found

        log = await self.filled(*(message(f"{number}", 1, 2) for number in range(500)))
        log.inboxes["2"] = Inbox(log.inboxes["2"])
        pages = [await log.reader.entries("2", after, 500, 10, EVERYTHING) for after in range(0, 500, 10)]
        self.assertEqual([len(page.entries) for page in pages], [10] * 50)
        self.assertLessEqual(sum(copied), 500 + 50)


class NoLog(MessageLogContract, TestCase):
    """``none``"""

    def make(self) -> NoMessageLog:
        return NoMessageLog()

    def test_log_without_messages_is_not_an_inbox_log(self) -> None:
        self.assertEqual(isinstance(self.make(), InboxLog), False)


class HeldLog(MessageLogContract, TrimmingContract, ErasureContract, TestCase):
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

    async def erase(self, log: Any, user: str, *, received: bool = False) -> None:
        log.erase(user, received=received)


class HeldSteps(SynchronousTestCase):
    """The steps of the fake of `chatrelay.testing`."""

    def setUp(self) -> None:
        self.log = HeldMessageLog()

    def test_inbox_waits_for_earlier_batches_only(self) -> None:
        self.log.append([message()])
        state = self.log.inbox("2")
        self.log.append([message()])
        self.assertNoResult(state)
        self.log.commit()
        self.assertEqual(self.successResultOf(state).last, 1)

    def test_inbox_that_is_held_is_answered_before_a_later_batch(self) -> None:
        self.log.holds_inboxes = True
        states = [self.log.inbox("2"), self.log.inbox("2")]
        self.log.append([message()])
        self.assertRaises(AssertionError, self.log.commit)
        self.log.answer_inbox()
        self.log.fail_inbox()
        self.assertEqual(self.successResultOf(states[0]).last, 0)
        self.failureResultOf(states[1], LogUnavailable)
        self.log.commit()

    def test_doubtful_batch_keeps_the_log_from_committing_and_from_answering(self) -> None:
        refused = self.log.append([message()])
        self.log.commit_unknown()
        outcome = self.failureResultOf(refused, CommitUnknown).value.outcome
        self.failureResultOf(self.log.inbox("2"), LogUnavailable)
        self.assertNoResult(outcome)
        self.log.append([message("next")])
        self.assertRaises(AssertionError, self.log.commit)

    def test_settled_batch_stands_where_its_ids_are_unique_and_precedes_later_ones(self) -> None:
        messages = [message("v1"), message("v2", unique_id="id-id-id-1")]
        refused, later = self.log.append(messages), self.log.append([message("next")])
        self.log.commit_unknown()
        outcome = self.failureResultOf(refused, CommitUnknown).value.outcome
        self.log.settle(True)
        self.assertEqual(self.successResultOf(outcome), True)
        self.assertEqual([(each.from_place, each.to_place) for each in messages], [(1, 1), (2, 2)])
        self.assertEqual([row.delivered for row in self.log.rows], [False, True])
        self.log.commit()
        self.assertEqual(self.successResultOf(later), [3])

    def test_settled_batch_that_is_not_in_the_log_leaves_no_places(self) -> None:
        refused = self.log.append([message()])
        self.log.commit_unknown()
        outcome = self.failureResultOf(refused, CommitUnknown).value.outcome
        self.log.settle(False)
        self.assertEqual((self.successResultOf(outcome), self.log.rows), (False, []))

    def test_read_that_is_held_is_answered_with_what_is_in_the_log_then(self) -> None:
        reader = self.log.reader
        reader.holds = True
        reads = [reader.has_written("1", "2"), reader.has_written("1", "2"), reader.has_written("1", "2")]
        self.log.append([message()])
        self.log.commit()
        self.assertNoResult(reads[0])
        reader.answer()
        reader.fail(LogBusy("full"))
        reader.fail()
        self.assertEqual(self.successResultOf(reads[0]), True)
        self.failureResultOf(reads[1], LogBusy)
        self.failureResultOf(reads[2], LogUnavailable)


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
        self.assertEqual([row.delivered for row in log.rows], [False, True])
        log.recover()
        self.assertEqual([row.delivered for row in log.rows], [False, False])


class SqliteLog(TrimmingContract, ErasureContract, MessageReaderContract, TestCase):
    """``sqlite:``"""

    def setUp(self) -> None:
        # The thread looks once a second whether something is to be erased.
        self.patch(writer, "CHECK_SECONDS", 0.05)

    def make(self) -> SqliteMessageLog:
        self.path = os.path.abspath(self.mktemp())
        return SqliteMessageLog(self.path, reactor)  # type: ignore[arg-type]

    def reader_of(self, log: SqliteMessageLog) -> MessageReader:
        return message_reader(f"sqlite:{self.path}")

    async def erase(self, log: Any, user: str, *, received: bool = False) -> None:
        await deferToThread(list, message_eraser(f"sqlite:{self.path}").erase(user, received=received))


class PostgresLog(MessageReaderContract, TrimmingContract, TestCase):
    """``postgresql:``"""

    def setUp(self) -> None:
        self.server = shared_server()
        self.url = ""

    def make(self) -> PostgresMessageLog:
        self.url = self.server.url(self.server.database(self.addCleanup))
        # The contract uses an id again after 100 s.
        log = PostgresMessageLog(self.url, reactor, again_seconds=50)  # type: ignore[arg-type]
        log._drop_at = float("inf")  # its messages are years old, so their ids would be deleted after a second
        return log

    def reader_of(self, log: PostgresMessageLog) -> MessageReader:
        return message_reader(self.url)

    async def test_start_drops_revocations_that_are_over(self) -> None:
        log = self.make()
        log.start()
        await log.save_marks([Mark("", MarkKind.REVOKED, name, value) for name, value in (("a", 1), ("b", 4 * 10**9))])
        await log.stop()
        log = PostgresMessageLog(self.url, reactor)  # type: ignore[arg-type]
        log.start()
        self.addCleanup(log.stop)
        keys = [("", MarkKind.REVOKED, name) for name in ("a", "b")]
        self.assertEqual(await log.reader.marks(keys), {keys[1]: 4 * 10**9})


class URLs(SynchronousTestCase):
    """The URLs of message logs."""

    def test_url_chooses_the_implementation(self) -> None:
        kinds = {
            "memory:": MemoryMessageLog,
            "none": NoMessageLog,
            "sqlite:x.sqlite3": SqliteMessageLog,
            "postgresql://user@host/database": PostgresMessageLog,
            "postgres:///database?host=/run/postgresql": PostgresMessageLog,
        }
        for url, kind in kinds.items():
            self.assertIsInstance(message_log(url, reactor), kind)  # type: ignore[arg-type]

    def test_unknown_url_is_refused_with_the_remedy(self) -> None:
        for url in ("", "sqlite:", "x.sqlite3", "mysql://x", "None", "memory"):
            error = self.assertRaises(BadMessageLogURL, message_log, url, reactor)
            self.assertIn("use sqlite:PATH, postgresql://USER@HOST/DATABASE, memory: or none", str(error))

    def test_reader_of_a_log_without_a_file_is_refused(self) -> None:
        for url in ("memory:", "none"):
            error = self.assertRaises(BadMessageLogURL, message_reader, url)
            self.assertIn("can't be read from outside the relay", str(error))
        self.assertRaises(BadMessageLogURL, message_reader, "mysql://x")

    def test_path_with_nul_is_refused(self) -> None:
        self.assertIn("NUL", str(self.assertRaises(BadMessageLogURL, message_log, "sqlite:a\0b", reactor)))
