"""The outbox of one connection: it collects messages, writes them, and closes the connection of a slow reader.

`Outbox` is the `chatrelay.interfaces.Connection` that the relay and the session see. A message is appended if the
connection is open and within its budget, and refused otherwise (C2 of the promise). This module must not know what a
message means.

At the end of each turn of the reactor, `FlushScheduler` flushes the outboxes that have new messages. So ten messages to
one connection in one turn are written at once. With Twisted's own plain TCP, they are written to the socket directly.
Usually the socket takes everything, which saves the reactor a wake-up. The transport gets the rest.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Server
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from chatrelay.interfaces import Dialect
from chatrelay.limits.pace import MAX_DEBT, SlowReaders, ahead_after_unread_time, ahead_of_pace
from chatrelay.websocket import sendqueue
from chatrelay.websocket.flushes import FlushScheduler
from chatrelay.wire import codes
from chatrelay.wire.codes import Close
from chatrelay.wire.frames import text_frame

TCP_SERVER_NAMES = ("TLS", "connected", "dataBuffer", "offset", "_tempDataBuffer", "_tempDataLen", "socket")
"""The private names of Twisted's TCP transport that `Outbox` reads; a test looks them up."""

MAX_UNSENT = 64 * 1024
"""The most unsent bytes of a connection that counts as drained; see `Outbox.call_when_drained`."""

MAX_COLLECTED = 64 * 1024
"""The most bytes that are collected for a connection. More are written within the same turn of the reactor."""

TLS_NAMES = ("_aggregator", "_appSendBuffer")
"""The private names of Twisted's TLS transport; of `_aggregator`, `MAX_BUFFER_SIZE` and `_bufferLeft` are read."""

MAX_UNCOUNTED = 3 * 64 * 1024
"""The most bytes that may wait in the process uncounted: in a turn, in TLS, and until Twisted asks for a pause."""

TIMEOUT_MARGIN = 0.9
"""The share of the system's timeout after which it counts as passed, because the system has a different clock."""

MIN_ATTEMPTS = 2
"""The unanswered attempts of the system that make a client count as silent. The answer to one may be on its way."""


