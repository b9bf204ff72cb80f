"""What becomes of a write-ahead log whose database is not there, or is another one: it is kept.

SQLite deletes it beside an empty database, and writes it into any other. So this looks at both before SQLite may. It
writes nothing, and moves nothing but the write-ahead log.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
from contextlib import closing
from urllib.parse import quote

import attrs

from chatrelay.messagelog.sqlite import wal
from chatrelay.messagelog.sqlite.files import HEADER_SIZE, LogFiles, read_header, size_of
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID, not_a_database, of_another_program
from chatrelay.model import LogUnavailable

_FILES_LOOKED_AT = 1000
"""So many files of the folder are looked at for the database that a write-ahead log belongs to."""

_MAGIC = b"SQLite format 3\0"

_TRIES = 4
"""How often a reader looks before it believes that the write-ahead log of a relay that runs is not the database's."""


@attrs.frozen
class Orphan:
    """A write-ahead log that was set aside.

    :ivar name: where it is now.
    :ivar remedy: a command that puts it beside its database and reads both.
    """

    name: str
    remedy: str


@attrs.frozen
class _Database:
    """What a database says of itself, without its write-ahead log."""

    application_id: int
    page_size: int
    cookie: int


def keep_wal(files: LogFiles, now: float) -> Orphan | None:
    """Set a write-ahead log aside whose database is not there.

    A message log without messages in its place counts as none: it was begun afterwards.

    :param files: locked, and not open.
    :param now: seconds since 1970 UTC.
    :returns: what was set aside; None for nothing.
    :raises LogUnavailable: where the database is another one, such as a backup that was put in its place. The text has
        the remedy.
    :raises OSError: where a file can't be looked at or moved.
    """
    if not size_of(files.wal):
        return None
    if size_of(files.path):
        database = _database(files.database_header(), files.path)
        if wal.belongs(files.wal, database.page_size, database.cookie):
            return None
        if _has_messages(files.path, database):
            raise LogUnavailable(_not_its_database(files))
    aside = files.set_wal_aside(now)
    return Orphan(aside, _join(aside, _find_database(files, aside)))


def check_wal(files: LogFiles) -> None:
    """Refuse to read a database beside the write-ahead log of another one, while a relay may be writing both.

    :raises LogUnavailable: with the remedy.
    :raises OSError: where a file can't be looked at.
    """
    if files.is_locked_here or not size_of(files.wal):
        return
    for tries in range(_TRIES):
        # The database first: what it holds was in the write-ahead log before.
        if not size_of(files.path):
            raise LogUnavailable(f"{files.path} is empty, and {files.wal} holds messages of another message log")
        database = _database(files.database_header(), files.path)
        if wal.belongs(files.wal, database.page_size, database.cookie):
            return
        time.sleep(0.05 * tries)  # the relay may have begun the write-ahead log again between the two looks
    raise LogUnavailable(_not_its_database(files))


def _immutable(path: str) -> sqlite3.Connection:
    """A connection that reads the database file alone, and locks nothing."""
    return sqlite3.connect(f"file:{quote(os.fsencode(path))}?immutable=1", uri=True)


def _database(header: bytes, path: str) -> _Database:
    """What a database says of itself in its header.

    SQLite is not asked: without its write-ahead log, a database may be malformed.

    :raises LogUnavailable: where it is none.
    """
    if len(header) < HEADER_SIZE or not header.startswith(_MAGIC):
        raise LogUnavailable(not_a_database(path))
    page_size = int.from_bytes(header[16:18], "big")
    return _Database(
        application_id=int.from_bytes(header[68:72], "big"),
        page_size=65536 if page_size == 1 else page_size,
        cookie=int.from_bytes(header[40:44], "big"),
    )


def _has_messages(path: str, database: _Database) -> bool:
    """Whether a database is a message log that is in use.

    :raises LogUnavailable: where it belongs to another program.
    """
    try:
        with closing(_immutable(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and database.application_id != APPLICATION_ID:
                raise LogUnavailable(of_another_program(path))
            messages = {"block": "SELECT 1 FROM block LIMIT 1", "message": "SELECT 1 FROM message LIMIT 1"}
            return any(connection.execute(messages[table]).fetchone() for table in messages.keys() & tables)
    except sqlite3.Error:  # it can't be read without its write-ahead log: so it was in use
        return True


def _find_database(files: LogFiles, wal_path: str) -> str | None:
    """The database of a write-ahead log, where it lies in the same folder under another name."""
    with os.scandir(os.path.dirname(files.path)) as entries:
        for count, entry in enumerate(entries):
            if count >= _FILES_LOOKED_AT:
                break
            if not entry.is_file(follow_symlinks=False) or entry.path == files.path:
                continue
            try:
                found = _database(read_header(entry.path), entry.path)
                if (
                    found.application_id == APPLICATION_ID
                    and wal.belongs(wal_path, found.page_size, found.cookie)
                    and not size_of(f"{entry.path}-wal")
                ):
                    return entry.path
            except (LogUnavailable, OSError):  # not this one, then
                continue
    return None


def _join(wal_path: str, database: str | None) -> str:
    """The command that puts a write-ahead log beside its database and reads both."""
    where = "" if database else " (DATABASE: the file that the database was moved to)"
    name = shlex.quote(database) if database else "DATABASE"
    return f"mv {shlex.quote(wal_path)} {name}-wal && chatrelay messages --message-log sqlite:{name}{where}"


def _not_its_database(files: LogFiles) -> str:
    name = shlex.quote(files.wal)
    return (
        f"{files.wal} holds messages and does not belong to the message log {files.path}, which was replaced, perhaps "
        f"by a backup. To go on with {files.path} as it is now, set those messages aside: "
        f"mv {name} {name}.aside-$(date +%s). To have them, put the database back that was there before"
    )
