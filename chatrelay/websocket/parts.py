"""The parts that all connections share, in one value.

This module must not know how a part is made (`chatrelay.app.build`), nor the classes of a connection: those import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from chatrelay.auth.login import LoginClient, Logins
from chatrelay.config.options import Config
from chatrelay.limits.admission import Admission
from chatrelay.limits.inflow import InflowRates
from chatrelay.limits.sending import SendLimits
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.relay.trimming import Trimming
from chatrelay.relay.v2_parts import V2Parts
from chatrelay.websocket.closing import ConnectionLog, LogLimiter
from chatrelay.websocket.flushes import FlushScheduler
from chatrelay.websocket.handshake import Handshakes
from chatrelay.websocket.peer import Peers
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
    :ivar login_without_cookie: `Handshakes.login_without_cookie`, bound once, because each connection keeps a
        reference.
    :ivar begin_login: `Logins.begin`, bound once for the same reason.
    :ivar logins: logs clients in.
    :ivar send_limits: how much a user may send.
    :ivar inflow_rates: how fast a connection is read.
    :ivar connection_log: logs the end of each connection.
    :ivar log_limiter: limits log messages that anybody can cause.
    :ivar sweep: checks time limits.
    :ivar v2: what connections that speak v2 share; None if v2 is not offered.
    :ivar trimming: deletes old messages; None if all are kept.
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
    v2: V2Parts | None = None
    trimming: Trimming | None = None
