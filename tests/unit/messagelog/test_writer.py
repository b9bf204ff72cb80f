"""The thread that writes a message log in SQLite: what it does for each batch, and how it recovers."""

from __future__ import annotations

import os
import sqlite3
import threading
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from chatrelay.messagelog.sqlite import MAX_BLOCK_MESSAGES, SqliteMessageLog, SqliteMessageReader
from chatrelay.model import LogUnavailable
from tests.support.message_logs import message


def sleep(seconds: float) -> Deferred[None]:
    """Wait in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)  # type: ignore[attr-defined]
    return waiting


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
