"""A batch of messages that is being committed to a message log in SQLite, and what becomes of it if that fails.

This module must not know how a batch is written, or when a file is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import attrs

from chatrelay.model import Message

UNIQUE = 1
"""The ninth value of a message whose client id is unique."""

_BLOCK = "SELECT messages FROM block WHERE first_number = ?"

Row = tuple[str, int, str, int, str | int, str | int, str, int, *tuple[int, ...]]
"""A message in a block: the columns of the view ``message`` from ``from_uid`` to ``received_at``; then, for a message
with a unique id, `UNIQUE`."""


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


def forget_places(messages: Sequence[Message]) -> None:
    """Take the places from messages whose commit failed."""
    for message in messages:
        message.from_place = message.to_place = 0
