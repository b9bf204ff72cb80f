"""The cursor rule of v2: in which order a connection is sent the places of its user's inbox.

Pure: time, connections, the dialect and the reader of the message log are passed in. This module must not know what is
in a message, nor when a message is logged, handed over or refused.

A `Cursor` is the last place that one connection was sent. An `Inbox` has the cursors of one user, and knows the last
place that is settled: it and all before it will never change. This is why every client sees each place once, in
ascending order and without a hole (docs/protocol.rst has the rule):

1. Only three lines move a cursor: in `Cursor.offer` and in `Cursor.answer` to the place after it, and in
   `Cursor._send_page` to the end of a frame that begins at the place after it. Each follows a `send` that succeeded. So
   no place is left out, and none is sent twice. (An answer that does not move the cursor has no place of its own.)
2. A place is offered only when it is settled, and a page is read only up to the last settled place. A cursor skips no
   place, so it stops before an unsettled one, even if later places are offered. So what is sent never changes.
3. A cursor is LIVE only if it was sent everything up to the last place, or if what follows is about to be offered or
   answered: `Inbox` offers each place to each cursor in the turn in which it settles, or `Relay._deliver_as_usual`
   offers it to the only one, and answers that of the sender. A cursor that can't take what is
   offered leaves LIVE, and chooses its next step by `Cursor._proceed`. Each other state ends by an event that leads to
   `_proceed` again, and `_proceed` makes a cursor LIVE only if nothing is left to read. So a place that comes while a
   page is read is read after it. That is the whole race of replay and live.
4. A read that fails is repeated. If it does not succeed in time, the connection is closed, and the client comes back
   with the last place that it has.

========== ============================================ ==========================================
State      Meaning                                      Left when
========== ============================================ ==========================================
ENTERED    nothing may be sent yet: the login is not    `start` is called
           answered
LIVE       what is offered is sent at once              a place is offered that can't be sent yet
BEHIND     the next step is to be chosen                at once, by `_proceed`
READING    a page is being read                         it is read, or the read has failed
FULL       too much is unsent                           the client has read most of it
UNSETTLED  the next place is not settled                it is settled, or void
RETRYING   a read has failed                            a second has passed
CLOSED     nothing is sent any more                     never
========== ============================================ ==========================================

A cursor in any state but CLOSED counts as one that took what was offered: the log will get there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Set
from typing import Any, Final

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxConnection, InboxLog, V2Dialect
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import LogBusy, LogNotIndexed, LogUnavailable, Message, Page
from chatrelay.wire import codes

log = Logger("chatrelay.relay")

MAX_PAGE = 100
"""Entries that are read at once."""

MAX_PAGE_SIZE = 64 * 1024
"""Bytes of content that are read at once; one message may have more."""

MAX_UNSENT = 64 * 1024
"""Bytes that may be unsent while a further message is sent or a further page is read."""

READ_SECONDS = 10.0
"""Seconds after which a connection is closed if a page can't be read, retries included."""

RETRY_SECONDS = 1.0
"""Seconds after which a read that has failed is retried."""


class State(enum.Enum):
    """The states of a cursor; the table above has their meanings."""

    ENTERED = enum.auto()
    LIVE = enum.auto()
    BEHIND = enum.auto()
    READING = enum.auto()
    FULL = enum.auto()
    UNSETTLED = enum.auto()
    RETRYING = enum.auto()
    CLOSED = enum.auto()


_LIVE: Final = State.LIVE
# It is looked up for every message. Looking up an attribute of the enumeration would take longer than using it.


def can_replay(after: int, first: int, settled: int, limit: int) -> bool:
    """Return whether a client that has everything up to the place `after` can be sent what it missed.

    :param first: the first place that is kept.
    :param settled: the last settled place.
    :param limit: the most places that are replayed; 0 for no limit.
    """
    return first - 1 <= after <= settled and (not limit or settled - after <= limit)


