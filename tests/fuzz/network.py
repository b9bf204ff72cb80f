"""A network in memory: fake sockets under Twisted's own TCP, on a clock that only tests move.

`Socket` is the relay's end of one connection, as the kernel would show it: the bytes to read, the room to write, an end
or an error. `Reactor` is a `task.Clock` that also does the work of epoll. Everything between them, the transport with
its buffers and half-closed states, is Twisted's `tcp.Server`.
"""

from __future__ import annotations

import errno
import json
from typing import Any

from twisted.internet import error, tcp
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.frames import CLOSE, FIN, TEXT, close_code, split

ROOM = 512
"""Bytes that the kernel takes for a client that does not read."""

PAUSE_AT = 1024
"""Bytes that wait in a transport before it asks its producer to pause, and bytes of one read. Twisted has 64 KiB."""


class Socket:
    """The relay's end of one TCP connection.

    :ivar incoming: bytes that came from the client and were not read yet.
    :ivar taken: how many were read.
    :ivar written: every byte the kernel took.
    :ivar read_off: how many of them the client has read.
    :ivar reading: whether the client reads all that comes.
    :ivar ended: whether the client has closed its end.
    :ivar broken: whether the connection is gone: reads and writes fail.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self.incoming = bytearray()
        self.taken = 0
        self.written = bytearray()
        self.read_off = 0
        self.reading = True
        self.ended = False
        self.broken = False

    def read_on(self) -> None:
        """Let the client read what has arrived."""
        self.read_off = len(self.written)

    @property
    def room(self) -> int:
        """Return the bytes that the kernel would accept."""
        return 2**20 if self.reading else max(0, ROOM - (len(self.written) - self.read_off))

    @property
    def is_readable(self) -> bool:
        """Whether epoll would report it as readable."""
        return bool(self.incoming) or self.ended or self.broken

    @property
    def is_writable(self) -> bool:
        """Whether epoll would report it as writable."""
        return self.room > 0 or self.broken

    # Called by Twisted.

    def recv(self, size: int) -> bytes:
        if self.broken:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        if not self.incoming:
            if self.ended:
                return b""
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing there")
        data = bytes(self.incoming[:size])
        del self.incoming[:size]
        self.taken += len(data)
        return data

    def send(self, data: bytes) -> int:
        if self.broken:
            raise BrokenPipeError(errno.EPIPE, "broken")
        size = min(self.room, len(data))
        if not size:
            raise BlockingIOError(errno.EWOULDBLOCK, "full")
        self.written += bytes(data[:size])
        if self.reading:
            self.read_on()
        return size

    def fileno(self) -> int:
        return self._number

    def setblocking(self, _: bool) -> None: ...
    def setsockopt(self, *_: Any) -> None: ...
    def shutdown(self, _: int) -> None: ...
    def close(self) -> None: ...

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.1", 8080

    @property
    def unacknowledged(self) -> int:
        """Return the bytes in the send queue: what the client has not read."""
        return len(self.written) - self.read_off


class Kernel:
    """A stand-in for what `chatrelay.websocket.sendqueue` asks the kernel about a `Socket`."""

    def bound(self, connection: Socket, budget: int) -> int:
        return ROOM

    def unacknowledged(self, connection: Socket) -> int:
        return connection.unacknowledged

    def acknowledged(self, connection: Socket) -> int:
        return connection.read_off

    def give_up_after(self, connection: Socket, seconds: float) -> bool:
        return True

    def attempts(self, connection: Socket) -> tuple[int, int, float]:
        return 0, 0, 0.0


class NotDirect(tcp.Server):
    """TCP that is not exactly Twisted's own: the relay treats it as TLS, which does not report what waits in it."""


@implementer(IReactorPluggableNameResolver)
class Reactor(Clock):
    """The time, and the order of reads and writes."""

    nameResolver: Any = None  # no name is ever looked up

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[Any, None] = {}
        self.writers: dict[Any, None] = {}

    def addReader(self, reader: Any) -> None:
        self.readers[reader] = None

    def addWriter(self, writer: Any) -> None:
        self.writers[writer] = None

    def removeReader(self, reader: Any) -> None:
        self.readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        self.writers.pop(writer, None)

    def serve(self, transport: Any) -> None:
        """Handle what epoll reports of one connection as Twisted's reactors do: reads before writes."""
        why = None
        if transport in self.readers and transport.socket.is_readable:
            why = transport.doRead()
        if not why and transport in self.writers and transport.socket.is_writable:
            why = transport.doWrite()
        if why:
            self.removeReader(transport)
            self.removeWriter(transport)
            known = error.ConnectionDone if isinstance(why, error.ConnectionDone) else error.ConnectionLost
            transport.connectionLost(Failure(known()))


class Stream:
    """The frames that the relay has written to one transport, whether sent or waiting in it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._socket: Socket = transport.socket
        self._parsed = 0
        self.frames: list[Any] = []

    @property
    def waiting(self) -> int:
        """Return the bytes that the transport holds."""
        transport = self._transport
        return len(transport.dataBuffer) - transport.offset + int(transport._tempDataLen)

    @property
    def unacknowledged(self) -> int:
        """Return the bytes that the kernel holds."""
        return self._socket.unacknowledged

    @property
    def total(self) -> int:
        """Return the number of bytes written so far."""
        return len(self._socket.written) + self.waiting

    def _held(self) -> bytes:
        transport = self._transport
        return bytes(transport.dataBuffer[transport.offset :]) + b"".join(transport._tempDataBuffer)

    def skip_handshake(self) -> None:
        """Skip the answer to the opening handshake, which is not a frame."""
        answer = bytes(self._socket.written) + self._held()
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        self._parsed = answer.index(b"\r\n\r\n") + 4

    def parse(self) -> None:
        """Decode what is new: JSON values, (close code,), or (opcode, payload)."""
        if self.total == self._parsed:
            return
        held = self._held()
        sent = self._socket.written
        data = bytes(sent[self._parsed :]) + held[max(0, self._parsed - len(sent)) :]
        end = 0
        for first, payload, end in split(data):  # noqa: B007
            assert first & 0xF0 == FIN, "not final, or reserved bits"
            opcode = first & 15
            if opcode == TEXT:
                self.frames.append(json.loads(payload))
            elif opcode == CLOSE:
                self.frames.append((close_code(payload),))
            else:
                self.frames.append((opcode, payload))
        assert end == len(data), "half a frame was handed over"
        self._parsed += len(data)


def exactly(value: object) -> object:
    """Return a value that equals another only if all types are equal, too: to Python, 1 == 1.0 == True."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exactly(item) for item in value]
    return type(value), value
