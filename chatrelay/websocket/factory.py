"""The WebSocket factory: what all connections share, and Autobahn's options.

Autobahn's defaults are not ours: every option that matters is set here. How one connection is read, written or closed
is known to `chatrelay.websocket.protocol` alone.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.logger import Logger

from chatrelay.auth.login import Logins, VerdictSource
from chatrelay.auth.rechecks import RecheckLog, Rechecks
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import DenialCache, LoginThrottle, log_too_many_denials
from chatrelay.config.options import Config
from chatrelay.interfaces import Authenticator
from chatrelay.limits.active_time import ActiveTime
from chatrelay.limits.admission import Admission
from chatrelay.limits.buckets import TokenBucket
from chatrelay.limits.inflow import InflowRates
from chatrelay.limits.sending import SendLimits
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.websocket.closing import ConnectionLog
from chatrelay.websocket.compression import accept_compression
from chatrelay.websocket.handshake import Handshakes
from chatrelay.websocket.log_limiter import LogLimiter
from chatrelay.websocket.outbox import FlushScheduler
from chatrelay.websocket.peer import Peers
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.websocket.registry import Registry
from chatrelay.websocket.sweep import Sweep

log = Logger("chatrelay.websocket")

RECHECKS = 8
"""How many sessions are asked about again at once, where webserver-checks has no limit."""


class ChatFactory(WebSocketServerFactory):
    """What all connections share.

    :param config: the limits, the origins and the session cookie.
    :param relay: where messages go.
    :param directory: who is here.
    :param authenticator: who knows whose session it is.
    :param reactor: for time.
    :param flushes: flushes what one turn of the reactor sends; the relay's, where it commits batches by it.
    :param index: which of the site's sessions each connection came in by.
    :param denials: the denials that are remembered; None where none is.
    :param chance: a random number from 0 to 1.
    :param connections: how many there may be where ``config.connections`` does not say; 0 for no limit.
    """

    protocol: Any = ChatProtocol
    noisy = False

    def __init__(
        self,
        config: Config,
        relay: Relay,
        directory: Directory,
        authenticator: Authenticator,
        reactor: Any,
        flushes: FlushScheduler | None = None,
        index: SessionIndex | None = None,
        denials: DenialCache | None = None,
        chance: Callable[[], float] = random.random,
        connections: int = 0,
    ) -> None:
        WebSocketServerFactory.__init__(self, server="chatrelay", reactor=reactor)
        self.config = config
        self.relay = relay
        self.directory = directory
        self.seconds = reactor.seconds
        self.log_limiter = LogLimiter()
        active = ActiveTime(reactor.seconds)
        self.registry = Registry(config, relay.drain, active, reactor, chance)
        # Logins have the other three quarters of webserver-checks to themselves.
        at_once = max(1, config.webserver_checks // 4) if config.webserver_checks else RECHECKS
        seconds = reactor.seconds
        verdicts = VerdictSource(authenticator)
        recheck_log = RecheckLog()
        rechecks = Rechecks(
            config.recheck_interval,
            config.recheck_spread,
            config.recheck_grace,
            at_once,
            verdicts.ask,
            seconds,
            chance,
            active.now,
            verdicts.give_up,
            recheck_log.behind,
            recheck_log.on_time,
        )
        throttle = LoginThrottle(
            config.logins_per_minute,
            verdicts.ask,
            seconds,
            denials,
            partial(log_too_many_denials, self.log_limiter.allow),
            verdicts.give_up,
        )
        self.admission = Admission(
            connections if config.connections is None else config.connections,
            config.connections_per_address,
            config.unauthenticated,
            config.unauthenticated_per_address,
        )
        self.peers = Peers(config.trusted_proxy, self.admission)
        self.handshakes = Handshakes(config, seconds)
        self.logins = Logins(
            directory,
            SessionIndex(directory, secrets.token_bytes()) if index is None else index,
            throttle,
            rechecks,
            self.handshakes.missing_cookie if config.session_cookie else None,
            config.auth_tickets,
            config.connections_per_user,
        )
        self.login_without_cookie = self.handshakes.login_without_cookie  # one bound method for all connections
        self.send_limits = SendLimits(
            config.messages_per_second,
            config.message_burst,
            config.user_messages_per_second,
            config.new_recipients_per_minute,
        )
        self.inflow_rates = InflowRates.beside(
            config.bytes_per_second,
            config.frames_per_second,
            config.messages_per_second,
            config.message_size,
            config.control_frames_per_second,
        )
        self.flushes = flushes or FlushScheduler(partial(reactor.callLater, 0))
        self.connection_log = ConnectionLog(config.log_format == "json", self.log_limiter.allow)
        self.sweep = Sweep(
            {
                "refused origins": lambda now: self.handshakes.log_more_refused_origins(),
                "limits of disconnected users": lambda now: self.send_limits.forget(self.seconds()),
                "addresses with denied logins": lambda now: self.logins.throttle.sweep(),
                "log messages that were left out": lambda now: self.log_limiter.report(),
                **self.registry.sweep_tasks(),
                "recheck-interval": lambda now: self.logins.rechecks.sweep(),
            },
            active,
            reactor,
        )
        self.setProtocolOptions(
            versions=[13],  # RFC 6455; the drafts before it name the origin in another header
            webStatus=False,
            failByDrop=False,  # or clients would see 1006 instead of a close code
            maxMessagePayloadSize=config.message_size,
            maxFramePayloadSize=config.message_size,
            # Our own deadlines are swept, on the clock that was handed in.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            # Autobahn's check of origins neither tells the operator nor knows default ports.
            allowedOrigins=["*"],
            allowNullOrigin=True,
            tcpNoDelay=True,
            perMessageCompressionAccept=accept_compression if config.compression else None,  # None: take none up
        )

    def control_frames(self) -> TokenBucket:
        """A bucket for the pings and pongs of a connection."""
        return TokenBucket(self.config.control_frames_per_second, self.config.control_frame_burst)

    # Time ------------------------------------------------------------------------

    def startFactory(self) -> None:
        """Twisted: a port begins to listen."""
        self.start_sweeping()

    def start_sweeping(self) -> None:
        """Begin to check time limits."""
        self.registry.has_stopped = False
        self.sweep.start()

    def stop_sweeping(self) -> None:
        """Check no more time limits, and log what was not logged yet."""
        self.sweep.stop()
        self.log_limiter.report()
        self.handshakes.log_more_refused_origins(at_least=0)
