"""Keep a write-ahead log whose database is missing or was replaced.

SQLite deletes such a write-ahead log beside an empty database, and writes it into any other database. So this module
checks both files before SQLite opens them. It writes nothing, and moves nothing but the write-ahead log.
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
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID, not_a_database_text, other_program_text
from chatrelay.model import LogUnavailable

_MAX_FILES = 1000
"""The most files of a folder that are examined to find the database of a write-ahead log."""

_MAGIC = b"SQLite format 3\0"

_MAX_TRIES = 4
"""How often a reader checks before it decides that a write-ahead log does not belong to a relay's database."""


@attrs.frozen
class Orphan:
    """A write-ahead log that was set aside.

    :ivar name: its new path.
    :ivar remedy: a command that puts it beside its database and reads both.
    """

    name: str
    remedy: str


@attrs.frozen
class _Database:
    """The header of a database, without its write-ahead log."""

    application_id: int
    page_size: int
    cookie: int


def set_orphan_aside(files: LogFiles, now: float) -> Orphan | None:
    """Set a write-ahead log aside if its database is missing.

    A message log without messages in the place of the database counts as missing, because it was made afterwards.

    :param files: locked, and not open.
    :param now: seconds since 1970 UTC.
    :returns: what was set aside; None for nothing.
    :raises LogUnavailable: if another database is in its place, such as a backup. The text has the remedy.
    :raises OSError: if a file can't be checked or moved.
    """
    if not size_of(files.wal):
        return None
    if size_of(files.path):
        database = _read_database(files.database_header(), files.path)
        if wal.belongs(files.wal, database.page_size, database.cookie):
            return None
        if _has_messages(files.path, database):
            raise LogUnavailable(_foreign_wal_text(files))
    aside = files.set_wal_aside(now)
    return Orphan(aside, _join_command(aside, _find_database(files, aside)))


def check_wal(files: LogFiles) -> None:
    """Check that a write-ahead log belongs to its database, while a relay may be writing to both.

    :raises LogUnavailable: if it belongs to another database. The text has the remedy.
    :raises OSError: if a file can't be checked.
    """
    if files.is_locked_here or not size_of(files.wal):
        return
    for tries in range(_MAX_TRIES):
        # The database is read first, because its contents were in the write-ahead log before.
        if not size_of(files.path):
            raise LogUnavailable(f"{files.path} is empty, and {files.wal} holds messages of another message log")
        database = _read_database(files.database_header(), files.path)
        if wal.belongs(files.wal, database.page_size, database.cookie):
            return
        time.sleep(0.05 * tries)  # the relay may have restarted the write-ahead log between the two checks
    raise LogUnavailable(_foreign_wal_text(files))


def _immutable(path: str) -> sqlite3.Connection:
    """Return a connection that reads only the database file, and locks nothing."""
    return sqlite3.connect(f"file:{quote(os.fsencode(path))}?immutable=1", uri=True)


def _read_database(header: bytes, path: str) -> _Database:
    """Read the header of a database without SQLite, because a database may be malformed without its write-ahead log.

    :raises LogUnavailable: if it is not the header of a database.
    """
    if len(header) < HEADER_SIZE or not header.startswith(_MAGIC):
        raise LogUnavailable(not_a_database_text(path))
    page_size = int.from_bytes(header[16:18], "big")
    return _Database(
        application_id=int.from_bytes(header[68:72], "big"),
        page_size=65536 if page_size == 1 else page_size,
        cookie=int.from_bytes(header[40:44], "big"),
    )


def _has_messages(path: str, database: _Database) -> bool:
    """Return whether a database is a message log with messages.

    :raises LogUnavailable: if it belongs to another program.
    """
    try:
        with closing(_immutable(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and database.application_id != APPLICATION_ID:
                raise LogUnavailable(other_program_text(path))
            messages = {"block": "SELECT 1 FROM block LIMIT 1", "message": "SELECT 1 FROM message LIMIT 1"}
            return any(connection.execute(messages[table]).fetchone() for table in messages.keys() & tables)
    except sqlite3.Error:  # it can't be read without its write-ahead log, so it has been written to
        return True


def _find_database(files: LogFiles, wal_path: str) -> str | None:
    """Return the path of a write-ahead log's database in the same folder; None if it is not found."""
    with os.scandir(os.path.dirname(files.path)) as entries:
        for count, entry in enumerate(entries):
            if count >= _MAX_FILES:
                break
            if not entry.is_file(follow_symlinks=False) or entry.path == files.path:
                continue
            try:
                found = _read_database(read_header(entry.path), entry.path)
                if (
                    found.application_id == APPLICATION_ID
                    and wal.belongs(wal_path, found.page_size, found.cookie)
                    and not size_of(f"{entry.path}-wal")
                ):
                    return entry.path
            except (LogUnavailable, OSError):  # not a database that can be read
                continue
    return None


def _join_command(wal_path: str, database: str | None) -> str:
    """Return the command that puts a write-ahead log beside its database and reads both."""
    where = "" if database else " (DATABASE: the file that the database was moved to)"
    name = shlex.quote(database) if database else "DATABASE"
    return f"mv {shlex.quote(wal_path)} {name}-wal && chatrelay messages --message-log sqlite:{name}{where}"


def _foreign_wal_text(files: LogFiles) -> str:
    name = shlex.quote(files.wal)
    return (
        f"{files.wal} holds messages and does not belong to the message log {files.path}, which was replaced, perhaps "
        f"by a backup. To keep using {files.path} as it is now, set those messages aside: "
        f"mv {name} {name}.aside-$(date +%s). To keep those messages, put the previous database back"
    )
