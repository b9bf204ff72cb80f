"""Autobahn's server protocol as it is used here, and the private names of Autobahn that are relied on.

A test looks up each of these names, so that it fails with a release that has changed one. This module must not know
handshakes, sessions or limits: it feeds bytes to Autobahn, and sends what Autobahn has made. For its subclasses, it
declares where a connection has its other end and the parts that all connections share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerProtocol
from txaio.tx import make_logger

from chatrelay.websocket.compression import MIN_COMPRESSED
from chatrelay.websocket.outbox import Outbox
from chatrelay.websocket.parts import Parts
from chatrelay.websocket.peer import Peer
from chatrelay.websocket.registry import Registry
from chatrelay.websocket.states import ConnectionState, Event
from chatrelay.wire.codes import Close
from chatrelay.wire.frames import TextValidator

NAMES = (
    "CONFIG_ATTRS",
    "MESSAGE_TYPE_TEXT",
    "STATE_CLOSED",
    "_dataReceived",
    "_fail_connection",
    "_onOpen",
    "dropConnection",
    "failHandshake",
    "onMessageBegin",
    "onMessageEnd",
    "onMessageFrameBegin",
    "onMessageFrameEnd",
    "processData",
    "sendCloseFrame",
    "sendFrame",
    "sendHttpErrorResponse",
)
"""Methods and constants of Autobahn's protocol that chatrelay calls or overrides."""

ATTRIBUTES = (
    "_perMessageCompress",
    "current_frame",
    "data",
    "failedByMe",
    "http_request_data",
    "inside_message",
    "remoteCloseCode",
    "send_queue",
    "state",
    "utf8validator",
    "websocket_protocol_in_use",
)
"""Attributes of Autobahn's open protocol that chatrelay reads, sets or replaces."""

FRAME_ATTRIBUTES = ("current_frame_masker", "message_data_total_length")
"""Attributes that Autobahn's protocol has inside a frame."""

HANDSHAKE: dict[str, object] = {
    "_wskey": "",
    "http_headers": MappingProxyType({}),
    "http_request_data": b"",
    "http_request_host": "",
    "http_request_params": MappingProxyType({}),
    "http_request_path": "",
    "http_request_uri": "",
    "http_response_data": "",
    "http_status_line": "",
    "websocket_extensions": (),
    "websocket_origin": "",
    "websocket_protocols": (),
}
"""Attributes in which Autobahn's protocol keeps the handshake, each with its value once the handshake is released."""


RARE: dict[str, object] = {
    "autoPingPending": None,
    "autoPingPendingCall": None,
    "autoPingPendingSent": None,
    "autoPingPendingSeq": 0,
    "autoPingTimeoutCall": None,
    "closeHandshakeTimeoutCall": None,
    "openHandshakeTimeoutCall": None,
    "trackedTimings": None,
    "triggered": False,
    "wasCloseHandshakeTimeout": False,
    "wasOpenHandshakeTimeout": False,
    "wasServerConnectionDropTimeout": False,
    "wasServingFlashSocketPolicyFile": False,
}
"""Attributes of Autobahn's open protocol that hardly ever change, each with its first value."""


class ConnectionFactory(Protocol):
    """The factory that has made a connection; `chatrelay.websocket.factory.ChatFactory` is one.

    :ivar parts: what all connections share.
    :ivar registry: all connections.
    """

    parts: Parts
    registry: Registry


class FactoryOption:
    """One of Autobahn's options, read from the factory. A value that is set on a connection is for that one only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, protocol: AutobahnProtocol | None, owner: type[AutobahnProtocol]) -> Any:
        return self if protocol is None else getattr(protocol.factory, self._name)


class MadeWhenRead:
    """An attribute whose object is made when it is first read, because most connections never need it."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    def __set_name__(self, owner: type[AutobahnProtocol], name: str) -> None:
        self._name = name

    def __get__(self, protocol: AutobahnProtocol | None, owner: type[AutobahnProtocol]) -> Any:
        if protocol is None:
            return self
        made = vars(protocol)[self._name] = self._make()
        return made


