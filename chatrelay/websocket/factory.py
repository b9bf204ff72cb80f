"""The WebSocket factory: makes a protocol for each connection, and gives it what all connections share.

Every option of Autobahn that matters is set here, because its defaults do not fit. This module must not know how a
connection is read, written or closed (`chatrelay.websocket.protocol`), nor how the shared parts are made
(`chatrelay.app.build`).
"""

from __future__ import annotations

from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory

from chatrelay.websocket.compression import accept_compression
from chatrelay.websocket.parts import Parts
from chatrelay.websocket.protocol import ChatProtocol


class ChatFactory(WebSocketServerFactory):
    """Makes a `ChatProtocol` for each connection.

    :param parts: what all connections share.
    :ivar directory: the connections by user.
    :ivar registry: all connections.
    """

    protocol: Any = ChatProtocol
    noisy = False

    def __init__(self, parts: Parts) -> None:
        super().__init__(server="chatrelay", reactor=parts.reactor)
        self.parts = parts
        self.directory = parts.directory
        self.registry = parts.registry
        config = parts.config
        self.setProtocolOptions(
            versions=[13],  # RFC 6455; the drafts before it name the origin in another header
            webStatus=False,
            failByDrop=False,  # or clients would see 1006 instead of a close code
            maxMessagePayloadSize=config.message_size,
            maxFramePayloadSize=config.message_size,
            # The relay has its own time limits, which its sweep checks.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            # Autobahn's check of origins logs nothing, and does not know default ports.
            allowedOrigins=["*"],
            allowNullOrigin=True,
            tcpNoDelay=True,
            perMessageCompressionAccept=accept_compression if config.compression else None,  # None: no compression
        )

    def startFactory(self) -> None:
        """Begin to check time limits, when a port begins to listen. Twisted calls this."""
        self.start_sweeping()

    def start_sweeping(self) -> None:
        """Begin to check time limits."""
        self.registry.has_stopped = False
        self.parts.sweep.start()

    def stop_sweeping(self) -> None:
        """Stop checking time limits, and log the counts that were not logged yet."""
        self.parts.sweep.stop()
        self.parts.log_limiter.report()
        self.parts.handshakes.log_more_refused_origins(at_least=0)


class ChatResource(WebSocketResource):
    """The relay as a resource of a `twisted.web` site. It keeps the cookies of several headers apart.

    Autobahn joins the values of several headers by commas. That is wrong for cookies, which a comma does not separate.
    """

    def render(self, request: Any) -> Any:
        """Take the connection over from `twisted.web`."""
        cookies = request.requestHeaders.getRawHeaders(b"cookie", [])
        if len(cookies) > 1:
            request.requestHeaders.setRawHeaders(b"cookie", [b"; ".join(cookies)])
        return super().render(request)
