"""Decide when, and in which thread, the write-ahead log is copied into the database.

It also marks both files, so that a copy of either can be recognised. The store calls this module in the thread that
writes. This module must not know the tables of the message log.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

from twisted.logger import Logger

from chatrelay.messagelog.sqlite import wal

log = Logger("chatrelay.messagelog")

MIB = 1024 * 1024

CHECKPOINT_BYTES = 4 * MIB
"""The approximate size of the write-ahead log at which it is copied into the database."""

MAX_WAL_BYTES = 16 * MIB
"""The size above which the write-ahead log is shortened as soon as no program reads it. A separate thread does it, so
that no message waits."""

WAL_WARNING_BYTES = 64 * MIB
"""The size of the write-ahead log above which a warning is logged."""

_PAGE_BYTES = 4096
_PAGES_PER_COMMIT = 1
"""The pages that a commit writes in addition to its blocks: 1.0 for one message, 1.5 for ten, 2.2 for a hundred."""


class Checkpoints:
    """The checkpoints of one message log.

    SQLite's automatic checkpoints are off. Each checkpoint changes the schema cookie, a number on page 1 of the
    database, and then page 1 is written into the write-ahead log. So a write-ahead log shows which database it belongs
    to (`chatrelay.messagelog.sqlite.wal.belongs`). A copy that SQLite made has another cookie, and so has a copy of the
    file from before the last checkpoint.

    :param version: the schema's version.
    """

    def __init__(self, version: int) -> None:
        self._version = version
        self._path = ""
        self._wal = ""
        self._written = 0  # approximate bytes since the last checkpoint
        self._is_first = True  # whether the next commit may restart the write-ahead log
        self._is_due = False
        self._marked = b""  # the generation of the write-ahead log that contains page 1 with the database's cookie
        self._cookie: int | None = None  # the cookie before the current commit changed it
        self._long: _LongCheckpoint | None = None
        self._length_logged = False
        self._failure_logged = False

    def begin(self, connection: sqlite3.Connection, path: str, wal_path: str) -> None:
        """Take charge of a log that was just opened. It must have no open transaction."""
        self._path, self._wal = path, wal_path
        self._length_logged = self._failure_logged = self._is_due = False
        self._written = 0
        self._cookie = None
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
        self._is_first = True

    def empty(self, connection: sqlite3.Connection) -> None:
        """Copy all of the write-ahead log, and empty it.

        :raises sqlite3.Error: where that fails. A reader that prevents it is not an error.
        """
        self._truncate(connection)

    def make_distinct(self, connection: sqlite3.Connection) -> bool:
        """Change the cookie, so that the database differs from every earlier copy of it, and empty the write-ahead log.

        Call it immediately after page 1 was written.

        :returns: whether the write-ahead log is empty. A reader that prevents it is not an error.
        :raises sqlite3.Error: where that fails.
        """
        self._marked = wal.generation(self._wal)
        connection.execute("BEGIN IMMEDIATE")
        self._change_cookie(connection)
        connection.execute("COMMIT")
        self._restore_cookie(connection)
        return self._truncate(connection)

    def wipe(self, connection: sqlite3.Connection) -> bool:
        """Copy all of the write-ahead log into the database and empty it, so that nothing is left in it.

        :returns: whether that succeeded. A program that reads the log may prevent it.
        :raises sqlite3.Error: where that fails.
        """
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {self._version}")  # which writes page 1
        connection.execute("COMMIT")
        return self.make_distinct(connection)

    def before_commit(self, connection: sqlite3.Connection, size: int) -> None:
        """Write page 1 in the current transaction if a checkpoint is due or the write-ahead log may be restarted.

        :param size: the approximate bytes of the transaction's rows.
        """
        self._written += size + _PAGES_PER_COMMIT * _PAGE_BYTES
        self._is_due = self._written >= CHECKPOINT_BYTES
        if self._is_due and wal.generation(self._wal) != self._marked:
            self._is_first = True  # another program has made a checkpoint
        if self._is_first:
            # The value does not change, but setting it writes page 1.
            connection.execute(f"PRAGMA user_version = {self._version}")
        elif self._is_due:
            self._change_cookie(connection)

    def after_commit(self, connection: sqlite3.Connection, wal_size: int) -> None:
        """Make a checkpoint if one is due. Never fails: what was committed stays in the write-ahead log.

        :param wal_size: in bytes, before the commit.
        """
        if self._is_first:
            self._is_first = False
            self._marked = wal.generation(self._wal)
        if self._is_due:
            self._is_due = False
            self._is_first = True
            self._written = 0
            with self._log_failure():
                self._restore_cookie(connection)
                if wal_size > MAX_WAL_BYTES:
                    self._begin_long()
                else:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def check(self, connection: sqlite3.Connection, wal_size: int) -> bool:
        """Shorten a long write-ahead log if no program reads it, and log a warning if it grows.

        :param wal_size: in bytes.
        :returns: whether it was shortened.
        """
        if wal_size <= MAX_WAL_BYTES:
            self._length_logged = False
            return False
        if wal_size > WAL_WARNING_BYTES and not self._length_logged:
            self._length_logged = True
            log.warn(
                "{wal} has grown to {size} MiB: a program that reads the message log keeps it from being shortened, "
                "such as a backup or an sqlite3 that was left open",
                wal=self._wal,
                size=wal_size // MIB,
            )
        if self._long is None or self._long.is_running:
            self._begin_long()
            return False
        ended, self._long = self._long, None
        with self._log_failure():
            if ended.error is not None:
                raise ended.error
            # Otherwise a reader or another checkpoint prevents it, and the next check tries again.
            if ended.remaining is not None and (ended.remaining + 1) * _PAGE_BYTES + self._written <= MAX_WAL_BYTES:
                return self._truncate(connection)
        return False

    def end(self) -> None:
        """Interrupt a checkpoint that runs in a separate thread, and wait for its end."""
        if self._long is not None:
            self._long.stop()
            self._long = None

    def _begin_long(self) -> None:
        if self._long is None or not self._long.is_running:
            self._long = _LongCheckpoint(self._path)
            self._is_first = True

    def _change_cookie(self, connection: sqlite3.Connection) -> None:
        (self._cookie,) = connection.execute("PRAGMA schema_version").fetchone()
        connection.execute(f"PRAGMA schema_version = {secrets.randbits(31)}")

    def _restore_cookie(self, connection: sqlite3.Connection) -> None:
        """Change the cookie back if changing it has restarted the write-ahead log, which then lacks the old cookie.

        That happens if another program made a checkpoint at the same moment.
        """
        cookie, self._cookie = self._cookie, None
        if cookie is not None and wal.generation(self._wal) != self._marked:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA schema_version = {cookie}")
            connection.execute("COMMIT")

    def _truncate(self, connection: sqlite3.Connection) -> bool:
        """Copy all of the write-ahead log and empty it, without waiting for readers; return whether that succeeded."""
        (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {patience}")
        self._is_first = True
        return not busy

    @contextmanager
    def _log_failure(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if not self._failure_logged:
                self._failure_logged = True
                log.warn(
                    "{wal} could not be copied into the message log: {error}. No message is lost; it grows until that "
                    "succeeds",
                    wal=self._wal,
                    error=error,
                )
        else:
            self._failure_logged = False


class _LongCheckpoint:
    """Copies a long write-ahead log in a separate thread, while messages are written.

    :ivar remaining: the frames that a reader kept it from copying; None until its end, or where another checkpoint was
        running.
    :ivar error: the error that it failed with, or None.
    """

    def __init__(self, path: str) -> None:
        self.remaining: int | None = None
        self.error: sqlite3.Error | None = None
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="message-log-checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Interrupt it and wait for its end."""
        self._is_stopped = True
        while self._thread.is_alive():
            if self._connection is not None:
                with suppress(sqlite3.ProgrammingError):  # the thread has just closed it
                    self._connection.interrupt()
            self._thread.join(0.01)

    def _run(self) -> None:
        # With mode=rw, SQLite does not create a missing database. Beside an empty one, it would delete the write-ahead
        # log.
        uri = f"file:{quote(os.fsencode(self._path))}?mode=rw"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=0, check_same_thread=False)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                self._connection = connection
                if not self._is_stopped:
                    busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    self.remaining = None if busy else frames - copied
        except sqlite3.Error as error:
            self.error = error
