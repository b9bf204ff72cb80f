"""The actions that are due for one connection: find its address, ping its client, close it if no answer comes.

`chatrelay.websocket.registry` decides when. This module must not know what a message means.
"""

from __future__ import annotations

from typing import Protocol

from chatrelay.relay.session import Session
from chatrelay.relay.session_v2 import SessionV2
from chatrelay.websocket.autobahn import ConnectionFactory
from chatrelay.websocket.closing import status_when_full
from chatrelay.websocket.outbox import Outbox
from chatrelay.websocket.peer import Peer, why_full
from chatrelay.websocket.reading import MAX_HEADER, Reading
from chatrelay.websocket.registry import ManagedConnection
from chatrelay.websocket.states import ConnectionState
from chatrelay.wire import codes

PING = b"\x89\x00"
"""A whole frame, without a payload (RFC 6455, section 5.5.2)."""


class TimedConnection(ManagedConnection, Protocol):
    """A connection, as far as what is due for it is concerned; `chatrelay.websocket.protocol.ChatProtocol` is one."""

    factory: ConnectionFactory
    remote: Peer
    outgoing: Outbox
    reading: Reading
    session: Session | SessionV2 | None

    def failHandshake(self, reason: str, code: int) -> None:
        """Refuse the handshake."""

    def sendData(self, data: bytes) -> None:
        """Send bytes, unless the connection is closed."""


def locate(connection: TimedConnection) -> None:
    """Count the connection under the address in its PROXY header, if the header has come by now."""
    parts, remote = connection.factory.parts, connection.remote
    is_in_handshake = connection.connection_state is ConnectionState.HANDSHAKE
    if is_in_handshake and not remote.is_announced:
        return
    parts.registry.awaiting_address.pop(connection, None)
    full = parts.peers.locate_announced(remote) if is_in_handshake else None
    if full is not None:
        connection.failHandshake(why_full(full), status_when_full(full))


def ping(connection: TimedConnection) -> None:
    """Ping the client.

    A client that is behind is not pinged. The ping would wait behind everything else, and the unread-time already shows
    whether the client is gone.
    """
    if not connection.connection_state.is_open:
        return  # it was closed earlier in this sweep
    outgoing, registry = connection.outgoing, connection.factory.registry
    outgoing.about_to_ping()
    if not outgoing.is_slow_reader and outgoing.charge(MAX_HEADER):
        connection.sendData(PING)  # Autobahn's sendPing would take longer than the rest of this
        registry.pings.sent(connection, registry.active.now())


def ping_unanswered(connection: TimedConnection) -> None:
    """Close the connection of a client that has not answered a ping, unless the answer may still be unread."""
    outgoing, parts = connection.outgoing, connection.factory.parts
    if (
        connection.reading.is_paused
        or outgoing.is_slow_reader
        or outgoing.may_not_have_read_the_ping(parts.config.ping_timeout)
    ):
        # The same ping gets another ping-timeout.
        parts.registry.pings.sent(connection, parts.registry.active.now())
    else:
        connection.close(codes.NO_PONG)


def activity(connection: TimedConnection) -> object:
    """Return a value that is different after each received message, ping or pong; see `chatrelay.websocket.keepalive`.

    It is different after each pause, too: a pong may be among the bytes that wait for the end of the pause.
    """
    session, reading = connection.session, connection.reading
    return 0.0 if session is None else session.messages_level, reading.control_frames_level, reading.pauses
