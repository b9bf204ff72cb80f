"""One client of the relay, in the forms that tests need; `Speaker` and `frames` define what it says and reads.

- `Client`: the library `websockets`, an implementation that is independent of ours, too.
- `SocketClient`: a blocking socket, byte by byte.
- `StreamClient`: asyncio, byte by byte, many at once.
- `tests.support.memory.MemoryClient`: a transport in memory, for a relay without a port.
- `tests.support.twisted_client.TwistedClient`: the reactor that runs the tests.

None shares code with the relay.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
import urllib.parse
import zlib
from abc import ABC, abstractmethod
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support import PATIENCE, v1
from tests.support.frames import (
    CLOSE,
    COMPRESSED,
    DEFLATE,
    FIN,
    PING,
    PONG,
    TEXT,
    Decoder,
    close_code,
    close_frame,
    frame,
    handshake,
)
from tests.support.tls_tunnel import TLSTunnel

DEFLATE_END = b"\0\0\xff\xff"
"""The bytes that a compressed message omits at its end (RFC 7692, section 7.2.1)."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which closing a socket sends a RST."""


class Speaker(ABC):
    """What a client says, whatever carries it."""

    @abstractmethod
    def write(self, data: bytes) -> object:
        """Send bytes as they are."""

    def say(self, value: object) -> None:
        """Send a text frame: text as it is, anything else as JSON."""
        self.write(frame(value.encode() if isinstance(value, str) else v1.encoded(value)))

    def say_login(self, sessid: Any = None) -> None:
        """Send an auth-request."""
        self.say(v1.login(sessid))

    def send(self, to: Any, content: Any = "hej", id: Any = 1, time_stamp: Any = 1) -> None:
        """Send a message-send-request."""
        self.say(v1.message(to, content, id, time_stamp))

    def say_close(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame."""
        self.write(close_frame(code, reason))


class Client(Speaker):
    """A program on one WebSocket connection, by the library `websockets`.

    :param url: ``ws:`` or ``wss:``.
    :param options: for `websockets.sync.client.connect`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        options.setdefault("open_timeout", PATIENCE)
        options.setdefault("compression", None)
        options.setdefault("max_size", None)
        options.setdefault("proxy", None)
        options.setdefault("close_timeout", 2)
        self._open = ExitStack()
        to = urllib.parse.urlsplit(url)
        if to.scheme == "wss":
            outside = options.get("sock") or socket.create_connection((to.hostname, to.port), PATIENCE)
            name = options.pop("server_hostname", to.hostname)
            options["sock"] = self._open.enter_context(TLSTunnel(outside, options.pop("ssl"), name)).inside
            url = to._replace(scheme="ws").geturl()
        self.socket: ClientConnection = self._open.enter_context(connect(url, **options))

    def write(self, data: bytes) -> None:
        """Send bytes past the library, where no TLS is spoken."""
        self.socket.socket.sendall(data)

    def say(self, value: object) -> None:
        """Send one frame: text or bytes as they are, anything else as JSON."""
        self.socket.send(value if isinstance(value, str | bytes) else json.dumps(value))

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Return the next frame, as JSON."""
        return json.loads(self.socket.recv(timeout))

    def hears_nothing(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        try:
            heard = self.socket.recv(seconds)
        except TimeoutError:
            return True
        raise AssertionError(f"unexpected: {heard!r}")

    def log_in(self, sessid: str | None) -> Any:
        """Ask to be logged in; return the answer."""
        self.say_login(sessid)
        return self.hear()

    def send(self, to: Any, content: Any = "hej", id: Any = "1", time_stamp: Any = "0") -> None:
        """Send a message-send-request."""
        super().send(to, content, id, time_stamp)

    def closed(self, timeout: float = PATIENCE) -> tuple[int | None, list[Any]]:
        """Wait until the relay closes; return the close code, and the frames that came before."""
        heard = []
        until = time.monotonic() + timeout
        while True:
            try:
                heard.append(json.loads(self.socket.recv(max(0.01, until - time.monotonic()))))
            except ConnectionClosed as end:
                return (end.rcvd.code if end.rcvd else None), heard
            except TimeoutError:
                raise AssertionError(f"not closed within {timeout} s; it sent {heard!r}") from None

    def close(self) -> None:
        """Close."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SocketClient(Speaker):
    """A client on a blocking socket. It answers a ping when it comes to it, as a browser does.

    :param connected: a TCP connection, or one on which TLS is spoken already.
    :param tls: how TLS is spoken inside; `start_tls` begins with it. None for not at all.
    :ivar read: bytes that it has read of the socket.
    """

    def __init__(self, connected: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        connected.settimeout(PATIENCE)
        self.socket = connected
        self.read = 0
        self._tls_in, self._tls_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = None if tls is None else tls.wrap_bio(self._tls_in, self._tls_out, server_hostname="127.0.0.1")
        self._decoder = Decoder()
        self._frames: list[tuple[int, bytes]] = []

    def start_tls(self) -> Self:
        """Do the TLS handshake, where TLS is spoken."""
        while self._tls is not None:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush_tls()
                self._tls_in.write(self._from_socket(65536))
        self._flush_tls()
        return self

    def write(self, data: bytes) -> Self:
        """Send bytes."""
        if self._tls is None:
            self.socket.sendall(data)
        else:
            self._tls.write(data)
            self._flush_tls()
        return self

    def receive(self, size: int = 65536) -> bytes:
        """Read at most this many bytes of the socket; return what they bring. That may be nothing with TLS.

        :raises EOFError: where the relay has ended the connection.
        """
        data = self._from_socket(size)
        if self._tls is None:
            return data
        self._tls_in.write(data)
        plain = b""
        while self._tls.version() is not None:
            try:
                plain += self._tls.read(65536)
            except ssl.SSLWantReadError:
                break
        return plain

    def open(self, *headers: str) -> Self:
        """Do the opening handshake.

        :param headers: more header lines.
        """
        self.write(handshake(*headers))
        stream = b""
        while b"\r\n\r\n" not in stream:
            stream += self.receive(4096)
        head, _, rest = stream.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        self._frames += self._decoder.feed(rest)
        return self

    def next_frame(self) -> tuple[int, bytes]:
        """Return the next frame: (first byte, payload).

        :raises EOFError: where there is none any more.
        """
        while not self._frames:
            self._frames += self._decoder.feed(self.receive())
        return self._frames.pop(0)

    def hear(self) -> Any:
        """Return the next text as JSON, or the close code of a close frame."""
        while True:
            first, payload = self.next_frame()
            if first == FIN | PING:
                self.write(frame(payload, PONG))
            elif first == FIN | CLOSE:
                return close_code(payload)
            else:
                assert first == FIN | TEXT, f"unexpected: {first:#x} {payload!r}"
                return json.loads(payload)

    def log_in(self, sessid: str | None) -> Any:
        """Ask to be logged in; return the answer."""
        self.say_login(sessid)
        return self.hear()

    def reset(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.socket.close()

    def close(self) -> None:
        """End the connection with a FIN."""
        self.socket.close()

    def _from_socket(self, size: int) -> bytes:
        data = self.socket.recv(size)
        if not data:
            raise EOFError("the relay ended the connection")
        self.read += len(data)
        return data

    def _flush_tls(self) -> None:
        if data := self._tls_out.read():
            self.socket.sendall(data)


class StreamClient(Speaker):
    """One of many clients in an asyncio loop, that can break off anywhere; close it, or leave by `abort`.

    :param port: the relay's.
    :param address: where it comes from: any of 127.0.0.0/8.
    :param tls: how it speaks TLS; None for not at all.
    """

    def __init__(self, port: int, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._address = address
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls, "ssl_shutdown_timeout": 2}
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._decoder = Decoder()
        self._frames: list[tuple[int, bytes]] = []

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(self._address, 0), **self._tls
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    async def open(self, compression: bool = False) -> None:
        """Do the opening handshake.

        :param compression: whether to agree on it (RFC 7692).
        """
        self.write(handshake(*[DEFLATE] * compression))
        async with asyncio.timeout(PATIENCE):
            answer = await self.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        assert (b"permessage-deflate" in answer) is compression, answer

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    def say_compressed(self, value: object) -> None:
        """Send one message, as JSON, compressed."""
        deflate = zlib.compressobj(wbits=-9)  # any receiver has that much of a window
        compressed = deflate.compress(v1.encoded(value)) + deflate.flush(zlib.Z_SYNC_FLUSH)
        self.write(frame(compressed.removesuffix(DEFLATE_END), rsv=4))

    async def hear(self) -> Any:
        """Return the next text as JSON, or the close code; None for an end without one. Skip other frames."""
        async with asyncio.timeout(PATIENCE):
            try:
                while True:
                    while not self._frames:
                        data = await self.reader.read(65536)
                        if not data:
                            return None
                        self._frames += self._decoder.feed(data)
                    first, payload = self._frames.pop(0)
                    if first == FIN | TEXT:
                        return json.loads(payload)
                    if first == FIN | COMPRESSED | TEXT:
                        return json.loads(self._inflate.decompress(payload + DEFLATE_END))
                    if first == FIN | CLOSE:
                        return close_code(payload)
            except ConnectionError:
                return None

    async def answer(self, type: str) -> Any:
        """Return the next message of this type, or the close code; None for an end without one. Skip others."""
        while True:
            heard = await self.hear()
            if not isinstance(heard, dict) or heard["type"] == type:
                return heard

    async def closed(self) -> int | None:
        """Wait for a close frame; return its code, or None for an end without one."""
        heard: int | None = await self.answer("close")
        return heard

    async def cut(self) -> None:
        """Wait until the connection has ended."""
        while await self.hear() is not None:
            pass

    async def log_in(self, sessid: str) -> Any:
        """Ask to be logged in; return the answer."""
        self.say_login(sessid)
        return await self.answer("auth-response")

    def send_compressed(self, to: Any, content: Any, id: Any = 1) -> None:
        """Send a message-send-request, compressed."""
        self.say_compressed(v1.message(to, content, id))

    def close_half(self) -> None:
        """Stop sending, and keep reading. (TLS ends without a close_notify.)"""
        self.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """End it with a reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.writer.transport.abort()
