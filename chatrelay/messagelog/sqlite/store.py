"""The store of a message log in SQLite: one transaction and one sync for each batch.

It is synchronous. This module must not know threads or the reactor.

Messages are stored in blocks of up to 100 (`blocks_of`), each one row of JSON. So a batch of any size costs SQLite a
few rows, and the GIL is not released and acquired for every message. ``docs/benchmarks.rst`` compares this with the
alternatives. The view ``message`` shows the blocks as one row for each message.

A store whose commit failed does not know whether the batch is on the disk, so it never tries that commit again. The
file is reopened. If the batch is found in it, its messages with a unique id stand, and the others are marked
undelivered, because their senders were refused.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from twisted.logger import Logger

from chatrelay.messagelog.sqlite import checkpoints, marks, migration, recovery, schema, wal
from chatrelay.messagelog.sqlite.batch import MICROSECONDS, Batch, LastPlaces, Row, forget_places, place
from chatrelay.messagelog.sqlite.blocks import Kind
from chatrelay.messagelog.sqlite.erasure import Erasures, Notice, forget_finished
from chatrelay.messagelog.sqlite.failures import as_unavailable
from chatrelay.messagelog.sqlite.files import Identity, LogFiles
from chatrelay.messagelog.sqlite.life import Life
from chatrelay.messagelog.sqlite.schema import (
    INSERT_BLOCK,
    LOCK_WAIT_SECONDS,
    MIGRATIONS,
    blocks_of,
    json_text,
)
from chatrelay.messagelog.sqlite.trimming import Trimmer
from chatrelay.model import InboxState, LogUnavailable, Mark, Message

log = Logger("chatrelay.messagelog")

ERASURE_KEPT_SECONDS = 86_400.0
"""How long a request to erase is kept after it was made, so that whoever has made it can see that it is finished."""

MESSAGES_PER_SAVE = 10_000
"""The number of messages after which the last places of their users are saved.

