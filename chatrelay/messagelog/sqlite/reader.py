"""The reader of a message log in SQLite, beside a relay that writes to it or without one.

It never writes, takes none of our locks, and knows nothing of the thread that writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from typing import Any

from chatrelay.messagelog.sqlite.reading import NotThere, NotUsable, reading, schema_of
from chatrelay.messagelog.sqlite.schema import MIGRATIONS
from chatrelay.model import LoggedMessage, LogUnavailable

PAGE_BLOCKS = 10
"""Blocks that are read at once, in a transaction of their own.

In one long transaction a slow reader, such as a pager that was left open, would keep SQLite from shortening its
write-ahead log.
"""

_PAGE = """
SELECT number, from_uid, to_uid, time_stamp, content, received_at, delivered, block FROM message
WHERE block IN (SELECT first_number FROM block WHERE first_number > ? ORDER BY first_number LIMIT ?)
ORDER BY number
"""


def _logged_message(row: tuple[Any, ...]) -> LoggedMessage:
    *fields, delivered, _block = row
    return LoggedMessage(*fields, bool(delivered))  # type: ignore[call-arg]  # six fields, as _PAGE selects them


class SqliteMessageReader:
    """Reads the file of a message log: `chatrelay.interfaces.MessageReader`.

    :param path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every message, oldest first.

        Close the generator where it is not read to its end: SQLite's files beside a log that no relay has open are
        removed then.

        :raises LogUnavailable: where the file can't be read, or is not a message log.
        """
        path = self._path
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
