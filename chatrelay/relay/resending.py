"""The messages that clients send again, because they do not know what became of them: by sender and unique id.

Pure: the time is passed in. This module must not know how a message is found in the log, nor what is answered.

An id that came with ``again`` is remembered for ten minutes: a first copy of the message may still be read later, from
a socket that is dying. Ids that never came with ``again`` are in no table, so that a message costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from chatrelay.interfaces import StoreSubmitter
from chatrelay.model import LoggedMessage, Message, user_key
from chatrelay.relay.answers import microseconds

REMEMBERED_SECONDS = 600.0
"""Seconds for which an id that came with ``again`` is remembered."""

MAX_REMEMBERED = 100_000
"""Ids that are remembered. One more displaces the one that has been remembered for longest."""

ID = tuple[str, str | int]
"""The key of a sender, and a unique id of theirs."""


@attrs.define(eq=False)
class Copy:
    """A message that was sent again, and waits for the answer to the first one.

    :ivar submitter: is answered.
    :ivar ticket: the number of this answer among those that are pending; None once it has been given.
    """

    message: Message
    submitter: StoreSubmitter
    ticket: int | None


@attrs.define(eq=False)
class Resending:
    """What is known of a message that was sent again.

    :ivar copies: those that wait until it is known; None once it is.
    :ivar place: its place in the sender's inbox.
    :ivar to_place: its place in the recipient's inbox.
    :ivar at: when it was received first, in microseconds since 1970 UTC.
    """

    _recipient: str
    _content: int
    _remembered_at: float
    copies: list[Copy] | None = attrs.field(factory=list)
    place: int = 0
    to_place: int = 0
    at: int = 0

    def is_same(self, message: Message | LoggedMessage) -> bool:
        """Return whether a message has the same recipient and content."""
        return self._recipient == user_key(message.to_uid) and self._content == hash(message.content)

    def settle(self, place: int, to_place: int, at: int) -> Sequence[Copy]:
        """Note that the first message is in the log; return the copies that waited for that."""
        copies, self.copies = self.copies or [], None
        self.place, self.to_place, self.at = place, to_place, at
        return copies


class Resendings:
    """The ids that came with ``again``.

    :param seconds: any clock that runs forward.
    :ivar remembered: what is known of each.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.remembered: dict[ID, Resending] = {}  # the oldest first

    def __len__(self) -> int:
        """Return how many ids are remembered."""
        return len(self.remembered)

    def get(self, id: ID) -> Resending | None:
        """Return what is known of an id; None if it is not remembered."""
        resending = self.remembered.get(id)
        if resending is not None and resending._remembered_at <= self._seconds() - REMEMBERED_SECONDS:
            if resending.copies is not None:
                return resending  # copies wait for it
            del self.remembered[id]
            return None
        return resending

    def begin(self, id: ID, first: Message | LoggedMessage) -> Resending:
        """Remember an id.

        :param first: the message that the id names, as far as is known.
        """
        self._forget()
        resending = Resending(user_key(first.to_uid), hash(first.content), self._seconds())
        self.remembered[id] = resending
        return resending

    def forget(self) -> None:
        """Forget the messages that are in the log, because it has another epoch. Copies wait for the others."""
        self.remembered = {id: known for id, known in self.remembered.items() if known.copies is not None}

    def drop(self, id: ID) -> Sequence[Copy]:
        """Forget an id, because its message is not in the log; return the copies that waited."""
        resending = self.remembered.pop(id, None)
        return () if resending is None else resending.copies or ()

    def committed(self, message: Message) -> Sequence[Copy]:
        """Note that a message is in the log; return the copies that waited for that."""
        resending = self.remembered.get((user_key(message.from_uid), message.client_id))
        if resending is None or resending.copies is None:
            return ()
        return resending.settle(message.from_place, message.to_place, microseconds(message.received_at))

    def _forget(self) -> None:
        """Forget the ids whose time has passed, and the oldest one if there are too many."""
        remembered, since = self.remembered, self._seconds() - REMEMBERED_SECONDS
        while remembered:
            id, oldest = next(iter(remembered.items()))
            is_over = oldest._remembered_at <= since or len(remembered) >= MAX_REMEMBERED
            if not is_over or oldest.copies is not None:
                break
            del remembered[id]


class Waiting:
    """A batch of messages that waits for the log, searched by sender and unique id.

    Only a message that is sent again is searched for. So the index is made at the first search, and each message is put
    into it once.

    :param submissions: the batch, to which more may be added.
    """

    def __init__(self, submissions: Sequence[tuple[object, Message]]) -> None:
        self._submissions = submissions
        self._ids: dict[ID, Message] = {}
        self._indexed = 0

    def find(self, id: ID) -> Message | None:
        """Return the message with this id; None if it is not in the batch."""
        for _, message in self._submissions[self._indexed :]:
            if message.has_unique_id:
                self._ids.setdefault((user_key(message.from_uid), message.client_id), message)
        self._indexed = len(self._submissions)
        return self._ids.get(id)
