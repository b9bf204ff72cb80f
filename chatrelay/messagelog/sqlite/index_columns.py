"""Messages as the index takes them: one column for each value that it needs.

Columns are searched and translated by loops in C, which cost a tenth of Python's own. They are made of what is at hand:
the thread that writes messages has them as rows, and a reader finds blocks of JSON. This module must not know what an
index does with them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple
from zlib import crc32

import msgspec

from chatrelay.messagelog.sqlite import batch
from chatrelay.messagelog.sqlite.blocks import Kind, UndecodedMessage
from chatrelay.messagelog.sqlite.index_run import LastMessage

_KIND = slice(8, 9)
"""Where a row has its kind: no value for a message without a unique id."""

_UNIQUE = int(Kind.UNIQUE)  # it is compared for every message


class Columns(NamedTuple):
    """Consecutive messages, at least one.

    :ivar first: the number of the first one.
    :ivar senders: the keys of the senders.
    :ivar from_places: the places of the messages in the senders' inboxes.
    :ivar recipients: the keys of the recipients.
    :ivar to_places: the places of the messages in the recipients' inboxes.
    :ivar have_ids: for each message 1 if it has a unique id, else 0.
    :ivar id_hashes: the hashes of the unique ids. That of a message without one is any number.
    :ivar latest: the latest time at which one of them was received, in microseconds since 1970 UTC.
    :ivar last_message: identifies the last one.
    """

    first: int
    senders: Sequence[str]
    from_places: Sequence[int]
    recipients: Sequence[str]
    to_places: Sequence[int]
    have_ids: bytes
    id_hashes: array[int]
    latest: int
    last_message: LastMessage

    @property
    def last(self) -> int:
        """The number of the last message."""
        return self.first + len(self.senders) - 1


class BlockRow(UndecodedMessage, array_like=True, gc=False):
    """The values of a message in a block that the index needs."""

    kind: int = Kind.MESSAGE


_decode = msgspec.json.Decoder(list[BlockRow]).decode
_encode = msgspec.json.Encoder().encode


def id_hash(unique_id: str) -> int:
    """Return the hash of a unique id.

    It is cheap, and ids that collide are easy to find. They would only disturb the user who has chosen them.
    """
    return crc32(_encode(unique_id))


def columns_of_rows(first: int, rows: Sequence[batch.Row]) -> Columns:
    """Return messages that were written, at least one.

    :param first: the number of the first one.
    """
    senders, from_places, recipients, to_places, ids, _, _, times, *_ = zip(*rows, strict=False)
    have_ids = bytes(map((_UNIQUE,).__eq__, map(itemgetter(_KIND), rows)))
    hashes = array("I", map(crc32, map(_encode, ids))) if any(have_ids) else array("I", [0]) * len(rows)
    last_message = LastMessage(times[-1], from_places[-1], to_places[-1])
    return Columns(first, senders, from_places, recipients, to_places, have_ids, hashes, max(times), last_message)


def columns_of_block(first: int, text: bytes) -> Columns | None:
    """Return the messages of a block; None if it is empty.

    :param first: the number of the first one.
    :raises msgspec.MsgspecError: where the block is damaged.
    """
    rows = _decode(text)
    if not rows:
        return None
    last = rows[-1]
    return Columns(
        first,
        [row.from_uid for row in rows],
        [row.from_place for row in rows],
        [row.to_uid for row in rows],
        [row.to_place for row in rows],
        bytes([row.kind == _UNIQUE for row in rows]),
        array("I", [crc32(row.client_id) if row.kind == _UNIQUE else 0 for row in rows]),
        max([row.received_at for row in rows]),
        LastMessage(last.received_at, last.from_place, last.to_place),
    )
