"""The erasures that are asked for in a message log in SQLite: what is next to do for them, and what is written.

An erasure has three steps, each in small parts, so that messages are written meanwhile. A crash between two parts
leaves a row in the table ``erasure``, and the next process goes on:

1. The messages are blanked in their blocks: both users, both places and the time are left. The same transaction keeps
   the ranges of their places in ``erased_place``. A block keeps its length, so SQLite overwrites it where it is, and
   copies nothing to other pages.
2. Each user of such a message is told by notices, which are entries of that user's inbox. The same transaction deletes
   what is told from ``erased_place``. So nothing is told that is not blanked, and all is told once.
3. When the write-ahead log is empty, nothing of the content is left in the files, and the erasure is finished.

It works on a connection that is passed in. This module must not know how entries get their numbers and places, nor when
a part is done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import groupby
from typing import NamedTuple

import msgspec
from msgspec import Raw
from twisted.logger import Logger

from chatrelay.messagelog.sqlite.blocks import Kind, StoredMessage
from chatrelay.messagelog.sqlite.failures import is_damage
from chatrelay.messagelog.sqlite.schema import json_text

log = Logger("chatrelay.messagelog")

BYTES_PER_PART = 1024 * 1024
"""The bytes of blocks after which a part ends. A block may have more."""

BLOCKS_PER_PART = 16
"""The blocks that are changed in a part."""

PARTS_PER_NOTE = 16
"""The parts in which nothing was found after which it is written how far the erasure is."""

RANGES_PER_NOTICE = 1000
"""The most ranges of places in a notice, so that the frame of it stays below some 20 KB."""

RANGES_PER_PART = 2 * RANGES_PER_NOTICE
"""The most ranges that users are told in a part."""

Ranges = Sequence[tuple[int, int]]
"""Ranges of places, in ascending order: the first and the last place of each."""

_PENDING = """
SELECT number, uid, received, requested_at, through, done, erased, finished
FROM erasure WHERE NOT finished ORDER BY number LIMIT 1
"""
_REQUEST = """
SELECT number, uid, received, requested_at, through, done, erased, finished FROM erasure WHERE number = ?
"""
_ASK = """
INSERT INTO erasure (uid, received, requested_at, through)
SELECT ?, ?, ?, coalesce(max(number), 0) FROM entry WHERE block = (SELECT max(first_number) FROM block)
"""
_FORGET = "DELETE FROM erasure WHERE finished AND requested_at < ?"
_BLOCKS = """
SELECT first_number, length(CAST(messages AS BLOB)), CASE WHEN instr(messages, ?) THEN CAST(messages AS BLOB) END
FROM block WHERE first_number > ? AND first_number <= ? ORDER BY first_number
"""
_CHANGE = "UPDATE block SET messages = ? WHERE first_number = ?"
_UNDELIVERED = "INSERT OR IGNORE INTO undelivered (number) VALUES (?)"
_DONE = "UPDATE erasure SET done = ?, erased = ?, through = ? WHERE number = ?"
_FINISH = "UPDATE erasure SET finished = 1 WHERE number = ?"
_LAST_RANGE = "SELECT first_place, last_place FROM erased_place WHERE uid = ? ORDER BY first_place DESC LIMIT 1"
_KEEP_RANGE = "INSERT OR REPLACE INTO erased_place (uid, first_place, last_place) VALUES (?, ?, ?)"
_RANGES = "SELECT uid, first_place, last_place FROM erased_place ORDER BY uid, first_place LIMIT ?"
_FORGET_RANGES = "DELETE FROM erased_place WHERE uid = ? AND first_place BETWEEN ? AND ?"

_split = msgspec.json.Decoder(list[Raw]).decode
_decode = msgspec.json.Decoder(StoredMessage).decode
_encode = msgspec.json.Encoder().encode


class Request(NamedTuple):
    """What is to be erased, and how far that is.

    :ivar number: of the request.
    :ivar uid: the key of the user who wrote what is erased.
    :ivar received: whether what was sent to the user is erased, too.
    :ivar requested_at: microseconds since 1970 UTC.
    :ivar through: the number of the last message that may be erased.
    :ivar done: the number up to which messages were examined.
    :ivar erased: how many messages were blanked.
    :ivar finished: whether all is done.
    """

    number: int
    uid: str
    received: int
    requested_at: int
    through: int
    done: int
    erased: int
    finished: int


class Notice(NamedTuple):
    """What a user is told: the messages at these places of the user's inbox were erased."""

    uid: str
    ranges: Ranges


