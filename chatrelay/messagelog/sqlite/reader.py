"""Reading a message log in SQLite, whether a relay writes to it or not.

It never writes, takes no lock of ours, and knows nothing of the thread that writes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import attrs

from chatrelay.interfaces import LogUnavailable
from chatrelay.messagelog.sqlite import recovery
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID, LOCK_WAIT_SECONDS, MIGRATIONS

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
    files = LogFiles(path)
    try:
        os.stat(files.path)
        recovery.check_wal(files)
        uri = "file:" + quote(os.fsencode(files.path)) + "?mode=ro"
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
    except FileNotFoundError as error:
        raise LogUnavailable(
            f"there is no message log at {path}; name another with --message-log sqlite:PATH"
        ) from error
    except OSError as error:
        raise LogUnavailable(f"the message log {path} cannot be read: {error.strerror}") from error
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise LogUnavailable(f"the message log {path} cannot be read: {error}") from error
