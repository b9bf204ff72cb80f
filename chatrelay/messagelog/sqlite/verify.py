"""Whether a file is a whole message log: its pages, its schema, every message, every place in an inbox.

It only reads. `chatrelay.messagelog.sqlite.backup` copies the files that are checked
here, and puts them in their places.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

import attrs
import msgspec

from chatrelay.messagelog.sqlite.reading import Damaged, reading, schema_of
from chatrelay.messagelog.sqlite.schema import MIGRATIONS

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is to do."""

REPORT_EVERY = 256
"""After how many blocks, or pages, a report is made."""

_DECODER = msgspec.json.Decoder(list[tuple[str, int, str, int, str | int, str | int, str, int]])
_BLOCKS = "SELECT first_number, messages FROM block ORDER BY first_number"
# In every schema there is a table or a view "message"; in the present one, its blocks make the last one quick to find.
_LAST = "SELECT number, received_at FROM message ORDER BY number DESC LIMIT 1"
_LAST_IN_BLOCKS = _LAST.replace("ORDER", "WHERE block = (SELECT max(first_number) FROM block) ORDER")
# Places have no holes: the inbox of a user with n messages holds the places 1 to n, whose sum is n (n + 1) / 2.
_PLACES = "SELECT coalesce(sum(last_place), 0), coalesce(sum(last_place * (last_place + 1) / 2), 0) FROM inbox"


@attrs.frozen
class Contents:
    """What a message log holds.

    :ivar messages: how many messages; they are numbered from 1 without holes.
    :ivar last_received_at: when the last one was received, microseconds since 1970, UTC; None where there is none.
    :ivar schema: the version of its tables.
    :ivar size: bytes of the file.
    """

    messages: int
    last_received_at: int | None
    schema: int
    size: int


def summary(path: str) -> Contents:
    """What a message log says that it holds, at a glance.

    :raises NotUsable: see `reading` and `schema_of`.
    """
    with reading(path) as connection:
        schema = schema_of(connection, path)
        statement = _LAST_IN_BLOCKS if schema == len(MIGRATIONS) else _LAST
        messages, received_at = connection.execute(statement).fetchone() or (0, None)
        return Contents(messages, received_at, schema, os.stat(path).st_size)


def verify(path: str, report: Report, name: str | None = None) -> Contents:
    """Read all of a message log that no other process has open.

    Every message is decoded, the numbers must have no holes, and the places must be those that the inboxes count. Of an
    older schema, only SQLite's own check is made, and the messages are counted.

    :param name: what a sentence calls it, if not its path.
    :raises NotUsable: where it is not whole.
    """
    name = name or path
    with reading(path, name, private=True) as connection:
        schema = schema_of(connection, name)
        if schema == len(MIGRATIONS):
            messages, received_at = _read_blocks(connection, name, report)
        else:
            (messages,) = connection.execute("SELECT count(*) FROM message").fetchone()
            last, received_at = connection.execute(_LAST).fetchone() or (0, None)
            if messages != last:
                raise Damaged(f"{name} is damaged: it holds {messages} messages, and the last one has number {last}")
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise Damaged(f"{name} is damaged: {' '.join(found.split())}")
        return Contents(messages, received_at, schema, os.stat(path).st_size)


def _read_blocks(connection: sqlite3.Connection, name: str, report: Report) -> tuple[int, int | None]:
    """Decode every message; return how many there are, and when the last one was received."""
    (last,) = connection.execute("SELECT max(first_number) FROM block").fetchone()
    messages = places = sum_of_places = 0
    received_at = None
    for count, (first, text) in enumerate(connection.execute(_BLOCKS)):
        if first != messages + 1:
            raise Damaged(f"{name} is damaged: message {messages + 1} is missing, the next one is {first}")
        try:
            rows = _DECODER.decode(text)
        except (msgspec.MsgspecError, UnicodeError, TypeError) as error:
            raise Damaged(f"{name} is damaged: the messages from {first} on cannot be decoded: {error}") from error
        messages += len(rows)
        for from_uid, from_place, to_uid, to_place, *_ in rows:
            places += 1
            sum_of_places += from_place
            if to_uid != from_uid:
                places += 1
                sum_of_places += to_place
        if rows:
            received_at = rows[-1][-1]
        if count % REPORT_EVERY == 0:
            report("checking", first, last)
    if (places, sum_of_places) != connection.execute(_PLACES).fetchone():
        raise Damaged(f"{name} is damaged: the places of its messages are not those that its inboxes count")
    return messages, received_at
