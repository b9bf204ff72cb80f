"""A client that reads at a set pace, and a sender that keeps it behind; both count bytes.

The reader knows what each layer holds: its kernel, TLS, and itself. It answers pings when it reads them, as a browser
does.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable

from tests.support import PATIENCE
from tests.support.client import Client, SocketClient
from tests.support.frames import CLOSE, FIN, PING, PONG, TEXT, close_code, frame

TICK = 0.05
"""Seconds between the reads of a reader with a pace."""


class Reader(SocketClient):
    """One connection, logged in.

    :param connect: makes a TCP connection; `connection` where the receive buffer is to be small.
    :param tls: how TLS is spoken; None for plain TCP.
    :ivar messages: how many messages it has read, the answer to the login among them.
    :ivar payloads: how many bytes of text these had.
    :ivar pings: how many pings it has answered.
    :ivar ended: the close code that it has read, -1 where the connection ended without one; None while it is open.
    """

    def __init__(self, connect: Callable[[], socket.socket], sessid: str, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(connect(), tls)
        self.messages = self.payloads = self.pings = 0
        self.ended: int | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.start_tls().open()
        self._look_at_frames()
        self.say_login(sessid)
        while not self.messages:
            self._take(4096)
            self._look_at_frames()

    @property
    def in_kernel(self) -> int:
        """Return the bytes that its kernel has acknowledged and it has not read."""
        return int(struct.unpack("i", fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4)))[0])

    def keep_reading(self, pace: int, at_once: int = 0) -> None:
        """Read this many bytes a second from now on, until the end; before that, some as fast as they come."""

        def read_on() -> None:
            while self.ended is None and self.read < at_once and not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    self._take(256 * 1024)
                    self._look_at_frames()
            began, before = time.monotonic(), self.read
            while self.ended is None and not self._over.wait(TICK):
                due = int((time.monotonic() - began) * pace) - (self.read - before)
                try:
                    if due > 0 and self._take(due):
                        self._look_at_frames()
                except TimeoutError:
                    continue
                except OSError:
                    self.ended = -1

        self.socket.settimeout(TICK)
        self._thread = threading.Thread(target=read_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading, and end the connection."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.socket.close()

    def _take(self, size: int) -> int:
        before = self.read
        try:
            self._frames += self._decoder.feed(self.receive(size))
        except EOFError:
            self.ended = -1 if self.ended is None else self.ended
        return self.read - before

    def _look_at_frames(self) -> None:
        frames, self._frames = self._frames, []
        for first, payload in frames:
            if first == FIN | TEXT:
                self.messages += 1
                self.payloads += len(payload)
            elif first == FIN | PING:
                self.pings += 1
                self.write(frame(payload, PONG))
            elif first == FIN | CLOSE:
                self.ended = close_code(payload)


def connection(port: int, host: str = "127.0.0.1", receive_buffer: int = 0) -> socket.socket:
    """Connect; if a size is given, with a receive buffer of that size."""
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(PATIENCE)
    made.connect((host, port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Sender:
    """Sends messages of one size to one user, and counts.

    :ivar true: how many were acknowledged with true.
    :ivar reason: the last reason for a false.
    """

    def __init__(self, client: Client, to: str | int, size: int) -> None:
        self.true = 0
        self.reason: str | None = None
        self._client = client
        self._to = to
        self._content = "x" * size

    def send(self, count: int, at_once: int = 1) -> None:
        """Send this many times this many messages, and read each answer; stop after a false."""
        for _ in range(count):
            if self.reason is None:
                for _ in range(at_once):
                    self._client.send(self._to, self._content)
                for _ in range(at_once):
                    response = self._client.hear()["response"]
                    self.true += response["value"] is True
                    self.reason = self.reason or response.get("reason")
