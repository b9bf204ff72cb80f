"""Read single messages out of the blocks of a message log in SQLite.

It only reads, on a connection that is handed in, and keeps no transaction open between two calls. This module must not
know how the numbers of the messages were found.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw, Struct

from chatrelay.messagelog.sqlite.schema import MAX_BLOCK_MESSAGES
from chatrelay.model import LoggedMessage

_BLOCK = """
SELECT first_number, CAST(messages AS BLOB) FROM block WHERE first_number <= ? ORDER BY first_number DESC LIMIT 1
"""
_UNDELIVERED = "SELECT number FROM undelivered WHERE number IN (SELECT value FROM json_each(?))"
_IS_UNDELIVERED = "SELECT 1 FROM undelivered WHERE number = ?"

_split = msgspec.json.Decoder(list[Raw]).decode
_NEXT_ROW = b'],["'
"""What ends a message in a block and begins the next one. A text may end like this, too."""
_ranges = msgspec.json.Decoder(tuple[tuple[int, int], ...]).decode


class Kind(enum.IntEnum):
    """What an array in a block is: its ninth value, or `MESSAGE` if it has eight.

    Only messages are shown as such. The others keep their places, and are marked as undelivered, too, so that nothing
    which counts or lists messages that stand has to read them.
    """

    MESSAGE = 0
    UNIQUE = 1
    """A message whose client id is unique among its sender's messages."""
    ERASED = 2
    """What is left of a message: its users, its places, and when it was received."""
    NOTICE = 3
    """Tells a user that messages were erased. Its sender and its recipient are that user, and its content is the ranges
    of places in that user's inbox, as JSON."""


class UndecodedMessage(Struct, array_like=True, gc=False):
    """A message as it is in a block, with its text not decoded. Further values are skipped."""

    from_uid: str
    from_place: int
    to_uid: str
    to_place: int
    client_id: Raw
    time_stamp: Raw
    content: Raw
    received_at: int


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
    kind: int = Kind.MESSAGE

    @property
    def is_message(self) -> bool:
        """Whether it is a message, and not what is left of one, or a notice."""
        return self.kind <= Kind.UNIQUE

    @property
    def unique_id(self) -> str | None:
        """The id that names it among the sender's messages; None if the sender spoke v1."""
        return str(self.client_id) if self.kind == Kind.UNIQUE else None

    @property
    def erased(self) -> tuple[tuple[int, int], ...]:
        """The ranges of places that a notice tells of; empty for anything else."""
        return _ranges(self.content) if self.kind == Kind.NOTICE else ()

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
_encode = msgspec.json.Encoder().encode


class Blocks:
    """Reads messages by number. It keeps the last block, because the next message is often in it.

    :param connection: may only read.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._first = 0
        self._text = b""  # of the last block; empty once it is split
        self._messages: Sequence[Raw] = ()

    def message(self, number: int) -> StoredMessage | None:
        """Return the message with a number; None where there is none.

        :raises sqlite3.Error: where the log can't be read.
        :raises msgspec.MsgspecError: where the block is damaged.
        """
        if not self._has(number):
            self._read(number)
            self._split_block()
        return _decode(self._messages[number - self._first]) if self._has(number) else None

    def at_place(self, number: int, user: str, place: int) -> StoredMessage | None:
        """Return the message with a number, as `message` does, and faster if no other one of its block is wanted.

        :param user: the key of its sender or recipient.
        :param place: its place in that user's inbox. If the index is right, no other message has it.
        """
        if self._text and 0 <= number - self._first < MAX_BLOCK_MESSAGES:
            self._split_block()  # the second message of this block, probably, and more may follow
        if not self._has(number):
            self._read(number)
            found = self._found(user, place)
            if found is not None:
                return found
            self._split_block()
        return _decode(self._messages[number - self._first]) if self._has(number) else None

    def _has(self, number: int) -> bool:
        """Return whether the last block is split and has a number."""
        return 0 <= number - self._first < len(self._messages)

    def _read(self, number: int) -> None:
        """Read the block that has a number, if there is one."""
        found = self._connection.execute(_BLOCK, (number,)).fetchone()
        self._first, self._text = found or (0, b"[]")
        self._messages = ()

    def _split_block(self) -> None:
        """Split the block that was read."""
        self._messages, self._text = _split(self._text), b""

    def _found(self, user: str, place: int) -> StoredMessage | None:
        """Search the block for the message at a place of a user's inbox; None if it is not found easily.

        The text of a message can't be taken for a message, because in JSON each of its quotation marks is escaped.
        """
        text = self._text
        at = text.rfind(b"%b,%d," % (_encode(user), place))  # searching from the end takes a fraction of the time
        if at < 0:
            return None
        start, end = text.rfind(b"[", 0, at), text.find(_NEXT_ROW, at)
        try:
            message = _decode(text[start : len(text) - 1 if end < 0 else end + 1])
        except msgspec.MsgspecError:
            return None  # a text has what looks like a place, or like the end or the beginning of a message
        is_there = (message.from_uid, message.from_place) == (user, place)
        return message if is_there or (message.to_uid, message.to_place) == (user, place) else None

    def undelivered(self, numbers: Iterable[int]) -> set[int]:
        """Return which of some messages are marked as undelivered."""
        found = self._connection.execute(_UNDELIVERED, (msgspec.json.encode(list(numbers)).decode(),))
        return {number for (number,) in found}

    def is_undelivered(self, number: int) -> bool:
        """Return whether a message is marked as undelivered."""
        return self._connection.execute(_IS_UNDELIVERED, (number,)).fetchone() is not None
