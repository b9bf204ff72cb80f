"""The reader of a message log in SQLite: it yields every message, whether a relay writes to the log or not.

It never writes, and takes none of the relay's locks. This module must not know the thread that writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from typing import Any

from chatrelay.messagelog.sqlite.opening import MissingLog, UnusableLog, reading, schema_of
from chatrelay.messagelog.sqlite.schema import MIGRATIONS
from chatrelay.model import LoggedMessage, LogUnavailable

BLOCKS_PER_READ = 10
"""The blocks that are read in one transaction.

In one long transaction a slow reader, such as a pager that was left open, would keep SQLite from shortening its
write-ahead log.
"""

_PAGE = """
SELECT number, from_uid, to_uid, time_stamp, content, received_at, delivered, from_place, to_place, unique_id, block
FROM message
WHERE block IN (SELECT first_number FROM block WHERE first_number > ? ORDER BY first_number LIMIT ?)
ORDER BY number
"""


def _logged_message(row: tuple[Any, ...]) -> LoggedMessage:
    *fields, delivered, from_place, to_place, unique_id, _block = row
    return LoggedMessage(*fields, bool(delivered), from_place, to_place, unique_id)  # type: ignore[call-arg]  # as in _PAGE


class SqliteMessageReader:
    """The `chatrelay.interfaces.MessageReader` of a message log in a file.

    :param path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every message, oldest first.

        Close the generator if you do not read it to its end: this removes the files that SQLite made beside a log that
        no relay has open.

        :raises LogUnavailable: if the file can't be read, or is not a message log.
        """
        path = self._path
        try:
            with reading(path) as connection:
                version = schema_of(connection, path)
                if version < len(MIGRATIONS):
                    raise LogUnavailable(f"{path} was made by an older chatrelay: start the relay once to upgrade it")
                last_block = 0
                while rows := connection.execute(_PAGE, (last_block, BLOCKS_PER_READ)).fetchall():
                    yield from map(_logged_message, rows)
                    last_block = rows[-1][-1]
        except MissingLog as error:
            raise LogUnavailable(f"{error}; name another file with --message-log sqlite:PATH") from error
        except UnusableLog as error:
            raise LogUnavailable(str(error)) from error
        except sqlite3.Warning as error:
            raise LogUnavailable(f"the message log {path} cannot be read: {error}") from error