class Cursor:
    """The last place that one connection was sent. `Inboxes.enter` makes one.

    :param place: the last place that the client has.
    :ivar connection: the connection.
    :ivar place: the last place that was sent.
    :ivar state: what the cursor does, or waits for.
    """

    __slots__ = ("_inbox", "_inboxes", "_is_proceeding", "_is_timed", "connection", "place", "state")

    def __init__(self, inboxes: Inboxes, inbox: Inbox, connection: InboxConnection, place: int) -> None:
        self._inboxes = inboxes
        self._inbox = inbox
        self._is_proceeding = False
        self._is_timed = False  # whether the time of a read runs
        self.connection = connection
        self.place = place
        self.state = State.ENTERED

    def start(self) -> None:
        """Begin to send: the login has been answered."""
        if self.state is State.ENTERED:
            self._step()

    def offer(self, place: int, payload: bytes) -> bool:
        """Take a settled place that comes live, and return whether the client has it or will be sent it.

        :param payload: the frame that occupies the place.
        """
        if self.state is _LIVE:
            if place == self.place + 1 and self.connection.unsent <= MAX_UNSENT:
                if self.connection.send(payload):
                    self.place = place
                    return True
                self.close()
            elif place > self.place:
                self._step()
        elif self.state is State.UNSETTLED:
            self._step()
        return self.state is not State.CLOSED

    def answer(self, place: int, payload: bytes) -> bool:
        """Send the answer to a message that is at `place`, and return whether it was sent.

        It is always sent, and at once. It moves the cursor only if the place is the next one. If it is a later one, it
        comes in its turn as a message.
        """
        if self.state is State.CLOSED or not self.connection.send(payload):
            self.close()
            return False
        if place == self.place + 1:
            self.place = place
        elif place > self.place and self.state is _LIVE:
            self._step()
        return True

    def settled(self) -> None:
        """Look for further places: one has become settled without being offered."""
        if self.state is _LIVE or self.state is State.UNSETTLED:
            self._step()

    def close(self) -> None:
        """Send nothing any more: the connection is closing or gone."""
        self.state = State.CLOSED
        self._stop_time()

    def give_up(self) -> None:
        """Close the connection: the log can't be read, or its places have lost their meaning."""
        if self.state is not State.CLOSED:
            self.close()
            self.connection.close(codes.LOG_LOST)

    def retry(self) -> None:
        """Read a page again, a while after it could not be read."""
        if self.state is State.RETRYING:
            self._step()

    def _step(self) -> None:
        self.state = State.BEHIND
        if not self._is_proceeding:  # else the loop below does the rest, so that pages at once make no recursion
            self._is_proceeding = True
            try:
                while self.state is State.BEHIND:
                    self._proceed()
            finally:
                self._is_proceeding = False

    def _proceed(self) -> None:
        """Choose the next step of a cursor that is behind, and waits for nothing."""
        settled = self._inbox.settled
        if self.place >= settled:
            self.state = State.LIVE if self.place >= self._inbox.last else State.UNSETTLED
        elif self.connection.unsent > MAX_UNSENT:
            self.state = State.FULL
            self.connection.call_when_drained(self._drained)
        else:
            self.state = State.READING
            if not self._is_timed:
                self._is_timed = True
                self._inboxes.read_deadlines.start(self)
            reader = self._inboxes.reader
            read = maybeDeferred(reader.entries, self._inbox.user, self.place, settled, MAX_PAGE, MAX_PAGE_SIZE)
            read.addCallback(self._page_read, self.place)
            read.addErrback(self._read_failed)
            read.addErrback(self._report)

    def _drained(self) -> None:
        if self.state is State.FULL:
            self._step()

    def _page_read(self, page: Page, after: int) -> None:
        if self.state is State.READING and self._inboxes.check_epoch():
            self._send_page(page)
            if self.state is State.READING:
                if self.place == after:  # an answer may have taken all that was read, but something must have moved
                    raise LogUnavailable(f"the message log has no entry at place {after + 1} of an inbox")
                self._stop_time()
                self._step()

    def _send_page(self, page: Page) -> None:
        """Send the entries of a page: those that an answer has not taken meanwhile."""
        dialect = self._inboxes.dialect
        void_from = 0  # the first of the void places that have not been sent
        next_place = self.place + 1
        for entry in page.entries:
            place = entry.place
            if place < next_place:
                continue
            if place > next_place:
                break  # what is missing is read again
            next_place += 1
            if entry.message is None and not entry.erased:
                void_from = void_from or place
                continue
            if void_from and not self._send(dialect.void(void_from, place - 1), place - 1):
                return
            void_from = 0
            payload = (
                dialect.erased(place, entry.erased) if entry.message is None else dialect.delivery(entry.message, place)
            )
            if not self._send(payload, place):
                return
        if void_from:
            self._send(dialect.void(void_from, next_place - 1), next_place - 1)

    def _send(self, payload: bytes, place: int) -> bool:
        """Send a frame that occupies all places after the cursor, up to `place`; return whether it was sent."""
        if self.connection.send(payload):
            self.place = place
            return True
        self.close()
        return False

    def _read_failed(self, failure: Failure) -> None:
        if self.state is State.READING:
            self.state = State.RETRYING
            if failure.check(LogNotIndexed):
                # It will be ready. A client that was closed would only come back, and find the same.
                self._stop_time()
            self._inboxes.retries.start(self)
        failure.trap(LogUnavailable, LogBusy)

    def _report(self, failure: Failure) -> None:
        log.failure("reading an inbox failed; please report it", failure=failure)

    def _stop_time(self) -> None:
        if self._is_timed:
            self._is_timed = False
            self._inboxes.read_deadlines.stop(self)
            self._inboxes.retries.stop(self)


