"""One WebSocket connection: its dialect, its session, and the methods that Twisted and Autobahn call.

`ChatProtocol` connects Autobahn, which speaks RFC 6455, to the other packages. A text message takes this path:
`ChatProtocol.dataReceived`, `chatrelay.wire.frames.take_messages`, `chatrelay.relay.session.Session`. This module must
not know what a message means.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from OpenSSL.SSL import Error as TLSError
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from chatrelay.limits.inflow import MIN_READ
from chatrelay.relay.session import Session
from chatrelay.relay.session_v2 import SessionV2
from chatrelay.websocket import closing, handshake, opening, timeouts
from chatrelay.websocket.closing import CloseCause, printable
from chatrelay.websocket.handshake import http_error
from chatrelay.websocket.peer import Peer
from chatrelay.websocket.reading import BoundedProtocol
from chatrelay.websocket.states import ConnectionState, Event
from chatrelay.wire import codes, v1, v2
from chatrelay.wire.codes import Close
from chatrelay.wire.frames import ends_by_going_away, take_messages
from chatrelay.wire.request_head import header_values


def _take_nothing(payload: bytes) -> bool:
    """Accept no message: the connection is lost."""
    return False


class ChatProtocol(BoundedProtocol):
    """One connection: Autobahn's frames on one side, a `Session` on the other.

    :ivar close_cause: the first event that closed the connection; None until then. The loss of TCP does not set it.
    """

    close_cause: CloseCause | None = None

    # These are slots, because they are looked up for every read of the socket, and Autobahn's protocol has many
    # attributes.
    __slots__ = ("_began", "_receive")

    # Opening ---------------------------------------------------------------

    def connectionMade(self) -> None:
        """Count a TCP connection that was accepted, or refuse it. Twisted calls this."""
        parts = self.factory.parts
        self.begin()
        self._began = parts.seconds()  # when the current phase began: the handshake, and later the session
        self.remote = Peer(self.transport)
        if parts.registry.has_stopped:
            self.advance(Event.ABORTED)
            parts.connection_log.connection_cut(self.remote.name)
            self.transport.abortConnection()
            return
        full = parts.peers.admit(self.remote)
        if full is not None:
            parts.registry.refusing(self)
            opening.refuse(self, full)
            return
        super().connectionMade()
        parts.registry.accepted(self)
        if self.remote.has_proxy_protocol:
            parts.registry.awaiting_address[self] = None

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Choose the dialect for a complete opening handshake, or refuse it. Autobahn calls this."""
        parts = self.factory.parts
        parts.registry.awaiting_address.pop(self, None)
        parts.peers.locate(self.remote, self.http_request_data)
        parts.handshakes.check_origin(self.http_request_data)
        if not any(request.protocols):
            return None
        if parts.v2 is not None and v2.SUBPROTOCOL in request.protocols:
            return v2.SUBPROTOCOL
        if v1.SUBPROTOCOL in request.protocols:
            return v1.SUBPROTOCOL
        raise ConnectionDeny(
            ConnectionDeny.BAD_REQUEST, f"no offered subprotocol is spoken here: offer {v1.SUBPROTOCOL}, or none"
        )

    def _onOpen(self) -> None:
        """Call `onOpen`, which may read the handshake, and then release the handshake. Autobahn calls this."""
        if self.advance(Event.OPENED):
            try:
                super()._onOpen()
            except Exception:  # of any kind: Autobahn would keep the connection, and Twisted would log its text
                handshake.log_defect(self.factory.parts.log_limiter, Failure())
                self.close_cause = closing.DEFECT
                self.dropConnection(abort=True)
        else:
            self.state = self.STATE_CLOSED  # the client disconnected while `onConnect` was pending
        self.release_handshake()

    def onOpen(self) -> None:
        """Begin a session: the handshake is complete. Autobahn calls this."""
        parts = self.factory.parts
        cookie, because = parts.handshakes.session_cookie_of(self.http_request_data)
        if cookie is None and because is None:
            parts.handshakes.opened_without_cookie(self.http_request_data)
        speaks_v2 = self.subprotocol == v2.SUBPROTOCOL
        new_session = (
            Session
            if parts.v2 is None or not speaks_v2
            else partial(SessionV2, parts.v2, partial(parts.logins.resume, self))
        )
        self.session = new_session(
            self.outgoing,
            v2 if speaks_v2 else v1,
            parts.relay,
            parts.directory,
            parts.send_limits,
            parts.seconds,
            partial(parts.begin_login, self, self.remote.address),
            cookie,
            because,
            self.reading.charge,
            parts.login_without_cookie,
        )
        self._began = parts.seconds()
        if self.is_compressed:
            self.expect_compressed_messages()
        # A subclass that overrides onMessage gets what the fast path takes, too.
        as_usual = type(self).onMessage is ChatProtocol.onMessage
        self._receive = self.session.received if as_usual else self._message_taken
        self.outgoing.open(None if speaks_v2 else v1)
        parts.registry.opened(self)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Refuse this handshake, and log that. Autobahn calls this, too."""
        if not self.advance(Event.REJECTED):
            return  # the client disconnected before
        parts, why = self.factory.parts, handshake.without_request(reason)
        refusal = self.remote.name, parts.seconds() - self._began, int(code), printable(why)
        if handshake.is_no_handshake(reason):
            parts.connection_log.no_handshake(*refusal)
        else:
            parts.connection_log.handshake_refused(*refusal)
        if handshake.is_about_origin(reason):
            parts.handshakes.log_refused_origin(", ".join(header_values(self.http_request_data, "origin")))
        super().failHandshake(why, code, responseHeaders)
        self.data = b""
        self.release_handshake()

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Send an HTTP error. Autobahn calls this."""
        self.sendData(http_error(code, reason, responseHeaders or ()))

    # Receiving -------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take whole text messages out of received bytes, and leave the rest to Autobahn. Twisted calls this."""
        allowance = self.reading.bytes
        remaining = allowance.remaining = allowance.remaining - len(data) - MIN_READ
        if remaining < 0:
            self.reading.pause_if_due(self)
        if self._between_messages:
            taken = take_messages(data, self._message_size, self._receive)
            if taken == len(data):
                return
            if taken:
                data = data[taken:]
        self.take(data)

    def feed(self, data: bytes) -> None:
        """Have Autobahn parse received bytes, and note if a proxy closed the connection."""
        before = self.close_cause
        super().feed(data)
        cause = self.close_cause
        if cause is not before and closing.is_broken_stream(cause) and ends_by_going_away(data):
            # Caddy inserts its own close frame, even in the middle of a client's frame. Autobahn treats that, or the
            # client's answer after it, as a client's error.
            self.close_cause = closing.PROXY_CLOSED

    def _message_taken(self, payload: bytes) -> bool:
        """Hand a message to `onMessage`; return whether another may follow."""
        self.onMessage(payload, False)
        return self.connection_state.is_open

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Act on a whole message; text is valid UTF-8. Autobahn calls this."""
        if self.session is None or self.connection_state is not ConnectionState.OPEN:
            return  # the connection is about to close, or a close frame was sent
        if isBinary:
            self.close(codes.BINARY_MESSAGE)
        else:
            self.session.received(payload)

    # Closing ---------------------------------------------------------------

    def announce_close(self, close: Close, retry_after: float) -> None:
        """Tell the client that it is about to be disconnected, if its dialect has words for that.

        :param retry_after: after how many seconds the client should reconnect.
        """
        if self.session is not None and self.connection_state.is_open:
            self.session.announce_close(close, retry_after)

    def stop_taking(self) -> None:
        """Accept no more messages: the relay is stopping, and this connection is about to be closed."""
        if self.advance(Event.STOPPING):
            self._receive = self._message_taken  # `onMessage` checks the state before it takes a message

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Send a close frame. Autobahn calls this, whichever side begins the closing handshake."""
        if self.advance(Event.CLOSING):
            self.close_cause = closing.of_frame(self.remoteCloseCode if isReply else code, reasonUtf8, isReply)
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self._detach()

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection. Autobahn calls this, too."""
        self.advance(Event.DROPPED)
        self.outgoing.flush()
        super().dropConnection(abort)
        self._detach()

    def abort(self, cause: CloseCause = closing.DID_NOT_CLOSE) -> None:
        """End the TCP connection without waiting for the client.

        :param cause: what is logged, unless something has closed the connection before.
        """
        self.close_cause = self.close_cause or cause
        if self.state != self.STATE_CLOSED:
            self.dropConnection(abort=True)
        else:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Release everything: the TCP connection is gone. Twisted calls this."""
        parts, state = self.factory.parts, self.connection_state
        error: Any = reason.value
        self.advance(Event.LOST)
        if state in (ConnectionState.REFUSING, ConnectionState.REFUSED):
            parts.registry.refused_disconnected(self)
            return
        # Autobahn would log a TLS error, and anybody can cause any number of them.
        super().connectionLost(Failure(ConnectionLost("TLS failed")) if isinstance(error, TLSError) else reason)
        self.data = b""  # unread bytes would otherwise stay until garbage is collected
        self._detach()
        self.reading.forget()
        parts.peers.disconnected(self.remote)
        parts.registry.disconnected(self)
        if state is not ConnectionState.REJECTED:
            parts.connection_log.lost(self, parts.seconds() - self._began, error)
        # Objects that refer to each other stay until garbage is collected, perhaps after thousands of other connections
        # of 10 KiB each. So from here on, no object to which this one refers may refer to it.
        self.outgoing.disconnected()
        self.is_closed = succeed(None)  # the result of Autobahn's own Deferred is this object
        self._receive = _take_nothing

    def _detach(self) -> None:
        """Deliver no more messages to this client, and accept none from it."""
        self._between_messages = False
        self.outgoing.closing()
        if self.session is not None:
            self.session.closed()
        self.factory.parts.logins.disconnected(self.outgoing)
        self.factory.registry.closing(self)

    # Calls of the registry and of the login ----------------------------------

    def locate(self) -> None:
        """Count the connection under the address in its PROXY header, if the header has come by now."""
        timeouts.locate(self)

    def apply_user_limits(self) -> None:
        """Apply a user's limits from now on; see `chatrelay.auth.login.LoginClient`."""
        parts = self.factory.parts
        self.reading.apply_user_limits(parts.inflow_rates, parts.seconds())
        if self.reading.pauses:
            self.reading.resume_soon()
        parts.registry.login_deadlines.stop(self)
        assert self.remote.slot is not None
        parts.admission.authenticated(self.remote.slot)

    def login_timed_out(self) -> None:
        """Close the connection if the client is not logged in: the login-timeout has passed."""
        if self.session is not None:
            self.session.login_timed_out()

    def ping(self) -> None:
        """Ping the client."""
        timeouts.ping(self)

    def ping_unanswered(self) -> None:
        """Close the connection unless the answer to the ping may still be unread: the ping-timeout has passed."""
        timeouts.ping_unanswered(self)

    def activity(self) -> object:
        """Return a value that is different after each received message, ping or pong."""
        return timeouts.activity(self)
