"""The message log: one contract for every implementation, and SQLite's own troubles."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase, TestCase

from chatrelay.interfaces import MessageLog, MessageReader
from chatrelay.messagelog import BadMessageLogURL, message_log, message_reader
from chatrelay.messagelog.memory import MemoryMessageLog, NoMessageLog
from chatrelay.messagelog.sqlite import (
    APPLICATION_ID,
    BLOCK_SIZE,
    MIGRATIONS,
    SqliteMessageLog,
    SqliteMessageReader,
    SqliteStore,
)
from chatrelay.model import LoggedMessage, LogUnavailable, Message
from chatrelay.testing import HeldMessageLog
from tests.support.message_logs import SteppedMessageLog, message


class MessageLogContract:
    """What every message log promises."""

    assertEqual: Any
    assertFailure: Any

    def make(self) -> MessageLog:
        """A log that was not started."""
        raise NotImplementedError

    async def test_batches_are_numbered_in_order(self) -> None:
        log = self.make()
        log.start()
        first = await log.append([message(), message()])
        second = await log.append([message()])
        self.assertEqual([*first, *second], [1, 2, 3])
        await log.stop()

    async def test_batches_that_wait_keep_their_order(self) -> None:
        log = self.make()
        log.start()
        answered: list[int] = []
        waiting = [log.append([message()]).addCallback(lambda numbers: answered.extend(numbers)) for _ in range(20)]
        stopped = log.stop()
        await gatherResults(waiting)
        await stopped
        self.assertEqual(answered, list(range(1, 21)))

    async def test_it_is_alive_when_it_is_started(self) -> None:
        log = self.make()
        log.start()
        self.addCleanup(log.stop)
        self.assertIs(log.is_alive, True)

    async def test_it_is_open_when_it_is_started(self) -> None:
        log = self.make()
        log.start()
        self.assertEqual(log.is_open, True)
        await log.stop()

    async def test_marking(self) -> None:
        log = self.make()
        log.start()
        (number,) = await log.append([message()])
        self.assertEqual(await log.mark_undelivered([number]), None)
        await log.stop()

    async def test_stopping_without_starting(self) -> None:
        self.assertEqual(await self.make().stop(), None)


class MessageReaderContract(MessageLogContract):
    """What every message log promises that can be read."""

    def reader_of(self, log: Any) -> MessageReader:
        """A reader of a log that was started."""
        raise NotImplementedError

    async def test_committed_messages_are_read_in_order_with_what_was_logged(self) -> None:
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

    async def test_a_reader_that_is_closed_early_leaves_the_log_usable(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("a"), message("b")])
        messages = self.reader_of(log).messages()
        self.assertEqual(next(messages).content, "a")
        messages.close()
        await log.append([message("c")])
        self.assertEqual([each.content for each in self.reader_of(log).messages()], ["a", "b", "c"])
        await log.stop()

    async def test_an_empty_log_has_no_messages(self) -> None:
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

    async def test_inboxes_have_no_holes(self) -> None:
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
    """The fake that tests hold still keeps the contract, once it is let go."""

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
    """So does the one that scenarios move by hand."""

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

    def test_what_was_committed_and_refused_is_marked_when_it_recovers(self) -> None:
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
    """``sqlite:``, with its thread."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def make(self) -> SqliteMessageLog:
        return SqliteMessageLog(self.path, reactor)  # type: ignore[arg-type]

    def reader_of(self, log: SqliteMessageLog) -> MessageReader:
        return message_reader(f"sqlite:{self.path}")

    async def test_what_was_appended_can_be_read(self) -> None:
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

    async def test_one_transaction_one_sync_and_one_call_into_the_reactor_a_batch(self) -> None:
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
        self.assertLess(len([s for s in statements if "INSERT" in s]), 500 / BLOCK_SIZE + 2)
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        self.assertEqual((synchronous, mode), (2, "wal"))  # 2 is FULL: a sync of the WAL with each commit
        await log.stop()

    async def test_the_work_is_done_in_its_own_thread(self) -> None:
        log = self.make()
        log.start()
        threads: list[threading.Thread] = []
        append = log._store.append
        with patch.object(log._store, "append", lambda m: threads.append(threading.current_thread()) or append(m)):
            await log.append([message()])
        self.assertEqual([thread.name for thread in threads], ["message-log"])
        await log.stop()
        self.assertEqual(threads[0].is_alive(), False)

    async def test_it_can_be_started_again(self) -> None:
        log = self.make()
        for number in (1, 2):
            log.start()
            self.assertEqual(list(await log.append([message()])), [number])
            await log.stop()

    async def test_the_thread_outlives_a_defect(self) -> None:
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

    async def test_it_recovers_by_itself_and_marks_what_was_refused(self) -> None:
        log = self.make()
        log.start()
        await log.append([message("kept")])
        store = log._store
        connection = store._connection
        assert connection is not None

        class FailingCommit:
            """Commits, and then reports a failure: a commit whose outcome is unknown."""

            def execute(self, statement: str, *parameters: Any) -> Any:
                result = connection.execute(statement, *parameters)
                if statement == "COMMIT":
                    raise sqlite3.OperationalError("disk I/O error")
                return result

            def executemany(self, *arguments: Any) -> Any:
                return connection.executemany(*arguments)

            def close(self) -> None:
                connection.close()

        store._connection = FailingCommit()  # type: ignore[assignment]
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


