"""The reads of a message log in PostgreSQL by user: one statement each, and rows made into values.

Each finds its rows by an index, so its cost does not grow with the log. This module must not know threads, or what to
do about a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from chatrelay.messagelog.postgres.arrays import integers, small_integers, texts
from chatrelay.messagelog.postgres.connection import Connection, Row
from chatrelay.model import (
    INBOX_KINDS,
    Conversation,
    InboxEntry,
    InboxState,
    LoggedMessage,
    MarkKey,
    MarkKind,
    Page,
    Progress,
)

END = 2**63 - 1
"""A place beyond every inbox."""

VALUES = (
    "m.number, m.from_uid, m.to_uid, m.time_stamp, m.time_stamp_is_integer, m.content, m.received_at, m.delivered, "
    "m.from_place, m.to_place, CASE WHEN m.has_unique_id THEN m.client_id END AS unique_id"
)
"""The columns that `logged` takes, of a message ``m``."""


# This reads one row more than a page takes, and no bytes beyond that row.
_PAGED = """
SELECT p.* FROM (
    SELECT r.*, row_number() OVER in_order AS row,
        sum(CASE WHEN r.delivered THEN octet_length(r.content) ELSE 0 END) OVER in_order AS total
    FROM ({rows} ORDER BY place {order} LIMIT {limit}::bigint + 1) AS r
    WINDOW in_order AS (ORDER BY r.place {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
) AS p WHERE p.row <= 2 OR p.total <= {size}::bigint ORDER BY p.place {order}
"""


def _paged(rows: str, order: str, limit: str, size: str) -> str:
    """Return the statement that reads a page.

    :param rows: a query with the column ``place``, and those of ``VALUES``.
    """
    return _PAGED.format(
        rows=rows.format(values=VALUES, order=order, peers=_PEERS), order=order, limit=limit, size=size
    )


_INBOX = """
(SELECT m.from_place AS place, {values} FROM chatrelay.message AS m
WHERE m.from_uid = $1 AND m.from_place > $2 AND m.from_place <= $3 ORDER BY m.from_place {order} LIMIT $4::bigint + 1)
UNION ALL
(SELECT m.to_place AS place, {values} FROM chatrelay.message AS m
WHERE m.to_uid = $1 AND m.from_uid <> m.to_uid AND m.to_place > $2 AND m.to_place <= $3
ORDER BY m.to_place {order} LIMIT $4::bigint + 1)
"""
_CONVERSATION = """
(SELECT m.from_place AS place, {values} FROM chatrelay.message AS m
WHERE m.from_uid = $1 AND m.to_uid = $2 AND m.from_place > $3 AND m.from_place < $4 AND m.delivered
ORDER BY m.from_place {order} LIMIT $5::bigint + 1)
UNION ALL
(SELECT m.to_place AS place, {values} FROM chatrelay.message AS m
WHERE m.to_uid = $1 AND m.from_uid = $2 AND $1::text <> $2::text
AND m.to_place > $3 AND m.to_place < $4 AND m.delivered
ORDER BY m.to_place {order} LIMIT $5::bigint + 1)
"""
# The peers are found by jumping from one to the next in the index of conversations. So the cost grows with the user's
# peers, and not with the messages.
_PEERS_OF_ONE_KIND = """
{name} (peer) AS (
    (SELECT m.{peer} FROM chatrelay.message AS m WHERE m.{user} = $1 ORDER BY m.{peer} LIMIT 1)
    UNION ALL
    SELECT (
        SELECT m.{peer} FROM chatrelay.message AS m WHERE m.{user} = $1 AND m.{peer} > {name}.peer
        ORDER BY m.{peer} LIMIT 1
    ) FROM {name} WHERE {name}.peer IS NOT NULL
)
"""
_PEERS = ",".join(
    _PEERS_OF_ONE_KIND.format(name=name, user=user, peer=peer)
    for name, user, peer in (("sent", "from_uid", "to_uid"), ("received", "to_uid", "from_uid"))
)
_LAST_OF_CONVERSATIONS = """
SELECT last.place, {values} FROM (
    WITH RECURSIVE {peers}
    SELECT found.place, found.number
    FROM (
        SELECT peer FROM sent WHERE peer IS NOT NULL UNION SELECT peer FROM received WHERE peer IS NOT NULL
    ) AS peers CROSS JOIN LATERAL (
        (SELECT m.from_place AS place, m.number FROM chatrelay.message AS m
        WHERE m.from_uid = $1 AND m.to_uid = peers.peer AND m.from_place <= $2 AND m.delivered
        ORDER BY m.from_place DESC LIMIT 1)
        UNION ALL
        (SELECT m.to_place AS place, m.number FROM chatrelay.message AS m
        WHERE m.to_uid = $1 AND m.from_uid = peers.peer AND m.to_place <= $2 AND m.delivered
        ORDER BY m.to_place DESC LIMIT 1)
        ORDER BY place DESC LIMIT 1
    ) AS found
    WHERE found.place < $3
    ORDER BY found.place {order} LIMIT $4::bigint + 1
) AS last JOIN chatrelay.message AS m ON m.number = last.number
"""
_ENTRIES = _paged(_INBOX, "ASC", "$4", "$5")
_HISTORY_BEFORE = _paged(_CONVERSATION, "DESC", "$5", "$6")
_HISTORY_AFTER = _paged(_CONVERSATION, "ASC", "$5", "$6")
_CONVERSATIONS = _paged(_LAST_OF_CONVERSATIONS, "DESC", "$4", "$5")
# "OFFSET 0" has each mark read once, although it is used several times.
_MARKS_AND_PLACES = """
SELECT mark.read_by_me, {received}, {read}, (
    SELECT count(*) FROM (
        SELECT 1 FROM chatrelay.message AS m
        WHERE m.to_uid = $1 AND m.from_uid = k.peer AND $1::text <> k.peer
        AND m.to_place > mark.read_by_me AND m.to_place <= $7 AND m.delivered LIMIT $8
    ) AS found
)
FROM unnest($2::text[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[]) WITH ORDINALITY
    AS k (peer, is_known, read_by_me, received, read, row)
CROSS JOIN LATERAL (
    SELECT
        greatest(k.read_by_me, (
            SELECT value FROM chatrelay.mark WHERE uid = $1 AND kind = $9 AND peer = k.peer
        )) AS read_by_me,
        CASE WHEN k.is_known = 1 THEN greatest(k.received, k.read, (
            SELECT value FROM chatrelay.mark WHERE uid = k.peer AND kind = $10 AND peer = ''
        ), (
            SELECT value FROM chatrelay.mark WHERE uid = k.peer AND kind = $9 AND peer = $1
        )) END AS received,
        CASE WHEN k.is_known = 1 THEN greatest(k.read, (
            SELECT value FROM chatrelay.mark WHERE uid = k.peer AND kind = $9 AND peer = $1
        )) END AS read
    OFFSET 0
) AS mark
ORDER BY k.row
"""
_OWN_PLACE = """(
    SELECT m.from_place FROM chatrelay.message AS m
    WHERE m.to_uid = k.peer AND m.from_uid = $1 AND m.to_place <= {mark} AND m.delivered
    ORDER BY m.to_place DESC LIMIT 1
)"""
_PROGRESS = _MARKS_AND_PLACES.format(
    received=_OWN_PLACE.format(mark="mark.received"), read=_OWN_PLACE.format(mark="mark.read")
)
_FIND = """
SELECT {values} FROM chatrelay.sent_id AS s JOIN chatrelay.message AS m ON m.number = s.number
WHERE s.uid = $1 AND s.client_id = $2 AND m.received_at >= $3 AND m.delivered
"""
_HAS_WRITTEN = """
SELECT EXISTS (SELECT 1 FROM chatrelay.message AS m WHERE m.from_uid = $1 AND m.to_uid = $2 AND m.delivered)
"""
_WRITERS = """
SELECT k.sender FROM unnest($2::text[]) AS k (sender) WHERE EXISTS (
    SELECT 1 FROM chatrelay.message AS m WHERE m.from_uid = k.sender AND m.to_uid = $1 AND m.delivered
)
"""
_PLACE_OF_SENDER = """
SELECT m.from_place FROM chatrelay.message AS m
WHERE m.to_uid = $2 AND m.from_uid = $1 AND m.to_place <= $3 AND m.delivered ORDER BY m.to_place DESC LIMIT 1
"""
_MARKS = """
SELECT m.uid, m.kind, m.peer, m.value FROM unnest($1::text[], $2::smallint[], $3::text[]) AS k (uid, kind, peer)
JOIN chatrelay.mark AS m ON m.uid = k.uid AND m.kind = k.kind AND m.peer = k.peer
"""
_INBOX_STATE = """
SELECT i.first_place, i.last_place,
    (SELECT value FROM chatrelay.mark WHERE uid = $1 AND kind = $2 AND peer = ''),
    (SELECT value FROM chatrelay.mark WHERE uid = $1 AND kind = $3 AND peer = ''),
    (SELECT value FROM chatrelay.mark WHERE uid = $1 AND kind = $4 AND peer = ''),
    (SELECT value FROM chatrelay.mark WHERE uid = $1 AND kind = $5 AND peer = '')
FROM (SELECT 1) AS one LEFT JOIN chatrelay.inbox AS i ON i.uid = $1
"""
_EPOCH = "SELECT epoch FROM chatrelay.life"


def epoch(connection: Connection) -> str:
    """Return the log's epoch; empty if no relay has opened the log yet."""
    return _text(connection.query(_EPOCH)[0][0])


def inbox(connection: Connection, user: str) -> InboxState:
    """Return the state of a user's inbox."""
    first, last, *values = (
        None if value is None else int(value) for value in connection.query(_INBOX_STATE, [user, *INBOX_KINDS])[0]
    )
    marks = {kind: value for kind, value in zip(INBOX_KINDS, values, strict=True) if value is not None}
    return InboxState.with_marks(first or 1, last or 0, marks)


def entries(connection: Connection, user: str, after: int, through: int, limit: int, size: int) -> Page:
    """Read `chatrelay.interfaces.InboxReader.entries`."""
    rows = connection.query(_ENTRIES, [user, after, through, limit, size])
    if after < through and not (rows and _integer(rows[0][0]) == after + 1):
        # The messages at these places were trimmed, or there are no such places yet.
        end = _integer(rows[0][0]) if rows else min(through + 1, inbox(connection, user).first)
        return _after_voids(range(after + 1, end), _page(rows, limit, size), limit)
    return _page(rows, limit, size)


def _after_voids(places: range, page: Page, limit: int) -> Page:
    """Return a page that begins with void places."""
    found = [*(InboxEntry(place) for place in places[:limit]), *page.entries]
    return Page(found[:limit], more=page.more or len(places) + len(page.entries) > limit)


def history(
    connection: Connection,
    user: str,
    peer: str,
    before: int | None,
    after: int | None,
    through: int,
    limit: int,
    size: int,
) -> Page:
    """Read `chatrelay.interfaces.InboxReader.history`."""
    end = min(END, through + 1)
    if after is not None:
        rows = connection.query(_HISTORY_AFTER, [user, peer, after, end, limit, size])
    else:
        end = end if before is None else min(before, end)
        rows = connection.query(_HISTORY_BEFORE, [user, peer, 0, end, limit, size])
    return _page(rows, limit, size)


def conversations(connection: Connection, user: str, before: int | None, through: int, limit: int, size: int) -> Page:
    """Read `chatrelay.interfaces.InboxReader.conversations`."""
    end = END if before is None else before
    return _page(connection.query(_CONVERSATIONS, [user, through, end, limit, size]), limit, size)


def progress(
    connection: Connection, user: str, conversations: Sequence[Conversation], through: int, limit: int
) -> Sequence[Progress]:
    """Read `chatrelay.interfaces.InboxReader.progress`."""
    columns = [
        texts([each.peer for each in conversations]),
        small_integers([each.is_known for each in conversations]),
        integers([each.read_by_me for each in conversations]),
        integers([each.received for each in conversations]),
        integers([each.read for each in conversations]),
    ]
    kinds = (MarkKind.READ.value, MarkKind.RECEIVED.value)
    rows = connection.query(_PROGRESS, [user, *columns, through, limit, *kinds])
    return [Progress(*(_integer(value) for value in row)) for row in rows]


def find(connection: Connection, sender: str, unique_id: str, since: int) -> LoggedMessage | None:
    """Read `chatrelay.interfaces.InboxReader.find`."""
    rows = connection.query(_FIND.format(values=VALUES), [sender, unique_id, since])
    return logged(rows[0]) if rows else None


def has_written(connection: Connection, sender: str, recipient: str) -> bool:
    """Read `chatrelay.interfaces.InboxReader.has_written`."""
    return connection.query(_HAS_WRITTEN, [sender, recipient])[0][0] == b"t"


def writers(connection: Connection, recipient: str, senders: Sequence[str]) -> Collection[str]:
    """Read `chatrelay.interfaces.InboxReader.writers`."""
    return {_text(sender) for (sender,) in connection.query(_WRITERS, [recipient, texts(senders)])}


def place_of_sender(connection: Connection, sender: str, recipient: str, through: int) -> int:
    """Read `chatrelay.interfaces.InboxReader.place_of_sender`."""
    rows = connection.query(_PLACE_OF_SENDER, [sender, recipient, through])
    return _integer(rows[0][0]) if rows else 0


def marks(connection: Connection, keys: Sequence[MarkKey]) -> Mapping[MarkKey, int]:
    """Read `chatrelay.interfaces.InboxReader.marks`."""
    columns = [
        texts([user for user, _, _ in keys]),
        small_integers([kind.value for _, kind, _ in keys]),
        texts([peer for _, _, peer in keys]),
    ]
    rows = connection.query(_MARKS, columns)
    return {(_text(user), MarkKind(_integer(kind)), _text(peer)): _integer(value) for user, kind, peer, value in rows}


def _page(rows: Sequence[Row], limit: int, size: int) -> Page:
    """Return the first rows as a page. There is one more row if there are further entries."""
    page: list[InboxEntry] = []
    total = 0
    for place, *values, _, _ in rows:
        found = logged(values)
        message = found if found.delivered else None
        total += len(message.content.encode()) if message else 0
        if len(page) == limit or (page and total > size):
            return Page(page, more=True)
        page.append(InboxEntry(_integer(place), message))
    return Page(page, more=False)


def logged(row: Iterable[bytes | None]) -> LoggedMessage:
    """Return a row of ``VALUES`` as a message."""
    number, from_uid, to_uid, stamp, is_integer, content, received, delivered, from_place, to_place, unique_id = row
    return LoggedMessage(
        _integer(number),
        _text(from_uid),
        _text(to_uid),
        _integer(stamp) if is_integer == b"t" else _text(stamp),
        _text(content),
        _integer(received),
        delivered == b"t",
        _integer(from_place),
        _integer(to_place),
        None if unique_id is None else _text(unique_id),
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _integer(value: bytes | None) -> int:
    return int(value or 0)
