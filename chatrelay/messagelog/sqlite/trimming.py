"""Delete the oldest messages of a message log in SQLite: a few whole blocks at once.

It works on a connection that is passed in. This module must not know when messages are deleted, or files.

A user's row in ``saved_inbox`` gets the first place that is kept in the same transaction, and the last place, which may
be in no other row. The row of ``saved_through`` becomes the number of the last deleted message if it is smaller: it is
the number of the last message of a log without any.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import attrs
import msgspec
from twisted.logger import Logger

from chatrelay.messagelog.sqlite.blocks import UndecodedMessage
from chatrelay.messagelog.sqlite.checkpoints import Checkpoints
from chatrelay.messagelog.sqlite.failures import is_damage
from chatrelay.messagelog.sqlite.schema import json_text
from chatrelay.model import MarkKind

log = Logger("chatrelay.messagelog")

MAX_BLOCKS = 100
"""The most blocks that are deleted at once."""

MAX_MESSAGES = 1_000
"""The messages of which no further block is deleted in the same transaction. No message is written meanwhile."""

_PAGE_BYTES = 4096

_OLDEST = "SELECT first_number, CAST(messages AS BLOB) FROM block ORDER BY first_number LIMIT ?"
_DELETE_BLOCKS = "DELETE FROM block WHERE first_number <= ?"
_DELETE_UNDELIVERED = "DELETE FROM undelivered WHERE number <= ?"
# In the order of the table, so that a page that has several of the users is written once.
_SAVE_FIRST_PLACES = """
INSERT INTO saved_inbox (uid, last_place, first_place)
SELECT value ->> 0 AS uid, (value ->> 1) - 1, value ->> 1 FROM json_each(?) WHERE true ORDER BY uid
ON CONFLICT (uid) DO UPDATE SET
    first_place = max(saved_inbox.first_place, excluded.first_place),
    last_place = max(saved_inbox.last_place, excluded.last_place)
"""
_SAVED_THROUGH = "UPDATE saved_through SET number = max(number, ?)"
_DELETE_MARKS = """
DELETE FROM mark WHERE (user, kind, peer) IN (
    SELECT m.user, m.kind, m.peer FROM json_each(?) AS f
    CROSS JOIN mark AS m ON m.user = f.value ->> 0 AND m.kind = ? WHERE m.value < f.value ->> 1
)
"""


_decode = msgspec.json.Decoder(list[UndecodedMessage]).decode


@attrs.frozen
class Deleted:
    """Some of the oldest blocks of a log, which were deleted.

    :ivar count: the number of their messages.
    :ivar through: the number of the last message; 0 if there was none.
    """

    count: int = 0
    through: int = 0


@attrs.frozen
class _Oldest:
    """Some of the oldest blocks of a log, all of whose messages are old.

    :ivar last_places: by user, the last place of these messages.
    :ivar size: the bytes of the blocks.
    """

    deleted: Deleted
    last_places: Mapping[str, int]
    size: int

    def delete(self, connection: sqlite3.Connection) -> None:
        """Delete them, and what is kept about them, in the current transaction."""
        through = self.deleted.through
        connection.execute(_DELETE_BLOCKS, (through,))
        connection.execute(_DELETE_UNDELIVERED, (through,))
        connection.execute(_SAVED_THROUGH, (through,))
        firsts = json_text([(user, last + 1) for user, last in self.last_places.items()])
        connection.execute(_SAVE_FIRST_PLACES, (firsts,))
        connection.execute(_DELETE_MARKS, (firsts, MarkKind.READ.value))


class Trimmer:
    """Deletes the oldest messages of a log. If a block is damaged, it reports that once."""

    def __init__(self) -> None:
        self._failure_logged = False

    def trim(self, connection: sqlite3.Connection, before: int, checkpoints: Checkpoints, wal_size: int = 0) -> Deleted:
        """Delete a few of the oldest blocks in a transaction, if all their messages were received before a time.

        If there is nothing to delete, nothing is written.

        :param before: microseconds since 1970 UTC.
        :param checkpoints: those of the log.
        :param wal_size: see `Checkpoints.after_commit`.
        :raises sqlite3.Error: if the log can't be read or written.
        """
        try:
            oldest = _oldest(connection, before)
        except (msgspec.MsgspecError, sqlite3.DatabaseError) as error:
            # A damaged page of old messages must not close a log that can be written, each time again.
            if isinstance(error, sqlite3.Error) and not is_damage(error):
                raise
            if not self._failure_logged:
                self._failure_logged = True
                log.warn("no old messages can be deleted, because a block is damaged: {error}", error=error)
            return Deleted()
        if not oldest.deleted.count:
            return oldest.deleted
        connection.execute("BEGIN IMMEDIATE")
        checkpoints.before_commit(connection, oldest.size + len(oldest.last_places) * _PAGE_BYTES)
        oldest.delete(connection)
        connection.execute("COMMIT")
        checkpoints.after_commit(connection, wal_size)
        return oldest.deleted


def _oldest(connection: sqlite3.Connection, before: int) -> _Oldest:
    """Find the oldest blocks, as far as all their messages were received before a time.

    :raises msgspec.MsgspecError: if a block is damaged.
    """
    count = through = size = 0
    last_places: dict[str, int] = {}
    for first, text in connection.execute(_OLDEST, (MAX_BLOCKS,)):
        rows = _decode(text)
        if count >= MAX_MESSAGES or any(row.received_at >= before for row in rows):
            break
        count += len(rows)
        through = first + len(rows) - 1
        size += len(text)
        for row in rows:
            last_places[row.from_uid] = row.from_place
            last_places[row.to_uid] = row.to_place
    return _Oldest(Deleted(count, through), last_places, size)
