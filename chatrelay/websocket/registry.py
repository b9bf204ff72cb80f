"""The connections there are: what has a time, what the operator is told of them, and how all are closed at the end.

`Connections` is told what happens to each, looks at deadlines and pings, and
says when one is to be ended. It must not know how: no handshake, no frame, no
session and no message is known here, and nothing of Autobahn's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.config.options import Config
from chatrelay.limits.active_time import TICK_SECONDS, ActiveTime
from chatrelay.limits.deadlines import Deadlines
from chatrelay.limits.pace import SlowReaders
from chatrelay.relay.delivery import Relay
from chatrelay.websocket.closing import NO_HANDSHAKE_IN_TIME, STOPPING, TLS_CLOSED, End
from chatrelay.websocket.keepalive import Pings
from chatrelay.websocket.outbox import beneath
from chatrelay.websocket.shutdown import Farewells
from chatrelay.websocket.sweep import Ends, Sweep
from chatrelay.wire import codes
from chatrelay.wire.codes import Close

log = Logger("chatrelay.websocket")

SWEEP_SECONDS = TICK_SECONDS
"""How often deadlines are looked at, and the least that a client has to answer a close frame."""

TURN_SECONDS = 0.05
"""How often, while the relay stops, the next connections are told so."""

SWEEPS_TO_LOOK_BENEATH = 4
"""In every so manieth sweep the transports beneath TLS are looked at: once a second."""

MAX_LINES = 25
"""Lines of one kind, such as anybody can cause, that are told between two sweeps; the rest are counted."""


class Live(Hashable, Protocol):
    """A connection, as far as its deadlines and its end are concerned."""

    transport: Any
    state: Any
    STATE_CONNECTING: Any
    STATE_OPEN: Any

    def close(self, close: Close) -> None:
        """Begin the closing handshake."""

    def abort(self, end: End = ...) -> None:
        """Cut it without waiting for the client. The operator is told that it ended so, unless something had before."""

    def stop_taking(self) -> None:
        """Take no more messages of it."""

    def login_timed_out(self) -> None:
        """The login-timeout has passed."""

    def message_timed_out(self) -> None:
        """The message-timeout has passed."""

    def ping(self) -> None:
        """Its turn to be pinged has come."""

    def ping_unanswered(self) -> None:
        """The ping-timeout has passed."""

    def signs_of_life(self) -> object:
        """Something that compares unequal after each message, ping or pong that came."""


class Connections:
    """All connections together, each from when it is accepted until it is lost.

    :param config: the times and the pings.
    :param relay: drained before anybody is told that the relay stops.
    :param reactor: for time.
    :param chance: a random number from 0 to 1.
    :ivar active: the clock of all deadlines, which a hold-up of the process does not move.
    :ivar connections: those that are there.
    :ivar refused: those that were accepted and turned away, until they are lost.
    :ivar stopping: whether the relay stops, and lets nobody in any more.
    :ivar is_over: whether it has stopped: who comes by a port that is not the relay's own is cut at once.
    """

    def __init__(self, config: Config, relay: Relay, reactor: Any, chance: Callable[[], float]) -> None:
        self.config = config
        self.relay = relay
        self.seconds = reactor.seconds
        self.active = ActiveTime(reactor.seconds)
        self.connections: set[Live] = set()
        self.refused: set[Live] = set()
        # What is beneath TLS, of those that have such a thing.
        self._beneath: dict[Live, Any] = {}
        self._sweeps = 0
        self.stopping = False
        self.is_over = False
        self._chance = chance
        self._farewells: Farewells[Live] | None = None
        self._telling = LoopingCall(self._tell_next)
        self._telling.clock = reactor
        self.handshake_deadlines: Deadlines[Live] = Deadlines(config.handshake_timeout)
        self.login_deadlines: Deadlines[Live] = Deadlines(config.login_timeout)
        self.message_deadlines: Deadlines[Live] = Deadlines(config.message_timeout)
        self.closing_deadlines: Deadlines[Live] = Deadlines(max(config.closing_timeout, SWEEP_SECONDS))
        self.slow_readers = SlowReaders(config.unread_time, self.active.now)
        self.pings: Pings[Live] = Pings(config.ping_interval, config.ping_timeout, chance)
        self._lines: Counter[str] = Counter()
        self._empty: Deferred[None] | None = None
        self._sweep = Sweep(self.parts_of_a_sweep())
        self._sweeping = LoopingCall(self.sweep)
        self._sweeping.clock = reactor

    # A connection's life, told by the protocol -------------------------------

    def accepted(self, connection: Live) -> None:
        """A TCP connection was accepted."""
        self.connections.add(connection)
        transport = beneath(connection.transport)
        if transport is not connection.transport:
            self._beneath[connection] = transport
        self.handshake_deadlines.start(connection, self.active.now())

    def opened(self, connection: Live) -> None:
        """An opening handshake was completed."""
        self.handshake_deadlines.stop(connection)
        if self.stopping and (self._farewells is None or connection not in self._farewells):
            self._tell_of_stopping(connection)
        else:
            self.login_deadlines.start(connection, self.active.now())
            self.pings.opened(connection)

    def leaving(self, connection: Live) -> None:
        """A connection is closing, from either side."""
        self.handshake_deadlines.stop(connection)
        self.login_deadlines.stop(connection)
        self.message_deadlines.stop(connection)
        self.pings.left(connection)
        if connection in self.connections:
            self.closing_deadlines.start(connection, self.active.now())

    def lost(self, connection: Live) -> None:
        """A TCP connection is gone."""
        self.connections.discard(connection)
        self._beneath.pop(connection, None)
        self.closing_deadlines.stop(connection)
        if self._farewells is not None:
            self._farewells.left(connection)
        if self._empty is not None and not self.connections:
            empty, self._empty = self._empty, None
            empty.callback(None)

    # What is told of them ---------------------------------------------------

    def may_tell(self, what: str) -> bool:
        """Whether there may be a line about one more of these before the next sweep; else it is only counted."""
        self._lines[what] += 1
        return self._lines[what] <= MAX_LINES

    def _tell_how_many_more(self) -> None:
        lines, self._lines = self._lines, Counter()
        for what, count in lines.items():
            if count > MAX_LINES:
                log.info("too many lines at once: {count} more {what}", count=count - MAX_LINES, what=what)

    # Time ------------------------------------------------------------------------

    def start_sweeping(self) -> None:
        """Begin to look at deadlines."""
        self.is_over = False
        if not self._sweeping.running:
            self.active.begin()
            self._sweeping.start(SWEEP_SECONDS, now=False).addErrback(self._sweep_failed)

    def _sweep_failed(self, failure: Failure) -> None:
        """A sweep met a defect, and the loop has ended; deadlines must be looked at all the same."""
        log.failure("looking at deadlines failed; please report it", failure=failure)
        self.start_sweeping()

    def sweep(self) -> None:
        """Look at everything that has a time, and end what is over it."""
        judged = self.active.tick()
        if self.active.held_up:
            log.warn(
                "this process was held up for {seconds} s: that time counts towards no deadline",
                seconds=round(self.active.held_up, 1),
            )
        self._sweep.look(judged)

    def parts_of_a_sweep(self) -> dict[str, Callable[[float], Ends | None]]:
        """What is looked at, in this order.

        Whose time to leave is over comes first, as any other end would give
        them that time anew; and pings come last, as nobody is pinged who has
        just been closed.
        """
        return {
            "lines that were too many": lambda now: self._tell_how_many_more(),
            "closings that go unanswered": lambda now: (each.abort for each in self.closing_deadlines.expired(now)),
            "handshake-timeout": lambda now: self._aborts(self.handshake_deadlines.expired(now), NO_HANDSHAKE_IN_TIME),
            "login-timeout": lambda now: (each.login_timed_out for each in self.login_deadlines.expired(now)),
            "message-timeout": lambda now: (each.message_timed_out for each in self.message_deadlines.expired(now)),
            "ping-timeout": lambda now: (each.ping_unanswered for each in self.pings.unanswered(now)),
            "unread-time": lambda now: (each.unread_for_long for each in self.slow_readers.expired(now)),
            "TLS that has ended": lambda now: self._aborts(self._ended_beneath(), TLS_CLOSED),
            "ping-interval": lambda now: (each.ping for each in self.pings.due(now)),
        }

    def _aborts(self, connections: Iterable[Live], end: End) -> Ends:
        return (partial(each.abort, end) for each in connections)

    def _each(self, ends: Ends) -> None:
        for end in ends:
            try:
                end()
            # One connection's trouble must not keep all others from being ended.
            except Exception:
                log.failure("ending a connection failed; please report it")

    def _ended_beneath(self) -> list[Live]:
        """Open connections whose TLS has ended, while TCP waits to be rid of what is unread.

        A client that says goodbye in TLS (or spoils it) and does not read has
        Twisted's TLS close the TCP connection once all is sent, for which
        there is no time limit, and tell us nothing until then.
        """
        self._sweeps += 1
        if self._sweeps % SWEEPS_TO_LOOK_BENEATH:
            return []
        return [
            connection
            for connection, transport in self._beneath.items()
            if transport.disconnecting and connection.state == connection.STATE_OPEN
        ]

    def stop_sweeping(self) -> None:
        """Look at deadlines no more."""
        if self._sweeping.running:
            self._sweeping.stop()
        self._tell_how_many_more()

    # Stopping -------------------------------------------------------------------

    async def close_by_turns(self) -> None:
        """Close the connections there are with 4000, spread over most of ``drain-time``; return when all were told.

        Until its turn each goes on as ever. Then no message of it is taken
        any more, those that were are answered, and it is closed.
        """
        self.stopping = True
        self._farewells = Farewells(self.connections, self.config.drain_time, self.active.now(), self._chance)
        try:
            await self._telling.start(TURN_SECONDS)
            await self.relay.drain()
        finally:
            if self._telling.running:
                self._telling.stop()
            self._farewells = None

    def _tell_next(self) -> None:
        assert self._farewells is not None
        told = self._farewells.due(self.active.now())
        for connection in told:
            connection.stop_taking()
        self.relay.drain().addCallback(lambda _: self._each(partial(self._tell_of_stopping, each) for each in told))
        if not self._farewells:
            self._telling.stop()

    def _tell_of_stopping(self, connection: Live) -> None:
        if connection.state == connection.STATE_CONNECTING:
            connection.abort(STOPPING)
        else:
            connection.close(codes.STOPPING)

    def close_all(self) -> Deferred[None]:
        """Close every connection that is left with 4000, at once; wait until all are gone."""
        self.stopping = True
        there = list(self.connections)
        self._each(each.stop_taking for each in there)
        self._each(partial(self._tell_of_stopping, each) for each in there)
        if not self.connections:
            return succeed(None)
        self._empty = Deferred()
        return self._empty

    def abort_all(self) -> None:
        """Cut the connections that are left."""
        self.is_over = True
        self._each(self._aborts(list(self.connections), STOPPING))