class AutobahnProtocol(WebSocketServerProtocol):
    """Autobahn's protocol with less memory per connection, an outgoing buffer, and names for its private parts.

    :ivar remote: the other end.
    """

    # Autobahn would copy its options into every connection, and pretty-print them for a debug line. That would take a
    # third of the time of a login, and 1.7 KiB of each connection. It would also read tcpNoDelay before it has copied
    # it, and go on without it. So each option is a `FactoryOption`, which is set below the class.
    CONFIG_ATTRS: list[str] = []

    send_queue = MadeWhenRead(deque)  # for what is sent in pieces; 0.7 KiB
    utf8validator = MadeWhenRead(TextValidator)  # for text that the fast path does not take; 0.3 KiB

    # In a program that embeds chatrelay, Autobahn's own logger would log handshakes with their cookies at debug, and a
    # warning for each bad client.
    log = make_logger(level="error")

    # The state of a connection that Autobahn does not know yet. One that is refused at once stays unknown to it.
    state: int = WebSocketServerProtocol.STATE_CLOSED

    factory: ConnectionFactory
    transport: Any  # whichever of Twisted's stream transports the endpoint makes
    outgoing: Outbox
    connection_state: ConnectionState
    remote: Peer

    # These are slots, because they are looked up for every read of the socket, and Autobahn's protocol has many
    # attributes.
    __slots__ = ("_fast_path", "_message_size", "connection_state", "remote")

    def connectionMade(self) -> None:
        """Make the outgoing buffer of a TCP connection that was accepted. Twisted calls this."""
        parts = self.factory.parts
        config = parts.config
        self._fast_path = config.fast_path
        self._message_size = config.message_size
        super().connectionMade()
        made = vars(self)
        del made["send_queue"], made["utf8validator"]
        slow_readers = parts.registry.slow_readers
        self.outgoing = Outbox(self, self.transport, parts.flushes, slow_readers, config.unread_size, config.fast_path)
        if config.ping_interval and config.ping_timeout:
            self.outgoing.give_up_after(config.ping_interval + config.ping_timeout)

    def advance(self, event: Event) -> bool:
        """Go to the state that an event leads to, and return whether that changes the state."""
        before = self.connection_state
        self.connection_state = before.after(event)
        return self.connection_state is not before

    def release_handshake(self) -> None:
        """Release the handshake, which Autobahn would keep, parsed, for as long as the connection lasts."""
        kept = vars(self)
        for name in HANDSHAKE:
            kept.pop(name, None)
        for name, value in RARE.items():
            if kept.get(name, kept) is value:
                del kept[name]
        if not kept.get("send_queue", True):
            del kept["send_queue"]  # without the fast path, Autobahn looks into it at each send
        self.__dict__ = dict(kept)  # 0.7 KiB less: a dictionary keeps the size that it has grown to

    # Frames ----------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Have Autobahn parse received bytes."""
        self._dataReceived(data)  # Autobahn's dataReceived calls this after a debug line

    @property
    def is_inside_frame(self) -> bool:
        """Whether Autobahn has the head of a frame, but not all of its payload yet."""
        begun: object = self.current_frame
        return begun is not None

    @property
    def is_between_messages(self) -> bool:
        """Whether Autobahn has parsed all bytes that came, and no message has begun."""
        return not self.data and self.current_frame is None and not self.inside_message

    @property
    def is_compressed(self) -> bool:
        """Whether messages may be compressed on this connection."""
        return self._perMessageCompress is not None

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the handshake has agreed on; None if it has none."""
        agreed: str | None = self.websocket_protocol_in_use
        return agreed

    def rest_of_frame(self) -> int:
        """Return how many bytes of payload of the current frame are still to come."""
        rest: int = self.current_frame.length - self.current_frame_masker.pointer()
        return rest

    def fail(self, close: Close) -> None:
        """Begin the closing handshake because of a client's error; if it has begun already, end the TCP connection."""
        self._fail_connection(*close)

    # Sending ---------------------------------------------------------------

    def close(self, close: Close) -> None:
        """Begin the closing handshake; see `chatrelay.interfaces.Connection.close`."""
        if self.connection_state.is_open:
            # Autobahn's sendClose accepts only 1000 and codes from 3000 on.
            self.sendCloseFrame(code=int(close.code), reasonUtf8=close.reason.encode("utf-8"))

    def sendMessage(
        self,
        payload: bytes,
        isBinary: bool = False,
        fragmentSize: int | None = None,
        sync: bool = False,
        doNotCompress: bool = False,
    ) -> None:
        """Send a message. Text in one frame goes to the outgoing buffer; Autobahn sends everything else.

        Autobahn would apply the limit on received messages to sent ones, too. A delivery may be larger than the message
        that was received, because it has a fromuID. So the limit does not apply here.
        """
        if isBinary or fragmentSize or sync:
            super().sendMessage(payload, isBinary, fragmentSize, sync, doNotCompress)
        else:
            self.outgoing.send(payload)

    def send_text_frame(self, payload: bytes) -> None:
        """Have Autobahn make a text frame and write it; for an `Outbox` that makes no frames itself."""
        if self.is_compressed and MIN_COMPRESSED <= len(payload) <= self._message_size:
            super().sendMessage(payload)
        else:
            # Autobahn's sendMessage would apply the limit on received messages.
            self.sendFrame(opcode=self.MESSAGE_TYPE_TEXT, payload=payload)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Send bytes. Autobahn calls this for every byte, which is written at the end of the reactor's turn."""
        if sync or chopsize or not self._fast_path:
            self.outgoing.flush()  # so that the order is kept
            super().sendData(data, sync, chopsize)
        else:
            self.outgoing.append(data)


for _name, _empty in (HANDSHAKE | RARE).items():
    setattr(AutobahnProtocol, _name, _empty)
for _name in WebSocketServerProtocol.CONFIG_ATTRS:
    setattr(AutobahnProtocol, _name, FactoryOption(_name))
