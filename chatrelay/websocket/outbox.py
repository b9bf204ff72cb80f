"""The outgoing buffer of one connection: what one turn of the reactor sends, written at its end.

`OutgoingBuffer` is the `chatrelay.interfaces.Connection` that the relay and
the session see: messages come in, and are either appended to the buffer of an
open connection that is within its budget, or not (the promise's C2). It knows
transports and bytes; it must not know what a message means.

`Turn` is the one place that flushes. A connection that is sent ten messages
in one turn of the reactor is written to once. On Twisted's own plain TCP the
socket is tried at once, which mostly takes everything and saves the reactor a
wake-up; what it does not take is the transport's, as it always was.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from chatrelay.limits.pace import MAX_DEBT, SlowReaders, ahead_of_pace, left_of_pace
from chatrelay.websocket import sendqueue
from chatrelay.wire import codes
from chatrelay.wire.codes import Close
from chatrelay.wire.frames import text_frame

log = Logger("chatrelay.websocket")

TCP_SERVER_NAMES = ("TLS", "connected", "dataBuffer", "offset", "_tempDataBuffer", "_tempDataLen", "socket")
"""What `OutgoingBuffer` reads of Twisted's TCP transport that is not promised; a test looks them up."""

MAX_OUTGOING = 64 * 1024
"""Bytes that one turn of the reactor may collect for a connection before they are written."""

TLS_NAMES = ("_aggregator", "_appSendBuffer")
"""What it reads of Twisted's TLS transport, likewise, and of the first `MAX_BUFFER_SIZE` and `_bufferLeft`."""

UNCOUNTED = 3 * 64 * 1024
"""Bytes that may wait in the process before they are counted: in a turn, in TLS, and until Twisted asks for a pause."""

MOST_OF_IT = 0.9
"""The share of its patience after which the system, which has a clock of its own, has given a connection up."""

IN_VAIN = 2
"""Attempts of the system without an answer after which its silence counts: one may be on its way."""


