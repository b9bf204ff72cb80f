"""The session of one connection in the dialect v1: do what each message of the client asks for.

Pure: it is called with whole messages, and calls the objects that are passed in. This module must not know how bytes
travel, nor how requests are encoded. `docs/protocol.rst` states the rules, and `chatrelay.relay.base_session` has those
of logins.
"""

from __future__ import annotations

from typing import Final

from msgspec import UnsetType

from chatrelay.interfaces import Connection, Dialect
from chatrelay.limits.inflow import LARGE_MESSAGE, weight
from chatrelay.model import Message
from chatrelay.relay.base_session import BaseSession, State
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import Kind, SendRequest, UnusableFrame

_AUTHENTICATED: Final = State.AUTHENTICATED
_REAUTHENTICATING: Final = State.REAUTHENTICATING
_CLOSED: Final = State.CLOSED
# These are variables of the module because they are read for every message. Reading an attribute of the enumeration
# would take longer.


class Session(BaseSession[Dialect, Connection]):
    """A connection that speaks v1."""

    __slots__ = ()

    def received(self, payload: bytes) -> bool:
        """Act on one text message.

        :param payload: the whole message, UTF-8.
        :returns: whether another may follow: False once the connection is closing.
        """
        state = self.state
        if state is _CLOSED:
            return False
        now = self._seconds()
        if len(payload) > LARGE_MESSAGE:
            self._charge(weight(payload, now))
        # This is `TokenBucket.take`, inlined: the call would take as long again for every message.
        messages = self._messages
        at = now * messages.rate
        full_at = messages.full_at
        if full_at < at:
            messages.full_at = at + 1.0
        elif full_at - at <= messages.room:
            messages.full_at = full_at + 1.0
        else:
            messages.refuse(at)
            self._refuse(payload)
            return self._exceeded(now)
        try:
            request = self._dialect.decode(payload)
        except UnusableFrame as problem:
            self._unusable(problem)
            return self.state is not _CLOSED
        if not isinstance(request, SendRequest):
            self._auth_requested(request, now)
        elif state is _AUTHENTICATED or state is _REAUTHENTICATING:
            outgoing = request.message
            if not self._quota.take(outgoing.to_uid, now):
                self._connection.send(self._dialect.refused(request.id, Reason.RATE_LIMITED))
                return self._exceeded(now)
            relay = self._relay
            message = Message(
                self._uid, outgoing.to_uid, request.id, outgoing.time_stamp, outgoing.content, relay.now()
            )
            relay.submit(message, self)
        # A client that is not logged in gets no answer to a message, because any answer would tell a stranger
        # something.
        return self.state is not _CLOSED

    def accepted(self, message: Message) -> None:
        """Answer that a message of this client was accepted; see `chatrelay.interfaces.Submitter`."""
        self._connection.send(self._dialect.accepted(message))

    def refused(self, message: Message, reason: Reason) -> None:
        """Answer that a message of this client was not delivered."""
        self._connection.send(self._dialect.refused(message.client_id, reason))

    def _refuse(self, payload: bytes) -> None:
        """Answer a message that exceeds the limits, and read no more of it than the answer needs."""
        try:
            header = self._dialect.read_header(payload)
        except UnusableFrame as problem:
            self._unusable(problem)
            return
        if header.kind is Kind.AUTH_REQUEST:
            is_pending = self.state in (State.AUTHENTICATING, State.REAUTHENTICATING)
            reason = Reason.LOGIN_PENDING if is_pending else Reason.RATE_LIMITED
            self._connection.send(self._dialect.auth_response(False, reason))
        elif isinstance(header.request_id, UnsetType):
            self._unusable(UnusableFrame(Reason.INVALID_MESSAGE, "the id is missing or can't be used", send=True))
        elif self.logged_in:
            self._connection.send(self._dialect.refused(header.request_id, Reason.RATE_LIMITED))
