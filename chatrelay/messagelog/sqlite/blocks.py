"""Read single messages out of the blocks of a message log in SQLite.

It only reads, on a connection that is handed in, and keeps no transaction open between two calls. This module must not
know how the numbers of the messages were found.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw, Struct

from chatrelay.model import LoggedMessage

_BLOCK = """
SELECT first_number, CAST(messages AS BLOB) FROM block WHERE first_number <= ? ORDER BY first_number DESC LIMIT 1
"""
_UNDELIVERED = "SELECT number FROM undelivered WHERE number IN (SELECT value FROM json_each(?))"
_IS_UNDELIVERED = "SELECT 1 FROM undelivered WHERE number = ?"

_split = msgspec.json.Decoder(list[Raw]).decode


class StoredMessage(Struct, array_like=True, gc=False):
    """A message as it is in a block. Further values of later versions are skipped."""

    from_uid: str
    from_place: int
    to_uid: str
    to_place: int
    client_id: str | int
    time_stamp: str | int
    content: str
    received_at: int
    is_unique: int = 0

    @property
    def unique_id(self) -> str | None:
        """The id that names it among the sender's messages; None if the sender spoke v1."""
        return str(self.client_id) if self.is_unique else None

    def logged(self, number: int, delivered: bool = True) -> LoggedMessage:
        """Return it as a message of the log, and if nothing else is said, as one that stands."""
        return LoggedMessage(
            number,
            self.from_uid,
            self.to_uid,
            self.time_stamp,
            self.content,
            self.received_at,
            delivered,
            self.from_place,
            self.to_place,
            self.unique_id,
        )


_decode = msgspec.json.Decoder(StoredMessage).decode


class Blocks:
    """Reads messages by number. It keeps the last block, because the next message is often in it.

    :param connection: may only read.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._first = 0
        self._messages: Sequence[Raw] = ()

    def message(self, number: int) -> StoredMessage | None:
        """Return the message with a number; None where there is none.

        :raises sqlite3.Error: where the log can't be read.
        :raises msgspec.MsgspecError: where the block is damaged.
        """
        if not 0 <= number - self._first < len(self._messages):
            found = self._connection.execute(_BLOCK, (number,)).fetchone()
            self._first, self._messages = (found[0], _split(found[1])) if found else (0, ())
            if not 0 <= number - self._first < len(self._messages):
                return None
        return _decode(self._messages[number - self._first])

    def undelivered(self, numbers: Iterable[int]) -> set[int]:
        """Return which of some messages are marked as undelivered."""
        found = self._connection.execute(_UNDELIVERED, (msgspec.json.encode(list(numbers)).decode(),))
        return {number for (number,) in found}

    def is_undelivered(self, number: int) -> bool:
        """Return whether a message is marked as undelivered."""
        return self._connection.execute(_IS_UNDELIVERED, (number,)).fetchone() is not None