def sleep(seconds: float) -> Deferred[None]:
    """Wait, in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)  # type: ignore[attr-defined]
    return waiting


class Store(SynchronousTestCase):
    """The file itself."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.store = self.opened(self.path)

    def opened(self, path: str, *arguments: Any) -> SqliteStore:
        """A store that is open, and closed when the test ends."""
        store = SqliteStore(path, *arguments)
        store.open()
        self.addCleanup(store.close)
        return store

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What another program reads."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchall()

    def test_a_row_carries_everything(self) -> None:
        self.store.append([Message(7, "chen", 21, "0012", "hej", 1_700_000_000.123456)])
        self.assertEqual(
            self.rows(
                "SELECT number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at, delivered FROM message"
            ),
            [(1, "7", 1, "chen", 1, 21, "0012", "hej", 1_700_000_000_123_456, 1)],
        )

    def test_nobody_else_may_read_it(self) -> None:
        self.store.append([message()])
        for suffix in ("", "-wal", "-shm", ".lock"):
            self.assertEqual(os.stat(self.path + suffix).st_mode & 0o777, 0o600, suffix)

    def test_json_types_survive(self) -> None:
        values: list[str | int] = ["007", 7, "7", "1e3", -(2**53), 2**53, "", "9007199254740992"]
        self.store.append([Message(1, 2, value, value, "", 0) for value in values])
        self.assertEqual(
            self.rows("SELECT client_id, time_stamp FROM message ORDER BY number"), [(v, v) for v in values]
        )

    def test_inboxes_have_no_holes_over_batches_and_openings(self) -> None:
        self.store.append([message(), message(from_uid=2, to_uid="1"), message(to_uid=1)])
        self.store.close()
        self.store.open()
        self.store.append([message(to_uid=3), message(from_uid=3, to_uid=3)])
        self.assertEqual(
            self.rows("SELECT number, from_place, to_place FROM message ORDER BY number"),
            [(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 1), (5, 2, 2)],
        )
        self.assertEqual(self.rows("SELECT * FROM inbox ORDER BY uid"), [("1", 4), ("2", 2), ("3", 2)])

    def test_a_batch_is_whole_or_not_at_all(self) -> None:
        self.store.append([message("before")])
        self.refuse_writing("saved_inbox")  # comes last in a batch: the blocks have been written then
        with patch("chatrelay.messagelog.sqlite.store.SAVE_EVERY", 3):
            error = self.assertRaises(LogUnavailable, self.store.append, [message("a"), message("b", to_uid=3)])
        self.assertIn("refused", str(error))
        self.assertFalse(self.store.is_open)
        self.allow_writing()
        self.store.open()
        self.assertEqual([row.content for row in SqliteMessageReader(self.path).messages()], ["before"])
        self.store.append([message("after", to_uid=3), message("later")])
        self.assertEqual(
            self.rows("SELECT number, from_place, to_place FROM message"), [(1, 1, 1), (2, 2, 1), (3, 3, 2)]
        )

    def refuse_writing(self, table: str) -> None:
        """Let each statement fail that inserts into `table`."""
        with closing(sqlite3.connect(self.path)) as other:
            other.execute(f"CREATE TRIGGER refusal BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'refused'); END")

    def allow_writing(self) -> None:
        """Undo `refuse_writing`."""
        with closing(sqlite3.connect(self.path)) as other:
            other.execute("DROP TRIGGER refusal")

    def test_a_message_that_is_no_text_leaves_the_log_as_it_was(self) -> None:
        self.store.append([message("before")])
        self.assertRaises(UnicodeEncodeError, self.store.append, [message("a"), message("\ud800")])
        self.assertTrue(self.store.is_open)
        self.assertEqual(self.store.append([message("after")]), [2])
        self.assertEqual(self.rows("SELECT content, to_place FROM message"), [("before", 1), ("after", 2)])

    def test_every_character_survives(self) -> None:
        characters = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
        contents = [characters[start : start + 4096] for start in range(0, len(characters), 4096)]
        self.store.append([message(content) for content in contents])
        self.assertEqual([row.content for row in SqliteMessageReader(self.path).messages()], contents)

    def test_every_character_survives_in_the_names_of_users(self) -> None:
        characters = [chr(code) for code in (*range(1, 0x3000), *range(0xFF00, 0x10010), 0x1F600, 0x10FFFF)]
        names = [f"{character}1" for character in characters]
        for batch in range(2):
            self.store.append([message(from_uid=name, to_uid=name) for name in names])
            self.assertEqual(self.rows("SELECT uid, last_place FROM inbox"), [(n, batch + 1) for n in sorted(names)])
            self.store.close()
            self.store.open()
        self.assertEqual(self.rows("SELECT from_uid FROM message LIMIT 20000"), [(n,) for n in names * 2][:20000])

    def test_a_batch_is_as_many_blocks_as_it_needs(self) -> None:
        self.store.append([message("alone")])
        numbers = self.store.append([message(str(number)) for number in range(2 * BLOCK_SIZE + 1)])
        self.assertEqual(numbers, list(range(2, 2 * BLOCK_SIZE + 3)))
        self.assertEqual(
            self.rows("SELECT first_number, json_array_length(messages) FROM block"),
            [(1, 1), (2, BLOCK_SIZE), (BLOCK_SIZE + 2, BLOCK_SIZE), (2 * BLOCK_SIZE + 2, 1)],
        )
        self.assertEqual(self.rows("SELECT number FROM message"), [(number,) for number in [1, *numbers]])

    def test_places_are_not_remembered_of_a_file_that_others_wrote(self) -> None:
        self.store.append([message()])
        self.store.close()
        other = self.opened(self.path)
        other.append([message(), message()])
        other.close()
        self.store.open()
        self.assertEqual(self.store.append([message()]), [4])
        self.assertEqual(self.rows("SELECT to_place FROM message"), [(1,), (2,), (3,), (4,)])

    def test_places_are_right_whether_they_are_saved_or_not(self) -> None:
        with patch("chatrelay.messagelog.sqlite.store.SAVE_EVERY", 3):
            for to_uid in (2, 3, 4, 5, 2, 3, 4, 5):
                self.store.append([message(to_uid=to_uid)])
        self.assertEqual(self.rows("SELECT from_place FROM message"), [(place,) for place in range(1, 9)])
        self.assertEqual(self.rows("SELECT to_place FROM message"), [(1,)] * 4 + [(2,)] * 4)
        self.assertEqual(self.rows("SELECT number FROM saved_through"), [(6,)])
        self.assertEqual(self.rows("SELECT * FROM unsaved_inbox"), [("1", 8), ("4", 2), ("5", 2)])
        self.assertEqual(self.rows("SELECT * FROM inbox"), [("1", 8), ("2", 2), ("3", 2), ("4", 2), ("5", 2)])

    def test_opening_saves_the_places_that_a_crash_left_unsaved(self) -> None:
        self.store.append([message(), message(from_uid=3, to_uid=1)])
        self.assertEqual(self.rows("SELECT * FROM saved_inbox"), [])
        self.store.close()  # as after a crash: closing writes nothing
        self.store.open()
        self.assertEqual(self.rows("SELECT * FROM saved_inbox"), [("1", 2), ("2", 1), ("3", 1)])
        self.assertEqual(self.rows("SELECT * FROM unsaved_inbox"), [])
        self.store.append([message()])
        self.assertEqual(self.rows("SELECT * FROM inbox"), [("1", 3), ("2", 2), ("3", 1)])

    def test_a_mark_past_the_end_falls_on_no_message_to_come(self) -> None:
        self.store.append([message("a")])
        self.store.mark_undelivered([1, 2])
        self.store.append([message("b")])
        self.assertEqual([row.delivered for row in SqliteMessageReader(self.path).messages()], [False, True])

    def test_all_of_a_batch_whose_commit_is_in_doubt_is_marked(self) -> None:
        self.store.append([message("kept")])
        self.store.append([message(str(number)) for number in range(BLOCK_SIZE + 1)])
        self.store._doubtful_from = 2
        self.store.close()
        self.store.open()
        self.assertEqual(
            [row.delivered for row in SqliteMessageReader(self.path).messages()], [True, *[False] * (BLOCK_SIZE + 1)]
        )

    def test_a_log_of_the_first_schema_is_taken_over(self) -> None:
        path = self.mktemp()
        rows = [
            (1, "a", 1, "7", 1, "id", "007", 'h"e\\j\n\x01é😀', 123, 1),
            (2, "a", 2, "b", 1, 2**53, -7, "", 124, 0),
        ]
        with closing(sqlite3.connect(path)) as old:
            old.executescript(f"{MIGRATIONS[0]}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1")
            old.executemany(f"INSERT INTO message VALUES ({'?, ' * 9}?)", rows)
            old.executemany("INSERT INTO inbox VALUES (?, ?)", [("a", 2), ("b", 1), ("7", 1)])
            old.commit()
        self.assertIn(
            "older chatrelay", str(self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages()))
        )
        store = self.opened(path)
        self.assertEqual(store.append([Message("a", "b", 3, 3, "new", 0.000125)]), [3])
        with closing(sqlite3.connect(path)) as connection:
            columns = (
                "number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at, delivered"
            )
            self.assertEqual(
                connection.execute(f"SELECT {columns} FROM message").fetchall(),
                [*rows, (3, "a", 3, "b", 2, 3, 3, "new", 125, 1)],
            )

    def test_marks_survive_a_failure_until_they_are_written(self) -> None:
        self.store.append([message("a"), message("b")])
        self.store.close()
        self.assertRaises(LogUnavailable, self.store.mark_undelivered, [2])
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with patch("chatrelay.messagelog.sqlite.store.LOCK_WAIT_SECONDS", 0):
                self.assertIn("locked", str(self.assertRaises(LogUnavailable, self.store.open)))
        self.store.open()
        self.assertEqual([row.delivered for row in SqliteMessageReader(self.path).messages()], [True, False])

    def test_what_the_write_ahead_log_holds_is_written_once_more_before_anything_is_put_behind_it(self) -> None:
        # Some of it may be what a failed sync was to write, and be on no disk.
        self.store.append([message("acknowledged")])
        copy = SqliteStore(f"{self.path}-after-a-crash")
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{copy.path}{suffix}")
        before = Path(f"{copy.path}-wal").read_bytes()
        self.assertGreater(len(before), 0)
        calls: list[object] = []
        with (
            patch("os.pwrite", side_effect=lambda fd, data, offset: calls.append((data, offset)) or len(data)),
            patch("os.fdatasync", side_effect=lambda fd: calls.append("synced")),
        ):
            copy.open()
        copy.close()
        self.assertTrue(calls == [(before, 0), "synced"])  # not assertEqual, which would print them

    def test_a_write_ahead_log_that_cannot_be_synced_is_not_gone_on_with(self) -> None:
        self.store.append([message("acknowledged")])
        copy = SqliteStore(f"{self.path}-after-a-crash")
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{copy.path}{suffix}")
        with patch("os.fdatasync", side_effect=OSError(5, "Input/output error")), self.assertRaises(LogUnavailable):
            copy.open()
        self.assertFalse(copy.is_open)
        copy.open()
        copy.close()
        self.assertEqual([row.content for row in SqliteMessageReader(copy.path).messages()], ["acknowledged"])

    def test_a_second_relay_is_kept_out(self) -> None:
        error = self.assertRaises(LogUnavailable, SqliteStore(self.path).open)
        self.assertIn("in use by another chatrelay", str(error))
        self.store.close()
        self.opened(self.path)

    def test_a_file_that_was_removed_or_replaced_is_noticed(self) -> None:
        self.store.append([message("a")])
        os.rename(self.path, self.path + ".moved")
        error = self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])
        self.assertIn("was removed, replaced or cut", str(error))
        self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])
        self.store.open()
        self.assertEqual(self.store.append([message("b")]), [1])
        self.assertEqual([row.content for row in SqliteMessageReader(self.path).messages()], ["b"])

    def test_a_write_ahead_log_that_was_removed_is_noticed(self) -> None:
        self.store.append([message("a")])
        os.remove(self.path + "-wal")
        self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])

    def test_a_file_that_was_cut_is_noticed(self) -> None:
        self.store.append([message("a")])
        os.truncate(self.path, 0)
        self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])

    def test_what_was_doubtful_in_one_file_is_not_in_another(self) -> None:
        self.store.append([message("a")])
        self.store._doubtful_from = 1
        self.store.close()
        other = self.opened(self.mktemp())
        other.append([message("innocent")])
        other.close()
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)
        os.replace(other.path, self.path)
        self.store.open()
        self.assertEqual(
            [(row.content, row.delivered) for row in SqliteMessageReader(self.path).messages()], [("innocent", True)]
        )

    def test_a_file_of_another_program_is_left_alone(self) -> None:
        path = self.mktemp()
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE theirs (a)")
        error = self.assertRaises(LogUnavailable, SqliteStore(path).open)
        self.assertIn("belongs to another program", str(error))
        error = self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages())
        self.assertIn("not a message log", str(error))

    def test_a_file_that_is_no_database(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"not a database at all, but long enough to be taken for one" * 100)
        error = str(self.assertRaises(LogUnavailable, SqliteStore(path).open))
        self.assertIn(f"{os.path.abspath(path)} is not a message log, but a file of another kind", error)
        error = str(self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages()))
        self.assertEqual(error, f"{path} is not a message log of chatrelay's")
        self.assertFalse(os.path.exists(f"{path}.lock"))

    def test_a_missing_folder_is_named(self) -> None:
        error = self.assertRaises(LogUnavailable, SqliteStore(self.mktemp() + "/log.sqlite3").open)
        self.assertIn("there is no folder", str(error))

    def test_a_missing_log_is_not_made_by_reading(self) -> None:
        path = self.mktemp()
        self.assertIn(
            "there is no message log",
            str(self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages())),
        )
        self.assertFalse(os.path.exists(path))

    def test_migrations_bring_an_old_file_up_to_date(self) -> None:
        self.store.append([message("old")])
        self.store.close()
        newer = (*MIGRATIONS, "ALTER TABLE block ADD COLUMN seen INTEGER NOT NULL DEFAULT 0")
        store = self.opened(self.path, newer)
        store.append([message("new")])
        self.assertEqual(self.rows("SELECT content FROM message"), [("old",), ("new",)])
        self.assertEqual(self.rows("SELECT first_number, seen FROM block"), [(1, 0), (2, 0)])
        self.assertEqual(self.rows("PRAGMA user_version"), [(len(newer),)])
        store.close()
        error = self.assertRaises(LogUnavailable, SqliteStore(self.path).open)
        self.assertIn("made by a newer chatrelay (schema 3, this one knows 2)", str(error))
        error = self.assertRaises(LogUnavailable, list, SqliteMessageReader(self.path).messages())
        self.assertIn("made by a newer chatrelay (schema 3, this one knows 2): use that one", str(error))

    def test_a_migration_that_fails_changes_nothing(self) -> None:
        self.store.append([message("old")])
        self.store.close()
        broken = (*MIGRATIONS, "ALTER TABLE block ADD COLUMN seen INTEGER; SELECT no_such_function()")
        self.assertRaises(LogUnavailable, SqliteStore(self.path, broken).open)
        self.store.open()
        self.assertEqual(self.rows("PRAGMA user_version"), [(len(MIGRATIONS),)])
        self.assertEqual(self.store.append([message("new")]), [2])

    def test_reading_a_long_log_page_by_page(self) -> None:
        self.store.append([message(str(number)) for number in range(2500)])
        reader = SqliteMessageReader(self.path).messages()
        first = [next(reader) for _ in range(1000)]
        self.store.append([message("2500")])
        contents = [row.content for row in (*first, *reader)]
        self.assertEqual(contents, [str(number) for number in range(2501)])


class URLs(SynchronousTestCase):
    """Which URL names which log."""

    def test_every_kind(self) -> None:
        kinds = {"memory:": MemoryMessageLog, "none": NoMessageLog, "sqlite:x.sqlite3": SqliteMessageLog}
        for url, kind in kinds.items():
            self.assertIsInstance(message_log(url, reactor), kind)  # type: ignore[arg-type]

    def test_anything_else_is_refused_with_what_would_do(self) -> None:
        for url in ("", "sqlite:", "x.sqlite3", "mysql://x", "None", "memory"):
            error = self.assertRaises(BadMessageLogURL, message_log, url, reactor)
            self.assertIn("use sqlite:PATH, memory: or none", str(error))

    def test_only_a_log_in_a_file_is_read_from_another_process(self) -> None:
        for url in ("memory:", "none"):
            error = self.assertRaises(BadMessageLogURL, message_reader, url)
            self.assertIn("can't be read from outside the relay", str(error))
        self.assertRaises(BadMessageLogURL, message_reader, "mysql://x")

    def test_a_name_that_no_file_can_have_is_refused(self) -> None:
        self.assertIn("NUL", str(self.assertRaises(BadMessageLogURL, message_log, "sqlite:a\0b", reactor)))
