"""A batch of messages that is being committed to a message log in SQLite: its places, its blocks, and its failure.

This module must not know how a batch is written, or when a file is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import attrs

from chatrelay.messagelog.sqlite.blocks import Kind
from chatrelay.model import Message

MICROSECONDS = 1_000_000
"""Microseconds in a second. The file keeps times as integers, which are exact."""

_UNIQUE = int(Kind.UNIQUE)  # it is looked up for every message

_LAST_PLACE = "SELECT last_place FROM saved_inbox WHERE uid = ?"
_BLOCK = "SELECT messages FROM block WHERE first_number = ?"

Row = tuple[str, int, str, int, str | int, str | int, str, int, *tuple[int, ...]]
"""A message in a block: the columns of the view ``message`` from ``from_uid`` to ``received_at``; then, for a message
with a unique id, `chatrelay.messagelog.sqlite.blocks.Kind.UNIQUE`."""


@attrs.frozen
class Batch:
    """A batch that is being committed.

    :ivar first: the number of its first message.
    :ivar block: its first block.
    """

    first: int
    block: str
    messages: Sequence[Message]
    rows: Sequence[Row]

    def is_in(self, connection: sqlite3.Connection) -> bool:
        """Return whether the batch is in a file. Its first block shows it, because a batch is one transaction."""
        found = connection.execute(_BLOCK, (self.first,)).fetchone()
        return found is not None and bool(found[0] == self.block)

    def refused(self) -> Iterator[int]:
        """Yield the numbers of the messages whose senders were refused: those without a unique id."""
        for number, message in enumerate(self.messages, self.first):
            if not message.has_unique_id:
                yield number

    def set_places(self) -> None:
        """Tell the messages their places."""
        for message, row in zip(self.messages, self.rows, strict=True):
            message.from_place = row[1]
            message.to_place = row[3]


def place(messages: Sequence[Message], places: LastPlaces) -> list[Row]:
    """Set the places of messages; return them as rows of a block.

    :param places: the last places before; it is changed to those after.
    """
    rows: list[Row] = []
    for message in messages:
        # `user_key`, without two calls for each message.
        from_user = uid if type(uid := message.from_uid) is str else str(uid)
        to_user = uid if type(uid := message.to_uid) is str else str(uid)
        if message.is_to_stranger:
            places.look_up(to_user)
        from_place = to_place = places[to_user] = places[to_user] + 1
        if from_user != to_user:
            from_place = places[from_user] = places[from_user] + 1
        message.from_place = from_place
        message.to_place = to_place
        row = (
            from_user,
            from_place,
            to_user,
            to_place,
            message.client_id,
            message.time_stamp,
            message.content,
            int(message.received_at * MICROSECONDS),
        )
        rows.append((*row, _UNIQUE) if message.has_unique_id else row)
    return rows


def forget_places(messages: Sequence[Message]) -> None:
    """Take the places from messages whose commit failed."""
    for message in messages:
        message.from_place = message.to_place = 0


class LastPlaces(dict[str, int]):
    """The last places of the users in a batch. For other users, the last place before the batch.

    :param unsaved: last places that are not in the table yet.
    """

    def __init__(self, unsaved: dict[str, int], connection: sqlite3.Connection) -> None:
        super().__init__()
        self._unsaved = unsaved
        self._connection = connection

    def __missing__(self, user: str) -> int:
        last = self._unsaved.get(user)
        return self._saved(user) if last is None else last

    def look_up(self, user: str) -> None:
        """Look up the last place of a user by a read of the table, even if it is known already."""
        saved = self._saved(user)
        if user not in self:
            self[user] = self._unsaved.get(user, saved)

    def _saved(self, user: str) -> int:
        found = self._connection.execute(_LAST_PLACE, (user,)).fetchone()
        return found[0] if found else 0