class Inbox:
    """The inbox of a user who has at least one cursor.

    :ivar user: the key of the user.
    :ivar last: the last place that is known to be committed.
    :ivar cursors: the cursors, oldest first. The tuple is replaced, never changed.
    :ivar only_cursor: the cursor if there is one; None if there are several.
    :ivar connections: their connections.
    """

    __slots__ = ("_inboxes", "connections", "cursors", "last", "only_cursor", "user")

    def __init__(self, inboxes: Inboxes, user: str, last: int) -> None:
        self._inboxes = inboxes
        self.user = user
        self.last = last
        self.cursors: tuple[Cursor, ...] = ()
        self.only_cursor: Cursor | None = None
        self.connections: Set[object] = frozenset()

    def set_cursors(self, cursors: tuple[Cursor, ...]) -> None:
        """Replace the cursors."""
        self.cursors = cursors
        self.only_cursor = cursors[0] if len(cursors) == 1 else None
        self.connections = frozenset(cursor.connection for cursor in cursors)

    @property
    def settled(self) -> int:
        """The last settled place; 0 if there is none."""
        return self._inboxes.settled(self.user, self.last)

    def deliver(self, message: Message, place: int, besides: InboxConnection | None = None) -> bool:
        """Offer a message at its place to the cursors; it settles if one of them takes it, or has been settled before.

        :param besides: the connection whose answer takes the place.
        :returns: whether a cursor other than that took it.
        """
        if place > self.last:
            self.last = place
        cursors = self.cursors
        if len(cursors) == 1:  # as mostly: then the loop below would take as long as the rest
            cursor = cursors[0]
            if cursor.connection is besides:
                return False
            return cursor.offer(place, self._inboxes.dialect.delivery(message, place))
        payload = b""
        is_taken = False
        for cursor in cursors:
            if cursor.connection is not besides:
                payload = payload or self._inboxes.dialect.delivery(message, place)
                is_taken = cursor.offer(place, payload) or is_taken
        return is_taken

    def deliver_void(self, place: int) -> None:
        """Offer a place that has become void to the cursors."""
        if place > self.last:
            self.last = place
        payload = self._inboxes.dialect.void(place, place)
        for cursor in self.cursors:
            cursor.offer(place, payload)


