"""Receipts: pass on how far users have received and read their messages.

Pure: the inboxes, the dialect, the reader of the message log and the clock are passed in. This module must not know how
a mark is decoded, how it is kept, or who is known to whom.

A mark names a place in the inbox of the user who sets it, and counts up to the place that the connection was sent. It
only goes forward. ``received`` is about the whole inbox, ``read`` about one conversation.

- Other connections of the same user are told what was read.
- The sender is told by a receipt, in places of the sender's inbox, if the user is known to the sender. A receipt is
  sent only if it names a later message than the last one did. For one conversation, receipts are sent at most every
  quarter of a second, with the latest numbers.

Usually no read of the log is needed: `Arrivals` has the places, and `Acquaintances` who is known. Whatever needs one is
done by `_Work`, one after the other for each user. So numbers never go back.

What is read of the log never depends on whether somebody is here who has not written to the user (docs/security.rst).
So there are two `Acquaintances`, with separate caches: what a user finds out about others, and what the others may be
told of the user. So what one user does has no effect on what another can find out.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxReader
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import LogBusy, LogUnavailable, MarkKind
from chatrelay.relay.acquaintance import Acquaintances, Pair
from chatrelay.relay.arrivals import Arrivals, Places
from chatrelay.relay.inbox import Cursor, Inboxes
from chatrelay.relay.marks import Marks

log = Logger("chatrelay.relay")

RECEIPT_SECONDS = 0.25
"""The shortest time between two receipts of a conversation."""

RETRY_SECONDS = 1.0
"""Seconds after which work is tried again if the log can't be read."""

MAX_WAITING = 100
"""The most conversations of a user for which a mark waits for a read. One more displaces the oldest."""

MAX_CONVERSATIONS = 64
"""The most conversations of a user of which numbers are kept in memory. One more displaces the oldest."""

PAGE, PAGES, PAGE_SIZE = 100, 5, 64 * 1024
"""Conversations that are read at once, how often, and the bytes of content: to find who sent what was received."""


_T = TypeVar("_T")


class ReceiptDialect(Protocol):
    """Encodes what is told of marks; `chatrelay.wire.v2` is one."""

    def receipt(self, peer: str, received: int | None, read: int | None, /) -> bytes:
        """Encode how far a user has received and read one's messages; None for a number that has not grown."""

    def read_mark(self, peer: str, place: int, /) -> bytes:
        """Encode how far a conversation was read on another connection."""


@attrs.define(eq=False)
class _Pending:
    """What the next receipt of a conversation will say; 0 for nothing.

    :ivar epoch: of the numbers.
    """

    epoch: str
    received: int = 0
    read: int = 0


@attrs.define(eq=False)
class _User:
    """The marks of a user.

    :ivar epoch: in which all places here have a meaning.
    :ivar received: the place up to which senders were told.
    :ivar acknowledged: the ``received`` mark.
    :ivar reads: by conversation, the ``read`` mark, as far as it was looked up.
    :ivar told: by sender, the numbers of the last receipt.
    :ivar checks: by sender, the last message that was acknowledged, if a read must come before the receipt.
    :ivar wanted: by conversation, a ``read`` mark that waits, and the connection that set it.
    :ivar introduced: senders to whom the user has just become known.
    :ivar is_here: whether the user has a cursor.
    :ivar is_busy: whether a read is under way, or will be tried again.
    """

    user: str
    received: int
    acknowledged: int
    is_here: bool
    epoch: str
    reads: dict[str, int] = attrs.field(factory=dict)
    told: dict[str, Places] = attrs.field(factory=dict)
    checks: dict[str, Places] = attrs.field(factory=dict)
    wanted: dict[str, tuple[int, Cursor]] = attrs.field(factory=dict)
    introduced: dict[str, None] = attrs.field(factory=dict)
    is_busy: bool = False

    @property
    def has_work(self) -> bool:
        """Whether something waits."""
        return self.acknowledged > self.received or bool(self.checks or self.wanted or self.introduced)