class _DamagedPage(Exception):
    """A page of the file is damaged."""


class _Part(NamedTuple):
    """Some blocks that were examined.

    :ivar blocks: those that change: the new text, and the first number.
    :ivar numbers: of the messages that are erased.
    :ivar places: their places, by user.
    """

    blocks: list[tuple[str, int]]
    numbers: list[int]
    places: dict[str, list[int]]


def ask(connection: sqlite3.Connection, uid: str, received: bool, now: float) -> Request:
    """Ask for an erasure of the messages that are in the log now, in the current transaction.

    :param uid: the key of the user who wrote them.
    :param received: whether what was sent to the user is erased, too.
    :param now: seconds since 1970 UTC.
    """
    number = connection.execute(_ASK, (uid, int(received), int(now * 1_000_000))).lastrowid
    request = request_of(connection, number or 0)
    assert request is not None
    return request


def request_of(connection: sqlite3.Connection, number: int) -> Request | None:
    """Return a request by its number; None if there is none."""
    found = connection.execute(_REQUEST, (number,)).fetchone()
    return None if found is None else Request(*found)


def forget_finished(connection: sqlite3.Connection, before: float) -> None:
    """Delete the requests that are finished and older than a time, in the current transaction.

    :param before: seconds since 1970 UTC.
    """
    connection.execute(_FORGET, (int(before * 1_000_000),))


