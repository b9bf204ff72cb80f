"""A client in the reactor that runs the tests, for a relay inside the same program."""

from __future__ import annotations

import json
from typing import Any, Self

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from tests.support import PATIENCE
from tests.support.client import Speaker
from tests.support.frames import CLOSE, FIN, PING, PONG, TEXT, Decoder, close_code, close_frame, frame, handshake


class TwistedClient(Protocol, Speaker):
    """One connection. It answers pings and close frames as they come.

    :ivar opened: fires with this client when the handshake is done.
    :ivar closed: fires with the close code when the connection is gone; with None where there was none.
    """

    transport: Any

    def __init__(self, reactor: Any, *headers: str, target: str = "/") -> None:
        self.opened: Deferred[Self] = Deferred()
        self.closed: Deferred[int | None] = Deferred()
        self._reactor = reactor
        self._handshake = handshake(*headers, target=target)
        self._answer: bytes | None = b""
        self._decoder = Decoder()
        self._heard: DeferredQueue[Any] = DeferredQueue()
        self._code: int | None = None
        self._has_closed = False

    @classmethod
    async def connect(cls, reactor: Any, port: int, *headers: str, target: str = "/") -> Self:
        """Connect to a port of 127.0.0.1, and do the opening handshake.

        :param headers: more header lines.
        """
        client = cls(reactor, *headers, target=target)
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), client)
        return await client.opened.addTimeout(PATIENCE, reactor)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.transport.write(data)

    async def hear(self) -> Any:
        """Return the next text, as JSON."""
        return await self._heard.get().addTimeout(PATIENCE, self._reactor)

    async def log_in(self, sessid: str | None) -> Any:
        """Ask to be logged in; return the answer."""
        self.say_login(sessid)
        return await self.hear()

    async def leave(self) -> None:
        """Close, and wait until it is closed."""
        self._has_closed = True
        self.say_close()
        await self.closed

    def connectionMade(self) -> None:
        self.write(self._handshake)

    def dataReceived(self, data: bytes) -> None:
        if self._answer is not None:
            self._answer += data
            head, end, data = self._answer.partition(b"\r\n\r\n")
            if not end:
                return
            self._answer = None
            if not head.startswith(b"HTTP/1.1 101 "):
                self.opened.errback(AssertionError(head))
                return
            self.opened.callback(self)
        for first, payload in self._decoder.feed(data):
            if first == FIN | TEXT:
                self._heard.put(json.loads(payload))
            elif first == FIN | PING:
                self.write(frame(payload, PONG))
            elif first == FIN | CLOSE:
                self._code = close_code(payload)
                if not self._has_closed:
                    self.write(close_frame(self._code))

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(self._code)
