"""The reads of a message log in SQLite by user, on one connection and the index.

A read is a few short transactions, so it never keeps the write-ahead log from being shortened. What the index finds is
compared with the messages themselves. This module must not know threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from chatrelay.messagelog.sqlite import marks
from chatrelay.messagelog.sqlite.blocks import Blocks, StoredMessage
from chatrelay.messagelog.sqlite.index import Index, View, first_number
from chatrelay.messagelog.sqlite.index_columns import id_hash
from chatrelay.messagelog.sqlite.index_run import DamagedRun
from chatrelay.messagelog.sqlite.index_search import (
    RememberedRun,
    between,
    number_through,
    numbers_at,
    peers_newest_first,
)
from chatrelay.model import (
    Conversation,
    InboxEntry,
    LoggedMessage,
    LogNotIndexed,
    LogUnavailable,
    MarkKey,
    MarkKind,
    Page,
    Progress,
)

MAX_BEHIND = 50_000
"""The most messages that a read indexes before it is answered. If there are more, it fails, and the index is built by
the thread that writes it."""

MAX_NUMBERS = 256
"""The most numbers of messages that are compared with the undelivered ones at once."""

MAX_CANDIDATES = 64
"""The most messages that `find` compares. A user who chose ids whose hashes collide may have more, and nobody else."""

_FIRST_PLACE = "SELECT first_place FROM saved_inbox WHERE uid = ?"


class InboxQueries:
    """Answers the reads of `chatrelay.interfaces.InboxReader`, which describes them.

    Every method raises `sqlite3.Error` where the log can't be read, `OSError` or `DamagedRun` where the index can't be
    read or is damaged, and `LogNotIndexed` while a long index is built.

    :param connection: may only read.
    """

    def __init__(self, connection: sqlite3.Connection, index: Index) -> None:
        self._connection = connection
        self._index = index
        self._blocks = Blocks(connection)
        self._deleted = 0  # the number of the last message that was deleted; the index may still have it

    def entries(self, user: str, after: int, through: int, limit: int, size: int) -> Page:
        """Read the entries of consecutive places, oldest first, void ones included."""
        runs, hashes = self._catch_up()
        last = min(through, after + limit + 1)
        first, numbers = numbers_at(runs, hashes.user(user), after + 1, last)
        if not numbers and after < last:
            first = min(last + 1, self._first_place(user))

        def found() -> Iterator[InboxEntry]:
            # What was at these places was deleted, with its part of the index.
            yield from map(InboxEntry, range(after + 1, first))
            for place, number in enumerate(numbers, first):
                message = self._blocks.at_place(number, user, place)
                if message is not None and _place(message, user) != place:
                    raise DamagedRun("the index of the message log is damaged")
                if message is not None and not message.is_message:
                    yield InboxEntry(place, erased=message.erased)
                    continue
                stands = message is not None and number not in undelivered
                yield InboxEntry(place, message.logged(number) if message is not None and stands else None)

        # One transaction for all blocks takes less time than one for each of them, and a page is soon read.
        self._connection.execute("BEGIN")
        try:
            undelivered = self._blocks.undelivered(numbers)
            return _page(found(), limit, size)
        finally:
            if self._connection.in_transaction:  # some errors have ended it
                self._connection.execute("COMMIT")

    def history(
        self, user: str, peer: str, *, before: int | None, after: int | None, through: int, limit: int, size: int
    ) -> Page:
        """Read the messages that stand between two users, as `user` sees them."""
        runs, hashes = self._catch_up()
        reader, other = hashes.user(user), hashes.user(peer)
        last = through if before is None else min(through, before - 1)
        numbers = between(
            runs,
            reader,
            other,
            max(self._deleted, number_through(runs, reader, after or 0)),
            number_through(runs, reader, last),
            newest_first=after is None,
        )
        return _page(self._entries(user, self._standing(numbers, limit + 1)), limit, size)

    def conversations(self, user: str, *, before: int | None, through: int, limit: int, size: int) -> Page:
        """Read the last message that stands of each conversation of a user, newest first."""
        runs, hashes = self._catch_up()
        reader = hashes.user(user)
        first_wanted = through if before is None else min(through, before - 1)
        wanted = number_through(runs, reader, first_wanted)
        done: set[int] = set()

        def found() -> Iterator[int]:
            last = number_through(runs, reader, through)
            messages = peers_newest_first(runs, reader, self._deleted, last, done.__contains__)
            count = 1
            while chosen := list(islice(messages, count)):
                undelivered = self._blocks.undelivered(number for number, _ in chosen)
                for number, peer in chosen:
                    if peer not in done and number not in undelivered and self._blocks.message(number) is not None:
                        done.add(peer)
                        if number <= wanted:
                            yield number
                # After one that does not stand, there may be thousands: all that somebody wrote may have been erased.
                count = min(count * 4, MAX_NUMBERS) if len(undelivered) == len(chosen) else 1

        return _page(self._entries(user, found()), limit, size)

    def progress(
        self, user: str, conversations: Sequence[Conversation], through: int, limit: int
    ) -> Sequence[Progress]:
        """Read how far conversations of a user were received and read."""
        runs, hashes = self._catch_up()
        view = View([RememberedRun(run) for run in runs], hashes)
        keys: list[MarkKey] = [(user, MarkKind.READ, each.peer) for each in conversations]
        for each in conversations:
            if each.is_known:
                keys += ((each.peer, MarkKind.RECEIVED, ""), (each.peer, MarkKind.READ, user))
        kept = marks.read(self._connection, keys)

        def progress(conversation: Conversation) -> Progress:
            peer, last = conversation.peer, conversation.last
            mine = max(conversation.read_by_me, kept.get((user, MarkKind.READ, peer), 0))
            received_mark = read_mark = 0
            if conversation.is_known:
                read_mark = max(conversation.read, kept.get((peer, MarkKind.READ, user), 0))
                received_mark = max(read_mark, conversation.received, kept.get((peer, MarkKind.RECEIVED, ""), 0))
            received = self._own_place(view, user, peer, last, received_mark)
            read = received if read_mark == received_mark else self._own_place(view, user, peer, last, read_mark)
            is_read = last is not None and (last.from_place if last.from_uid == user else last.to_place) <= mine
            is_counted = not is_read and peer != user
            unread = self._unread(view, user, conversation, mine, through, limit) if is_counted else 0
            return Progress(mine, received, read, unread)

        return [progress(conversation) for conversation in conversations]

    def _own_place(self, view: View, user: str, peer: str, last: LoggedMessage | None, mark: int) -> int:
        """Return the place of the user's last message that a mark of the other user is about; 0 if there is none.

        :param last: the last message of the conversation, if it was read.
        """
        if last is not None and last.from_uid == user and last.to_place <= mark:
            return last.from_place
        return self._place_of_sender(view, user, peer, mark) if mark else 0

    def _unread(self, view: View, user: str, conversation: Conversation, after: int, through: int, limit: int) -> int:
        """Count the messages that stand from the other user to `user` at places beyond `after`, up to `through`."""
        runs, hashes = view
        reader, other = hashes.user(user), hashes.user(conversation.peer)
        above = max(self._deleted, number_through(runs, reader, after))
        last = number_through(runs, reader, through)
        numbers = between(runs, reader, other, above, last, sent=False, in_smaller=conversation.is_known)
        return sum(1 for _ in islice(self._standing(numbers, limit), limit))

    def find(self, sender: str, unique_id: str, since: int) -> LoggedMessage | None:
        """Find a message by its sender and its unique id."""
        runs, hashes = self._catch_up()
        user = hashes.user(sender)
        wanted = id_hash(unique_id)

        def candidates() -> Iterator[int]:
            for run in reversed(runs):
                part = run.part(user) if run.latest >= since else None
                if part is not None:
                    yield from [run.base + code for code in sorted(part.codes_of_id(wanted))]

        for number in islice(candidates(), MAX_CANDIDATES):
            message = self._blocks.message(number)
            if (
                message is not None
                and (message.from_uid, message.unique_id) == (sender, unique_id)
                and message.received_at >= since
                and not self._blocks.is_undelivered(number)
            ):
                return message.logged(number)
        return None

    def has_written(self, sender: str, recipient: str, by_sender: bool = False) -> bool:
        """Return whether a message from `sender` to `recipient` stands."""
        asker, other = (sender, recipient) if by_sender else (recipient, sender)
        return self._stands_between(self._catch_up(), asker, other, sent=by_sender)

    def writers(self, recipient: str, senders: Sequence[str]) -> Collection[str]:
        """Return those of some users from whom a message to `recipient` stands."""
        runs, hashes = self._catch_up()
        view = View([RememberedRun(run) for run in runs], hashes)
        return {sender for sender in senders if self._stands_between(view, recipient, sender, sent=False)}

    def _stands_between(self, view: View, asker: str, other: str, sent: bool) -> bool:
        """Return whether a message stands that `asker` sent to, or received from, another user."""
        runs, hashes = view
        newest = runs[0].last if runs else 0
        users = hashes.user(asker), hashes.user(other)
        numbers = between(runs, *users, self._deleted, newest, sent=sent, received=not sent)
        return next(self._standing(numbers, 1), None) is not None

    def place_of_sender(self, sender: str, recipient: str, through: int) -> int:
        """Translate a place of the recipient's into one of the sender's."""
        return self._place_of_sender(self._catch_up(), sender, recipient, through)

    def _place_of_sender(self, view: View, sender: str, recipient: str, through: int) -> int:
        runs, hashes = view
        user, peer = hashes.user(sender), hashes.user(recipient)
        last = number_through(runs, peer, through)
        numbers = between(runs, user, peer, self._deleted, last, received=False, in_smaller=True)
        number = next(self._standing(numbers, 1), None)
        message = None if number is None else self._blocks.message(number)
        return message.from_place if message is not None else 0

    def marks(self, keys: Sequence[MarkKey]) -> Mapping[MarkKey, int]:
        """Read the values of marks of any users and kinds at once."""
        return marks.read(self._connection, keys)

    def _catch_up(self) -> View:
        """Index what was committed before; return what to read."""
        index = self._index
        self._deleted = first_number(self._connection) - 1
        if not index.catch_up(self._connection):
            if (behind := index.behind(self._connection)) > MAX_BEHIND:
                if index.failure is not None:  # else a client would wait for an index that does not come
                    raise LogUnavailable(f"the index in {index.folder} cannot be written: {index.failure}")
                raise LogNotIndexed(f"the message log is being indexed, {behind:,} messages are to do: try again later")
            while not index.catch_up(self._connection):
                if index.is_full:
                    raise LogUnavailable("the message log can't be indexed as fast as it grows: try again later")
        return index.view

    def _first_place(self, user: str) -> int:
        """Return the first place of a user's inbox that is kept."""
        (first,) = self._connection.execute(_FIRST_PLACE, (user,)).fetchone() or (1,)
        return int(first)

    def _standing(self, numbers: Iterator[int], expected: int) -> Iterator[int]:
        """Yield the numbers of the messages that stand.

        :param expected: how many are probably wanted.
        """
        count = min(expected, MAX_NUMBERS)
        while chosen := list(islice(numbers, count)):
            undelivered = self._blocks.undelivered(chosen)
            yield from (number for number in chosen if number not in undelivered)
            count = min(count * 4, MAX_NUMBERS)

    def _entries(self, user: str, numbers: Iterable[int]) -> Iterator[InboxEntry]:
        for number in numbers:
            message = self._blocks.message(number)
            if message is not None:
                yield InboxEntry(_place(message, user), message.logged(number))


def _place(message: StoredMessage, user: str) -> int:
    """Return the place of a message in the inbox of its sender or recipient.

    :raises DamagedRun: where the user is neither.
    """
    if message.from_uid == user:
        return message.from_place
    if message.to_uid == user:
        return message.to_place
    raise DamagedRun("the index of the message log is damaged: it names a message of other users")


def _page(entries: Iterable[InboxEntry], limit: int, size: int) -> Page:
    """Return the first entries as a page.

    :param limit: the most entries.
    :param size: the most bytes of content; the first entry may have more.
    """
    page: list[InboxEntry] = []
    total = 0
    for entry in entries:
        if entry.message is not None:
            content = entry.message.content
            total += len(content) if content.isascii() else len(content.encode())
        if len(page) == limit or (page and total > size):
            return Page(page, more=True)
        page.append(entry)
    return Page(page, more=False)
