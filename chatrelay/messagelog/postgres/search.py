"""Find messages in a message log in PostgreSQL, for another process than the relay.

Each statement reads a window of numbers or places, so none takes long, however few of the messages are wanted. This
module must not write, and must not know who reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chatrelay.messagelog.postgres import queries
from chatrelay.messagelog.postgres.arrays import integers
from chatrelay.messagelog.postgres.connection import Connection
from chatrelay.model import InboxEntry, LoggedMessage, Selection

MESSAGES_PER_READ = 500
"""The messages that are read at once, each of at most 16 KiB. So a reader needs at most 8 MiB."""

WINDOW = 20_000
"""The numbers or places among which one statement looks for messages."""

ENTRIES_PER_READ = 100
BYTES_PER_READ = 1024 * 1024

_TIMES = " AND m.received_at >= $3 AND m.received_at < $4"
_BY_NUMBER = """
SELECT m.number AS key, {values} FROM chatrelay.message AS m
WHERE m.number > $1 AND m.number <= $2{times} ORDER BY m.number {order} LIMIT $5
"""
_BY_PLACE = """
(SELECT m.from_place AS key, {values} FROM chatrelay.message AS m
WHERE m.from_uid = $6{to_peer} AND m.from_place > $1 AND m.from_place <= $2{times}
ORDER BY m.from_place {order} LIMIT $5)
UNION ALL
(SELECT m.to_place AS key, {values} FROM chatrelay.message AS m
WHERE m.to_uid = $6{from_peer} AND m.from_uid <> m.to_uid AND m.to_place > $1 AND m.to_place <= $2{times}
ORDER BY m.to_place {order} LIMIT $5)
ORDER BY key {order} LIMIT $5
"""
_NEW = """
SELECT {values} FROM chatrelay.message AS m WHERE m.number > $1 OR m.number = ANY($2::bigint[])
ORDER BY m.number LIMIT $3
"""
_PRESENT = "SELECT number FROM chatrelay.message WHERE number > $1 AND number <= $2"
_NUMBERS = "SELECT coalesce(min(number), 1), coalesce(max(number), 0) FROM chatrelay.message"


def messages(
    connection: Connection, selection: Selection, *, through: int | None, newest_first: bool
) -> Iterator[LoggedMessage]:
    """Yield the messages that are wanted, by number, or by place in the inbox of their user."""
    times = [selection.since or 0, queries.END if selection.until is None else selection.until]
    if selection.user is None:
        first, last = first_and_last(connection)
        last = last if through is None else min(last, through)
        statement, users = _statement(_BY_NUMBER, newest_first), []
    else:
        inbox = queries.inbox(connection, selection.user)
        first, last = inbox.first, inbox.last
        peer = selection.peer
        statement = _statement(_BY_PLACE, newest_first, has_peer=peer is not None)
        users = [selection.user] if peer is None else [selection.user, peer]
    low, high = first - 1, last
    while low < high:
        bounds = (max(low, high - WINDOW), high) if newest_first else (low, min(high, low + WINDOW))
        rows = connection.query(statement, [*bounds, *times, MESSAGES_PER_READ, *users])
        for _, *values in rows:
            message = queries.logged(values)
            if through is None or message.number <= through:
                yield message
        is_full = len(rows) == MESSAGES_PER_READ
        if newest_first:
            high = int(rows[-1][0] or 0) - 1 if is_full else bounds[0]
        else:
            low = int(rows[-1][0] or 0) if is_full else bounds[1]


def entries(connection: Connection, user: str, after: int, through: int) -> Iterator[InboxEntry]:
    """Yield the entries of a user's places beyond `after`, up to `through`, void ones included."""
    while after < through:
        page = queries.entries(connection, user, after, through, ENTRIES_PER_READ, BYTES_PER_READ)
        for entry in page.entries:
            yield from (InboxEntry(void) for void in range(after + 1, entry.place))
            yield entry
            after = entry.place
        if not page.more:
            yield from (InboxEntry(void) for void in range(after + 1, through + 1))
            return


def first_and_last(connection: Connection) -> tuple[int, int]:
    """Return the numbers of the first message and of the last one; 1 and 0 if there is none."""
    first, last = connection.query(_NUMBERS)[0]
    return int(first or 1), int(last or 0)


def _statement(text: str, newest_first: bool, has_peer: bool = False) -> str:
    return text.format(
        values=queries.VALUES,
        times=_TIMES,
        order="DESC" if newest_first else "ASC",
        to_peer=" AND m.to_uid = $7" if has_peer else "",
        from_peer=" AND m.from_uid = $7" if has_peer else "",
    )


def new_messages(connection: Connection, after: int, missing: Sequence[int], limit: int) -> list[LoggedMessage]:
    """Return messages with numbers beyond `after`, and those with numbers that were missing, by number."""
    return [
        queries.logged(row)
        for row in connection.query(_NEW.format(values=queries.VALUES), [after, integers(missing), limit])
    ]


def numbers_between(connection: Connection, after: int, through: int) -> set[int]:
    """Return the numbers of the messages beyond `after`, up to `through`."""
    return {int(number or 0) for (number,) in connection.query(_PRESENT, [after, through])}
