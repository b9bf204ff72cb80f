"""Whether a file is a whole message log: its pages, its schema, every message, every place in an inbox.

It only reads. `chatrelay.messagelog.sqlite.backup` copies the files that are checked
here, and puts them in their places.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from urllib.parse import quote

import attrs
import msgspec

from chatrelay.interfaces import LogUnavailable
from chatrelay.messagelog.sqlite import recovery
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID, LOCK_WAIT_SECONDS, MIGRATIONS

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is to do."""

REPORT_EVERY = 256
"""After how many blocks, or pages, a report is made."""

_DECODER = msgspec.json.Decoder(list[tuple[str, int, str, int, str | int, str | int, str, int]])
_BLOCKS = "SELECT first_number, messages FROM block ORDER BY first_number"
# In every schema there is a table or a view "message"; in the present one, its blocks make the last one quick to find.
_LAST = "SELECT number, received_at FROM message ORDER BY number DESC LIMIT 1"
_LAST_IN_BLOCKS = _LAST.replace("ORDER", "WHERE block = (SELECT max(first_number) FROM block) ORDER")
# Places have no holes: the inbox of a user with n messages holds the places 1 to n, whose sum is n (n + 1) / 2.
_PLACES = "SELECT coalesce(sum(last_place), 0), coalesce(sum(last_place * (last_place + 1) / 2), 0) FROM inbox"


class NotUsable(Exception):
    """A file that is not a whole message log, or can't be read; the text is a sentence that says why."""


class Damaged(NotUsable):
    """A message log that is not whole."""


@attrs.frozen
class Contents:
    """What a message log holds.

    :ivar messages: how many messages; they are numbered from 1 without holes.
    :ivar last_received_at: when the last one was received, microseconds since 1970, UTC; None where there is none.
    :ivar schema: the version of its tables.
    :ivar size: bytes of the file.
    """

    messages: int
    last_received_at: int | None
    schema: int
    size: int


@contextmanager
def reading(path: str, name: str | None = None, *, private: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a message log to read it; a relay may write to it meanwhile.

    :param name: what a sentence calls it, if not its path.
    :param private: whether no other process has the file open. SQLite then takes no locks and makes no files beside it.
    :raises NotUsable: where the file is not a message log, or SQLite can't read it, then or inside the block.
    """
    name = name or path
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NotUsable(f"{name} is not a file")
        if not private:
            recovery.check_wal(LogFiles(path))
        immutable = private or (_is_on_read_only(path) and not _has_wal(path))
        uri = f"file:{quote(os.fsencode(os.path.abspath(path)))}?mode=ro{'&immutable=1' if immutable else ''}"
        with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None)) as connection:
            yield connection
    except LogUnavailable as error:
        raise NotUsable(str(error)) from error
    except sqlite3.Error as error:
        raise _what_sqlite_said(name, error) from error
    except FileNotFoundError as error:
        raise NotUsable(f"there is no message log at {name}") from error
    except OSError as error:
        raise NotUsable(f"{name} cannot be read: {os.strerror(error.errno or errno.EIO)}") from error


def schema_of(connection: sqlite3.Connection, name: str) -> int:
    """The version of a message log's tables.

    :raises NotUsable: where the file is not a message log, or is one of a newer chatrelay.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or not version:
        raise NotUsable(f"{name} is not a message log of chatrelay's")
    if version > len(MIGRATIONS):
        raise NotUsable(
            f"{name} was made by a newer chatrelay (schema {version}, this one knows {len(MIGRATIONS)}): use that one"
        )
    return int(version)


def summary(path: str) -> Contents:
    """What a message log says that it holds, at a glance.

    :raises NotUsable: see `reading` and `schema_of`.
    """
    with reading(path) as connection:
        schema = schema_of(connection, path)
        statement = _LAST_IN_BLOCKS if schema == len(MIGRATIONS) else _LAST
        messages, received_at = connection.execute(statement).fetchone() or (0, None)
        return Contents(messages, received_at, schema, os.stat(path).st_size)


def verify(path: str, report: Report, name: str | None = None) -> Contents:
    """Read all of a message log that no other process has open.

    Every message is decoded, the numbers must have no holes, and the places must be those that the inboxes count. Of an
    older schema, only SQLite's own check is made, and the messages are counted.

    :param name: what a sentence calls it, if not its path.
    :raises NotUsable: where it is not whole.
    """
    name = name or path
    with reading(path, name, private=True) as connection:
        schema = schema_of(connection, name)
        if schema == len(MIGRATIONS):
            messages, received_at = _read_blocks(connection, name, report)
        else:
            (messages,) = connection.execute("SELECT count(*) FROM message").fetchone()
            last, received_at = connection.execute(_LAST).fetchone() or (0, None)
            if messages != last:
                raise Damaged(f"{name} is damaged: it holds {messages} messages, and the last one has number {last}")
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise Damaged(f"{name} is damaged: {' '.join(found.split())}")
        return Contents(messages, received_at, schema, os.stat(path).st_size)


def _read_blocks(connection: sqlite3.Connection, name: str, report: Report) -> tuple[int, int | None]:
    """Decode every message; return how many there are, and when the last one was received."""
    (last,) = connection.execute("SELECT max(first_number) FROM block").fetchone()
    messages = places = sum_of_places = 0
    received_at = None
    for count, (first, text) in enumerate(connection.execute(_BLOCKS)):
        if first != messages + 1:
            raise Damaged(f"{name} is damaged: message {messages + 1} is missing, the next one is {first}")
        try:
            rows = _DECODER.decode(text)
        except (msgspec.MsgspecError, UnicodeError, TypeError) as error:
            raise Damaged(f"{name} is damaged: the messages from {first} on cannot be decoded: {error}") from error
        messages += len(rows)
        for from_uid, from_place, to_uid, to_place, *_ in rows:
            places += 1
            sum_of_places += from_place
            if to_uid != from_uid:
                places += 1
                sum_of_places += to_place
        if rows:
            received_at = rows[-1][-1]
        if count % REPORT_EVERY == 0:
            report("checking", first, last)
    if (places, sum_of_places) != connection.execute(_PLACES).fetchone():
        raise Damaged(f"{name} is damaged: the places of its messages are not those that its inboxes count")
    return messages, received_at


def _is_on_read_only(path: str) -> bool:
    """Whether a file is on a file system that is mounted read-only, such as a snapshot."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _has_wal(path: str) -> bool:
    """Whether there is anything in a database's write-ahead log."""
    try:
        return os.stat(f"{path}-wal").st_size > 0
    except FileNotFoundError:
        return False


def _what_sqlite_said(name: str, error: sqlite3.Error) -> NotUsable:
    """One sentence about a file that SQLite can't read."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return NotUsable(f"{name} is not a message log of chatrelay's")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return NotUsable(
            f"{name} cannot be opened: the user must be allowed to read it and to write in its folder, where SQLite "
            "keeps an index. Run this command as the relay's user, or copy the file and its -wal to another folder"
        )
    if code == sqlite3.SQLITE_BUSY:
        return NotUsable(f"another program holds {name} locked: end that one first")
    if code == sqlite3.SQLITE_CORRUPT:
        return Damaged(f"{name} is damaged: {error}")
    return NotUsable(f"{name} cannot be read: {error}")
