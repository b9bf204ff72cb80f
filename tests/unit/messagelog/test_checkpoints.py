"""Checkpoints: the write-ahead log stays short, and no message waits for that."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.messagelog.sqlite import SqliteMessageReader, SqliteStore, checkpoints
from tests.support import ROOT
from tests.support.message_logs import message
from tests.support.relay_case import logged_lines

KIB = 1024


class Length(SynchronousTestCase):
    """The length of the write-ahead log with and without readers."""

    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        self.patch(checkpoints, "CHECKPOINT_BYTES", 40 * KIB)
        self.patch(checkpoints, "MAX_WAL_BYTES", 160 * KIB)
        self.patch(checkpoints, "WAL_WARNING_BYTES", 640 * KIB)
        self.store = SqliteStore(self.path)
        self.store.open()
        self.addCleanup(self.store.close)
        self.lines = logged_lines(self)
        self.sent = 0

    @property
    def size(self) -> int:
        return os.stat(f"{self.path}-wal").st_size

    def write(self, size: int) -> None:
        """Write this many bytes in small batches, with a check after each."""
        for _ in range(size // (8 * KIB)):
            self.store.append([message("x" * 8 * KIB)])
            self.store.check()
            self.sent += 1

    def reader(self) -> sqlite3.Connection:
        """Return a connection with an open read transaction."""
        reader = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM block").fetchone()
        return reader

    def shortened(self) -> bool:
        """Check until the write-ahead log is short; return whether it became short in time."""
        until = time.monotonic() + 20
        while self.size > checkpoints.MAX_WAL_BYTES and time.monotonic() < until:
            self.store.check()
            time.sleep(0.01)
        return self.size <= checkpoints.MAX_WAL_BYTES

    def test_wal_stays_short_without_readers(self) -> None:
        self.write(2000 * KIB)
        self.assertLess(self.size, checkpoints.MAX_WAL_BYTES)
        self.assertEqual(len(list(SqliteMessageReader(self.path).messages())), self.sent)

    def test_wal_is_shortened_after_a_large_batch(self) -> None:
        self.store.append([message("x" * 16 * KIB) for _ in range(40)])
        self.assertGreater(self.size, checkpoints.MAX_WAL_BYTES)
        self.assertTrue(self.shortened())

    def test_wal_is_shortened_after_a_reader_without_further_writes(self) -> None:
        reader = self.reader()
        self.write(400 * KIB)
        self.assertGreater(self.size, checkpoints.MAX_WAL_BYTES)
        reader.close()
        self.assertTrue(self.shortened())
        self.assertEqual(len(list(SqliteMessageReader(self.path).messages())), self.sent)

    def test_wal_is_shortened_after_a_reader_during_writes(self) -> None:
        reader = self.reader()
        self.write(400 * KIB)
        reader.close()
        until = time.monotonic() + 20
        while self.size > checkpoints.MAX_WAL_BYTES and time.monotonic() < until:
            self.write(8 * KIB)
            time.sleep(0.01)
        self.assertLessEqual(self.size, checkpoints.MAX_WAL_BYTES)
        self.assertEqual(len(list(SqliteMessageReader(self.path).messages())), self.sent)

    def test_growth_is_logged_once_until_the_wal_is_short_again(self) -> None:
        for told in (1, 2):
            reader = self.reader()
            self.write(1200 * KIB)
            lines = [line for line in self.lines if "has grown to" in line]
            self.assertEqual(len(lines), told, lines)
            self.assertIn(f"{self.path}-wal has grown to 0 MiB", lines[-1])
            reader.close()
            self.assertTrue(self.shortened())
            self.store.check()

    def test_long_wal_is_not_copied_in_the_writing_thread(self) -> None:
        reader = self.reader()
        self.write(400 * KIB)
        connection = self.store._connection
        assert connection is not None
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        reader.close()
        self.store.append([message("x" * 100 * KIB)])  # a checkpoint is due
        self.store.check()
        connection.set_trace_callback(None)
        self.assertEqual([text for text in statements if "checkpoint" in text], [])
        self.assertTrue(self.shortened())

    def test_store_can_be_closed_while_a_long_wal_is_copied(self) -> None:
        for _ in range(10):
            reader = self.reader()
            self.write(400 * KIB)
            reader.close()
            self.store.check()
            self.store.close()
            names = [thread.name for thread in threading.enumerate()]
            self.assertNotIn("message-log-checkpoint", names)
            self.store.open()
            self.assertEqual(len(list(SqliteMessageReader(self.path).messages())), self.sent)

    def test_failed_checkpoint_is_logged_once_and_refuses_no_message(self) -> None:
        connection: Any = self.store._connection

        class Failing:
            """A connection whose checkpoints fail."""

            def execute(self, statement: str, *parameters: Any) -> Any:
                if "wal_checkpoint" in statement and failing:
                    raise sqlite3.OperationalError("disk I/O error")
                return connection.execute(statement, *parameters)

            def __getattr__(self, name: str) -> Any:
                return getattr(connection, name)

        self.store._connection = Failing()  # type: ignore[assignment]
        for is_failing, told in ((True, 1), (False, 1), (True, 2)):
            failing = is_failing
            for _ in range(4):
                self.store.append([message("x" * 8 * KIB)])
                self.sent += 1
            self.assertEqual(len([line for line in self.lines if "could not be copied" in line]), told)
        self.assertEqual(len(list(SqliteMessageReader(self.path).messages())), self.sent)

    def test_failed_checkpoint_of_a_long_wal_is_logged(self) -> None:
        reader = self.reader()
        self.write(400 * KIB)
        self.store._checkpoints.end()  # one that began before has nothing to find
        os.rename(self.path, f"{self.path}.moved")  # which the thread finds before the store looks
        self.store._checkpoints.check(None, self.size)  # type: ignore[arg-type]
        while (long := self.store._checkpoints._long) is not None and long.is_running:
            time.sleep(0.01)
        self.store._checkpoints.check(None, self.size)  # type: ignore[arg-type]
        self.assertEqual(len([line for line in self.lines if "could not be copied" in line]), 1)
        self.assertFalse(os.path.exists(self.path))
        reader.close()


class Memory(SynchronousTestCase):
    """The memory of a start with a long write-ahead log."""

    def test_long_wal_is_opened_in_little_memory(self) -> None:
        path = os.path.realpath(self.mktemp())
        store = SqliteStore(path)
        store.open()
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM block").fetchall()
            for _ in range(24):
                store.append([message("x" * 16_000) for _ in range(500)])
            shutil.copy(path, f"{path}-after-a-crash")
            shutil.copy(f"{path}-wal", f"{path}-after-a-crash-wal")
        store.close()
        size = os.stat(f"{path}-after-a-crash-wal").st_size
        self.assertGreater(size, 180e6)
        code = (
            "import sys; from chatrelay.messagelog.sqlite import SqliteStore; store = SqliteStore(sys.argv[1]);"
            "store.open(); print(max(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )

        def most(path: str) -> int:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            ran = subprocess.run(
                [sys.executable, "-c", code, path], check=True, capture_output=True, text=True, env=environment
            )
            return int(ran.stdout) * 1024

        grown = most(f"{path}-after-a-crash") - most(f"{path}-empty")
        self.assertLess(grown, 50e6)
        self.assertLess(grown, size / 5)
        with closing(sqlite3.connect(f"{path}-after-a-crash")) as log:
            self.assertEqual(log.execute("SELECT max(number) FROM message").fetchone(), (24 * 500,))
