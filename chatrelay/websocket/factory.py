"""The WebSocket factory: makes a protocol for each connection, and holds what all connections share.

Every option of Autobahn that matters is set here, because its defaults do not fit. This module must not know how a
connection is read, written or closed (`chatrelay.websocket.protocol`), nor how the parts are made
(`chatrelay.app.build`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory

from chatrelay.auth.login import LoginClient, Logins
from chatrelay.config.options import Config
from chatrelay.limits.admission import Admission
from chatrelay.limits.inflow import InflowRates
from chatrelay.limits.sending import SendLimits
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.websocket.closing import ConnectionLog, LogLimiter
from chatrelay.websocket.compression import accept_compression
from chatrelay.websocket.handshake import Handshakes
from chatrelay.websocket.outbox import FlushScheduler
from chatrelay.websocket.peer import Peers
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.websocket.registry import Registry
from chatrelay.websocket.sweep import Sweep


@attrs.frozen(eq=False)
class Parts:
    """The parts that all connections share; made by `chatrelay.app.build` and nowhere else.

    :ivar config: the options.
    :ivar reactor: for timers.
    :ivar seconds: the reactor's time.
    :ivar directory: the connections by user.
    :ivar relay: logs and delivers messages.
    :ivar registry: the connections, with their time limits.
    :ivar flushes: writes, at the end of each turn of the reactor, the messages that were sent in it.
    :ivar peers: finds the address of a client.
    :ivar admission: counts connections.
    :ivar handshakes: checks opening handshakes.
    :ivar login_without_cookie: `Handshakes.login_without_cookie`, bound once, as each connection keeps a reference.
    :ivar begin_login: `Logins.begin`, bound once for the same reason.
    :ivar logins: logs clients in.
    :ivar send_limits: how much a user may send.
    :ivar inflow_rates: how fast a connection is read.
    :ivar connection_log: logs the end of each connection.
    :ivar log_limiter: bounds log messages that anybody can cause.
    :ivar sweep: checks time limits.
    """

    config: Config
    reactor: Any
    seconds: Callable[[], float]
    directory: Directory
    relay: Relay
    registry: Registry
    flushes: FlushScheduler
    peers: Peers
    admission: Admission
    handshakes: Handshakes
    login_without_cookie: Callable[[str | None], None]
    begin_login: Callable[[LoginClient, str | None, str, bool], None]
    logins: Logins
    send_limits: SendLimits
    inflow_rates: InflowRates
    connection_log: ConnectionLog
    log_limiter: LogLimiter
    sweep: Sweep


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
            # The relay has time limits of its own, which its sweep checks.
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
        """Twisted: a port begins to listen."""
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