class Inboxes:
    """The inboxes of the users who have a cursor on this node, and the places that are not settled yet.

    :param dialect: encodes what is sent.
    :param message_log: where what a connection has missed is read.
    :param clock: for time and timers.
    :ivar get: called with the key of a user; returns the inbox of the user, or None if the user has no cursor here.
    :ivar read_deadlines: when reads take too long. For cursors only.
    :ivar retries: when reads that have failed are repeated. For cursors only.
    """

    def __init__(self, dialect: V2Dialect, message_log: InboxLog, clock: Any) -> None:
        self.dialect = dialect
        self.reader = message_log.reader
        self._log = message_log
        self._epoch: str | None = None  # that of all places that are known here; None before there is one
        self.read_deadlines: DeadlineTimer[Cursor] = DeadlineTimer(clock, READ_SECONDS, Cursor.give_up)
        self.retries: DeadlineTimer[Cursor] = DeadlineTimer(clock, RETRY_SECONDS, Cursor.retry)
        self._inboxes: dict[str, Inbox] = {}
        self.get: Callable[[str], Inbox | None] = self._inboxes.get
        self._unsettled: dict[str, set[int]] = {}  # by user; almost always empty

    def __len__(self) -> int:
        """Return how many users have a cursor."""
        return len(self._inboxes)

    def enter(self, user: str, connection: InboxConnection, last: int, after: int | None = None) -> Cursor:
        """Add a connection that logs in. Call `Cursor.start` when the login has been answered.

        This must be called in the callback of `chatrelay.interfaces.InboxLog.inbox`, so that no place is committed in
        between.

        :param connection: the connection, as it is in the directory.
        :param last: the last place of the user's inbox.
        :param after: the last place that the client has, if what follows it is to be replayed; see `can_replay`. None
            to begin after the last settled place.
        """
        self.check_epoch()
        inbox = self._inboxes.get(user)
        if inbox is None:
            inbox = self._inboxes[user] = Inbox(self, user, last)
        inbox.last = max(inbox.last, last)
        cursor = Cursor(self, inbox, connection, inbox.settled if after is None else after)
        inbox.set_cursors((*inbox.cursors, cursor))
        return cursor

    def leave(self, user: str, cursor: Cursor) -> None:
        """Remove a cursor: its connection is closing or gone. An unknown cursor is ignored."""
        cursor.close()
        inbox = self._inboxes.get(user)
        if inbox is not None:
            inbox.set_cursors(tuple(other for other in inbox.cursors if other is not cursor))
            if not inbox.cursors:
                del self._inboxes[user]

    def settled(self, user: str, last: int) -> int:
        """Return the last settled place of a user whose last place is `last`."""
        unsettled = self._unsettled.get(user)
        return min(last, min(unsettled) - 1) if unsettled else last

    def hold(self, user: str, place: int) -> None:
        """Note that a place that was committed is not settled yet: neither it nor a later one may be sent."""
        self.check_epoch()
        self._unsettled.setdefault(user, set()).add(place)
        inbox = self._inboxes.get(user)
        if inbox is not None:
            inbox.last = max(inbox.last, place)

    def release_void(self, user: str, place: int) -> None:
        """Note that a place that `hold` was called with is void, and settled."""
        unsettled = self._unsettled.get(user, set())
        unsettled.discard(place)
        if not unsettled:
            self._unsettled.pop(user, None)
        inbox = self._inboxes.get(user)
        if inbox is not None:
            inbox.deliver_void(place)

    def grew(self, user: str, last: int) -> None:
        """Note that the log has entries up to the place `last` that are not messages: cursors read them."""
        inbox = self._inboxes.get(user)
        if inbox is not None and last > inbox.last:
            inbox.last = last
            for cursor in inbox.cursors:
                cursor.settled()

    def check_epoch(self) -> bool:
        """If the log has another epoch, forget all places, and close all connections that have a cursor, with 4005.

        Places of another epoch mean nothing.

        :returns: whether the epoch is the same as before.
        """
        epoch = self._log.epoch
        if self._epoch is None or self._epoch == epoch:
            self._epoch = epoch
            return True
        self._epoch = epoch
        inboxes = tuple(self._inboxes.values())
        self._inboxes.clear()
        self._unsettled.clear()
        for inbox in inboxes:
            for cursor in inbox.cursors:
                cursor.give_up()
        return False