def beneath(transport: Any) -> Any:
    """The transport that others, such as TLS or the PROXY protocol, are laid over; where none is, itself."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def held_by_tls(transport: Any) -> int:
    """Bytes that wait in TLS, above the transport that `beneath` finds."""
    held = 0
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, TLSMemoryBIOProtocol):
            aggregator: Any = getattr(transport, "_aggregator", None)
            most = getattr(aggregator, "MAX_BUFFER_SIZE", 0)
            held += most - getattr(aggregator, "_bufferLeft", most) + sum(map(len, transport._appSendBuffer))
        transport = transport.transport
    return held


def seconds_unacknowledged(connection: socket.socket) -> float:
    """For how long nothing has been acknowledged of what was sent again and again; 0 where nothing was."""
    retransmits, probes, seconds = sendqueue.attempts(connection)
    return seconds if retransmits or probes else 0.0


class Framing(Protocol):
    """What the buffer needs of the protocol it belongs to."""

    def send_text_frame(self, payload: bytes) -> None:
        """Have Autobahn make a text frame and write it."""

    def close(self, close: Close) -> None:
        """Begin the closing handshake."""


class _Gone:
    """In the place of a protocol whose connection is gone."""

    def send_text_frame(self, payload: bytes) -> None:
        """There is nobody to make it for."""

    def close(self, close: Close) -> None:
        """It is closed."""


_GONE = _Gone()


class Turn:
    """The connections that were sent something in this turn of the reactor.

    :param call_soon: runs a callable in a later turn of the reactor.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._later = call_soon
        self._touched: list[OutgoingBuffer] = []
        self._flushes_itself = False

    def touch(self, outgoing: OutgoingBuffer) -> None:
        """See to it that a buffer is flushed at the end of this turn."""
        if not self._touched and not self._flushes_itself:
            self._later(self._flush)
        self._touched.append(outgoing)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run a callable in a later turn of the reactor, and flush what it touched in that same turn."""

        def call_and_flush() -> None:
            self._flushes_itself = True
            try:
                call()
            finally:
                self._flushes_itself = False
                self._flush()

        self._later(call_and_flush)

    def _flush(self) -> None:
        touched, self._touched = self._touched, []
        for outgoing in touched:
            try:
                outgoing.flush()
            # One connection's trouble must not keep what the others were sent from being written.
            except Exception:
                log.failure("writing to a connection met a defect; please report it")


@implementer(IPushProducer)
class OutgoingBuffer:
    """What one client is sent.

    A client that does not take what it is sent has a budget and a time; past
    either the connection is closed with 4002, and nothing more is appended.

    To take is to acknowledge: what the kernel sends and the client's kernel
    has not acknowledged waits as well. The kernel's part is bounded once, so
    that nobody asks for it while it can't matter: while nothing waits in the
    process, and while the budget is kept even if the kernel's part is full.

    :param protocol: closes the connection, and makes the frames where `fast` is False.
    :param transport: the connection's transport.
    :param turn: flushes this buffer.
    :param slow_readers: told when this client falls behind, and when it has caught up.
    :param budget: bytes that may wait for a client that is behind; 0 for no bound.
    :param fast: whether frames are made here and written once a turn; else Autobahn makes them and writes at once.
    :ivar unacknowledged: of a connection that the system has given up, the seconds without an acknowledgement; else 0.
    """

    # Looked up for every message, and so kept apart from the protocol with Autobahn's many attributes.
    __slots__ = (
        "_ahead",
        "_backed_up",
        "_budget",
        "_descriptor",
        "_direct",
        "_fast",
        "_frames",
        "_has_patience",
        "_is_counted",
        "_is_open",
        "_is_small",
        "_looked_at",
        "_most_in_kernel",
        "_patience",
        "_ping_time",
        "_protocol",
        "_sent",
        "_size",
        "_slow_readers",
        "_taken",
        "_touch",
        "_transport",
        "unacknowledged",
    )

    def __init__(
        self, protocol: Framing, transport: Any, turn: Turn, slow_readers: SlowReaders, budget: int, fast: bool
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._touch = turn.touch
        self._slow_readers = slow_readers
        self._budget = budget
        self._fast = fast
        # Of Twisted's own plain TCP alone: TLS passes unknown attributes on to the
        # transport it wraps, and what was sent on that socket would go out in plain text.
        self._direct = type(transport) is Server
        # What waits, on the other hand, waits at the bottom, below TLS and the PROXY protocol.
        descriptor = beneath(transport)
        self._descriptor: Any = descriptor if isinstance(descriptor, FileDescriptor) else None
        self._most_in_kernel = 0
        if budget and self._socket is not None:
            self._most_in_kernel = sendqueue.bound(self._socket, budget)
        # Where a budget can be spent before Twisted calls for a pause, all is counted.
        self._is_small = 0 < budget < self._most_in_kernel + UNCOUNTED and self._descriptor is not None
        self._is_counted = self._is_small
        self._is_open = False
        self._backed_up = False
        self._sent = 0  # while backed up: the bytes that waited when that began, and all since
        # What the client's pace is judged by: what it had taken at the last look, and how much of that counts ahead.
        self._taken = 0
        self._ahead = 0.0
        self._looked_at = 0.0
        self._ping_time = 0.0  # until when a client that keeps its pace may not have come to its ping
        self._frames: list[bytes] = []
        self._size = 0
        self._patience = 0.0
        self._has_patience = True  # whether the system was told so, and not to wait for longer
        self.unacknowledged = 0.0

    def open(self) -> None:
        """The opening handshake is done: messages may be sent."""
        self._is_open = True
        # Under twisted.web's site, HTTP is still registered as the producer.
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, True)

    def leave_frames_to_the_protocol(self) -> None:
        """Make none here: each message is the protocol's to compress."""
        self._fast = False

    def ended(self) -> None:
        """The connection is closing or gone: no message is sent any more."""
        self._is_open = False
        self._slow_readers.caught_up(self)

    def lost(self) -> None:
        """The connection is gone: let go of the protocol, or each would keep the other until garbage is collected."""
        self._protocol = _GONE

    def give_up_after(self, seconds: float) -> None:
        """Have the system cut the connection when what was sent stays unacknowledged for so long.

        :param seconds: 0 for the system's own patience, which is long.
        """
        if seconds and isinstance(self._descriptor, Server) and sendqueue.give_up_after(self._socket, seconds):
            self._patience = seconds

    # `chatrelay.interfaces.Connection` -------------------------------------

    def send(self, payload: bytes) -> bool:
        """Hand over one text message; see `chatrelay.interfaces.Connection.send`."""
        if not self._is_open or (self._is_counted and not self.within_budget(len(payload))):
            return False
        if not self._fast:
            self._protocol.send_text_frame(payload)
            return True
        frame = text_frame(payload)
        # As in `append`, to which the call would cost more than what it does: all that clients are sent comes by here.
        frames = self._frames
        if not frames:
            self._touch(self)
        frames.append(frame)
        self._size += len(frame)
        if self._size > MAX_OUTGOING:
            self.flush()
        return True

    def close(self, close: Close) -> None:
        """Begin the closing handshake; see `chatrelay.interfaces.Connection.close`."""
        self._protocol.close(close)

    # Bytes -----------------------------------------------------------------

    def within_budget(self, size: int) -> bool:
        """Count what a client is sent; close the connection of one that is behind by too much.

        :param size: the bytes it is about to be sent.
        :returns: whether it may be sent them.
        """
        if self._is_counted:
            self._sent += size
            budget = self._budget
            # Where the transport does not say what waits in it, all counts that came since it had none.
            unread = self._sent if self._descriptor is None else self._waiting() + size
            if 0 < budget < unread + self._most_in_kernel and budget < unread + self._in_kernel():
                self._protocol.close(codes.UNREAD)
                return False
        return True

    @property
    def is_left_to_slow_readers(self) -> bool:
        """Whether this client is behind and has its time for that: what comes back from it may take as long."""
        return self._backed_up and self._slow_readers.are_limited

    def unread_for_long(self) -> None:
        """Close the connection of a client that has taken too little in its unread-time.

        What it took faster than it must counts ahead.
        """
        taken = self._taken_so_far()
        if self._is_silent(self._slow_readers.unread_time):
            self._ahead = 0.0
        ahead = left_of_pace(self._ahead, taken - self._taken)
        connection = self._socket
        # Where the process was held up, the client may have taken all that the kernel had.
        if ahead < -MAX_DEBT and (connection is None or sendqueue.unacknowledged(connection) != 0):
            self._protocol.close(codes.UNREAD)
        else:
            self._note_pace(taken, ahead)
            self._look_at_patience()
            self._slow_readers.fell_behind(self)

    def before_ping(self) -> None:
        """Note what lies before the ping that may be sent now."""
        if self._slow_readers.are_limited and not self._backed_up:
            self._look_at_pace()
            unread = self._ahead + self._in_kernel() + (0 if self._descriptor is None else self._waiting())
            self._ping_time = self._looked_at + unread / self._slow_readers.pace
        self._look_at_patience()

    def may_not_have_read_the_ping(self, seconds: float) -> bool:
        """Whether what lies before the last ping is more than a client reads in time that keeps its pace.

        :param seconds: the ping-timeout; a client whose kernel is silent for as long is not waited for.
        """
        return self._slow_readers.seconds() < self._ping_time and not self._is_silent(seconds)

    def _is_silent(self, seconds: float) -> bool:
        """Whether the client's kernel has answered nothing for so long, although it was asked to."""
        connection = self._socket
        retransmits, probes, silence = (0, 0, 0.0) if connection is None else sendqueue.attempts(connection)
        return retransmits + probes >= IN_VAIN and silence >= seconds

    def _look_at_pace(self) -> None:
        """Note what the client has taken since the last look, as if it had just taken it."""
        slow_readers, connection = self._slow_readers, self._socket
        acked = None if connection is None else sendqueue.acknowledged(connection)
        if acked is not None:
            seconds = slow_readers.seconds() - self._looked_at
            self._note_pace(acked, ahead_of_pace(self._ahead, acked - self._taken, seconds * slow_readers.pace))
        elif self._descriptor is not None:
            # Nobody tells what such a client had taken; what was written at once may leave the queue at once.
            self._note_pace(0, float(MAX_OUTGOING))

    def _note_pace(self, taken: int, ahead: float) -> None:
        self._taken, self._ahead, self._looked_at = taken, ahead, self._slow_readers.seconds()

    def _look_at_patience(self) -> None:
        """Take the system's patience back for a client that reads slowly, until it has taken everything.

        Linux counts that time from its first question for a larger window on, although each is answered and parts of
        what it sends are acknowledged: it gives up a client with a full receive buffer that reads all the time.
        """
        connection = self._socket
        if self._patience and connection is not None:
            has_all = not self._in_kernel()
            retransmits, probes, _ = sendqueue.attempts(connection)
            # What is sent again was within the window: Linux counts from when that began.
            wanted = has_all or retransmits >= IN_VAIN or (probes >= IN_VAIN and self._has_patience)
            if wanted != self._has_patience:
                sendqueue.give_up_after(connection, self._patience if wanted else 0)
                self._has_patience = wanted

    def _taken_so_far(self) -> int:
        """Bytes that the client has taken: in all, or where the system does not tell, since it fell behind."""
        connection = self._socket
        acked = None if connection is None else sendqueue.acknowledged(connection)
        if acked is not None:
            return acked
        return 0 if self._descriptor is None else self._sent - self._waiting() - self._in_kernel()

    @property
    def _socket(self) -> Any:
        """The connection's socket; None where there is none, or not any more."""
        return getattr(self._descriptor, "socket", None)

    def _in_kernel(self) -> int:
        """Bytes that wait in the kernel; all it can hold where it does not tell, and none where nobody bounds it."""
        connection = self._socket
        queued = None if connection is None else sendqueue.unacknowledged(connection)
        return self._most_in_kernel if queued is None else queued

    def _waiting(self) -> int:
        """Bytes that wait here and in the transport."""
        descriptor = self._descriptor
        waiting: int = len(descriptor.dataBuffer) - descriptor.offset + descriptor._tempDataLen + self._size
        return waiting if self._direct else waiting + held_by_tls(self._transport)

    def append(self, data: bytes) -> None:
        """Append bytes, to be written at the end of this turn."""
        frames = self._frames
        if not frames:
            self._touch(self)
        frames.append(data)
        self._size += len(data)
        if self._size > MAX_OUTGOING:
            self.flush()  # so that the budget is measured against what the client takes, not against the turn

    def flush(self) -> None:
        """Write what was appended."""
        frames = self._frames
        if not frames:
            return
        self._frames = []
        self._size = 0
        data = b"".join(frames)
        transport = self._transport
        # TLS: a connection that began as plain TCP may have been upgraded since.
        if (
            self._direct
            and not transport.TLS
            and not transport.dataBuffer
            and not transport._tempDataBuffer
            and transport.connected
        ):
            # Nothing waits before it.
            try:
                sent = transport.socket.send(data)
            except OSError:
                sent = 0  # a full socket, or a broken one: the transport finds out which
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    # Twisted's IPushProducer -------------------------------------------------

    def pauseProducing(self) -> None:
        """Twisted: more is buffered than the client takes. Called again for every write past that."""
        if not self._backed_up:
            self._backed_up = self._is_counted = True
            if self._slow_readers.are_limited:
                self._look_at_pace()
            self._sent = 0 if self._descriptor is None else self._waiting() + self._in_kernel()
            if self._is_open:
                self._slow_readers.fell_behind(self)

    def resumeProducing(self) -> None:
        """Twisted: the kernel has taken everything."""
        self._backed_up = False
        self._is_counted = self._is_small
        self._slow_readers.caught_up(self)

    def stopProducing(self) -> None:
        """Twisted: the connection is lost; the protocol is told, too, but when the socket is gone.

        Twisted tells it nothing of why the system gave a connection up, and the socket itself still can.
        """
        if self._patience:
            connection = self._socket  # there until the transport has closed it
            silence = 0.0 if connection is None else seconds_unacknowledged(connection)
            self.unacknowledged = silence if silence >= self._patience * MOST_OF_IT else 0.0
