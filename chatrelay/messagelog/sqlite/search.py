"""Find messages and entries of inboxes in a message log in SQLite, for another process than the relay.

The numbers of a user's messages come from the index that the relay keeps in files. What the index does not have is read
block by block: the newest messages, or the whole log if there is no index. Each read is a short transaction, so a slow
reader does not keep SQLite from shortening its write-ahead log. This module must not write, or know who reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import msgspec

from chatrelay.messagelog.sqlite.blocks import Blocks, StoredMessage
from chatrelay.messagelog.sqlite.index import complete_runs
from chatrelay.messagelog.sqlite.index_run import FileRun, User
from chatrelay.messagelog.sqlite.index_search import between, numbers_at
from chatrelay.messagelog.sqlite.index_tail import Hashes
from chatrelay.model import InboxEntry, InboxState, LoggedMessage, Selection

BLOCKS_PER_READ = 10
"""The blocks that are read in one transaction."""

NUMBERS_PER_READ = 256
"""The messages whose marks are read in one transaction."""

END = 2**62
"""A number beyond every message."""

_BLOCKS = """
SELECT first_number, CAST(messages AS BLOB) FROM block WHERE first_number > ? AND first_number <= ?
ORDER BY first_number {} LIMIT ?
"""
_OLDEST_FIRST, _NEWEST_FIRST = _BLOCKS.format("ASC"), _BLOCKS.format("DESC")
_UNDELIVERED = "SELECT number FROM undelivered WHERE number BETWEEN ? AND ?"
_LAST_BLOCK = "SELECT first_number, CAST(messages AS BLOB) FROM block ORDER BY first_number DESC LIMIT 1"
_EPOCH = "SELECT epoch FROM life"
_SAVED_PLACES = "SELECT first_place, last_place FROM saved_inbox WHERE uid = ?"
_SAVED_THROUGH = "SELECT number FROM saved_through"
_MARKS = "SELECT kind, value FROM mark WHERE user = ? AND peer = ''"

_decode = msgspec.json.Decoder(list[StoredMessage]).decode


def epoch_of(connection: sqlite3.Connection) -> str:
    """Return the epoch of a message log; empty if no relay has opened it yet."""
    (epoch,) = connection.execute(_EPOCH).fetchone() or ("",)
    return str(epoch)


def last_number(connection: sqlite3.Connection) -> int:
    """Return the number of the last message, even if it was deleted; 0 if there has been none."""
    first, text = connection.execute(_LAST_BLOCK).fetchone() or (1, b"[]")
    (saved_through,) = connection.execute(_SAVED_THROUGH).fetchone()
    return max(int(first) + len(_decode(text)) - 1, int(saved_through))


class Found(NamedTuple):
    """What has a number in the log: a message, what is left of one, or a notice.

    :ivar delivered: False if it is known that it reached nobody.
    """

    number: int
    stored: StoredMessage
    delivered: bool

    def logged(self) -> LoggedMessage:
        """Return it as a message of the log."""
        return self.stored.logged(self.number, self.delivered)

    def place(self, user: str) -> int:
        """Return its place in the inbox of its sender or recipient."""
        return self.stored.from_place if self.stored.from_uid == user else self.stored.to_place

    def entry(self, user: str) -> InboxEntry:
        """Return it as the entry of an inbox."""
        stands = self.delivered and self.stored.is_message
        return InboxEntry(self.place(user), self.logged() if stands else None, self.stored.erased)


def read_blocks(
    connection: sqlite3.Connection, after: int, through: int = END, newest_first: bool = False
) -> Sequence[Found]:
    """Return what is in the next blocks; nothing if there are no more.

    :param after: only blocks that begin beyond this number.
    :param through: only blocks that begin up to this number.
    """
    statement = _NEWEST_FIRST if newest_first else _OLDEST_FIRST
    blocks = [
        (first, _decode(text)) for first, text in connection.execute(statement, (after, through, BLOCKS_PER_READ))
    ]
    if not blocks:
        return ()
    low = min(first for first, _ in blocks)
    high = max(first + len(messages) for first, messages in blocks)
    undelivered = {number for (number,) in connection.execute(_UNDELIVERED, (low, high))}
    found: list[Found] = []
    for first, messages in blocks:
        of_block = [Found(number, message, number not in undelivered) for number, message in enumerate(messages, first)]
        found += reversed(of_block) if newest_first else of_block
    return found


def scanned(connection: sqlite3.Connection, after: int = 0, newest_first: bool = False) -> Iterator[Found]:
    """Yield all that has numbers beyond `after`, which is the last one of a block, or 0."""
    through = END
    while found := read_blocks(connection, after, through, newest_first):
        yield from found
        if newest_first:
            through = found[-1].number - 1
        else:
            after = found[-1].number


class Search:
    """Finds messages in a message log.

    :param connection: may only read.
    :param path: of the message log, without symbolic links.
    :param use_index: whether the index is worth opening: it is checked as a whole before it is used.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, *, use_index: bool = True) -> None:
        self._connection = connection
        self._blocks = Blocks(connection)
        self._runs: Sequence[FileRun] = complete_runs(path, connection, epoch_of(connection)) if use_index else ()
        self._through = self._runs[-1].last if self._runs else 0  # the last message of the index
        self._hashes = Hashes(self._runs[0].header.hash_key if self._runs else bytes(16))

    def messages(self, selection: Selection, *, newest_first: bool) -> Iterator[LoggedMessage]:
        """Yield the messages that are wanted."""
        if selection.user is None:
            found = scanned(self._connection, self._last_before(selection), newest_first)
        else:
            indexed = self._indexed(self._numbers(selection, selection.user, newest_first))
            others = scanned(self._connection, self._through, newest_first)
            found = chain(others, indexed) if newest_first else chain(indexed, others)
        return filter(selection.has, (each.logged() for each in found if each.stored.is_message))

    def _last_before(self, selection: Selection) -> int:
        """Return the number up to which the index shows that all messages are too old."""
        last = 0
        for run in self._runs:
            if selection.since is None or run.latest >= selection.since:
                break
            last = run.last
        return last

    def _numbers(self, selection: Selection, key: str, newest_first: bool) -> Iterator[int]:
        """Yield the numbers of the messages of a user, or between two, that the index has."""
        user = self._hashes.user(key)
        runs = [run for run in self._runs if selection.since is None or run.latest >= selection.since]
        if selection.peer is not None:
            return between(runs[::-1], user, self._hashes.user(selection.peer), 0, END, newest_first=newest_first)
        return chain.from_iterable(
            _numbers_in(run, user, newest_first) for run in (runs[::-1] if newest_first else runs)
        )

    def _indexed(self, numbers: Iterable[int]) -> Iterator[Found]:
        numbers = iter(numbers)
        while chosen := list(islice(numbers, NUMBERS_PER_READ)):
            undelivered = self._blocks.undelivered(chosen)
            for number in chosen:
                message = self._blocks.message(number)
                if message is not None:  # it was not deleted since
                    yield Found(number, message, number not in undelivered)

    def entries(self, user: str, after: int, through: int) -> Iterator[InboxEntry]:
        """Yield the entries of a user's places beyond `after`, up to `through`, void ones included."""
        place = after
        first, _ = self._connection.execute(_SAVED_PLACES, (user,)).fetchone() or (1, 0)
        for found in self._placed(user, max(after, first - 1), through):
            at = found.place(user)
            yield from (InboxEntry(void) for void in range(place + 1, min(at, through + 1)))
            if at > through:
                return
            yield found.entry(user)
            place = at
        yield from (InboxEntry(void) for void in range(place + 1, through + 1))

    def _placed(self, user: str, after: int, through: int) -> Iterator[Found]:
        """Yield what is at a user's places beyond `after`."""
        last = after
        while numbers := numbers_at(
            self._runs[::-1], self._hashes.user(user), last + 1, min(last + NUMBERS_PER_READ, through)
        )[1]:
            yield from self._indexed(numbers)
            last += len(numbers)
        if last < through:
            for found in scanned(self._connection, self._through):
                if user in (found.stored.from_uid, found.stored.to_uid) and found.place(user) > last:
                    yield found


def inbox_of(connection: sqlite3.Connection, user: str) -> InboxState:
    """Return a user's inbox, as it was at one instant."""
    connection.execute("BEGIN")
    try:
        first, last = connection.execute(_SAVED_PLACES, (user,)).fetchone() or (1, 0)
        (saved_through,) = connection.execute(_SAVED_THROUGH).fetchone()
        # The relay saves the places after some thousand messages.
        for found in scanned(connection, saved_through):
            if user in (found.stored.from_uid, found.stored.to_uid):
                last = found.place(user)
        marks = dict(connection.execute(_MARKS, (user,)).fetchall())
    finally:
        connection.execute("COMMIT")
    return InboxState.with_marks(first, last, marks)


def _numbers_in(run: FileRun, user: User, newest_first: bool) -> Iterator[int]:
    """Yield the numbers of a user's messages in a run."""
    part = run.part(user)
    if part is None:
        return
    starts = range(0, part.count, NUMBERS_PER_READ)
    for start in reversed(starts) if newest_first else starts:
        codes = part.codes(start, min(start + NUMBERS_PER_READ, part.count))
        yield from (run.base + code for code in (reversed(codes) if newest_first else codes))
