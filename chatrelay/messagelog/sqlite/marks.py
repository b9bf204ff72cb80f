"""The table of marks in a message log in SQLite: read them, write them, and drop revocations.

A kind of mark is kept as its number. This module must not know transactions, nor what a mark means; what a revocation
may cover is in `chatrelay.interfaces.InboxLog.save_marks`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import msgspec

from chatrelay.messagelog.sqlite.schema import json_text
from chatrelay.model import INBOX_KINDS, MarkKey, MarkKind

Key = tuple[str, int, str]
"""A `chatrelay.model.MarkKey` with the number of the kind."""

_SAVE = """
INSERT INTO mark (user, kind, peer, value)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]')
FROM json_each(?) WHERE true
ON CONFLICT (user, kind, peer) DO UPDATE SET value = max(mark.value, excluded.value)
"""
_DROP_COVERED = "DELETE FROM mark WHERE user = '' AND kind = ? AND peer <> '' AND value <= ?"
_DROP_OLD = "DELETE FROM mark WHERE user = '' AND kind = ? AND value < ?"
_OF_INBOX = "SELECT kind, value FROM mark WHERE user = ? AND kind IN (?, ?, ?, ?) AND peer = ''"
_READ = """
SELECT user, kind, peer, mark.value FROM json_each(?) AS key CROSS JOIN mark
ON user = key.value ->> 0 AND kind = key.value ->> 1 AND peer = key.value ->> 2
"""


def write(connection: sqlite3.Connection, marks: Mapping[Key, int]) -> None:
    """Write marks that are greater than those in the table. Drop the revocations that one for all sessions covers."""
    connection.execute(_SAVE, (json_text([(*key, value) for key, value in marks.items()]),))
    all_revoked = marks.get(("", MarkKind.REVOKED.value, ""))
    if all_revoked is not None:
        connection.execute(_DROP_COVERED, (MarkKind.REVOKED.value, all_revoked))


def drop_old_revocations(connection: sqlite3.Connection, now: float) -> None:
    """Delete the revocations that are over.

    :param now: seconds since 1970 UTC.
    """
    connection.execute(_DROP_OLD, (MarkKind.REVOKED.value, int(now)))


def of_inbox(connection: sqlite3.Connection, user: str, waiting: Mapping[Key, int]) -> Mapping[int, int]:
    """Return the marks of a user's inbox by kind.

    :param waiting: marks that are not written yet.
    """
    marks: dict[int, int] = dict(connection.execute(_OF_INBOX, (user, *INBOX_KINDS)).fetchall())
    for kind in INBOX_KINDS:
        value = waiting.get((user, kind, ""))
        if value is not None:
            marks[kind] = max(value, marks.get(kind, value))
    return marks


def read(connection: sqlite3.Connection, keys: Sequence[MarkKey]) -> Mapping[MarkKey, int]:
    """Return the values of marks of any users and kinds. A mark that is not in the table is left out."""
    text = msgspec.json.encode(keys).decode()  # a kind by its value
    found = connection.execute(_READ, (text,))
    return {(user, MarkKind(kind), peer): value for user, kind, peer, value in found}