def innermost_transport(transport: Any) -> Any:
    """Return the transport beneath all wrappers, such as TLS or the PROXY protocol; without wrappers, itself."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def held_by_tls(transport: Any) -> int:
    """Return the bytes that wait in TLS, above the innermost transport."""
    held = 0
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, TLSMemoryBIOProtocol):
            aggregator: Any = getattr(transport, "_aggregator", None)
            most = getattr(aggregator, "MAX_BUFFER_SIZE", 0)
            held += most - getattr(aggregator, "_bufferLeft", most) + sum(map(len, transport._appSendBuffer))
        transport = transport.transport
    return held


def seconds_unacknowledged(connection: socket.socket) -> float:
    """Return the seconds without an acknowledgement while the system retries; 0 if it does not retry."""
    retransmits, probes, seconds = sendqueue.attempts(connection)
    return seconds if retransmits or probes else 0.0


class Framing(Protocol):
    """The part of a protocol that its outbox needs."""

    def send_text_frame(self, payload: bytes) -> None:
        """Have Autobahn make a text frame and write it."""

    def close(self, close: Close) -> None:
        """Begin the closing handshake."""


class _Disconnected:
    """Replaces a protocol whose connection is gone."""

    def send_text_frame(self, payload: bytes) -> None:
        """Do nothing."""

    def close(self, close: Close) -> None:
        """Do nothing."""


_DISCONNECTED = _Disconnected()


@implementer(IPushProducer)
class Outbox:
    """The outgoing messages of one client, within its budget.

    A client that does not read has a budget and an unread-time. When either is exceeded, the connection is closed with
    4002, and nothing more is appended.

    A client has taken the bytes that its kernel has acknowledged. Bytes in our kernel's send queue count as waiting.
    The size of that queue is limited at the start. So the number of bytes in it is not needed in two cases: while
    nothing waits in the process, and while the budget would be enough even with a full queue.

    :param protocol: closes the connection, and makes the frames if `fast` is False.
    :param transport: the connection's transport.
    :param flushes: flushes this outbox.
    :param slow_readers: called when this client falls behind, and when it has caught up.
    :param budget: bytes that may wait for a client that is behind; 0 for no limit.
    :param fast: whether frames are made here and written once a turn; else Autobahn makes them and writes at once.
    :ivar dialect: the dialect in which messages are delivered; set when the connection opens.
    :ivar unacknowledged: if the system has given the connection up, the seconds without an acknowledgement; else 0.
    """

    # These are slots of a separate object, because they are read for every message, and Autobahn's protocol has many
    # attributes.
    __slots__ = (
        "_ahead",
        "_backed_up",
        "_budget",
        "_descriptor",
        "_direct",
        "_drained",
        "_fast",
        "_flushes",
        "_frames",
        "_has_timeout",
        "_is_counted",
        "_is_open",
        "_is_small",
        "_looked_at",
        "_most_in_kernel",
        "_ping_time",
        "_protocol",
        "_schedule",
        "_sent",
        "_size",
        "_slow_readers",
        "_taken",
        "_timeout",
        "_transport",
        "dialect",
        "unacknowledged",
    )

    def __init__(
        self,
        protocol: Framing,
        transport: Any,
        flushes: FlushScheduler,
        slow_readers: SlowReaders,
        budget: int,
        fast: bool,
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._flushes = flushes
        self._schedule = flushes.schedule
        self._slow_readers = slow_readers
        self._budget = budget
        self._fast = fast
        # Bytes are written directly only to Twisted's own plain TCP. TLS passes unknown attributes on to the transport
        # beneath it, so bytes that are written to its `socket` would go out in plain text.
        self._direct = type(transport) is Server
        # Bytes wait in the innermost transport, beneath TLS and the PROXY protocol.
        descriptor = innermost_transport(transport)
        self._descriptor: Any = descriptor if isinstance(descriptor, FileDescriptor) else None
        self._most_in_kernel = 0
        if budget and self._socket is not None:
            self._most_in_kernel = sendqueue.bound(self._socket, budget)
        # A small budget can be spent before Twisted asks for a pause, so everything is counted.
        self._is_small = 0 < budget < self._most_in_kernel + MAX_UNCOUNTED and self._descriptor is not None
        self._is_counted = self._is_small
        self._is_open = False
        self._backed_up = False
        self._sent = 0  # while backed up: the bytes that waited when that began, and all bytes since
        # The client's pace at the last check: the bytes that it had taken, the bytes by which it was ahead, and when.
        self._taken = 0
        self._ahead = 0.0
        self._looked_at = 0.0
        self._ping_time = 0.0  # until then, a client that keeps the minimum pace may not have read its ping
        self._frames: list[bytes] = []
        self._size = 0
        self._drained: Callable[[], None] | None = None  # to be called when little is unsent
        self._timeout = 0.0  # seconds without an acknowledgement after which the system ends the connection
        self._has_timeout = True  # whether the system applies it now
        self.unacknowledged = 0.0

    def open(self, dialect: Dialect | None) -> None:
        """Send messages from now on: the opening handshake is complete.

        :param dialect: the dialect in which the relay delivers messages; None if a cursor does that.
        """
        if dialect is not None:
            self.dialect = dialect
        self._is_open = True
        # In a site of twisted.web, its HTTP protocol is still registered as the producer.
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, True)

    def leave_frames_to_the_protocol(self) -> None:
        """Have the protocol make all frames from now on, because it compresses messages."""
        self._fast = False

    def closing(self) -> None:
        """Send no more messages: the connection is closing or gone."""
        self._is_open = False
        self._drained = None
        self._slow_readers.caught_up(self)

    def disconnected(self) -> None:
        """Forget the protocol: its connection is lost, and both would stay until garbage is collected."""
        self._protocol = _DISCONNECTED

    def give_up_after(self, seconds: float) -> None:
        """Have the system end the connection when sent bytes stay unacknowledged for that time.

        :param seconds: 0 for the system's own timeout, which is long.
        """
        if seconds and isinstance(self._descriptor, Server) and sendqueue.give_up_after(self._socket, seconds):
            self._timeout = seconds

    # `chatrelay.interfaces.Connection` -------------------------------------

    def send(self, payload: bytes) -> bool:
        """Append one text message; see `chatrelay.interfaces.Connection.send`."""
        if not self._is_open or (self._is_counted and not self.charge(len(payload))):
            return False
        if not self._fast:
            self._protocol.send_text_frame(payload)
            return True
        frame = text_frame(payload)
        # This is `append`, inlined: it runs for every message, and a call would take longer than these lines.
        frames = self._frames
        if not frames:
            self._schedule(self)
        frames.append(frame)
        self._size += len(frame)
        if self._size > MAX_COLLECTED:
            self.flush()
        return True

    def close(self, close: Close) -> None:
        """Begin the closing handshake; see `chatrelay.interfaces.Connection.close`."""
        self._protocol.close(close)

    # `chatrelay.interfaces.InboxConnection` ----------------------------------

    @property
    def unsent(self) -> int:
        """The bytes that wait in this process; see `chatrelay.interfaces.InboxConnection.unsent`."""
        descriptor = self._descriptor
        if self._direct:  # `_waiting`, inlined: this is read for every message of v2
            return len(descriptor.dataBuffer) - descriptor.offset + descriptor._tempDataLen + self._size  # type: ignore[no-any-return]
        if descriptor is not None:
            return self._waiting()
        return self._size + (self._sent if self._backed_up else 0)

    @property
    def is_behind(self) -> bool:
        """Whether bytes from an earlier turn wait; without the fast path, those of this turn count, too."""
        return self.unsent > self._size

    def call_when_drained(self, call: Callable[[], None]) -> None:
        """Call `call` once, in a later turn of the reactor, when no more than `MAX_UNSENT` bytes are unsent.

        There is never more than one call that waits. It does not come after the connection has begun to close.
        """
        self._drained = call
        self._flushes.call_soon(self._call_if_drained)

    def _call_if_drained(self) -> None:
        call = self._drained
        if call is None:
            return
        if self.unsent <= MAX_UNSENT:
            self._drained = None
            call()
        elif not self._backed_up:
            # Twisted asks for a pause if more waits in one of its buffers. So this waits for TLS to fill the next one.
            self._flushes.call_soon(self._call_if_drained)

    # Bytes -----------------------------------------------------------------

    def charge(self, size: int) -> bool:
        """Count bytes that are about to be sent. If too many wait for the client, close the connection.

        :param size: the number of bytes.
        :returns: whether they may be sent.
        """
        if self._is_counted:
            self._sent += size
            budget = self._budget
            # Some transports do not tell how much waits in them. Then all bytes since the last time when nothing waited
            # count.
            unread = self._sent if self._descriptor is None else self._waiting() + size
            if 0 < budget < unread + self._most_in_kernel and budget < unread + self._in_kernel():
                self._protocol.close(codes.UNREAD)
                return False
        return True

    @property
    def is_slow_reader(self) -> bool:
        """Whether this client is behind, and its unread-time runs. Its answers may take as long."""
        return self._backed_up and self._slow_readers.are_limited

    def unread_time_passed(self) -> None:
        """Close the connection if the client has taken too little in its unread-time.

        Bytes that it had taken ahead of the minimum pace count, too.
        """
        taken = self._taken_so_far()
        if self._is_silent(self._slow_readers.unread_time):
            self._ahead = 0.0
        ahead = ahead_after_unread_time(self._ahead, taken - self._taken)
        connection = self._socket
        # While the process was held up, the client may have taken everything that was in the kernel.
        if ahead < -MAX_DEBT and (connection is None or sendqueue.unacknowledged(connection) != 0):
            self._protocol.close(codes.UNREAD)
        else:
            self._note_pace(taken, ahead)
            self._adjust_timeout()
            self._slow_readers.fell_behind(self)

    def about_to_ping(self) -> None:
        """Note when the client must have read a ping that is sent now, and adjust the system's timeout."""
        if self._slow_readers.are_limited and not self._backed_up:
            self._update_pace()
            unread = self._ahead + self._in_kernel() + (0 if self._descriptor is None else self._waiting())
            self._ping_time = self._looked_at + unread / self._slow_readers.pace
        self._adjust_timeout()

    def may_not_have_read_the_ping(self, seconds: float) -> bool:
        """Return whether a client that keeps the minimum pace may still be reading what was sent before the last ping.

        :param seconds: the ping-timeout. If the client's kernel has been silent for that time, the result is False.
        """
        return self._slow_readers.seconds() < self._ping_time and not self._is_silent(seconds)

    def _is_silent(self, seconds: float) -> bool:
        """Return whether the client's kernel has answered none of the system's attempts for that time."""
        connection = self._socket
        retransmits, probes, silence = (0, 0, 0.0) if connection is None else sendqueue.attempts(connection)
        return retransmits + probes >= MIN_ATTEMPTS and silence >= seconds

    def _update_pace(self) -> None:
        """Note the bytes that the client has taken since the last check, as if it had taken them just now."""
        slow_readers, connection = self._slow_readers, self._socket
        acked = None if connection is None else sendqueue.acknowledged(connection)
        if acked is not None:
            seconds = slow_readers.seconds() - self._looked_at
            self._note_pace(acked, ahead_of_pace(self._ahead, acked - self._taken, seconds * slow_readers.pace))
        elif self._descriptor is not None:
            # The system does not tell how much this client has taken. The bytes of one write may leave the queue at
            # once.
            self._note_pace(0, float(MAX_COLLECTED))

    def _note_pace(self, taken: int, ahead: float) -> None:
        self._taken, self._ahead, self._looked_at = taken, ahead, self._slow_readers.seconds()

    def _adjust_timeout(self) -> None:
        """Suspend the system's timeout for a client that reads slowly, until it has taken everything.

        Linux counts from its first request for a larger window, even if the client answers each request and
        acknowledges some bytes. So it would end the connection of a client that reads all the time, but whose receive
        buffer is full.
        """
        connection = self._socket
        if self._timeout and connection is not None:
            has_all = not self._in_kernel()
            retransmits, probes, _ = sendqueue.attempts(connection)
            # Retransmitted bytes were within the client's window. For them, Linux counts from the first retransmission.
            wanted = has_all or retransmits >= MIN_ATTEMPTS or (probes >= MIN_ATTEMPTS and self._has_timeout)
            if wanted != self._has_timeout:
                sendqueue.give_up_after(connection, self._timeout if wanted else 0)
                self._has_timeout = wanted

    def _taken_so_far(self) -> int:
        """Return the bytes that the client has taken: in total, or since it fell behind if the system does not tell."""
        connection = self._socket
        acked = None if connection is None else sendqueue.acknowledged(connection)
        if acked is not None:
            return acked
        return 0 if self._descriptor is None else self._sent - self._waiting() - self._in_kernel()

    @property
    def _socket(self) -> Any:
        """The connection's socket; None if there is none, or if it is closed."""
        return getattr(self._descriptor, "socket", None)

    def _in_kernel(self) -> int:
        """Return the bytes that wait in the kernel; if it does not tell, the most it can hold, or 0 if unlimited."""
        connection = self._socket
        queued = None if connection is None else sendqueue.unacknowledged(connection)
        return self._most_in_kernel if queued is None else queued

    def _waiting(self) -> int:
        """Return the bytes that wait here and in the transport."""
        descriptor = self._descriptor
        waiting: int = len(descriptor.dataBuffer) - descriptor.offset + descriptor._tempDataLen + self._size
        return waiting if self._direct else waiting + held_by_tls(self._transport)

    def append(self, data: bytes) -> None:
        """Append bytes, to be written at the end of this turn of the reactor."""
        frames = self._frames
        if not frames:
            self._schedule(self)
        frames.append(data)
        self._size += len(data)
        if self._size > MAX_COLLECTED:
            self.flush()  # the bytes that one turn collects must not use up the client's budget

    def flush(self) -> None:
        """Write what was appended."""
        frames = self._frames
        if not frames:
            return
        self._frames = []
        self._size = 0
        data = b"".join(frames)
        transport = self._transport
        # `TLS` is checked because a connection that began as plain TCP may have been upgraded since.
        if (
            self._direct
            and not transport.TLS
            and not transport.dataBuffer
            and not transport._tempDataBuffer
            and transport.connected
        ):
            # Nothing waits in the transport, so a direct write keeps the order.
            try:
                sent = transport.socket.send(data)
            except OSError:
                sent = 0  # the socket is full or broken, and the transport finds out which
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    # Twisted's IPushProducer -------------------------------------------------

    def pauseProducing(self) -> None:
        """Count bytes from now on: the transport's buffer is full. Twisted calls this for every further write, too."""
        if not self._backed_up:
            self._backed_up = self._is_counted = True
            if self._slow_readers.are_limited:
                self._update_pace()
            self._sent = 0 if self._descriptor is None else self._waiting() + self._in_kernel()
            if self._is_open:
                self._slow_readers.fell_behind(self)

    def resumeProducing(self) -> None:
        """Stop counting bytes: the kernel has taken everything from the transport's buffer. Twisted calls this."""
        self._backed_up = False
        self._is_counted = self._is_small
        self._slow_readers.caught_up(self)
        if self._drained is not None:
            self._flushes.call_soon(self._call_if_drained)

    def stopProducing(self) -> None:
        """Note for how long nothing was acknowledged: the connection is lost. Twisted calls this.

        `connectionLost` follows when the socket is closed. Twisted does not tell for how long nothing was acknowledged.
        The socket still does.
        """
        if self._timeout:
            connection = self._socket  # open until the transport closes it
            silence = 0.0 if connection is None else seconds_unacknowledged(connection)
            self.unacknowledged = silence if silence >= self._timeout * TIMEOUT_MARGIN else 0.0
