"""The states of one connection, from when it is accepted until it is lost, and the events between them.

Pure. This module must not know what is done in a state: `chatrelay.websocket.protocol` does that. Autobahn's protocol
has its own states, which are in the right column of the first table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class ConnectionState(enum.Enum):
    """The states of a connection.

    ============  ============================================================================  ==========
    state         meaning                                                                       Autobahn's
    ============  ============================================================================  ==========
    HANDSHAKE     Accepted and counted. The opening handshake is read, or being checked.        CONNECTING
    REFUSING      Refused when it was accepted. The response waits until the client sends.      CLOSED
    REFUSED       Refused when it was accepted, and answered or aborted. It is not counted.     CLOSED
    REJECTED      The handshake was answered with an HTTP error, and that was logged.           CLOSED
    OPEN          Messages are accepted.                                                        OPEN
    DRAINING      The relay is stopping. Accepted messages are answered, new ones are ignored.  OPEN
    CLOSING       A close frame was sent. Messages that arrive are ignored.                     CLOSING
    DISCARDING    The client exceeded its limits after that. Nothing is read any more.          CLOSING
    CLOSED        The TCP connection is being closed.                                           CLOSED
    LOST          The TCP connection is gone, and how it closed was logged.                     CLOSED
    ============  ============================================================================  ==========

    Each event leads to the state in its column. A dot means that the event changes nothing in that state.

    ==========  =======  =======  ========  ======  ========  =======  ==========  =======  ====
    state       refused  aborted  rejected  opened  stopping  closing  flooded     dropped  lost
    ==========  =======  =======  ========  ======  ========  =======  ==========  =======  ====
    HANDSHAKE   REFUSING REFUSED  REJECTED  OPEN    .         .        .           CLOSED   LOST
    REFUSING    .        REFUSED  .         .       .         .        .           .        LOST
    REFUSED     .        .        .         .       .         .        .           .        LOST
    REJECTED    .        .        .         .       .         .        .           .        LOST
    OPEN        .        .        .         .       DRAINING  CLOSING  .           CLOSED   LOST
    DRAINING    .        .        .         .       .         CLOSING  .           CLOSED   LOST
    CLOSING     .        .        .         .       .         .        DISCARDING  CLOSED   LOST
    DISCARDING  .        .        .         .       .         .        .           CLOSED   LOST
    CLOSED      .        .        .         .       .         .        .           .        LOST
    LOST        .        .        .         .       .         .        .           .        .
    ==========  =======  =======  ========  ======  ========  =======  ==========  =======  ====
    """

    HANDSHAKE = enum.auto()
    REFUSING = enum.auto()
    REFUSED = enum.auto()
    REJECTED = enum.auto()
    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSING = enum.auto()
    DISCARDING = enum.auto()
    CLOSED = enum.auto()
    LOST = enum.auto()

    def after(self, event: Event) -> ConnectionState:
        """Return the state that an event leads to."""
        return _AFTER[self].get(event, self)

    @property
    def is_open(self) -> bool:
        """Whether the handshake is complete, and no close frame was sent."""
        return self in _IS_OPEN

    @property
    def reads(self) -> bool:
        """Whether received bytes are parsed. In all other states they are discarded."""
        return self in _READS


class Event(enum.Enum):
    """The events that change the state of a connection.

    ========  ===================================================================================
    event     what happened
    ========  ===================================================================================
    refused   The connection would exceed a limit on connections.
    aborted   A connection that was refused was answered, or is aborted without a response.
    rejected  The handshake is refused.
    opened    The handshake is complete.
    stopping  The relay is stopping, and this connection is about to be closed.
    closing   A close frame is sent, which may be the answer to the client's.
    flooded   The client exceeded its limits although a close frame was sent.
    dropped   The relay closes the TCP connection.
    lost      The TCP connection is gone.
    ========  ===================================================================================
    """

    REFUSED = enum.auto()
    ABORTED = enum.auto()
    REJECTED = enum.auto()
    OPENED = enum.auto()
    STOPPING = enum.auto()
    CLOSING = enum.auto()
    FLOODED = enum.auto()
    DROPPED = enum.auto()
    LOST = enum.auto()


_IS_OPEN = frozenset((ConnectionState.OPEN, ConnectionState.DRAINING))
_READS = _IS_OPEN | {ConnectionState.HANDSHAKE, ConnectionState.CLOSING}

_LOST = {Event.LOST: ConnectionState.LOST}
_CLOSED = {Event.DROPPED: ConnectionState.CLOSED, **_LOST}

_AFTER: Mapping[ConnectionState, Mapping[Event, ConnectionState]] = {
    ConnectionState.HANDSHAKE: {
        Event.REFUSED: ConnectionState.REFUSING,
        Event.ABORTED: ConnectionState.REFUSED,
        Event.REJECTED: ConnectionState.REJECTED,
        Event.OPENED: ConnectionState.OPEN,
        **_CLOSED,
    },
    ConnectionState.REFUSING: {Event.ABORTED: ConnectionState.REFUSED, **_LOST},
    ConnectionState.REFUSED: _LOST,
    ConnectionState.REJECTED: _LOST,
    ConnectionState.OPEN: {
        Event.STOPPING: ConnectionState.DRAINING,
        Event.CLOSING: ConnectionState.CLOSING,
        **_CLOSED,
    },
    ConnectionState.DRAINING: {Event.CLOSING: ConnectionState.CLOSING, **_CLOSED},
    ConnectionState.CLOSING: {Event.FLOODED: ConnectionState.DISCARDING, **_CLOSED},
    ConnectionState.DISCARDING: _CLOSED,
    ConnectionState.CLOSED: _LOST,
    ConnectionState.LOST: {},
}
