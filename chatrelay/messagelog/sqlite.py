"""The message log in an SQLite file: one writer thread, one transaction and one sync a batch.

`SqliteStore` is the file: synchronous, and knows no thread or reactor.
`SqliteMessageLog` runs it in a thread of its own and comes back into the
reactor once a batch. `read_messages` reads the file beside a running relay.

Messages lie in blocks of up to `BLOCK_SIZE`, each one row of JSON: a batch costs
SQLite a few rows, whatever its size, and the GIL is not let go of and fought
for with every message. ``docs/benchmarks.rst`` has the figures of this and of
what else was tried. The view ``message`` shows the blocks as one row a message.

A store that failed in a commit does not know whether the batch is on the
disk, so it never tries that commit again: the senders are refused, the file
is reopened, and rows of refused messages found in it are marked undelivered.
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import attrs
import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import LogUnavailable, Message
from chatrelay.wire import user_key

APPLICATION_ID = 0x43524C59
"""Marks an SQLite file as a message log of ours: "CRLY"."""

RETRY_SECONDS = 0.5
"""How long a failed log waits before it is opened again."""

LOCK_WAIT_SECONDS = 2.0
"""How long SQLite waits for another program that holds the file locked."""

MICROSECONDS = 1_000_000
"""In a second; the file keeps times as integers, which are exact."""

_V1 = """
CREATE TABLE message (
    number      INTEGER PRIMARY KEY,
    from_uid    TEXT NOT NULL,
    from_place  INTEGER NOT NULL,
    to_uid      TEXT NOT NULL,
    to_place    INTEGER NOT NULL,
    client_id   NOT NULL,  -- no declared type: text and integers stay what they are
    time_stamp  NOT NULL,
    content     TEXT NOT NULL,
    received_at INTEGER NOT NULL,  -- microseconds since 1970, UTC
    delivered   INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE inbox (uid TEXT PRIMARY KEY, last_place INTEGER NOT NULL) WITHOUT ROWID;
"""

# A message in a block is an array of eight, in the order of the columns that
# the view makes of them. JSON keeps text text and integers integers.
_V2 = """
CREATE TABLE block (first_number INTEGER PRIMARY KEY, messages TEXT NOT NULL);
CREATE TABLE undelivered (number INTEGER PRIMARY KEY);
INSERT INTO block SELECT
    number,
    json_array(json_array(from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at))
FROM message ORDER BY number;
INSERT INTO undelivered SELECT number FROM message WHERE NOT delivered;
DROP TABLE message;
CREATE VIEW message AS SELECT
    first_number + key AS number,
    json_extract(value, '$[0]') AS from_uid,
    json_extract(value, '$[1]') AS from_place,
    json_extract(value, '$[2]') AS to_uid,
    json_extract(value, '$[3]') AS to_place,
    json_extract(value, '$[4]') AS client_id,
    json_extract(value, '$[5]') AS time_stamp,
    json_extract(value, '$[6]') AS content,
    json_extract(value, '$[7]') AS received_at,
    first_number + key NOT IN (SELECT number FROM undelivered) AS delivered,
    first_number AS block  -- narrow down by this one: it is the key
FROM block, json_each(messages);

ALTER TABLE inbox RENAME TO saved_inbox;
CREATE TABLE saved_through (number INTEGER NOT NULL);
INSERT INTO saved_through SELECT coalesce(max(first_number), 0) FROM block;
CREATE VIEW unsaved_inbox AS SELECT uid, max(place) AS last_place FROM (
    SELECT from_uid AS uid, from_place AS place FROM message WHERE block > (SELECT number FROM saved_through)
    UNION ALL SELECT to_uid, to_place FROM message WHERE block > (SELECT number FROM saved_through)
) GROUP BY uid;
CREATE VIEW inbox AS SELECT uid, max(last_place) AS last_place
FROM (SELECT uid, last_place FROM saved_inbox UNION ALL SELECT uid, last_place FROM unsaved_inbox) GROUP BY uid;
"""

MIGRATIONS: tuple[str, ...] = (_V1, _V2)
"""The steps from an empty file to the present schema; the schema's version is how many were taken."""

BLOCK_SIZE = 100
"""Messages in a block, at most: more saves nothing that could be measured, and makes what is read at once larger."""

SAVE_EVERY = 10_000
"""After how many messages the last places of the users among them are saved.

With every batch it would cost more than the messages themselves, where they
are between many users. Opening the log makes good what a crash left unsaved:
the messages hold their places.
"""

_INSERT = "INSERT INTO block (first_number, messages) VALUES (?, ?)"
_LAST_NUMBER = "SELECT max(number) FROM message WHERE block = (SELECT max(first_number) FROM block)"
_LAST_PLACE = "SELECT last_place FROM saved_inbox WHERE uid = ?"
# "WHERE true" tells SQLite that the ON after it begins no join.
_SAVE = """
INSERT INTO saved_inbox (uid, last_place) SELECT {} WHERE true
ON CONFLICT (uid) DO UPDATE SET last_place = excluded.last_place
"""
_SAVE_PLACES = _SAVE.format("key, value FROM json_each(?)")
_SAVE_UNSAVED = _SAVE.format("uid, last_place FROM unsaved_inbox")
_SAVED_THROUGH = "UPDATE saved_through SET number = ?"
_MARK = "INSERT OR IGNORE INTO undelivered (number) VALUES (?)"
# What is doubtful is whole batches, and so whole blocks.
_MARK_FROM = "INSERT OR IGNORE INTO undelivered (number) SELECT number FROM message WHERE block >= ?"

_encoder = msgspec.json.Encoder()


def _json(value: object) -> str:
    return _encoder.encode(value).decode()


class SqliteStore:
    """A message log's file, open for writing by this process alone.

    Every method raises `LogUnavailable` where the file cannot do what is
    asked; the store is then closed, and `open` may be tried again.

    :param path: the file; made where there is none.
    """

    def __init__(self, path: str, migrations: tuple[str, ...] = MIGRATIONS) -> None:
        self.path = os.path.abspath(path)
        self._migrations = migrations
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._identity: _Identity = (None, None)
        self._size = 0
        self._last_number = 0
        self._saved_through = 0  # the last message whose places are in saved_inbox
        self._places: dict[str, int] = {}  # the last places that messages after that one took
        self._doubtful_from: int | None = None  # rows from here on were refused, if they are there
        self._undelivered: list[int] = []  # marks that are not in the file yet

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._connection is not None

    def open(self) -> None:
        """Open the file, bring its schema up to date, mark what is due, and try a write."""
        with self._trouble():
            self._take_lock()
            if not os.path.exists(self.path):
                # Messages are nobody else's business; SQLite gives its other files the mode of this one.
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            self._connection = connection = sqlite3.connect(
                self.path, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            _migrate(connection, self.path, self._migrations)
            connection.execute("PRAGMA synchronous = FULL")
            if self._identity[0] not in (None, _identity(self.path)[0][0]):
                # Another file than the one that failed: what was doubtful there is not here.
                self._doubtful_from = None
                self._undelivered = []
            connection.execute("BEGIN IMMEDIATE")
            self._last_number = connection.execute(_LAST_NUMBER).fetchone()[0] or 0
            if self._doubtful_from is not None:
                connection.execute(_MARK_FROM, (self._doubtful_from,))
            self._write_marks(connection)
            # Written even where it changes nothing: the proof that the disk takes writes.
            connection.execute(f"PRAGMA user_version = {len(self._migrations)}")
            connection.execute(_SAVE_UNSAVED)
            connection.execute(_SAVED_THROUGH, (self._last_number,))
            connection.execute("COMMIT")
            self._saved_through = self._last_number
            self._doubtful_from = None
            self._undelivered = []
            self._identity, self._size = _identity(self.path)

    def append(self, messages: Sequence[Message]) -> list[int]:
        """Commit and sync `messages`; return their numbers."""
        connection = self._ready()
        first = self._last_number + 1
        with self._trouble(doubtful_from=first):
            rows, places = self._placed(connection, messages)
            blocks = [
                (first + start, _json(rows[start : start + BLOCK_SIZE])) for start in range(0, len(rows), BLOCK_SIZE)
            ]
            last = self._last_number + len(rows)
            save = last - self._saved_through >= SAVE_EVERY
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, blocks)
            if save:
                connection.execute(_SAVE_PLACES, (_json(self._places | places),))
                connection.execute(_SAVED_THROUGH, (last,))
            connection.execute("COMMIT")
        self._last_number = last
        if save:
            self._saved_through = last
            self._places.clear()
        else:
            self._places.update(places)
        return list(range(first, first + len(rows)))

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        """Note that these messages reached nobody; what fails is made good by the next `open`."""
        self._undelivered.extend(numbers)
        connection = self._ready()
        with self._trouble():
            connection.execute("BEGIN IMMEDIATE")
            self._write_marks(connection)
            connection.execute("COMMIT")
        self._undelivered = []

    def close(self) -> None:
        """Close the file and let go of it; never fails."""
        self._places.clear()  # nobody knows what becomes of the file from here on; opening it reads them again
        connection, self._connection = self._connection, None
        if connection is not None:
            # What a broken file says on closing adds nothing to what it said before.
            with suppress(sqlite3.Error):
                connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _ready(self) -> sqlite3.Connection:
        """The open connection, after a look whether its file still has its name.

        SQLite goes on writing to a file that was removed or replaced, and
        what it then acknowledges is lost.
        """
        if self._connection is None:
            raise LogUnavailable(f"the message log {self.path} is not open")
        identity, size = _identity(self.path)
        if identity != self._identity or size < self._size:
            self.close()
            raise LogUnavailable(
                f"the message log {self.path} (or its -wal) was removed, replaced or cut while the relay ran"
            )
        self._size = size
        return self._connection

    def _take_lock(self) -> None:
        """Let no second relay write this file: two would number messages twice.

        The lock is on a file beside it, as closing any descriptor of the
        database would drop SQLite's own locks on it.
        """
        if self._lock is None:
            self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LogUnavailable(
                f"the message log {self.path} is in use by another chatrelay: "
                "stop that one, or give this one a file of its own"
            ) from None

    def _placed(self, connection: sqlite3.Connection, messages: Sequence[Message]) -> tuple[list[_Row], dict[str, int]]:
        """The messages as they lie in a block, and the last place that each user among them has then."""
        rows: list[_Row] = []
        places = _Places(self._places, connection)
        for message in messages:
            from_user = user_key(message.from_uid)
            to_user = user_key(message.to_uid)
            from_place = to_place = places[to_user] = places[to_user] + 1
            if from_user != to_user:
                from_place = places[from_user] = places[from_user] + 1
            rows.append(
                (
                    from_user,
                    from_place,
                    to_user,
                    to_place,
                    message.client_id,
                    message.time_stamp,
                    message.content,
                    int(message.received_at * MICROSECONDS),
                )
            )
        return rows, places

    def _write_marks(self, connection: sqlite3.Connection) -> None:
        # A mark past the end would fall on a message to come.
        connection.executemany(_MARK, [(number,) for number in self._undelivered if number <= self._last_number])

    @contextmanager
    def _trouble(self, doubtful_from: int | None = None) -> Iterator[None]:
        """Close the store on any failure inside, and say what it was.

        :param doubtful_from: the first number of the batch whose fate is then unknown.
        """
        try:
            yield
        except (sqlite3.Error, OSError, LogUnavailable) as error:
            if doubtful_from is not None and (self._doubtful_from is None or doubtful_from < self._doubtful_from):
                self._doubtful_from = doubtful_from
            self.close()
            if isinstance(error, LogUnavailable):
                raise
            why = _what_can_be_seen(self.path) or str(error)
            raise LogUnavailable(f"the message log {self.path} cannot be written: {why}") from error


def _what_can_be_seen(path: str) -> str | None:
    """What is wrong, where that can be seen from here better than SQLite says it, and the remedy."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"there is no folder {folder}: make it, or name another file with --message-log"
    if not os.access(folder, os.W_OK):
        return f"the relay's user may not write in {folder}"
    return None


class _Places(dict[str, int]):
    """The last places that a batch takes in inboxes; asked for another user's, the last one taken before it.

    :param unsaved: last places that are not in the table yet.
    """

    def __init__(self, unsaved: dict[str, int], connection: sqlite3.Connection) -> None:
        super().__init__()
        self._unsaved = unsaved
        self._connection = connection

    def __missing__(self, user: str) -> int:
        last = self._unsaved.get(user)
        if last is None:
            found = self._connection.execute(_LAST_PLACE, (user,)).fetchone()
            last = found[0] if found else 0
        return last


_Row = tuple[str, int, str, int, str | int, str | int, str, int]
"""A message in a block, as the view ``message`` names its columns."""

_Identity = tuple[tuple[int, int] | None, tuple[int, int] | None]
"""Which files a log is in: device and inode of the database and of its write-ahead log."""


def _identity(path: str) -> tuple[_Identity, int]:
    """The files of a log, and the size of the database."""
    files: list[os.stat_result | None] = []
    for name in (path, f"{path}-wal"):
        try:
            files.append(os.stat(name))
        except FileNotFoundError:
            files.append(None)
    database, wal = ((file.st_dev, file.st_ino) if file else None for file in files)
    return (database, wal), files[0].st_size if files[0] else 0


def _write_wal_again(connection: sqlite3.Connection, path: str) -> None:
    """Write what the WAL holds once more, and sync it.

    What a failed sync was to write reads as if it were there, in this process and in the next; but Linux takes it for
    written and never tries again. SQLite would go on behind it, and after a power cut all of that would be lost, though
    its own syncs have succeeded.
    """
    connection.execute("BEGIN IMMEDIATE")  # so that nobody else writes there
    with suppress(FileNotFoundError), open(f"{path}-wal", "r+b", buffering=0) as wal:
        content = wal.read()
        os.pwrite(wal.fileno(), content, 0)
        os.fdatasync(wal.fileno())
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection, path: str, migrations: tuple[str, ...]) -> None:
    """Make a file a message log of the present schema, step by step, each step whole or not at all."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and tables:
        raise LogUnavailable("this SQLite file belongs to another program: name another file with --message-log")
    if version > len(migrations):
        raise LogUnavailable(
            f"this message log was made by a newer chatrelay (schema {version}, this one knows {len(migrations)}): "
            "upgrade chatrelay, or name another file with --message-log"
        )
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LogUnavailable(f"this file system does not take SQLite's write-ahead log (journal mode {mode!r})")
    _write_wal_again(connection, path)
    for done, step in enumerate(migrations[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {step}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {done}; COMMIT;"
        )


# The writer thread ----------------------------------------------------------

_Job = tuple[Callable[[Any], Any], Any, "Deferred[Any]"]


class SqliteMessageLog:
    """An `SqliteStore` behind a thread of its own: `chatrelay.interfaces.MessageLog`.

    :param path: the file.
    :param reactor: where results come back, with one call a batch.
    :param monotonic: seconds that only go forward, for the thread.
    """

    log = Logger()

    def __init__(
        self, path: str, reactor: IReactorFromThreads, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = SqliteStore(path)
        self._reactor = reactor
        self._monotonic = monotonic
        self._retry_at = 0.0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopped: Deferred[None] = Deferred()
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be written, as far as is known."""
        return self.is_alive and self._store.is_open

    @property
    def is_alive(self) -> bool:
        """Whether its thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Open the file and start the thread."""
        self._store.open()
        self._stopped = Deferred()
        self._thread = threading.Thread(target=self._write, name="message-log", daemon=True)
        self._thread.start()

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch in the thread."""
        return self._ask(self._store.append, messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark rows in the thread."""
        return self._ask(self._store.mark_undelivered, numbers)

    def stop(self) -> Deferred[None]:
        """Close the file behind everything that was asked before, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return succeed(None)
        self._jobs.put(None)
        return self._stopped.addCallback(lambda _: thread.join())

    def _ask(self, work: Callable[[Any], Any], argument: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self._jobs.put((work, argument, answer))
        return answer

    # In the thread, from here on.

    def _write(self) -> None:
        while True:
            # A closed log is opened again when it is time to, whether jobs keep coming or none does.
            wait = None if self._store.is_open else max(0.0, self._retry_at - self._monotonic())
            if wait == 0.0:
                self._reopen()
                continue
            try:
                job = self._jobs.get(timeout=wait)
            except queue.Empty:
                continue
            if job is None:
                break
            work, argument, answer = job
            was_open = self._store.is_open
            try:
                result = work(argument)
            except LogUnavailable as error:
                if was_open:
                    self._retry_at = self._monotonic() + RETRY_SECONDS
                    self.log.critical(
                        "{error}. Nothing is delivered until it can be written; trying again every {seconds} s",
                        error=error,
                        seconds=RETRY_SECONDS,
                    )
                self._reactor.callFromThread(answer.errback, error)
            # A defect, whatever it is, must reach the caller: else its senders wait for ever.
            except Exception:
                self._reactor.callFromThread(answer.errback, Failure())
            else:
                self._reactor.callFromThread(answer.callback, result)
        if not self._store.is_open:
            self._reopen()  # the last chance for marks that are due
        self._store.close()
        self._reactor.callFromThread(self._stopped.callback, None)

    def _reopen(self) -> None:
        try:
            self._store.open()
        except LogUnavailable as error:
            self.log.debug("{error}", error=error)
        # Whatever it is, the thread must live: else every sender waits for ever.
        except Exception:
            self.log.failure("opening the message log met a defect of chatrelay; please report it")
        else:
            self.log.warn("the message log {path} can be written again", path=self._store.path)
        finally:
            # Counted from the end: opening may itself take long, and jobs must get their turn in between.
            self._retry_at = self._monotonic() + RETRY_SECONDS


# Reading --------------------------------------------------------------------

# Read in pages of whole blocks, each page a transaction of its own: a reader that dawdles
# (a pager left open) would otherwise keep SQLite from ever shortening its WAL.
PAGE_BLOCKS = 10
_PAGE = """
SELECT number, from_uid, to_uid, time_stamp, content, received_at, delivered, block FROM message
WHERE block IN (SELECT first_number FROM block WHERE first_number > ? ORDER BY first_number LIMIT ?)
ORDER BY number
"""


@attrs.frozen
class LoggedMessage:
    """A row of the message log, for those who read it.

    :ivar received_at: microseconds since 1970, UTC.
    """

    number: int
    from_uid: str
    to_uid: str
    time_stamp: str | int
    content: str
    received_at: int
    delivered: bool


def _logged_message(row: tuple[Any, ...]) -> LoggedMessage:
    *fields, delivered, _block = row
    return LoggedMessage(*fields, bool(delivered))  # type: ignore[call-arg]  # six fields, as _PAGE selects them


def read_messages(path: str) -> Iterator[LoggedMessage]:
    """The messages in a log, oldest first, whether a relay writes to it or not.

    :raises LogUnavailable: where the file can't be read, or is none of ours.
    """
    if not os.path.exists(path):
        raise LogUnavailable(f"there is no message log at {path}; name another with --message-log sqlite:PATH")
    try:
        uri = "file:" + quote(os.path.abspath(path)) + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise LogUnavailable(f"{path} is not a message log of chatrelay's")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise LogUnavailable(f"{path} was made by a newer chatrelay (schema {version}): read it with that one")
            if version < len(MIGRATIONS):
                raise LogUnavailable(f"{path} was made by an older chatrelay: start the relay with it once")
            last_block = 0
            while rows := connection.execute(_PAGE, (last_block, PAGE_BLOCKS)).fetchall():
                yield from map(_logged_message, rows)
                last_block = rows[-1][-1]
    except sqlite3.Error as error:
        raise LogUnavailable(f"the message log {path} cannot be read: {error}") from error
