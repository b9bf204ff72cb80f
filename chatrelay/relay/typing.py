"""Typing: tell a user at once, or never, that somebody is typing a message to them. Nothing is kept.

Pure: the inboxes, the dialect and the clock are passed in. This module must not know who is known to whom, nor how a
frame is sent.

A user is told only about people who have written to them. For one pair, a frame is sent at most every two seconds. A
connection that has unread bytes from an earlier turn of the reactor gets none.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxConnection
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import LogBusy, LogUnavailable
from chatrelay.relay.acquaintance import Acquaintances, Pair
from chatrelay.relay.inbox import Inboxes

TYPING_SECONDS = 2.0
"""The shortest time between two frames of a pair."""


class TypingDialect(Protocol):
    """Encodes that somebody is typing; `chatrelay.wire.v2` is one."""

    def typing(self, user: str, /) -> bytes:
        """Encode that another user is typing a message."""


class Typing:
    """Tells people that somebody is typing a message to them.

    :param dialect: encodes what is told.
    :param inboxes: the cursors of all connections.
    :param told: to whom a user is known, for questions that this user causes; see `chatrelay.relay.receipts`.
    :param clock: for timers.
    """

    def __init__(self, dialect: TypingDialect, inboxes: Inboxes, told: Acquaintances, clock: Any) -> None:
        self._dialect = dialect
        self._inboxes = inboxes
        self._told = told
        self._recent: dict[Pair, None] = {}  # those that have typed within the last two seconds
        self._windows: DeadlineTimer[Pair] = DeadlineTimer(clock, TYPING_SECONDS, self._forget)

    def __len__(self) -> int:
        """Return for how many pairs a frame would come too soon."""
        return len(self._recent)

    def typed(self, user: str, peer: str, connection: InboxConnection) -> None:
        """Tell `peer` that `user` is typing, if `peer` may know.

        :param connection: the one on which `user` types. It is not told, even if both are the same user.
        """
        pair = (peer, user)
        if pair in self._recent:
            return
        self._recent[pair] = None
        self._windows.start(pair)
        is_known = self._told.known(pair)
        if is_known is None:
            # Whether `peer` is here makes no difference to what is read.
            found: Deferred[bool] = self._told.look_up(pair)
            found.addCallbacks(self._looked_up, _left_out, callbackArgs=(pair, connection))
        elif is_known:
            self._send(pair, connection)

    def stop(self) -> None:
        """Forget who has typed: all connections are closed."""
        self._windows.clear()
        self._recent.clear()

    def _looked_up(self, is_known: bool, pair: Pair, connection: InboxConnection) -> None:
        if is_known:
            self._send(pair, connection)

    def _send(self, pair: Pair, connection: InboxConnection) -> None:
        peer, user = pair
        inbox = self._inboxes.get(peer)
        if inbox is not None:
            payload = self._dialect.typing(user)
            for cursor in inbox.cursors:
                if cursor.connection is not connection and not cursor.connection.is_behind:
                    cursor.connection.send(payload)

    def _forget(self, pair: Pair) -> None:
        self._recent.pop(pair, None)


def _left_out(failure: Failure) -> None:
    failure.trap(LogUnavailable, LogBusy)
