"""The thread that writes a message log in SQLite: what it does for each batch, and how it recovers."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from contextlib import closing
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from chatrelay.interfaces import CommitUnknown
from chatrelay.messagelog.sqlite import MAX_BLOCK_MESSAGES, SqliteMessageLog, SqliteMessageReader
from chatrelay.messagelog.sqlite.writer import MARKS_SECONDS
from chatrelay.model import LogUnavailable, Mark, MarkKind
from tests.support.message_logs import message
from tests.support.sqlite_logs import fail_commits


def sleep(seconds: float) -> Deferred[None]:
    """Wait in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)  # type: ignore[attr-defined]
    return waiting


def wait_in_the_reactor(log: SqliteMessageLog) -> None:
    """Wait until a log is open again. The reactor does not run meanwhile, so it does not learn of a new epoch."""
    for _ in range(500):
        if log.is_open:
            break
        time.sleep(0.01)


class Writer(TestCase):
    """A message log in a file, with its thread."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def make(self) -> SqliteMessageLog:
        """Return a log that was not started."""
        return SqliteMessageLog(self.path, reactor)  # type: ignore[arg-type]

    async def test_appended_messages_can_be_read_before_and_after_stop(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("a", time_stamp="007"), message("b", time_stamp=7)])
        self.assertEqual(
            [(row.content, row.time_stamp) for row in SqliteMessageReader(self.path).messages()],
            [("a", "007"), ("b", 7)],
        )
        await log.stop()
        self.assertEqual([row.number for row in SqliteMessageReader(self.path).messages()], [1, 2])
        self.assertFalse(log.is_open)

    async def test_batch_takes_one_transaction_one_sync_and_one_reactor_call(self) -> None:
        calls: list[object] = []
        statements: list[str] = []

        class CountingReactor:
            def callFromThread(self, call: Any, *arguments: Any) -> None:
                calls.append(call)
                reactor.callFromThread(call, *arguments)  # type: ignore[attr-defined]

        log = SqliteMessageLog(self.path, CountingReactor())  # type: ignore[arg-type]
        log.start()
        connection = log._store._connection
        assert connection is not None
        connection.set_trace_callback(statements.append)
        await log.append([message(str(number)) for number in range(500)])
        connection.set_trace_callback(None)
        self.assertEqual(len(calls), 1)
        self.assertEqual([s for s in statements if s.startswith(("BEGIN", "COMMIT"))], ["BEGIN IMMEDIATE", "COMMIT"])
        # Each statement lets go of the GIL, and the reactor takes it: one a message would be a convoy.
        self.assertLess(len([s for s in statements if "INSERT" in s]), 500 / MAX_BLOCK_MESSAGES + 2)
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        self.assertEqual((synchronous, mode), (2, "wal"))  # 2 is FULL: a sync of the WAL with each commit
        await log.stop()

    async def test_work_is_done_in_a_separate_thread(self) -> None:
        log = self.make()
        log.start()
        threads: list[threading.Thread] = []
        append = log._store.append
        with patch.object(log._store, "append", lambda m: threads.append(threading.current_thread()) or append(m)):
            await log.append([message()])
        self.assertEqual([thread.name for thread in threads], ["message-log"])
        await log.stop()
        self.assertEqual(threads[0].is_alive(), False)

    async def test_stopped_log_can_be_started_again(self) -> None:
        log = self.make()
        for number in (1, 2):
            log.start()
            self.assertEqual(list(await log.append([message()])), [number])
            await log.stop()

    async def test_thread_survives_an_unexpected_error(self) -> None:
        log = self.make()
        log.start()
        store = log._store
        with patch.object(store, "open", side_effect=MemoryError):
            store.close()
            with self.assertRaises(LogUnavailable):
                await log.append([message()])
            await sleep(0.1)
        for _ in range(200):
            if store.is_open:
                break
            await sleep(0.02)
        self.assertEqual(list(await log.append([message()])), [1])
        await log.stop()
        self.assertGreater(len(self.flushLoggedErrors(MemoryError)), 0)

    async def test_failed_log_reopens_and_marks_refused_messages(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("kept")])
        store = log._store
        fail_commits(store, commits=True)
        with self.assertRaises(LogUnavailable):
            await log.append([message("refused")])
        with self.assertRaises(LogUnavailable):
            await log.append([message("too early")])
        self.assertFalse(log.is_open)
        for _ in range(200):
            if store.is_open:
                break
            await sleep(0.02)
        self.assertEqual(list(await log.append([message("after")])), [3])
        self.assertTrue(log.is_open)
        await log.stop()
        self.assertEqual(
            [(row.content, row.delivered) for row in SqliteMessageReader(self.path).messages()],
            [("kept", True), ("refused", False), ("after", True)],
        )

    async def opened_again(self, log: SqliteMessageLog) -> None:
        """Wait until a failed log is open."""
        for _ in range(200):
            if log._store.is_open:
                return
            await sleep(0.02)
        raise AssertionError("the log was not reopened")

    async def check_outcome(self, *, commits: bool) -> None:
        """Check what follows a commit that failed, whether or not it was made."""
        log = self.make()
        log.start()
        epoch = log.epoch
        fail_commits(log._store, commits=commits)
        batch = [message("v1"), message("v2", unique_id="id-id-id-1")]
        events: list[object] = []
        with self.assertRaises(CommitUnknown) as caught:
            await log.append(batch)
        caught.exception.outcome.addCallback(events.append)
        with self.assertRaises(LogUnavailable) as later:
            await log.append([message("too early")])
        self.assertNotIsInstance(later.exception, CommitUnknown)
        self.assertEqual((events, batch[1].from_place), ([], 0))
        await self.opened_again(log)
        await log.append([message("after")]).addCallback(lambda _: events.append("after"))
        self.assertEqual((events, log.epoch), ([commits, "after"], epoch))
        self.assertEqual(batch[1].from_place, 2 if commits else 0)
        await log.stop()
        found = [("v1", False), ("v2", True)] if commits else []
        self.assertEqual(
            [(row.content, row.delivered) for row in SqliteMessageReader(self.path).messages()],
            [*found, ("after", True)],
        )

    async def test_commit_that_failed_and_was_made_has_the_outcome_true(self) -> None:
        await self.check_outcome(commits=True)

    async def test_commit_that_failed_and_was_not_made_has_the_outcome_false(self) -> None:
        await self.check_outcome(commits=False)

    async def test_marks_are_written_with_the_next_batch(self) -> None:
        log = self.make()
        log.start()
        saved = log.save_marks([Mark("2", MarkKind.READ, "1", 3)])
        self.assertEqual((await log.inbox("2")).last, 0)
        self.assertEqual(self.kept_marks(), [])
        with patch.object(log._store, "write_marks") as write_marks:
            await log.append([message()])
            self.assertEqual(self.kept_marks(), [("2", 2, "1", 3)])
            await saved
        self.assertEqual(write_marks.call_count, 0)
        await log.stop()

    async def test_marks_are_written_after_a_second_without_a_batch(self) -> None:
        now = [0.0]
        log = SqliteMessageLog(self.path, reactor, lambda: now[0])  # type: ignore[arg-type]
        log.start()
        saved = log.save_marks([Mark("2", MarkKind.RECEIVED, "", 3)])
        await log.inbox("2")  # then the marks wait
        now[0] = MARKS_SECONDS - 0.01
        self.assertEqual((await log.inbox("2")).received, 3)
        self.assertEqual(self.kept_marks(), [])
        now[0] = MARKS_SECONDS
        await log.inbox("2")  # which wakes the thread
        await saved
        self.assertEqual(self.kept_marks(), [("2", 1, "", 3)])
        await log.stop()

    async def test_revocation_is_written_at_once_with_the_marks_that_wait(self) -> None:
        log = SqliteMessageLog(self.path, reactor, lambda: 0.0)  # type: ignore[arg-type]
        log.start()
        saved = log.save_marks([Mark("2", MarkKind.RECEIVED, "", 3)])
        await log.save_marks([Mark("", MarkKind.REVOKED, "00ff", 2_000_000_000)])
        await saved
        self.assertEqual(self.kept_marks(), [("", 5, "00ff", 2_000_000_000), ("2", 1, "", 3)])
        await log.stop()

    async def test_marks_that_wait_are_written_at_the_stop(self) -> None:
        log = self.make()
        log.start()
        saved = log.save_marks([Mark("2", MarkKind.RECEIVED, "", 3)])
        await log.stop()
        await saved
        self.assertEqual(self.kept_marks(), [("2", 1, "", 3)])

    async def test_marks_fail_with_the_log(self) -> None:
        log = self.make()
        log.start()
        saved = [log.save_marks([Mark("2", MarkKind.RECEIVED, "", value)]) for value in (3, 4)]
        fail_commits(log._store, commits=False)
        with self.assertRaises(LogUnavailable):
            await log.append([message()])
        saved.append(log.save_marks([Mark("2", MarkKind.RECEIVED, "", 5)]))
        for each in saved:
            with self.assertRaises(LogUnavailable):
                await each
        await self.opened_again(log)
        self.assertEqual((await log.inbox("2")).received, 0)
        await log.stop()
        self.assertEqual(self.kept_marks(), [])

    async def test_marks_whose_own_transaction_fails_are_not_kept(self) -> None:
        now = [0.0]
        log = SqliteMessageLog(self.path, reactor, lambda: now[0])  # type: ignore[arg-type]
        log.start()
        saved = log.save_marks([Mark("2", MarkKind.RECEIVED, "", 3)])
        await log.inbox("2")
        fail_commits(log._store, commits=False)
        now[0] = MARKS_SECONDS
        with contextlib.suppress(LogUnavailable):
            await log.inbox("2")  # which wakes the thread, before or after it has tried to write
        with self.assertRaises(LogUnavailable):
            await saved
        await log.stop()

    async def test_epoch_changes_before_the_first_batch_of_another_file(self) -> None:
        log = self.make()
        log.start()
        first = log.epoch
        await log.append([message("a"), message("b")])
        os.rename(self.path, f"{self.path}.1")
        with self.assertRaises(LogUnavailable):
            await log.append([message("c")])
        self.assertEqual(log.epoch, first)
        await self.opened_again(log)
        epochs: list[str] = []
        self.assertEqual(await log.append([message("d")]).addCallback(lambda n: epochs.append(log.epoch) or n), [1])
        self.assertNotIn(first, epochs)
        await log.stop()

    async def test_mark_of_undelivered_from_before_a_new_epoch_marks_nothing_in_another_file(self) -> None:
        other = SqliteMessageLog(f"{self.path}.other", reactor)  # type: ignore[arg-type]
        other.start()
        await other.append([message("of the other file")])
        await other.stop()
        log = self.make()
        log.start()
        await log.append([message("a")])
        os.rename(f"{self.path}.other", self.path)
        os.unlink(f"{self.path}-wal")
        with self.assertRaises(LogUnavailable):
            await log.append([message("b")])
        wait_in_the_reactor(log)
        await log.mark_undelivered([1])
        await log.stop()
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT content, delivered FROM message").fetchall()
        self.assertEqual(rows, [("of the other file", 1)])

    async def test_marks_of_places_from_before_a_new_epoch_are_dropped(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("a")])
        os.rename(self.path, f"{self.path}.old")
        os.unlink(f"{self.path}-wal")
        with self.assertRaises(LogUnavailable):
            await log.append([message("b")])
        wait_in_the_reactor(log)
        await log.save_marks([Mark("1", MarkKind.RECEIVED, "", 1), Mark("1", MarkKind.LAST_SEEN, "", 9)])
        state = await log.inbox("1")
        self.assertEqual((state.received, state.last_seen), (0, 9))
        await log.stop()

    async def test_epoch_of_a_log_that_was_not_started_is_empty(self) -> None:
        self.assertEqual(self.make().epoch, "")

    def kept_marks(self) -> list[tuple[Any, ...]]:
        """Return the marks in the file."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute("SELECT user, kind, peer, value FROM mark").fetchall()
