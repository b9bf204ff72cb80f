"""Open a message log in SQLite for reading, whether a relay writes to it or not.

This module never writes into a message log. SQLite makes a ``-wal`` and an index beside a database that it reads, and
only a connection that may write removes them. So a log with an empty ``-wal`` is opened with the right to write. A log
with messages in its ``-wal`` is opened read-only, because only the relay may write them into the database.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import quote

from chatrelay.messagelog.sqlite import recovery
from chatrelay.messagelog.sqlite.files import LogFiles, read_header, size_of
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID, LOCK_WAIT_SECONDS, MIGRATIONS
from chatrelay.model import LogUnavailable
from chatrelay.permissions import may, why_not_usable, why_not_writable


class UnusableLog(Exception):
    """A file that is not a complete message log, or can't be read. The text gives the cause."""


class DamagedLog(UnusableLog):
    """A message log whose contents are damaged."""


class MissingLog(UnusableLog):
    """A message log whose file does not exist."""


@contextmanager
def reading(path: str, name: str | None = None, *, private: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a message log to read it. A relay may write to it meanwhile.

    :param name: its name in error messages, if not its path.
    :param private: whether no other process has the file open. Then SQLite takes no locks and makes no files beside it.
    :raises UnusableLog: if the file is not a message log, or SQLite can't read it, at once or later in the block.
    """
    name = name or path
    try:
        files = LogFiles(path)
        if not stat.S_ISREG(os.stat(files.path).st_mode):
            raise UnusableLog(f"{name} is not a file")
        if not private:
            recovery.check_wal(files)
        if private or (_is_on_read_only(path) and not size_of(files.wal)):
            with closing(_connect(files, "mode=ro&immutable=1")) as connection:
                yield connection
        elif _may_be_opened_to_write(files):
            with _leaving_no_files(files) as connection:
                yield connection
        else:
            with closing(_connect(files, "mode=ro")) as connection:
                yield connection
    except LogUnavailable as error:
        raise UnusableLog(str(error)) from error
    except sqlite3.Error as error:
        raise _sqlite_failure(path, name, error) from error
    except FileNotFoundError as error:
        raise MissingLog(f"there is no message log at {name}") from error
    except OSError as error:
        raise UnusableLog(f"{name} cannot be read: {os.strerror(error.errno or errno.EIO)}") from error


def schema_of(connection: sqlite3.Connection, name: str) -> int:
    """Return the version of a message log's tables.

    :raises UnusableLog: if the file is not a message log, or was made by a newer chatrelay.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or not version:
        raise UnusableLog(f"{name} is not a message log of chatrelay")
    if version > len(MIGRATIONS):
        raise UnusableLog(
            f"{name} was made by a newer chatrelay (schema {version}, this one knows {len(MIGRATIONS)}): "
            "use that version"
        )
    return int(version)


def _connect(files: LogFiles, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(files.path))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None)


def _may_be_opened_to_write(files: LogFiles) -> bool:
    """Return whether a connection that may write would leave the message log unchanged when it is closed."""
    if files.is_locked_here:  # closing a descriptor of it would drop the locks
        return False
    if size_of(files.wal) or size_of(f"{files.path}-journal") or not may(files.path, os.R_OK | os.W_OK):
        return False
    header = read_header(files.path)
    return header[18:20] == b"\x02\x02" and int.from_bytes(header[68:72], "big") == APPLICATION_ID


@contextmanager
def _leaving_no_files(files: LogFiles) -> Iterator[sqlite3.Connection]:
    """Open a message log whose ``-wal`` is empty, so that SQLite removes the files that it makes beside the log."""
    with closing(_connect(files, "mode=rw")) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        try:
            yield connection
        finally:
            if size_of(files.wal):
                # A relay has begun to write. If it was killed since, the last connection to close would write the -wal
                # into the database. So the last connection is read-only.
                with closing(_connect(files, "mode=ro")) as last:
                    last.execute("PRAGMA schema_version").fetchone()
                    connection.close()


def _is_on_read_only(path: str) -> bool:
    """Return whether a file is on a file system that is mounted read-only, such as a snapshot."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _sqlite_failure(path: str, name: str, error: sqlite3.Error) -> UnusableLog:
    """Return the error for a file that SQLite can't read."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return UnusableLog(f"{name} is not a message log of chatrelay")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        why = why_not_usable(path, write=False)
        if why is None and (why := why_not_writable(os.path.dirname(os.path.abspath(path)))):
            why += ", where SQLite keeps an index"
        return UnusableLog(
            f"{name} cannot be opened: {why or error}. Run this command as the relay's user, or copy the file and its "
            "-wal to another folder"
        )
    if code == sqlite3.SQLITE_BUSY:
        return UnusableLog(f"another program has locked {name}: stop it first")
    if code == sqlite3.SQLITE_CORRUPT:
        return DamagedLog(f"{name} is damaged: {error}")
    return UnusableLog(f"{name} cannot be read: {error}")
