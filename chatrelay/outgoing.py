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
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import implementer

from chatrelay.frames import text_frame
from chatrelay.limits import Deadlines
from chatrelay.wire import CloseCode

TCP_SERVER_NAMES = ("TLS", "connected", "dataBuffer", "offset", "_tempDataBuffer", "_tempDataLen", "socket")
"""What `OutgoingBuffer` reads of Twisted's TCP transport that is not promised; a test looks them up."""

MAX_OUTGOING = 64 * 1024
"""Bytes that one turn of the reactor may collect for a connection before they are written."""

TCP_INFO_SIZE = 104
"""Bytes that are asked for of what Linux knows of a TCP connection; what is looked at is in all versions of it."""

MOST_OF_IT = 0.9
"""The share of its patience after which the system, which has a clock of its own, has given a connection up."""

LEAST_TAKEN = 64 * 1024
"""Bytes that a client takes in its unread-time at the least, unless it takes all there is."""


def beneath(transport: Any) -> Any:
    """The transport that others, such as TLS or the PROXY protocol, are laid over; where none is, itself."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def seconds_unacknowledged(connection: socket.socket) -> float:
    """For how long nothing has been acknowledged of what was sent again and again; 0 where nothing was.

    From Linux's ``struct tcp_info`` (tcp(7)): ``tcpi_retransmits``, ``tcpi_probes`` and ``tcpi_last_ack_recv``.
    """
    with suppress(OSError, struct.error):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        retransmits, probes, milliseconds = struct.unpack_from("=2xBB52xI", info)
        if retransmits or probes:
            return float(milliseconds) / 1000
    return 0.0


class Framing(Protocol):
    """What the buffer needs of the protocol it belongs to."""

    def send_text_frame(self, payload: bytes) -> None:
        """Have Autobahn make a text frame and write it."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""


class _Gone:
    """In the place of a protocol whose connection is gone."""

    def send_text_frame(self, payload: bytes) -> None:
        """There is nobody to make it for."""

    def close(self, code: int, reason: str) -> None:
        """It is closed."""


_GONE = _Gone()


class Turn:
    """The connections that were sent something in this turn of the reactor.

    :param call_soon: runs a callable in a later turn of the reactor.
    """

    log = Logger()

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
                self.log.failure("writing to a connection met a defect; please report it")


class SlowReaders:
    """The buffers of those who are behind: the transport says that more waits than it likes.

    Each has so much time, and again so much as long as it takes enough.

    :param unread_time: seconds; 0 for no limit.
    :param seconds: the time.
    """

    def __init__(self, unread_time: float, seconds: Callable[[], float]) -> None:
        self._deadlines: Deadlines[OutgoingBuffer] = Deadlines(unread_time)
        self._seconds = seconds

    @property
    def are_limited(self) -> bool:
        """Whether they have a time at all."""
        return self._deadlines.seconds > 0

    def fell_behind(self, outgoing: OutgoingBuffer) -> None:
        """A time for this one begins."""
        self._deadlines.start(outgoing, self._seconds())

    def caught_up(self, outgoing: OutgoingBuffer) -> None:
        """This one has taken all there was, or is gone; nothing happens where it was not known."""
        self._deadlines.stop(outgoing)

    def expired(self, now: float) -> list[OutgoingBuffer]:
        """Take out and return those whose time has come."""
        return self._deadlines.expired(now)

    def __len__(self) -> int:
        return len(self._deadlines)


@implementer(IPushProducer)
class OutgoingBuffer:
    """What one client is sent.

    A client that does not take what it is sent has a budget and a time; past
    either the connection is closed with 4002, and nothing more is appended.

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
        "_backed_up",
        "_budget",
        "_descriptor",
        "_direct",
        "_fast",
        "_frames",
        "_is_open",
        "_patience",
        "_protocol",
        "_sent",
        "_size",
        "_slow_readers",
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
        self._is_open = False
        self._backed_up = False
        self._sent = 0  # while backed up: the bytes that waited when that began, and all since
        self._frames: list[bytes] = []
        self._size = 0
        self._patience = 0.0
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

        Linux has that for TCP (RFC 5482); elsewhere, nothing happens.

        :param seconds: 0 for the system's own patience, which is long.
        """
        if seconds and isinstance(self._descriptor, Server) and hasattr(socket, "TCP_USER_TIMEOUT"):
            with suppress(OSError):  # a UNIX socket, or a client that has left already
                self._descriptor.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
                self._patience = seconds

    # `chatrelay.interfaces.Connection` -------------------------------------

    def send(self, payload: bytes) -> bool:
        """Hand over one text message; see `chatrelay.interfaces.Connection.send`."""
        if not self._is_open or (self._backed_up and not self.within_budget(len(payload))):
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

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; see `chatrelay.interfaces.Connection.close`."""
        self._protocol.close(code, reason)

    # Bytes -----------------------------------------------------------------

    def within_budget(self, size: int) -> bool:
        """Count what a client is sent; close the connection of one that is behind by too much.

        :param size: the bytes it is about to be sent.
        :returns: whether it may be sent them.
        """
        if self._backed_up:
            # Where the transport does not say what waits in it, all counts that came since it had none.
            self._sent += size
            unread = self._sent if self._descriptor is None else self._waiting() + size
            if 0 < self._budget < unread:
                self._protocol.close(CloseCode.UNREAD, "not reading fast enough")
                return False
        return True

    @property
    def is_left_to_slow_readers(self) -> bool:
        """Whether this client is behind and has its time for that: what comes back from it may take as long."""
        return self._backed_up and self._slow_readers.are_limited

    def unread_for_long(self) -> None:
        """The unread-time is over: close the connection of a client that has taken too little in it."""
        waiting = self._sent if self._descriptor is None else self._waiting()
        if self._sent - waiting < LEAST_TAKEN:
            self._protocol.close(CloseCode.UNREAD, "not reading fast enough")
        else:
            self._sent = waiting
            self._slow_readers.fell_behind(self)

    def _waiting(self) -> int:
        """Bytes that wait here and in the transport."""
        descriptor = self._descriptor
        waiting: int = len(descriptor.dataBuffer) - descriptor.offset + descriptor._tempDataLen + self._size
        return waiting

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
            self._backed_up = True
            self._sent = 0 if self._descriptor is None else self._waiting()
            if self._is_open:
                self._slow_readers.fell_behind(self)

    def resumeProducing(self) -> None:
        """Twisted: the client has taken everything."""
        self._backed_up = False
        self._slow_readers.caught_up(self)

    def stopProducing(self) -> None:
        """Twisted: the connection is lost; the protocol is told, too, but when the socket is gone.

        Twisted tells it nothing of why the system gave a connection up, and the socket itself still can.
        """
        if self._patience:
            connection = getattr(self._descriptor, "socket", None)  # there until the transport has closed it
            silence = 0.0 if connection is None else seconds_unacknowledged(connection)
            self.unacknowledged = silence if silence >= self._patience * MOST_OF_IT else 0.0