class Erasures:
    """The erasures of one message log, one after the other.

    Call `look` to see if there is one. Then call `examine` until it returns None, and `write` in a transaction each
    time it returns a number but 0; then `notices` until it returns none, and `told` in the transaction in which they
    are written; then `finish` in a transaction.
    """

    def __init__(self) -> None:
        self._request: Request | None = None
        self._part = _Part([], [], {})
        self._unnoted = 0

    @property
    def is_due(self) -> bool:
        """Whether there is something to do, as `look` has found it."""
        return self._request is not None

    def look(self, connection: sqlite3.Connection) -> None:
        """Look for the oldest request that is not finished."""
        found = connection.execute(_PENDING).fetchone()
        if found is None or self._request is None or self._request.number != found[0]:
            self._request = None if found is None else Request(*found)

    def forget(self) -> None:
        """Forget what was read, because the file was closed. `look` reads it again."""
        self._request = None

    def examine(self, connection: sqlite3.Connection) -> int | None:
        """Examine the next blocks; return how many bytes `write` will write, about. None if there are no more blocks.

        :raises sqlite3.Error: if the log can't be read.
        """
        request = self._request
        assert request is not None
        if request.done >= request.through:
            return None
        done, size, is_damaged = request.done, 0, False
        self._part = part = _Part([], [], {})
        try:
            with closing(_blocks(connection, request)) as blocks:
                for first, length, text in blocks:
                    done = first - 1
                    changed = None if text is None else _blanked(first, text, request, part)
                    if changed is not None:
                        part.blocks.append((changed, first))
                    done = first
                    size += length
                    if size >= BYTES_PER_PART or len(part.blocks) >= BLOCKS_PER_PART:
                        break
                else:
                    done = request.through
        except (msgspec.MsgspecError, _DamagedPage) as error:
            is_damaged = True
            log.critical(
                "the message log is damaged: the messages from {first} on cannot be decoded, and are not "
                "erased: {error}",
                first=done + 1,
                error=error,
            )
        # A damaged block ends the erasure: whoever has asked for it sees that it ends before the last message.
        through = done if is_damaged else request.through
        self._request = request._replace(done=done, through=through, erased=request.erased + len(part.numbers))
        self._unnoted += 1
        if part.blocks or done == through or self._unnoted >= PARTS_PER_NOTE:
            return sum(len(text) for text, _ in part.blocks) or 1
        return 0

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what `examine` has found."""
        request = self._request
        assert request is not None
        connection.executemany(_CHANGE, self._part.blocks)
        connection.executemany(_UNDELIVERED, [(number,) for number in self._part.numbers])
        for user, places in self._part.places.items():
            ranges = ranges_of(places)
            before = connection.execute(_LAST_RANGE, (user,)).fetchone()
            if before is not None and before[1] + 1 == ranges[0][0]:
                ranges[0] = before[0], ranges[0][1]
            connection.executemany(_KEEP_RANGE, [(user, *each) for each in ranges])
        connection.execute(_DONE, (request.done, request.erased, request.through, request.number))
        self._unnoted = 0

    def notices(self, connection: sqlite3.Connection) -> Sequence[Notice]:
        """Return the next notices; none if everybody was told."""
        rows = connection.execute(_RANGES, (RANGES_PER_PART,)).fetchall()
        by_user = [(uid, [(row[1], row[2]) for row in group]) for uid, group in groupby(rows, lambda row: row[0])]
        if len(rows) == RANGES_PER_PART and len(by_user) > 1:
            by_user.pop()  # it may have more
        return [
            Notice(uid, ranges[start : start + RANGES_PER_NOTICE])
            for uid, ranges in by_user
            for start in range(0, len(ranges), RANGES_PER_NOTICE)
        ]

    def told(self, connection: sqlite3.Connection, notices: Sequence[Notice]) -> None:
        """Note that notices are written in the current transaction."""
        connection.executemany(_FORGET_RANGES, [(uid, ranges[0][0], ranges[-1][0]) for uid, ranges in notices])

    def finish(self, connection: sqlite3.Connection) -> None:
        """Note that an erasure is finished, and look for the next one."""
        assert self._request is not None
        connection.execute(_FINISH, (self._request.number,))
        self.look(connection)


def _blocks(connection: sqlite3.Connection, request: Request) -> Generator[tuple[int, int, bytes | None], None, None]:
    """Yield the next blocks: the first number, the size, and the text if it may have what is to be erased.

    :raises _DamagedPage: if a page of the file is damaged. A failure would close the log, each time again.
    :raises sqlite3.Error: if the log can't be read.
    """
    try:
        with closing(connection.execute(_BLOCKS, (json_text(request.uid), request.done, request.through))) as blocks:
            yield from blocks
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise _DamagedPage(str(error)) from error


def _blanked(first: int, text: bytes, request: Request, part: _Part) -> str | None:
    """Return the text of a block without what is erased, as long as before; None if it does not change.

    :param part: gets the numbers and places of what is erased.
    :raises msgspec.MsgspecError: if the block is damaged.
    """
    rows = _split(text)
    is_changed = False
    for index, message in enumerate([_decode(raw) for raw in rows]):  # all, before anything counts as erased
        is_wanted = message.from_uid == request.uid or (request.received and message.to_uid == request.uid)
        if not is_wanted or not message.is_message:
            continue
        is_changed = True
        users = (message.from_uid, message.from_place, message.to_uid, message.to_place)
        rows[index] = Raw(_encode((*users, 0, 0, "", message.received_at, Kind.ERASED)))
        part.numbers.append(first + index)
        part.places.setdefault(message.from_uid, []).append(message.from_place)
        if message.to_uid != message.from_uid:
            part.places.setdefault(message.to_uid, []).append(message.to_place)
    return _encode(rows).ljust(len(text)).decode() if is_changed else None


def ranges_of(places: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending places as ranges."""
    ranges: list[tuple[int, int]] = []
    for place in places:
        if ranges and ranges[-1][1] + 1 == place:
            ranges[-1] = ranges[-1][0], place
        else:
            ranges.append((place, place))
    return ranges
