"""Reading a message log in SQLite, whether a relay writes to it or not.

It never writes, takes no lock of ours, and knows nothing of the thread that writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from typing import Any

import attrs

from chatrelay.messagelog.sqlite.reading import NotThere, NotUsable, reading, schema_of
from chatrelay.messagelog.sqlite.schema import MIGRATIONS
from chatrelay.model import LogUnavailable

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


def read_messages(path: str) -> Generator[LoggedMessage, None, None]:
    """The messages in a log, oldest first, whether a relay writes to it or not.

    Close it where it is not read to its end: SQLite's files beside a log that no relay has open are removed then.

    :raises LogUnavailable: where the file can't be read, or is none of ours.
    """
    try:
        with reading(path) as connection:
            version = schema_of(connection, path)
            if version < len(MIGRATIONS):
                raise LogUnavailable(f"{path} was made by an older chatrelay: start the relay with it once")
            last_block = 0
            while rows := connection.execute(_PAGE, (last_block, PAGE_BLOCKS)).fetchall():
                yield from map(_logged_message, rows)
                last_block = rows[-1][-1]
    except NotThere as error:
        raise LogUnavailable(f"{error}; name another with --message-log sqlite:PATH") from error
    except NotUsable as error:
        raise LogUnavailable(str(error)) from error
    except sqlite3.Warning as error:
        raise LogUnavailable(f"the message log {path} cannot be read: {error}") from error
