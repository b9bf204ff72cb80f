"""All connections: their time limits, their pings, and how they are closed when the relay stops.

The protocol reports what happens to each connection to `Registry`, which decides when one must be closed. This module
must not know handshakes, frames, sessions, messages or Autobahn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chatrelay.config.options import Config
from chatrelay.limits.active_time import ActiveTime
from chatrelay.limits.deadlines import Deadlines
from chatrelay.limits.pace import SlowReaders
from chatrelay.websocket.closing import NO_HANDSHAKE_IN_TIME, STOPPING, TLS_CLOSED, CloseCause
from chatrelay.websocket.keepalive import Pings
from chatrelay.websocket.outbox import innermost_transport
from chatrelay.websocket.shutdown import ShutdownPacer
from chatrelay.websocket.states import ConnectionState
from chatrelay.websocket.sweep import SWEEP_SECONDS, Actions, Check
from chatrelay.wire import codes
from chatrelay.wire.codes import Close

log = Logger("chatrelay.websocket")

SHUTDOWN_TICK_SECONDS = 0.05
"""Seconds between two steps of closing connections while the relay stops."""

MIN_RETRY_SECONDS = 1.0
"""The shortest time after which a client should reconnect to a relay that stops. Up to twice that, at random."""

SWEEPS_PER_TLS_CHECK = 4
"""In every fourth sweep, once a second, the transports beneath TLS are checked."""


class Receiver(Hashable, Protocol):
    """A connection, as far as the time limit of a message is concerned."""

    def message_timed_out(self) -> None:
        """Act on a message that takes too long: the message-timeout has passed."""


class ManagedConnection(Receiver, Protocol):
    """A connection, as far as its time limits and its end are concerned."""

    transport: Any
    connection_state: ConnectionState

    def close(self, close: Close) -> None:
        """Begin the closing handshake."""

    def announce_close(self, close: Close, retry_after: float) -> None:
        """Tell the client that it is about to be disconnected, if its dialect has words for that.

        :param retry_after: after how many seconds the client should reconnect.
        """

    def abort(self, cause: CloseCause = ...) -> None:
        """End the TCP connection without waiting for the client.

        :param cause: the cause to log, unless something has closed the connection before.
        """

    def stop_taking(self) -> None:
        """Accept no more messages from the client."""

    def locate(self) -> None:
        """Count the connection under its client's address, if the PROXY header has come by now."""

    def login_timed_out(self) -> None:
        """Close the connection if the client is not logged in: the login-timeout has passed."""

    def ping(self) -> None:
        """Ping the client."""

    def ping_unanswered(self) -> None:
        """Act on a ping that was not answered: the ping-timeout has passed."""

    def activity(self) -> object:
        """Return a value that is different after each received message, ping or pong."""


