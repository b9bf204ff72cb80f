"""The message logs that end with the process: one keeps messages in memory, the other keeps nothing.

`MemoryMessageLog` grows with every message, so it is for tests and trials. It is as simple as possible, because
tests compare other logs with it. Neither opens a file.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from itertools import groupby, islice
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed

from chatrelay.model import (
    INBOX_KINDS,
    Conversation,
    InboxEntry,
    InboxState,
    LoggedMessage,
    Mark,
    MarkKey,
    MarkKind,
    Message,
    Page,
    Progress,
    user_key,
)

MICROSECONDS = 1_000_000
"""Microseconds in a second. Times are read as integers, which are exact."""

MAX_TRIMMED = 1_000
"""The most messages that are trimmed at once."""

_T = TypeVar("_T")


@attrs.define
class MemoryRow:
    """A message with its number, its places and whether it was delivered.

    :ivar from_user: the key of the sender.
    :ivar to_user: the key of the recipient.
    :ivar is_message: False for what is left of an erased message, and for a notice.
    :ivar erased: the places that a notice tells of. Its sender and its recipient are the user who is told.
    """

    number: int
    message: Message
    from_user: str
    to_user: str
    from_place: int
    to_place: int
    delivered: bool = True
    is_message: bool = True
    erased: tuple[tuple[int, int], ...] = ()

    def place(self, user: str) -> int:
        """Return the place of the message in the inbox of its sender or recipient."""
        return self.from_place if user == self.from_user else self.to_place

    def peer(self, user: str) -> str:
        """Return the other user of the conversation."""
        return self.to_user if user == self.from_user else self.from_user

    def logged(self) -> LoggedMessage:
        """Return the message as it is read from a log."""
        message = self.message
        return LoggedMessage(
            self.number,
            self.from_user,
            self.to_user,
            message.time_stamp,
            message.content,
            int(message.received_at * MICROSECONDS),
            self.delivered,
            self.from_place,
            self.to_place,
            str(message.client_id) if message.has_unique_id else None,
        )


class MemoryMessageLog:
    """The `chatrelay.interfaces.TrimmableLog` and `MessageReader` that keeps messages in a list.

    :ivar rows: all messages, oldest first. Of those that were trimmed, only users, places and times are left.
    :ivar inboxes: by user, the messages that the user sent and received. The first one is at place 1.
    :ivar trimmed: the number of the last message that was trimmed; 0 if none was.
    :ivar first_places: by user, the first place that is kept; a user none of whose messages was trimmed is left out.
    :ivar marks: the kept marks: (user, kind, peer) -> value.
    :ivar on_erased: called by `erase`.
    :ivar epoch: a random name, because the messages end with the process.
    :ivar reader: reads this log by user.
    :ivar is_open: always True.
    :ivar is_alive: always True.
    """

    is_open = True
    is_alive = True

    def __init__(self) -> None:
        self.rows: list[MemoryRow] = []
        self.inboxes: dict[str, list[MemoryRow]] = {}
        self.trimmed = 0
        self.first_places: dict[str, int] = {}
        self.marks: dict[MarkKey, int] = {}
        self.epoch = secrets.token_urlsafe(9)
        self.on_erased: Callable[[Mapping[str, int]], object] = lambda told: None
        self.reader = MemoryInboxReader(self)

    def start(self) -> None:
        """Do nothing: there is no file to open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch; return the numbers of its messages."""
        return succeed([self._keep(message) for message in messages])

    def _keep(self, message: Message) -> int:
        from_user = user_key(message.from_uid)
        to_user = user_key(message.to_uid)
        inbox = self.inboxes.setdefault(to_user, [])
        to_place = from_place = len(inbox) + 1
        if from_user != to_user:
            from_place = len(self.inboxes.setdefault(from_user, [])) + 1
        row = MemoryRow(len(self.rows) + 1, message, from_user, to_user, from_place, to_place)
        self.rows.append(row)
        inbox.append(row)
        if from_user != to_user:
            self.inboxes[from_user].append(row)
        message.from_place, message.to_place = from_place, to_place
        return row.number

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark messages as delivered to nobody."""
        for number in numbers:
            self.rows[number - 1].delivered = False
        return succeed(None)

    def trim(self, before: int) -> Deferred[int]:
        """Blank the oldest messages. Their rows stay, because they hold the places."""
        count = 0
        for row in islice(self.rows, self.trimmed, self.trimmed + MAX_TRIMMED):
            if int(row.message.received_at * MICROSECONDS) >= before:
                break
            count += 1
            row.message = Message(row.from_user, row.to_user, "", "", "", row.message.received_at)
            row.delivered = False
            row.erased = ()
            for user in {row.from_user, row.to_user}:
                self.first_places[user] = row.place(user) + 1
        self.trimmed += count
        for (user, kind, peer), value in list(self.marks.items()):
            if kind is MarkKind.READ and value < self.first_places.get(user, 0):
                del self.marks[user, kind, peer]
        return succeed(count)

    def erase(self, user: str, *, received: bool = False) -> None:
        """Erase the messages that a user wrote, and tell their users.

        :param received: whether what was sent to the user is erased, too.
        """
        places: dict[str, list[int]] = {}
        for row in islice(self.rows, self.trimmed, None):
            if row.is_message and (row.from_user == user or (received and row.to_user == user)):
                self._blank(row)
                for each in {row.from_user, row.to_user}:
                    places.setdefault(each, []).append(row.place(each))
        self.on_erased({each: self._tell(each, places[each]) for each in sorted(places)})

    def _blank(self, row: MemoryRow) -> None:
        """Erase one message."""
        message = row.message
        row.message = Message(row.from_user, row.to_user, 0, 0, "", message.received_at)
        row.delivered = row.is_message = False

    def _tell(self, user: str, places: Sequence[int]) -> int:
        """Tell a user that what was at some places was erased; return the place of the notice."""
        self._keep(Message(user, user, 0, 0, "", self.rows[-1].message.received_at))
        row = self.rows[-1]
        row.delivered = row.is_message = False
        row.erased = tuple(
            (group[0][1], group[-1][1])
            for _, each in groupby(enumerate(places), lambda pair: pair[1] - pair[0])
            if (group := list(each))
        )
        return row.to_place

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every message that is kept, oldest first."""
        for row in islice(self.rows, self.trimmed, None):
            if row.is_message:
                yield row.logged()

    def inbox(self, user: str) -> Deferred[InboxState]:
        """Look up a user's inbox."""
        values = {kind: self.marks.get((user, MarkKind(kind), "")) for kind in INBOX_KINDS}
        marks = {kind: value for kind, value in values.items() if value is not None}
        first, last = self.first_places.get(user, 1), len(self.inboxes.get(user, ()))
        return succeed(InboxState.with_marks(first, last, marks))

    def save_marks(self, marks: Sequence[Mark]) -> Deferred[None]:
        """Keep the marks that are greater than those that are kept."""
        for user, kind, peer, value in marks:
            key = (user, kind, peer)
            self.marks[key] = max(value, self.marks.get(key, value))
        all_revoked = self.marks.get(("", MarkKind.REVOKED, ""), 0)
        for key, value in list(self.marks.items()):
            if key[:2] == ("", MarkKind.REVOKED) and key[2] and value <= all_revoked:
                del self.marks[key]
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Do nothing: there is no file to close."""
        return succeed(None)


class MemoryInboxReader:
    """The `chatrelay.interfaces.InboxReader` of a `MemoryMessageLog`. It answers at once.

    Each method but `entries` and `marks` searches a whole inbox.
    """

    def __init__(self, log: MemoryMessageLog) -> None:
        self._log = log

    def _answer(self, read: Callable[[], _T]) -> Deferred[_T]:
        """Return a Deferred with the result of a read. A test double overrides this."""
        return succeed(read())

    def _standing(self, user: str) -> list[MemoryRow]:
        """Return the messages that stand in a user's inbox, oldest first."""
        return [row for row in self._log.inboxes.get(user, ()) if row.delivered]

    def _sent(self, sender: str, recipient: str, asker: str) -> list[MemoryRow]:
        """Return the messages that stand from one user to another, oldest first.

        :param asker: the one of them in whose inbox they are searched for.
        """
        return [row for row in self._standing(asker) if (row.from_user, row.to_user) == (sender, recipient)]

    def entries(self, user: str, after: int, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the entries of consecutive places, oldest first, void ones included."""

        def read() -> Page:
            # One more than a page has, and not the rest of the inbox: a replay reads page after page.
            rows = self._log.inboxes.get(user, [])[after : min(through, after + limit + 1)]
            return _page(
                (InboxEntry(row.place(user), row.logged() if row.delivered else None, row.erased) for row in rows),
                limit,
                size,
            )

        return self._answer(read)

    def history(
        self, user: str, peer: str, *, before: int | None, after: int | None, through: int, limit: int, size: int
    ) -> Deferred[Page]:
        """Read the messages that stand between two users, as `user` sees them."""

        def read() -> Page:
            rows = [row for row in self._standing(user) if row.peer(user) == peer and row.place(user) <= through]
            if after is not None:
                rows = [row for row in rows if row.place(user) > after]
            else:
                rows = [row for row in reversed(rows) if before is None or row.place(user) < before]
            return _page(_entries(rows, user), limit, size)

        return self._answer(read)

    def conversations(self, user: str, *, before: int | None, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the last message that stands of each conversation of a user, newest first."""

        def read() -> Page:
            last: dict[str, MemoryRow] = {}
            for row in reversed(self._standing(user)):
                if row.place(user) <= through:
                    last.setdefault(row.peer(user), row)
            rows = [row for row in last.values() if before is None or row.place(user) < before]
            return _page(_entries(rows, user), limit, size)

        return self._answer(read)

    def progress(
        self, user: str, conversations: Sequence[Conversation], *, through: int, limit: int
    ) -> Deferred[Sequence[Progress]]:
        """Read how far conversations of a user were received and read."""

        def read(conversation: Conversation) -> Progress:
            peer, marks = conversation.peer, self._log.marks
            mine = max(conversation.read_by_me, marks.get((user, MarkKind.READ, peer), 0))
            received_mark = read_mark = 0
            if conversation.is_known:
                read_mark = max(conversation.read, marks.get((peer, MarkKind.READ, user), 0))
                received_mark = max(read_mark, conversation.received, marks.get((peer, MarkKind.RECEIVED, ""), 0))
            return Progress(
                mine,
                self._place_of_sender(user, peer, received_mark),
                self._place_of_sender(user, peer, read_mark),
                self._unread(user, peer, mine, through, limit),
            )

        return self._answer(lambda: [read(conversation) for conversation in conversations])

    def _unread(self, user: str, peer: str, after: int, through: int, limit: int) -> int:
        """Count the messages that stand from `peer` to `user` at places beyond `after`, up to `through`."""
        if user == peer:
            return 0
        return min(limit, sum(after < row.to_place <= through for row in self._sent(peer, user, user)))

    def find(self, sender: str, unique_id: str, since: int) -> Deferred[LoggedMessage | None]:
        """Find a message by its sender and its unique id."""

        def read() -> LoggedMessage | None:
            for row in self._standing(sender):
                found = row.logged()
                if (found.from_uid, found.unique_id) == (sender, unique_id) and found.received_at >= since:
                    return found
            return None

        return self._answer(read)

    def has_written(self, sender: str, recipient: str, by_sender: bool = False) -> Deferred[bool]:
        """Return whether a message from `sender` to `recipient` stands."""
        return self._answer(lambda: bool(self._sent(sender, recipient, sender if by_sender else recipient)))

    def writers(self, recipient: str, senders: Sequence[str]) -> Deferred[Collection[str]]:
        """Return those of some users from whom a message to `recipient` stands."""
        return self._answer(lambda: {sender for sender in senders if self._sent(sender, recipient, recipient)})

    def place_of_sender(self, sender: str, recipient: str, through: int) -> Deferred[int]:
        """Translate a place of the recipient's into one of the sender's."""
        return self._answer(lambda: self._place_of_sender(sender, recipient, through))

    def _place_of_sender(self, sender: str, recipient: str, through: int) -> int:
        rows = self._sent(sender, recipient, sender)
        return max((row.from_place for row in rows if row.to_place <= through), default=0)

    def marks(self, keys: Sequence[MarkKey]) -> Deferred[Mapping[MarkKey, int]]:
        """Read the values of marks of any users and kinds at once."""
        return self._answer(lambda: {key: self._log.marks[key] for key in keys if key in self._log.marks})


def _entries(rows: Iterable[MemoryRow], user: str) -> Iterable[InboxEntry]:
    return (InboxEntry(row.place(user), row.logged()) for row in rows)


def _page(entries: Iterable[InboxEntry], limit: int, size: int) -> Page:
    """Return the first entries as a page.

    :param limit: the most entries.
    :param size: the most bytes of content; the first entry may have more.
    """
    page: list[InboxEntry] = []
    total = 0
    for entry in entries:
        total += len(entry.message.content.encode()) if entry.message else 0
        if len(page) == limit or (page and total > size):
            return Page(page, more=True)
        page.append(entry)
    return Page(page, more=False)


class NoMessageLog:
    """Numbers messages and keeps none, so C1 (logged once) and C8 (logged first) of the promise do not hold.

    :ivar is_open: always True.
    :ivar is_alive: always True.
    """

    is_open = True
    is_alive = True

    def __init__(self) -> None:
        self._last = 0

    def start(self) -> None:
        """Do nothing: there is no file to open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Return the next numbers for a batch."""
        first = self._last + 1
        self._last += len(messages)
        return succeed(range(first, self._last + 1))

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Do nothing: there is no file to close."""
        return succeed(None)
