"""A WebSocket of a client over a bad network: bytes take a while in each direction, and a cut loses those under way.

The network is in the client's process. So what is lost is certain: the bytes that one side has written and the other
one has not read. A frame may be cut in two. A reset alone would not do: on one machine, what is written has arrived.
This module must not know what is in a frame.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from tests.support.client import RESET_ON_CLOSE
from tests.support.frames import CLOSE, FIN, PING, PONG, TEXT, Decoder, close_code, close_frame, frame

SECONDS_TO_CONNECT = 20.0
"""The time in which a connection must be made."""


class Line(asyncio.Protocol):
    """One connection.

    :param handshake: the opening handshake that is sent at once.
    :param hear: called with the payload of each text frame, from `begin` on.
    :param delay: seconds that bytes take in each direction.
    :ivar opened: done when the handshake has been answered, or the connection has ended.
    :ivar ended: done when the connection has ended for the client: with the close code, or None without one.
    :ivar is_lost: whether nothing passes any more.
    :ivar bytes_lost: those that a cut has lost.
    """

    def __init__(self, handshake: bytes, hear: Callable[[bytes], None], delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._handshake = handshake
        self._hear = hear
        self._delay = delay
        self._decoder = Decoder()
        self._head: bytes | None = b""  # of the answer to the handshake; None when it is complete
        self._out: deque[bytes] = deque()
        self._in: deque[bytes] = deque()
        self._early: list[bytes] | None = []  # what came before `begin`
        self._code: int | None = None
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        self.is_lost = False
        self.bytes_lost = 0

    @classmethod
    async def connect(
        cls, port: int, address: str, handshake: bytes, hear: Callable[[bytes], None], delay: float
    ) -> Line:
        """Connect to a port of 127.0.0.1, from an address of this machine.

        From an address other than that of the server, a client can't be connected with itself while nobody listens.

        :raises OSError: if nobody listens, or nobody answers in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS_TO_CONNECT):
            _, line = await loop.create_connection(
                lambda: cls(handshake, hear, delay), "127.0.0.1", port, local_addr=(address, 0)
            )
            try:
                await line.opened
            except asyncio.CancelledError:
                line.reset()
                raise
        return line

    def begin(self) -> None:
        """Pass on what comes, and what has come."""
        early, self._early = self._early, None
        for payload in early or ():
            self._hear(payload)

    def say(self, payload: bytes) -> None:
        """Send a text frame."""
        self._write(frame(payload))

    def lose(self) -> None:
        """Lose what is under way, and whatever follows. The server does not notice before `reset`."""
        if self.is_lost:
            return
        if self._out:  # the frame that is on its way is cut in two
            first = self._out.popleft()
            self._transport.write(first[: len(first) // 2])
            self.bytes_lost += len(first) - len(first) // 2
        self.is_lost = True
        self.bytes_lost += sum(map(len, self._out)) + sum(map(len, self._in))
        self._out.clear()
        self._in.clear()
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._end()

    def reset(self) -> None:
        """End the connection with a reset, with whatever the server has sent and nobody has read."""
        self.is_lost = True
        self._out.clear()
        self._in.clear()
        if not self._transport.is_closing():
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write(self._handshake)

    def data_received(self, data: bytes) -> None:
        if not self.is_lost:
            self._in.append(data)
            self._loop.call_later(self._delay, self._arrive)

    def connection_lost(self, error: Exception | None) -> None:
        self._loop.call_later(self._delay, self._end)

    def _write(self, data: bytes) -> None:
        if not self.is_lost:
            self._out.append(data)
            self._loop.call_later(self._delay, self._depart)

    def _depart(self) -> None:
        if self._out:
            self._transport.write(self._out.popleft())

    def _arrive(self) -> None:
        if not self._in:
            return
        data = self._in.popleft()
        if self._head is not None:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            self._head = None
            if not head.startswith(b"HTTP/1.1 101 "):
                self.reset()
                return
            self.opened.set_result(None)
        for first, payload in self._decoder.feed(data):
            if self.is_lost:
                break
            if first == FIN | TEXT and self._early is not None:
                self._early.append(payload)
            elif first == FIN | TEXT:
                self._hear(payload)
            elif first == FIN | PING:
                self._write(frame(payload, PONG))
            elif first == FIN | CLOSE:
                self._code = close_code(payload)
                self._write(close_frame(self._code))
                self._loop.call_later(2 * self._delay, self._close)

    def _close(self) -> None:
        self._transport.close()
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(self._code)
        if not self.opened.done():
            self.opened.set_result(None)