class Registry:
    """All connections together, each from when it is accepted until it is lost.

    :param config: the time limits and the intervals.
    :param drain: returns a Deferred that fires when all messages that were accepted have been answered.
    :param active: the clock of all time limits, which stands still while the process is held up.
    :param reactor: for the timer of stopping.
    :param chance: returns a random number from 0 to 1.
    :ivar connections: all connections that were accepted and are not lost.
    :ivar refused: connections that were refused when they were accepted, until they are lost, each with the response
        that it is still to get.
    :ivar awaiting_address: connections behind the PROXY protocol whose handshakes are not complete, and whose addresses
        may not be known yet.
    :ivar stopping: whether the relay is stopping, and closes each connection that opens from now on.
    :ivar has_stopped: whether it has stopped. A port that is not the relay's own may still accept connections, which
        are then cut at once.
    """

    def __init__(
        self,
        config: Config,
        drain: Callable[[], Deferred[None]],
        active: ActiveTime,
        reactor: Any,
        chance: Callable[[], float],
    ) -> None:
        self.active = active
        self.connections: set[ManagedConnection] = set()
        self.refused: dict[Hashable, bytes] = {}
        self.awaiting_address: dict[ManagedConnection, None] = {}
        self.stopping = False
        self.has_stopped = False
        self.handshake_deadlines: Deadlines[ManagedConnection] = Deadlines(config.handshake_timeout)
        self.login_deadlines: Deadlines[ManagedConnection] = Deadlines(config.login_timeout)
        self.message_deadlines: Deadlines[Receiver] = Deadlines(config.message_timeout)
        self.closing_deadlines: Deadlines[ManagedConnection] = Deadlines(max(config.closing_timeout, SWEEP_SECONDS))
        self.slow_readers = SlowReaders(config.unread_time, active.now)
        self.pings: Pings[ManagedConnection] = Pings(config.ping_interval, config.ping_timeout, chance)
        self._beneath_tls: dict[ManagedConnection, Any] = {}
        self._sweeps = 0
        self._drain = drain
        self._drain_time = config.drain_time
        self._chance = chance
        self._shutdown: ShutdownPacer[ManagedConnection] | None = None
        self._closing_next = LoopingCall(self._close_next)
        self._closing_next.clock = reactor
        self._closing_time = 0.0  # seconds in which the turns of all connections come
        self._empty: Deferred[None] | None = None

    # Events of a connection, from its protocol -------------------------------

    def accepted(self, connection: ManagedConnection) -> None:
        """Note that a TCP connection was accepted."""
        self.connections.add(connection)
        transport = innermost_transport(connection.transport)
        if transport is not connection.transport:
            self._beneath_tls[connection] = transport
        self.handshake_deadlines.start(connection, self.active.now())

    def opened(self, connection: ManagedConnection) -> None:
        """Note that an opening handshake is complete."""
        self.handshake_deadlines.stop(connection)
        if self.stopping and (self._shutdown is None or connection not in self._shutdown):
            self._close_for_stopping(connection)
        else:
            self.login_deadlines.start(connection, self.active.now())
            self.pings.opened(connection)

    def closing(self, connection: ManagedConnection) -> None:
        """Note that a connection is closing, from either side."""
        self.handshake_deadlines.stop(connection)
        self.login_deadlines.stop(connection)
        self.message_deadlines.stop(connection)
        self.pings.closing(connection)
        if connection in self.connections:
            self.closing_deadlines.start(connection, self.active.now())

    def refusing(self, connection: ManagedConnection) -> None:
        """Note that a connection is refused when it was just accepted: it must soon be gone."""
        self.closing_deadlines.start(connection, self.active.now())

    def refused_disconnected(self, connection: ManagedConnection) -> None:
        """Note that a connection that was refused when it was accepted is gone."""
        self.closing_deadlines.stop(connection)
        self.refused.pop(connection, None)

    def disconnected(self, connection: ManagedConnection) -> None:
        """Note that a TCP connection is gone."""
        self.connections.discard(connection)
        self.awaiting_address.pop(connection, None)
        self._beneath_tls.pop(connection, None)
        self.closing_deadlines.stop(connection)
        if self._shutdown is not None:
            self._shutdown.disconnected(connection)
        if self._empty is not None and not self.connections:
            empty, self._empty = self._empty, None
            empty.callback(None)

    # Time ------------------------------------------------------------------------

    def sweep_tasks(self) -> dict[str, Check]:
        """Return the checks of the time limits, for a `chatrelay.websocket.sweep.Sweep`, in their order.

        Unanswered close frames come first, because every other check may restart the time for the client's answer.
        Pings come last, so that no connection is pinged that was just closed.
        """
        return {
            "addresses behind the PROXY protocol": lambda now: (each.locate for each in self._without_address()),
            "unanswered close frames": lambda now: (each.abort for each in self.closing_deadlines.expired(now)),
            "handshake-timeout": lambda now: _aborts(self.handshake_deadlines.expired(now), NO_HANDSHAKE_IN_TIME),
            "login-timeout": lambda now: (each.login_timed_out for each in self.login_deadlines.expired(now)),
            "message-timeout": lambda now: (each.message_timed_out for each in self.message_deadlines.expired(now)),
            "ping-timeout": lambda now: (each.ping_unanswered for each in self.pings.unanswered(now)),
            "unread-time": lambda now: (each.unread_time_passed for each in self.slow_readers.expired(now)),
            "TLS connections that have ended": lambda now: _aborts(self._tls_ended(), TLS_CLOSED),
            "ping-interval": lambda now: (each.ping for each in self.pings.due(now)),
        }

    def _without_address(self) -> tuple[ManagedConnection, ...]:
        return tuple(self.awaiting_address)

    def _tls_ended(self) -> list[ManagedConnection]:
        """Return the open connections whose TLS has ended, while TCP still holds bytes that the client does not read.

        A client may end TLS, or break it, and not read. Then Twisted's TLS closes the TCP connection only when all is
        sent, without a time limit, and does not notify the protocol until then.
        """
        self._sweeps += 1
        if self._sweeps % SWEEPS_PER_TLS_CHECK:
            return []
        return [
            connection
            for connection, transport in self._beneath_tls.items()
            if transport.disconnecting and connection.connection_state.is_open
        ]

    # Stopping -------------------------------------------------------------------

    async def close_by_turns(self) -> None:
        """Close all connections with 4000, spread over most of ``drain-time``; return when each has had its turn.

        Until its turn, a connection works as before. Then no more messages from its client are accepted, the accepted
        ones are answered, and it is closed.
        """
        self.stopping = True
        self._shutdown = ShutdownPacer(self.connections, self._drain_time, self.active.now(), self._chance)
        self._closing_time = self._shutdown.duration
        try:
            await self._closing_next.start(SHUTDOWN_TICK_SECONDS)
            await self._drain()
        finally:
            if self._closing_next.running:
                self._closing_next.stop()
            self._shutdown = None

    def _close_next(self) -> None:
        assert self._shutdown is not None
        due = self._shutdown.due(self.active.now())
        for connection in due:
            connection.stop_taking()
        self._drain().addCallback(lambda _: _call_each(partial(self._close_for_stopping, each) for each in due))
        if not self._shutdown:
            self._closing_next.stop()

    def _close_for_stopping(self, connection: ManagedConnection) -> None:
        if connection.connection_state is ConnectionState.HANDSHAKE:
            connection.abort(STOPPING)
        else:
            connection.announce_close(codes.STOPPING, self._retry_seconds())
            connection.close(codes.STOPPING)

    def _retry_seconds(self) -> float:
        """Return after how many seconds a client that is disconnected now should reconnect.

        It is the time in which all connections are closed, and one second more. So each client comes back when the
        relay may have started again, and clients come back at the pace at which they were closed.
        """
        return self._closing_time + MIN_RETRY_SECONDS * (1 + self._chance())

    def close_all(self) -> Deferred[None]:
        """Close all remaining connections with 4000, at once; wait until all are gone."""
        self.stopping = True
        connections = list(self.connections)
        _call_each(each.stop_taking for each in connections)
        _call_each(partial(self._close_for_stopping, each) for each in connections)
        if not self.connections:
            return succeed(None)
        self._empty = Deferred()
        return self._empty

    def abort_all(self) -> None:
        """End all remaining TCP connections."""
        self.has_stopped = True
        _call_each(_aborts(list(self.connections), STOPPING))


def _aborts(connections: Iterable[ManagedConnection], cause: CloseCause) -> Actions:
    return (partial(each.abort, cause) for each in connections)


def _call_each(actions: Actions) -> None:
    for action in actions:
        try:
            action()
        # An error with one connection must not keep the others from being closed.
        except Exception:
            log.failure("closing a connection failed; please report it")