Saving the places of many users with every batch would take longer than saving the messages. After a crash, `open` finds
the unsaved places in the messages.
"""

# Without any message, the last deleted one counts.
_LAST_NUMBER = """
SELECT max(coalesce((SELECT max(number) FROM entry WHERE block = (SELECT max(first_number) FROM block)), 0), number)
FROM saved_through
"""
_FIRST_PLACE = "SELECT first_place FROM saved_inbox WHERE uid = ?"
# Without "WHERE true", SQLite would read the ON after it as part of a join.
_SAVE = """
INSERT INTO saved_inbox (uid, last_place) SELECT {} WHERE true
ON CONFLICT (uid) DO UPDATE SET last_place = excluded.last_place
"""
_SAVE_PLACES = _SAVE.format("key, value FROM json_each(?)")
_SAVE_UNSAVED = _SAVE.format("uid, last_place FROM unsaved_inbox")
_SAVED_THROUGH = "UPDATE saved_through SET number = ?"
_UNDELIVERED = "INSERT OR IGNORE INTO undelivered (number) VALUES (?)"


class SqliteStore:
    """A message log's file, open for writing by this process alone.

    Every method raises `LogUnavailable` if the file can't be read or written. Then the store is closed, and `open`
    may be called again.

    :param path: the file, which is made if it does not exist.
    :param migrations: the steps from an empty file to the present schema.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param opened: called with the path, without symbolic links, and the epoch when the file was opened.
    :param committed: called with the number of the first message and the rows of a batch that was committed.
    :param closing: called before the file is closed. It must close all other connections of this process to the file,
        because SQLite removes the write-ahead log with the last one.
    :param migrating: how an older file is migrated.
    """

    def __init__(
        self,
        path: str,
        migrations: tuple[schema.Step, ...] = MIGRATIONS,
        now: Callable[[], float] = time.time,
        opened: Callable[[str, str], object] = lambda path, epoch: None,
        closing: Callable[[], object] = lambda: None,
        migrating: migration.Migrating | None = None,
        committed: Callable[[int, Sequence[Row]], object] = lambda first, rows: None,
    ) -> None:
        self._opened = opened
        self._committed = committed
        self._closing = closing
        self._files = LogFiles(path)
        self._migrations = migrations
        self._migrating = migrating or migration.Migrating()
        self._now = now
        self._checkpoints = checkpoints.Checkpoints(len(migrations))
        self._connection: sqlite3.Connection | None = None
        self._identity: Identity = (None, None)
        self._size = 0  # of the database, in bytes, at the last check
        self._wal_size = 0
        self._has_failed = False  # since it was last opened
        self._last_number = 0
        self._saved_through = 0  # the last message whose places are in saved_inbox
        self._places: dict[str, int] = {}  # the last places of the users of later messages
        self._doubt: Batch | None = None  # the batch of a commit that failed
        self._undelivered: list[int] = []  # undelivered messages that are not marked in the file yet
        self._marks: dict[tuple[str, int, str], int] = {}  # marks that are not in the file yet
        self._erasures = Erasures()
        self._telling: Collection[str] = ()  # the users of notices whose commit may have failed
        self._life = Life(self._files)
        self._trimmer = Trimmer()

    @property
    def path(self) -> str:
        """The file, without symbolic links."""
        return self._files.path

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._connection is not None

    @property
    def epoch(self) -> str:
        """The name of the log's life: `chatrelay.messagelog.sqlite.life`. It is empty before the first `open`."""
        return self._life.epoch

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is not known if the last batch was committed. The next `open` finds out."""
        return self._doubt is not None

    @property
    def has_marks(self) -> bool:
        """Whether marks wait to be written."""
        return bool(self._marks)

    @property
    def is_erasing(self) -> bool:
        """Whether `erase` has something to do."""
        return self._connection is not None and self._erasures.is_due

    def open(self) -> bool | None:
        """Open the file, migrate its schema, mark what is undelivered, and test that the disk accepts writes.

        :returns: whether the last batch, if in doubt, is in the file, so that its messages have their places; else None
        """
        with self._close_on_error():
            self._life.end(self._last_number)
            self._files.take_lock()
            self._set_orphan_aside()
            self._files.make_database()
            self._files.lock_database()
            self._connection = connection = sqlite3.connect(
                self.path, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            version = schema.check(connection, self._migrations, self.path)
            self._files.keep_lock_file()
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise LogUnavailable(
                    f"this file system does not support SQLite's write-ahead log (journal mode {mode!r})"
                )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # so that SQLite overwrites what it frees
            connection.execute("BEGIN IMMEDIATE")  # so that no other program writes to the files
            wal.rewrite(self._files.wal)
            connection.execute("COMMIT")
            self._checkpoints.begin(connection, self.path, self._files.wal)
            (database, _), _, _ = self._files.identity()
            # After a failure, open with as few syncs as possible, because each of them may fail, too.
            is_again = self._has_failed and self._identity[0] == database
            if not is_again:
                self._checkpoints.empty(connection)
            migration.migrate(connection, self.path, version, self._migrations, self._migrating)
            connection.execute("BEGIN IMMEDIATE")
            (self._last_number,) = connection.execute(_LAST_NUMBER).fetchone()
            epoch = self.epoch
            self._life.begin(connection, self._last_number)
            if self.epoch != epoch:  # other messages have these numbers
                self._undelivered = []
            doubt = self._doubt
            is_found = doubt is not None and doubt.is_in(connection)
            if doubt is not None and is_found:
                connection.executemany(_UNDELIVERED, [(number,) for number in doubt.refused()])
            self._write_undelivered(connection)
            # This write changes nothing. It proves that the disk accepts writes.
            connection.execute(f"PRAGMA user_version = {len(self._migrations)}")
            connection.execute(_SAVE_UNSAVED)
            connection.execute(_SAVED_THROUGH, (self._last_number,))
            marks.drop_old_revocations(connection, self._now())
            forget_finished(connection, self._now() - ERASURE_KEPT_SECONDS)
            connection.execute("COMMIT")
            self._erasures.look(connection)
            self._saved_through = self._last_number
            self._doubt = None
            self._undelivered = []
            if doubt is not None and is_found:
                doubt.set_places()
            self._life.begun(self._last_number)
            if not is_again:
                self._checkpoints.make_distinct(connection)
            self._has_failed = False
            self._identity, self._size, self._wal_size = self._files.identity()
            self._opened(self.path, self.epoch)
            return is_found if doubt is not None else None

    def append(self, messages: Sequence[Message]) -> list[int]:
        """Commit and sync a batch, with the marks that wait; set the places of its messages, and return their numbers.

        If it fails, `is_in_doubt` says whether the batch may be committed nevertheless.
        """
        connection = self._ready()
        first = self._last_number + 1
        try:
            with self._close_on_error():
                places = LastPlaces(self._places, connection)
                rows = place(messages, places)
                blocks = list(blocks_of(first, rows))
                last = self._last_number + len(rows)
                save = last - self._saved_through >= MESSAGES_PER_SAVE
                connection.execute("BEGIN IMMEDIATE")
                self._checkpoints.before_commit(connection, sum(len(text) for _, text in blocks))
                connection.executemany(INSERT_BLOCK, blocks)
                if save:
                    connection.execute(_SAVE_PLACES, (json_text(self._places | places),))
                    connection.execute(_SAVED_THROUGH, (last,))
                if self._marks:
                    marks.write(connection, self._marks)
                self._doubt = Batch(first, blocks[0][1] if blocks else "[]", messages, rows)
                connection.execute("COMMIT")
                self._doubt = None
        except BaseException:  # whatever the cause, the messages have no places yet
            forget_places(messages)
            raise
        self._marks.clear()
        self._checkpoints.after_commit(connection, self._wal_size)
        self._last_number = last
        if save:
            self._saved_through = last
            self._places.clear()
        else:
            self._places.update(places)
        self._committed(first, rows)
        return list(range(first, first + len(rows)))

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        """Mark messages as delivered to nobody. Marks that fail are written by the next `open`."""
        self._undelivered.extend(numbers)
        connection = self._ready()
        with self._close_on_error():
            connection.execute("BEGIN IMMEDIATE")
            self._write_undelivered(connection)
            connection.execute("COMMIT")
        self._undelivered = []

    def inbox(self, user: str) -> InboxState:
        """Look up a user's inbox, with the marks that wait."""
        connection = self._ready()
        with self._close_on_error():
            last = LastPlaces(self._places, connection)[user]
            (first,) = connection.execute(_FIRST_PLACE, (user,)).fetchone() or (1,)
            kept = marks.of_inbox(connection, user, self._marks)
        return InboxState.with_marks(first, last, kept)

    def add_marks(self, added: Sequence[Mark]) -> None:
        """Keep marks in memory until the next batch is written, or `write_marks` is called. A failure drops them."""
        self._ready()
        waiting = self._marks
        for user, kind, peer, value in added:
            key = (user, kind.value, peer)
            if value >= waiting.get(key, value):
                waiting[key] = value

    def write_marks(self) -> None:
        """Commit the marks that wait."""
        connection = self._ready()
        with self._close_on_error():
            connection.execute("BEGIN IMMEDIATE")
            marks.write(connection, self._marks)
            connection.execute("COMMIT")
        self._marks.clear()

    def trim(self, before: int) -> int:
        """Delete a few of the oldest blocks, as `Trimmer.trim` does; return how many messages were deleted."""
        connection = self._ready()
        with self._close_on_error():
            deleted = self._trimmer.trim(connection, before, self._checkpoints, self._wal_size)
        self._saved_through = max(self._saved_through, deleted.through)
        return deleted.count

    def erase(self) -> tuple[Mapping[str, int], bool]:
        """Do a part of the oldest erasure; see `chatrelay.messagelog.sqlite.erasure`. Only while `is_erasing`.

        :returns: the users who were told that messages were erased, each with the last place of the inbox; and whether
            something was done. If not, a program that reads the log prevents the end: try it again later.
        """
        connection = self._ready()
        erasures = self._erasures
        with self._close_on_error():
            told, self._telling = {user: LastPlaces(self._places, connection)[user] for user in self._telling}, ()
            size = erasures.examine(connection)
            if size is not None:
                if size:
                    with self._transaction(connection, size):
                        erasures.write(connection)
                return told, True
            notices = erasures.notices(connection)
            if notices:
                return {**told, **self._tell(connection, notices)}, True
            # A long write-ahead log is shortened by `check`, because that takes long.
            is_empty = self._wal_size <= checkpoints.MAX_WAL_BYTES and self._checkpoints.wipe(connection)
            _, _, self._wal_size = self._files.identity()
            if is_empty:
                with self._transaction(connection, 0):
                    erasures.finish(connection)
            return told, is_empty

    def _tell(self, connection: sqlite3.Connection, notices: Sequence[Notice]) -> dict[str, int]:
        """Commit notices; return the last places of their users."""
        first = self._last_number + 1
        places = LastPlaces(self._places, connection)
        rows: list[Row] = []
        for uid, ranges in notices:
            at = places[uid] = places[uid] + 1
            now = int(self._now() * MICROSECONDS)
            rows.append((uid, at, uid, at, 0, 0, json_text(ranges), now, int(Kind.NOTICE)))
        blocks = list(blocks_of(first, rows))
        self._telling = places.keys()
        with self._transaction(connection, sum(len(text) for _, text in blocks)):
            connection.executemany(INSERT_BLOCK, blocks)
            connection.executemany(_UNDELIVERED, [(number,) for number in range(first, first + len(rows))])
            self._erasures.told(connection, notices)
        self._telling = ()
        self._last_number += len(rows)
        self._places.update(places)
        self._committed(first, rows)
        return places

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, size: int) -> Iterator[None]:
        """Commit what the block writes, and make a checkpoint if one is due.

        :param size: the approximate bytes that it writes.
        """
        connection.execute("BEGIN IMMEDIATE")
        self._checkpoints.before_commit(connection, size)
        yield
        connection.execute("COMMIT")
        self._checkpoints.after_commit(connection, self._wal_size)

    def check(self) -> None:
        """Check that the files are still there, and shorten a long write-ahead log. Call it from time to time."""
        connection = self._ready()
        with self._close_on_error():
            if self._files.restore_lock():
                log.warn(
                    "{lock} was removed or replaced while the relay ran, and was made and locked again",
                    lock=self._files.lock,
                )
            if self._checkpoints.check(connection, self._wal_size):
                _, _, self._wal_size = self._files.identity()
            self._erasures.look(connection)
        with suppress(OSError):  # it is tried again the next time
            self._life.note(self._last_number)

    def close(self) -> None:
        """Close the file and release its lock. This never fails."""
        self._closing()
        self._erasures.forget()
        self._places.clear()  # `open` reads them again, because another process may write to the file from now on
        self._checkpoints.end()
        self._life.end(self._last_number)
        connection, self._connection = self._connection, None
        if connection is not None:
            # The error that made the store close was already reported.
            with suppress(sqlite3.Error):
                connection.close()
        self._files.release_lock()

    def _set_orphan_aside(self) -> None:
        orphan = recovery.set_orphan_aside(self._files, self._now())
        if orphan is not None:
            log.warn(
                "{wal} holds messages of a database that is no longer at {path}, and was renamed to {aside}. "
                "To read them: {remedy}",
                wal=self._files.wal,
                path=self.path,
                aside=orphan.name,
                remedy=orphan.remedy,
            )

    def _ready(self) -> sqlite3.Connection:
        """Return the open connection, after a check that its files still have their names.

        SQLite continues to write to a file that was removed or replaced, and everything that it then commits is lost.
        """
        connection = self._connection
        if connection is None:
            raise LogUnavailable(f"the message log {self.path} is not open")
        try:
            identity, size, wal_size = self._files.identity()
        except OSError as error:
            raise self._failed(error) from error
        if identity != self._identity or size < self._size:
            self._rescue(connection, identity)
            raise self._changed_by_others()
        # SQLite itself never cuts the write-ahead log below its limit.
        if wal_size < min(self._wal_size, checkpoints.MAX_WAL_BYTES):
            return self._open_shortened()
        self._size = size
        self._wal_size = wal_size
        return connection

    def _open_shortened(self) -> sqlite3.Connection:
        """Reopen a log whose write-ahead log became shorter; return the connection.

        Either another program made a checkpoint (``PRAGMA wal_checkpoint(TRUNCATE)``), which SQLite does not report, or
        the file was cut and messages are lost. The last number in the reopened log shows which.
        """
        last = self._last_number
        self.close()
        self.open()
        if self._last_number < last or self._connection is None:
            raise self._changed_by_others()
        return self._connection

    def _changed_by_others(self) -> LogUnavailable:
        """Close the store; return the error to raise."""
        self.close()
        self._has_failed = True
        self._marks.clear()
        return LogUnavailable(
            f"the message log {self.path} (or its -wal) was removed, replaced or cut while the relay ran"
        )

    def _rescue(self, connection: sqlite3.Connection, identity: Identity) -> None:
        """Copy a write-ahead log that was removed or renamed into the database, if the database is still there."""
        database, wal_file = identity
        if database != self._identity[0] or wal_file == self._identity[1]:
            return
        with suppress(sqlite3.Error, OSError):  # the caller closes the store in any case
            if wal_file is not None:
                self._files.set_wal_aside(self._now())  # closing the connection deletes the file of that name
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _write_undelivered(self, connection: sqlite3.Connection) -> None:
        # A number beyond the last one would mean a message that comes later.
        connection.executemany(_UNDELIVERED, [(number,) for number in self._undelivered if number <= self._last_number])

    @contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """Close the store if the block fails, and raise `LogUnavailable` with the reason."""
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, OSError, LogUnavailable) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> LogUnavailable:
        """Close the store; return the error to raise."""
        self.close()
        self._has_failed = True
        self._marks.clear()
        return as_unavailable(error, self._files)
