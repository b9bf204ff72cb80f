"""The threads that read a message log in SQLite by user: what they answer, when they refuse, and what they leave open."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from chatrelay.interfaces import InboxReader
from chatrelay.messagelog.sqlite import SqliteMessageLog, SqliteMessageReader, inbox_reader
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.messagelog.sqlite.inbox_reader import SqliteInboxReader
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_run import FileRun
from chatrelay.model import Conversation, LogBusy, LogUnavailable, MarkKind, Message
from tests.support.indexed_logs import EVERYTHING, IndexedLog
from tests.support.relay_case import logged_events
from tests.support.sqlite_logs import fill, put_back

MODULE = "chatrelay.messagelog.sqlite.inbox_reader"


def sleep(seconds: float) -> Deferred[None]:
    """Wait in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)  # type: ignore[attr-defined]
    return waiting


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    for _ in range(1000):
        if condition():
            return
        await sleep(0.01)
    raise AssertionError("the condition did not come true in time")


def threads() -> set[str]:
    """Return the names of the running threads of a reader."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("message-log-")}


class Reader(TestCase):
    """A reader of a log whose runs have 10 messages."""

    def setUp(self) -> None:
        self.patch_value("INDEX_SECONDS", 0.02)
        self.log = IndexedLog(Path(os.path.abspath(self.mktemp())), messages_per_run=10)
        self.addCleanup(self.log.close)
        self.reader = SqliteInboxReader(reactor, lambda path: Index(path, messages_per_run=10))  # type: ignore[arg-type]
        self.addCleanup(self.stop)
        self.append(9)
        self.open()

    def patch_value(self, name: str, value: object) -> None:
        """Change a constant of the module for this test."""
        patcher = patch(f"{MODULE}.{name}", value)
        patcher.start()
        self.addCleanup(patcher.stop)

    def append(self, count: int) -> None:
        """Write messages from user 1 to user 2."""
        self.log.append([Message("1", "2", number, "t", f"{number}", 1.0) for number in range(count)])

    def open(self) -> None:
        """Open the log, as its writer does."""
        self.reader.opened(str(self.log.path), self.log.epoch)

    def stop(self) -> None:
        """Close the log, as its writer does."""
        self.reader.closing()
        self.reader.stop()

    async def count(self) -> int:
        """Return the number of messages that user 2 is sent."""
        return len((await self.reader.entries("2", 0, EVERYTHING, EVERYTHING, EVERYTHING)).entries)

    async def fails_to_read(self) -> str:
        """Return the text with which a read fails."""
        return str(await self.assertFailure(self.reader.has_written("1", "2"), LogUnavailable))  # type: ignore[no-untyped-call]

    async def test_every_read_answers_as_the_log_in_memory(self) -> None:
        self.log.mark_undelivered([3])
        self.log.save_mark("2", "1", 4)

        def reads(reader: InboxReader) -> Deferred[list[Any]]:
            return gatherResults(
                [
                    reader.entries("2", 1, 5, 9, 99),
                    reader.history("2", "1", before=7, after=None, through=9, limit=3, size=99),
                    reader.conversations("2", before=None, through=9, limit=3, size=99),
                    reader.progress("2", [Conversation("1"), Conversation("2")], through=9, limit=100),
                    reader.find("1", "unknown-id", 0),
                    reader.has_written("1", "2"),
                    reader.has_written("2", "1"),
                    reader.writers("2", ["1", "2"]),
                    reader.place_of_sender("1", "2", 3),
                    reader.marks([("2", MarkKind.READ, "1"), ("1", MarkKind.READ, "2")]),
                ]
            )

        self.assertEqual(await reads(self.reader), await reads(self.log.memory.reader))

    async def test_what_was_committed_before_a_read_is_seen(self) -> None:
        for total in range(10, 60):
            self.append(1)
            self.assertEqual(await self.count(), total)

    async def test_reads_are_done_in_other_threads_than_the_reactors(self) -> None:
        used: list[str] = []
        real = InboxQueries.has_written
        with patch.object(
            InboxQueries, "has_written", lambda *a: used.append(threading.current_thread().name) or real(*a)
        ):
            self.assertEqual(await self.reader.has_written("1", "2"), True)
        self.assertEqual(used, ["message-log-reader"])

    async def test_reader_that_nobody_uses_has_no_thread_and_no_index(self) -> None:
        self.append(30)
        await sleep(0.1)
        self.assertEqual((threads(), self.log.files), (set(), []))

    async def test_index_is_written_after_the_first_read_without_further_reads(self) -> None:
        await self.count()
        for _ in range(3):
            self.append(10)
        await until(lambda: len(self.log.files) == 2)
        self.assertEqual(await self.count(), 39)

    async def test_index_that_was_begun_is_continued_when_the_log_is_opened(self) -> None:
        self.append(10)
        self.log.index_all()
        self.reader.closing()
        self.open()
        self.append(10)
        await until(lambda: len(self.log.files) == 2)

    async def test_reads_beyond_the_limit_are_busy(self) -> None:
        self.patch_value("MAX_READS", 3)
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        started = threading.Semaphore(0)

        def wait(*_: object) -> bool:
            started.release()
            return go_on.wait(30)

        with patch.object(InboxQueries, "has_written", wait):
            running = [self.reader.has_written("1", "2") for _ in range(2)]
            for _ in running:
                self.assertTrue(started.acquire(timeout=30))
            waiting = [self.reader.has_written("1", "2") for _ in range(3)]
            error = await self.assertFailure(self.reader.has_written("1", "2"), LogBusy)  # type: ignore[no-untyped-call]
            self.assertIn("3 reads", str(error))
            go_on.set()
            self.assertEqual(await gatherResults(running + waiting), [True] * 5)
            self.assertEqual(await self.reader.has_written("1", "2"), True)

    async def calls_of_waiting_reads(self, together_seconds: float) -> list[int]:
        """Let five reads wait behind one; return how many results each call into the reactor brings."""
        self.patch_value("READ_THREADS", 1)
        self.patch_value("TOGETHER_SECONDS", together_seconds)
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        brought: list[int] = []

        def call_all(calls: Sequence[Callable[[], None]]) -> None:
            brought.append(len(calls))
            for call in calls:
                call()

        self.patch_value("_call_all", call_all)
        with patch.object(InboxQueries, "has_written", lambda *_: go_on.wait(30)):
            reads = [self.reader.has_written("1", "2") for _ in range(6)]
            go_on.set()
            await gatherResults(reads)
        return brought

    async def test_results_of_waiting_reads_come_together(self) -> None:
        self.assertEqual(await self.calls_of_waiting_reads(30.0), [6])

    async def test_results_do_not_wait_for_reads_that_begin_later(self) -> None:
        self.assertEqual(await self.calls_of_waiting_reads(0.0), [1] * 6)

    async def test_each_of_the_reads_that_come_together_has_its_own_result(self) -> None:
        self.patch_value("READ_THREADS", 1)
        self.patch_value("TOGETHER_SECONDS", 30.0)
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        with patch.object(InboxQueries, "place_of_sender", lambda *_: go_on.wait(30) and 1 / 0):
            failing = self.reader.place_of_sender("1", "2", 1)
            others = [self.reader.has_written("1", "2"), self.reader.has_written("2", "1")]
            go_on.set()
            await self.assertFailure(failing, ZeroDivisionError)  # type: ignore[no-untyped-call]
            self.assertEqual(await gatherResults(others), [True, False])

    async def test_stop_ends_threads_that_have_reads_to_do(self) -> None:
        self.patch_value("TOGETHER_SECONDS", 30.0)
        reads = [self.reader.has_written("1", "2") for _ in range(20)]
        self.reader.stop()
        self.assertEqual(threads(), set())
        self.assertEqual(await gatherResults(reads), [True] * 20)

    async def test_read_of_a_closed_log_fails(self) -> None:
        self.assertEqual(await self.count(), 9)
        self.reader.closing()
        self.assertEqual(await self.fails_to_read(), "the message log is not open")
        self.open()
        self.assertEqual(await self.count(), 9)

    async def test_reads_that_wait_fail_when_the_reader_stops(self) -> None:
        self.patch_value("READ_THREADS", 0)
        waiting = self.reader.has_written("1", "2")
        self.stop()
        self.assertEqual(str(await self.assertFailure(waiting, LogUnavailable)), "the message log is not open")  # type: ignore[no-untyped-call]

    async def test_reader_that_was_stopped_can_be_used_again(self) -> None:
        await self.count()
        self.stop()
        self.assertEqual(threads(), set())
        self.open()
        self.assertEqual(await self.count(), 9)

    async def test_closing_interrupts_the_check_of_the_index(self) -> None:
        for _ in range(15):
            self.append(10)
        self.log.index_all()
        self.reader.closing()
        reads: list[int] = []
        is_reading, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)
        real = os.pread

        def pread(descriptor: int, count: int, offset: int) -> bytes:
            reads.append(offset)
            is_reading.set()
            go_on.wait(30)
            return real(descriptor, count, offset)

        with patch("chatrelay.messagelog.sqlite.index_run.os.pread", pread):
            self.open()  # there are files, so it is checked at once
            opened = self.reader._log
            assert opened is not None
            self.assertTrue(is_reading.wait(30))
            closing = threading.Thread(target=self.reader.closing)
            closing.start()
            await until(lambda: opened._is_closed)
            before = len(reads)
            go_on.set()
            closing.join(30)
        self.assertFalse(closing.is_alive())
        self.assertGreater(len(self.log.files), 5)
        self.assertLessEqual(len(reads) - before, 2)

    async def test_closing_interrupts_a_long_read(self) -> None:
        started = threading.Event()

        def read_for_ever(queries: Any, *_: object) -> bool:
            started.set()
            return bool(
                queries._connection.execute(
                    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
                ).fetchone()
            )

        with patch.object(InboxQueries, "has_written", read_for_ever):
            reading = self.reader.has_written("1", "2")
            self.assertTrue(started.wait(30))
            before = time.monotonic()
            self.reader.closing()
            self.assertLess(time.monotonic() - before, 10)
            error = await self.assertFailure(reading, LogUnavailable)  # type: ignore[no-untyped-call]
        self.assertIn("interrupted", str(error))

    async def test_write_ahead_log_can_be_emptied_between_reads(self) -> None:
        await self.count()
        (busy, *_) = self.log._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.assertEqual((busy, os.path.getsize(f"{self.log.path}-wal")), (0, 0))

    async def test_closed_reader_leaves_no_connection(self) -> None:
        await self.count()
        self.reader.closing()
        self.log.close()
        self.assertEqual([suffix for suffix in ("-wal", "-shm") if os.path.exists(f"{self.log.path}{suffix}")], [])

    async def test_index_found_damaged_by_a_read_is_built_again(self) -> None:
        self.append(10)
        self.log.index_all()
        self.reader.closing()
        self.open()
        self.assertEqual(await self.count(), 19)
        events = logged_events(self)
        (file,) = self.log.files
        os.truncate(file, 200)
        self.assertIn("is being built again", await self.fails_to_read())
        formats = [event["log_format"] for event in events]
        self.assertIn("{error}: the index of the message log is built again", formats)
        await until(lambda: [file.stat().st_size > 200 for file in self.log.files] == [True])
        self.assertEqual(await self.count(), 19)

    async def test_index_that_names_messages_of_others_is_built_again(self) -> None:
        self.append(10)
        self.log.index_all()
        real = FileRun.part
        stranger = self.log.index.view.hashes.user("1")
        self.reader.closing()
        self.open()
        with patch.object(FileRun, "part", lambda run, user: real(run, stranger)):
            error = await self.assertFailure(  # type: ignore[no-untyped-call]
                self.reader.entries("3", 0, EVERYTHING, 1, 99), LogUnavailable
            )
        self.assertIn("is being built again", str(error))
        self.assertEqual(await self.count(), 19)

    async def test_index_that_cannot_be_written_is_logged_once_and_tried_again(self) -> None:
        Path(self.log.index.folder).write_text("a file in the place of the folder")
        events = logged_events(self)
        self.append(10)
        self.assertEqual(await self.count(), 19)
        await sleep(0.2)
        self.assertEqual(len([event for event in events if "cannot be written" in event["log_format"]]), 1)
        os.unlink(self.log.index.folder)
        await until(lambda: bool(self.log.files))
        self.assertEqual(await self.count(), 19)

    async def test_deleted_index_is_no_error_for_reads(self) -> None:
        self.append(10)
        await self.count()
        await until(lambda: bool(self.log.files))
        shutil.rmtree(self.log.index.folder)
        self.append(10)
        self.assertEqual(await self.count(), 29)

    async def test_damaged_block_fails_the_read(self) -> None:
        self.log.execute("UPDATE block SET messages = 'x'")
        self.assertIn("is damaged", await self.fails_to_read())

    async def test_log_that_cannot_be_read_fails_the_read(self) -> None:
        self.log.execute("DROP TABLE undelivered")
        self.assertIn("cannot be read: no such table", await self.fails_to_read())

    async def test_defect_reaches_the_caller(self) -> None:
        with patch.object(InboxQueries, "has_written", lambda *_: 1 / 0):
            await self.assertFailure(self.reader.has_written("1", "2"), ZeroDivisionError)  # type: ignore[no-untyped-call]
        self.assertEqual(await self.count(), 9)


class WrittenLog(TestCase):
    """A reader of a log that is written by its own thread."""

    def setUp(self) -> None:
        self.patch(inbox_reader, "INDEX_SECONDS", 0.02)
        self.path = Path(os.path.abspath(self.mktemp()))
        self.log = SqliteMessageLog(str(self.path), reactor)  # type: ignore[arg-type]

    async def indexed(self) -> list[Path]:
        """Write 10,000 messages, and return the files of the index."""
        self.log.start()
        await self.log.append([Message("1", "2", "id", "t", "c", 1.0)] * 10_000)
        await self.log.reader.has_written("1", "2")
        folder = Path(f"{self.path}-index")
        await until(lambda: folder.is_dir() and [file.suffix for file in folder.iterdir()] == [".run"])
        return list(folder.iterdir())

    async def test_defect_in_handing_messages_to_the_index_refuses_no_message(self) -> None:
        self.log.start()
        await self.log.reader.has_written("1", "2")
        with patch(f"{MODULE}.columns_of_rows", lambda *_: 1 / 0):
            self.assertEqual(await self.log.append([Message("1", "2", "id", "t", "c", 1.0)]), [1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(await self.log.reader.has_written("1", "2"))  # the index has read it
        await self.log.stop()

    async def test_stopped_log_leaves_no_files_of_sqlite_and_no_thread(self) -> None:
        await self.indexed()
        await self.log.stop()
        self.assertEqual([suffix for suffix in ("-wal", "-shm") if os.path.exists(f"{self.path}{suffix}")], [])
        self.assertEqual(threads(), set())

    async def test_index_of_a_log_that_was_replaced_by_a_backup_is_deleted(self) -> None:
        (file,) = await self.indexed()
        await self.log.stop()
        fill(self.path.with_name("backup"), 40).close()
        put_back(self.path, self.path.with_name("backup"))
        self.log.start()
        self.addCleanup(self.log.stop)
        await until(lambda: not file.exists())
        self.assertEqual(await self.log.reader.has_written("1", "2"), await self.has_written_in_messages("1", "2"))
        page = await self.log.reader.entries("2", 0, EVERYTHING, 100, EVERYTHING)
        self.assertEqual(len(page.entries), (await self.log.inbox("2")).last)

    async def has_written_in_messages(self, sender: str, recipient: str) -> bool:
        """Read the messages one by one."""
        found = SqliteMessageReader(str(self.path)).messages()
        return any((each.from_uid, each.to_uid) == (sender, recipient) for each in found)

    async def test_reads_continue_after_the_log_failed_and_was_reopened(self) -> None:
        await self.indexed()
        self.addCleanup(self.log.stop)
        os.rename(self.path, f"{self.path}.moved")
        await self.assertFailure(self.log.append([Message("1", "2", "id", "t", "c", 1.0)]), LogUnavailable)  # type: ignore[no-untyped-call]
        await until(lambda: self.log.is_open)
        await self.log.inbox("2")  # it is answered once opening is done
        self.assertEqual(await self.log.reader.has_written("1", "2"), False)
        await self.log.append([Message("3", "2", "id", "t", "new", 1.0)])
        page = await self.log.reader.entries("2", 0, EVERYTHING, 100, EVERYTHING)
        self.assertEqual([entry.message.content for entry in page.entries if entry.message], ["new"])