class Receipts:
    """Takes the marks of all users, and tells those who may know.

    :param dialect: encodes what is told.
    :param reader: reads the message log.
    :param inboxes: the cursors of all connections.
    :param asking: who is known to a user, for questions that this user causes.
    :param told: to whom a user is known, for questions that this user causes.
    :param marks: keeps marks.
    :param clock: for timers.
    :param are_sent: whether receipts are sent; otherwise, marks count for unread messages only.
    :ivar arrivals: the latest messages to the users who are here, from their first marks on. The caller adds each
        message that stands.
    """

    def __init__(
        self,
        dialect: ReceiptDialect,
        reader: InboxReader,
        inboxes: Inboxes,
        asking: Acquaintances,
        told: Acquaintances,
        marks: Marks,
        clock: Any,
        are_sent: bool = True,
    ) -> None:
        self._dialect = dialect
        self._reader = reader
        self._inboxes = inboxes
        self._asking = asking
        self._told = told
        self._marks = marks
        self.are_sent = are_sent
        self.arrivals: dict[str, Arrivals] = {}
        self._users: dict[str, _User] = {}
        self._pending: dict[Pair, _Pending] = {}  # by recipient of the receipt, and user whose marks it is about
        self._windows: DeadlineTimer[Pair] = DeadlineTimer(clock, RECEIPT_SECONDS, self._window_over)
        self._retries: DeadlineTimer[_User] = DeadlineTimer(clock, RETRY_SECONDS, self._begin)

    # Called by sessions and by the relay -------------------------------------

    def entered(self, user: str, received: int) -> None:
        """Note that a user has a cursor.

        :param received: the ``received`` mark that the log has kept.
        """
        state = self._users.get(user)
        if state is None or not self._is_current(state):
            received = max(received, self._marks.unsaved(user, MarkKind.RECEIVED))
            self._users[user] = _User(user, received, received, is_here=True, epoch=self._marks.epoch)
        else:
            state.is_here = True
            if received > state.acknowledged:
                state.received = state.acknowledged = received

    def left(self, user: str) -> None:
        """Note that a cursor of a user has gone."""
        state = self._users.get(user)
        if state is not None and self._inboxes.get(user) is None:
            state.is_here = False
            self.arrivals.pop(user, None)
            if not state.is_busy:
                del self._users[user]

    def acknowledge(self, user: str, cursor: Cursor, place: int) -> None:
        """Take the mark that a connection has received everything up to a place."""
        state = self._users.get(user)
        place = self._clamped(place, cursor)
        if state is None or place <= state.acknowledged:
            return
        state.acknowledged = place
        self._marks.set(user, MarkKind.RECEIVED, "", place)
        if self.are_sent:
            if user not in self.arrivals and state.is_here:
                inbox = self._inboxes.get(user)
                if inbox is not None:
                    self.arrivals[user] = Arrivals(inbox.last)
            self._proceed(state)
        else:
            state.received = place

    def read(self, user: str, cursor: Cursor, peer: str, place: int) -> None:
        """Take the mark that a user has read a conversation up to a place."""
        state = self._users.get(user)
        place = self._clamped(place, cursor)
        if state is None or place <= state.reads.get(peer, 0):
            return
        waiting = state.wanted.get(peer)
        if waiting is None or place > waiting[0]:
            if waiting is None and len(state.wanted) >= MAX_WAITING:
                oldest = next(iter(state.wanted))
                self._marks.set(user, MarkKind.READ, oldest, state.wanted.pop(oldest)[0])
            state.wanted[peer] = (place, cursor)
            self._proceed(state)

    def became_known(self, pair: Pair) -> None:
        """Tell the first user of the marks that the second one has set before, by a receipt.

        Call this only if it is certain that the second user was unknown to the first one until now.
        """
        peer, user = pair
        # Otherwise there is nothing to tell: the first one has never written to the second one.
        has_written = self._asking.known((user, peer))
        if self.are_sent and has_written and self._inboxes.get(peer) is not None:
            state = self._users.get(user)
            if state is None:
                received = self._marks.unsaved(user, MarkKind.RECEIVED)
                state = self._users[user] = _User(user, received, received, False, self._marks.epoch)
            if len(state.introduced) < MAX_WAITING:
                state.introduced[peer] = None
            self._proceed(state)

    def stop(self) -> None:
        """Send no receipt any more: all connections are closed. Keep what has been read."""
        self._windows.clear()
        self._retries.clear()
        self._pending.clear()
        self.arrivals.clear()
        for state in tuple(self._users.values()):
            self._give_up(state)

    @staticmethod
    def _clamped(place: int, cursor: Cursor) -> int:
        """Return a place up to which a mark may count: nothing beyond what the connection was sent."""
        return min(place, cursor.place)

    def _is_current(self, state: _User) -> bool:
        """Return whether the places of a user still have their meaning: the log has the same epoch."""
        return state.epoch == self._marks.epoch

    # What needs no read ------------------------------------------------------

    def _proceed(self, state: _User) -> None:
        """Do what can be done without a read, unless earlier marks wait for one; then begin to read."""
        if state.is_busy:
            return
        arrivals = self.arrivals.get(state.user)
        if state.acknowledged > state.received and arrivals is not None and arrivals.since <= state.received:
            state.received = state.acknowledged
            for sender, places in arrivals.acknowledge(state.received).items():
                self._received_from(state, sender, places)
        if state.has_work:
            state.is_busy = True
            self._begin(state)

    def _received_from(self, state: _User, sender: str, places: Places) -> None:
        """Tell a sender that a message was received, or note that a read must come first."""
        if self._inboxes.get(sender) is None:
            return
        is_known = self._told.known((sender, state.user))
        read = state.reads.get(sender)
        if is_known is None or (is_known and read is None):
            if len(state.checks) >= MAX_WAITING and sender not in state.checks:
                del state.checks[next(iter(state.checks))]
            state.checks[sender] = places
        elif is_known and read is not None and places[0] > read:  # else they know it already: what is read is received
            self._offer(state, sender, received=places[1])

    def _offer(self, state: _User, to: str, received: int = 0, read: int = 0) -> None:
        """Send a receipt with the numbers that have grown, now or when the last one is old enough."""
        if not self._is_current(state):
            return
        told = state.told.get(to, (0, 0))
        received = received if received > told[0] else 0
        read = read if read > told[1] else 0
        if not received and not read:
            return
        _keep(state.told, to, (max(told[0], received), max(told[1], read)))
        pair = (to, state.user)
        pending = self._pending.get(pair)
        if pending is None:
            self._send(pair, received, read)
        else:
            pending.received = max(pending.received, received)
            pending.read = max(pending.read, read)

    def _send(self, pair: Pair, received: int, read: int) -> None:
        self._pending[pair] = _Pending(self._marks.epoch)
        self._windows.start(pair)
        to, about = pair
        inbox = self._inboxes.get(to)
        if inbox is not None:
            payload = self._dialect.receipt(about, received or None, read or None)
            for cursor in inbox.cursors:
                cursor.connection.send(payload)

    def _window_over(self, pair: Pair) -> None:
        pending = self._pending.pop(pair)
        if (pending.received or pending.read) and pending.epoch == self._marks.epoch:
            self._send(pair, pending.received, pending.read)

    # What needs reads ---------------------------------------------------------

    def _begin(self, state: _User) -> None:
        working = Deferred.fromCoroutine(self._work(state))
        working.addErrback(self._failed, state)
        working.addErrback(self._report, state)

    async def _work(self, state: _User) -> None:
        """Do everything that waits, one after the other. What is being done stays in its place until it is done."""
        while state.has_work:
            if state.checks:
                sender, places = next(iter(state.checks.items()))
                if await self._is_known_to(sender, state.user) and places[0] > await self._read_mark(state, sender):
                    self._offer(state, sender, received=places[1])
                del state.checks[sender]
            elif state.acknowledged > state.received:
                await self._look_for_senders(state)
            elif state.wanted:
                peer, (place, cursor) = next(iter(state.wanted.items()))
                await self._take_read(state, peer, place, cursor)
                if peer in state.wanted and state.wanted[peer][0] == place:
                    del state.wanted[peer]
            else:
                await self._introduce(state, next(iter(state.introduced)))
        self._finished(state)

    def _finished(self, state: _User) -> None:
        state.is_busy = False
        if not state.is_here and self._users.get(state.user) is state:
            del self._users[state.user]

    def _failed(self, failure: Failure, state: _User) -> None:
        failure.trap(LogUnavailable, LogBusy)
        if state.is_here:
            self._retries.start(state)
        else:
            self._give_up(state)

    def _report(self, failure: Failure, state: _User) -> None:
        log.failure("telling of a mark failed; please report it", failure=failure)
        self._give_up(state)

    def _give_up(self, state: _User) -> None:
        """Tell nobody of what waits. The marks are kept, and clients find them with the conversations."""
        for peer, (place, _) in state.wanted.items() if self._is_current(state) else ():
            self._marks.set(state.user, MarkKind.READ, peer, place)
        state.received = state.acknowledged
        for waiting in (state.wanted, state.checks, state.introduced):
            waiting.clear()
        self._finished(state)

    async def _has_written(self, peer: str, user: str) -> bool:
        """Return whether `peer` has written to `user`, who asks."""
        known = self._asking.known((user, peer))
        return await self._asking.look_up((user, peer)) if known is None else known

    async def _is_known_to(self, peer: str, user: str) -> bool:
        """Return whether `user`, who acts, is known to `peer`."""
        known = self._told.known((peer, user))
        return await self._told.look_up((peer, user)) if known is None else known

    async def _read_mark(self, state: _User, peer: str) -> int:
        """Return the ``read`` mark of a conversation, and keep it in memory."""
        if peer not in state.reads:
            key = (state.user, MarkKind.READ, peer)
            found = await self._marks.read([key])
            _keep(state.reads, peer, found.get(key, 0))
        return state.reads[peer]

    async def _take_read(self, state: _User, peer: str, place: int, cursor: Cursor) -> None:
        """Act on a ``read`` mark."""
        user = state.user
        before = await self._read_mark(state, peer)
        if place <= before:
            return
        has_written = await self._has_written(peer, user)
        is_known = await self._is_known_to(peer, user)
        numbers = (0, 0)
        # Only those who have written to the user may be told, or make a difference to what is read.
        if has_written and is_known and self.are_sent and self._inboxes.get(peer) is not None:
            numbers = await self._read_numbers(state, peer, place, before)
        if not self._is_current(state):
            return
        _keep(state.reads, peer, place)
        if has_written or is_known:  # otherwise there is no such conversation
            self._marks.set(user, MarkKind.READ, peer, place)
        inbox = self._inboxes.get(user)
        if inbox is not None:
            payload = self._dialect.read_mark(peer, place)
            for other in inbox.cursors:
                if other is not cursor:
                    other.connection.send(payload)
        if numbers[1]:
            self._offer(state, peer, *numbers)

    async def _read_numbers(self, state: _User, peer: str, place: int, before: int) -> Places:
        """Return what a receipt for a ``read`` mark says: how far was received and read, each 0 if it has not grown.

        :param before: the ``read`` mark before.
        """
        arrivals = self.arrivals.get(state.user)
        places = None if arrivals is None else arrivals.last(peer, place)
        if places is not None:
            arrived, number = places
            return (number if arrived > max(before, state.received) else 0, number if arrived > before else 0)
        number = await self._reader.place_of_sender(peer, state.user, place)
        told = await self._reader.place_of_sender(peer, state.user, before) if before else 0
        if number <= told:
            return 0, 0
        if state.received > before:
            told = await self._reader.place_of_sender(peer, state.user, state.received)
        return number if number > told else 0, number

    async def _look_for_senders(self, state: _User) -> None:
        """Tell those whose messages were received, if some of them are not among the latest."""
        before, through, user = state.received, state.acknowledged, state.user
        found: list[tuple[str, int]] = []
        end: int | None = None
        for _ in range(PAGES):
            page = await self._reader.conversations(user, before=end, through=through, limit=PAGE, size=PAGE_SIZE)
            for entry in page.entries:
                message = entry.message
                if message is not None and entry.place > before:
                    peer = message.from_uid if message.from_uid != user else message.to_uid
                    number = await self._received_number(state, peer, before, through)
                    if number:
                        found.append((peer, number))
                end = entry.place
            if not page.more or end is None or end <= before:
                break
        state.received = through
        if user in self.arrivals:
            self.arrivals[user].acknowledge(through)
        for peer, number in found:
            self._offer(state, peer, received=number)

    async def _received_number(self, state: _User, peer: str, before: int, through: int) -> int:
        """Return what a receipt to `peer` says; 0 if none is sent.

        :param before: the place up to which senders were told.
        :param through: the ``received`` mark.
        """
        user = state.user
        if not await self._has_written(peer, user) or self._inboxes.get(peer) is None:
            return 0
        if not await self._is_known_to(peer, user):
            return 0
        told = max(before, await self._read_mark(state, peer))
        number = await self._reader.place_of_sender(peer, user, through)
        if number and told:
            told = await self._reader.place_of_sender(peer, user, told)
        return number if number > told else 0

    async def _introduce(self, state: _User, peer: str) -> None:
        """Tell `peer`, to whom the user has become known, how far the user has received and read."""
        received_key, read_key = (state.user, MarkKind.RECEIVED, ""), (state.user, MarkKind.READ, peer)
        marks = await self._marks.read([received_key, read_key])
        numbers: list[int] = []
        # A later mark than `received` is told of when its turn comes.
        received_mark = state.received if state.is_here else marks.get(received_key, 0)
        for place in (received_mark, marks.get(read_key, 0)):
            numbers.append(await self._reader.place_of_sender(peer, state.user, place) if place else 0)
        received, read = max(numbers), numbers[1]
        del state.introduced[peer]
        if received:
            self._offer(state, peer, received, read)


def _keep(kept: dict[str, _T], key: str, value: _T) -> None:
    """Keep a value; if there are too many, forget the one that has been kept for longest."""
    if key not in kept and len(kept) >= MAX_CONVERSATIONS:
        del kept[next(iter(kept))]
    kept[key] = value
