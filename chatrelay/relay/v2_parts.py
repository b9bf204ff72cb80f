"""The parts that all sessions of v2 share, and the Protocols of the dialect and the connection that they need.

Pure. This module must not know what a request does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from chatrelay.interfaces import Connection, InboxConnection, InboxLog, LoginDialect
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import InboxEntry, Page
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.inbox import Inboxes
from chatrelay.wire.codes import Close, Reason
from chatrelay.wire.structs_v2 import Kind, Limits, Marks, Request


class SessionDialect(LoginDialect, Protocol):
    """The part of v2 that a session needs; `chatrelay.wire.v2` is one."""

    def decode(self, payload: bytes, /) -> Request:
        """Decode a client's text message.

        :raises chatrelay.wire.structs.UnusableFrame: if it is not a request.
        """

    def logged_in(
        self,
        uid: str | int,
        epoch: str,
        place: int,
        first: int,
        recovered: bool | None,
        now: float,
        features: Sequence[str],
        limits: Limits,
        resume: str | None = None,
    ) -> bytes:
        """Encode the answer to the auth-request that logs a client in."""

    def accepted(self, request_id: str | int, place: int, at: int, delivered: bool, /) -> bytes:
        """Encode the answer to the sender of a message that was accepted."""

    def refused(self, request_id: str | int, reason: Reason, kind: Kind = Kind.SEND_REQUEST, /) -> bytes:
        """Encode the answer to a request that was refused."""

    def history(self, request_id: str | int, peer: str | int, page: Page, marks: Marks, /) -> bytes:
        """Encode the answer to a history-request."""

    def conversations(
        self, request_id: str | int, found: Sequence[tuple[str, InboxEntry, Marks]], more: bool, /
    ) -> bytes:
        """Encode the answer to a conversations-request."""

    def presences(self, request_id: str | int, online: Sequence[str], offline: Mapping[str, int | None], /) -> bytes:
        """Encode the answer to a presence-request."""

    def pong(self, request_id: str | int, last: int | None, /) -> bytes:
        """Encode the answer to a ping."""

    def closing(self, close: Close, retry_after: float, resume: str | None = None, /) -> bytes:
        """Encode the notice that the connection is about to be closed."""

    def resume(self, resume: str, /) -> bytes:
        """Encode a new token with which to resume the session."""


class V2Connection(Connection, InboxConnection, Protocol):
    """One client's open WebSocket, as the session and the cursor see it."""


def no_token(connection: Connection) -> None:
    """Return no resume token."""


@attrs.frozen(eq=False)
class V2Parts:
    """What all connections that speak v2 share.

    :ivar log: the message log.
    :ivar inboxes: the cursors of all connections.
    :ivar limits: the limits that clients are told.
    :ivar awareness: tells people of each other.
    :ivar excess: when sessions act on marks that exceeded the limit. For sessions only.
    :ivar features: the features that are on.
    :ivar replay_messages: the most places that are replayed at a login; 0 for no limit.
    :ivar token: returns a resume token for a connection that is logged in; None if it gets none.
    """

    log: InboxLog
    inboxes: Inboxes
    limits: Limits
    awareness: Awareness
    excess: DeadlineTimer[Any]
    features: Sequence[str] = ()
    replay_messages: int = 0
    token: Callable[[Connection], str | None] = no_token
