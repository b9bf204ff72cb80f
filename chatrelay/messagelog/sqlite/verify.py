"""Check that a file is a complete message log: its pages, its schema, every message, every place in an inbox.

This module only reads. `chatrelay.messagelog.sqlite.backup` makes the files that it checks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import Literal

import attrs
import msgspec

from chatrelay.messagelog.sqlite.opening import DamagedLog, reading, schema_of
from chatrelay.messagelog.sqlite.schema import FIRST_WITH_BLOCKS, FIRST_WITH_ENTRIES

Report = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done, and how much there is to do."""

BLOCKS_PER_REPORT = 256
"""The blocks between two reports."""


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    from_uid: str
    from_place: int
    to_uid: str
    to_place: int
    client_id: str | int
    time_stamp: str | int
    content: str
    received_at: int
    kind: Literal[1, 2, 3] | None = None


_DECODER = msgspec.json.Decoder(list[_Row])
# As bytes, because SQLite would raise an error for text that is not UTF-8.
_BLOCKS = "SELECT first_number, CAST(messages AS BLOB) FROM block ORDER BY first_number"
# Every schema has a table or a view "message". Since the second one, the last block makes the last message quick to
# find.
_LAST = "SELECT number, received_at FROM message ORDER BY number DESC LIMIT 1"
_LAST_IN_BLOCKS = _LAST.replace("ORDER", "WHERE block = (SELECT max(first_number) FROM block) ORDER")
_LAST_ENTRY = _LAST_IN_BLOCKS.replace("message", "entry")
_FIRST = "SELECT min(first_number) FROM block"
# Places have no gaps: the inbox of a user has the places from the first to the last one. Of each n places, the sum is n
# times the middle between the first and the last one.
_PLACES = """
SELECT coalesce(sum(last_place - first_place + 1), 0),
    coalesce(sum((last_place - first_place + 1) * (first_place + last_place) / 2), 0)
FROM inbox
"""
_ALL_PLACES = _PLACES.replace("first_place", "1")
_IS_TRIMMED = "SELECT 1 FROM saved_inbox WHERE first_place > 1 LIMIT 1"


@attrs.frozen
class Contents:
    """A summary of a message log.

    :ivar messages: the number of messages that are kept, with those that were erased, and the notices of that. They are
        numbered without gaps.
    :ivar last_received_at: when the last message was received, in microseconds since 1970 UTC; None without messages.
    :ivar schema: the version of its tables.
    :ivar size: the size of the file, in bytes.
    """

    messages: int
    last_received_at: int | None
    schema: int
    size: int


def summary(path: str) -> Contents:
    """Return the summary of a message log without reading all of it.

    :raises UnusableLog: see `reading` and `schema_of`.
    """
    with reading(path) as connection:
        schema = schema_of(connection, path)
        statement = _LAST_IN_BLOCKS if schema >= FIRST_WITH_BLOCKS else _LAST
        if schema >= FIRST_WITH_ENTRIES:
            statement = _LAST_ENTRY
        last, received_at = connection.execute(statement).fetchone() or (0, None)
        (first,) = connection.execute(_FIRST).fetchone() if schema >= FIRST_WITH_BLOCKS else (1,)
        messages = last - (first or 1) + 1
        return Contents(messages, received_at, schema, os.stat(path).st_size)


def verify(path: str, report: Report, name: str | None = None) -> Contents:
    """Check all of a message log that no other process has open; return its summary.

    Every message is decoded, the numbers must have no gaps, and the places must match the inboxes. In the first schema,
    only SQLite's own check is made, and the messages are counted.

    :param name: its name in error messages, if not its path.
    :raises UnusableLog: if it is not complete.
    """
    name = name or path
    with reading(path, name, private=True) as connection:
        schema = schema_of(connection, name)
        if schema >= FIRST_WITH_BLOCKS:
            messages, received_at = _read_blocks(connection, name, report, schema >= FIRST_WITH_ENTRIES)
        else:
            (messages,) = connection.execute("SELECT count(*) FROM message").fetchone()
            last, received_at = connection.execute(_LAST).fetchone() or (0, None)
            if messages != last:
                raise DamagedLog(f"{name} is damaged: it has {messages} messages, and the last one has number {last}")
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise DamagedLog(f"{name} is damaged: {' '.join(found.split())}")
        return Contents(messages, received_at, schema, os.stat(path).st_size)


def _read_blocks(
    connection: sqlite3.Connection, name: str, report: Report, may_be_trimmed: bool
) -> tuple[int, int | None]:
    """Decode every message; return their number, and the time when the last one was received.

    :param may_be_trimmed: whether the schema has the first places that are kept.
    """
    (last,) = connection.execute("SELECT max(first_number) FROM block").fetchone()
    number = 0
    if may_be_trimmed and connection.execute(_IS_TRIMMED).fetchone():
        number = (connection.execute(_FIRST).fetchone()[0] or 1) - 1
    messages = places = sum_of_places = 0
    received_at = None
    for count, (first, text) in enumerate(connection.execute(_BLOCKS)):
        if first != number + 1:
            raise DamagedLog(f"{name} is damaged: message {number + 1} is missing, the next one is {first}")
        try:
            rows = _DECODER.decode(text)
        except (msgspec.MsgspecError, UnicodeError, TypeError) as error:
            raise DamagedLog(f"{name} is damaged: the messages from {first} on cannot be decoded: {error}") from error
        messages += len(rows)
        number += len(rows)
        for row in rows:
            places += 1
            sum_of_places += row.from_place
            if row.to_uid != row.from_uid:
                places += 1
                sum_of_places += row.to_place
        if rows:
            received_at = rows[-1].received_at
        if count % BLOCKS_PER_REPORT == 0:
            report("checking", first, last)
    expected = connection.execute(_PLACES if may_be_trimmed else _ALL_PLACES).fetchone()
    if (places, sum_of_places) != expected:
        raise DamagedLog(f"{name} is damaged: the places of its messages do not match its inboxes")
    return messages, received_at
