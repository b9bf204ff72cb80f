"""Many sockets at once, each from its own address, as attackers have them.

All of 127.0.0.0/8 is this machine. So each socket may have its own address, and limits per address see many clients
instead of one.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Sequence
from contextlib import suppress

from tests.support import frames
from tests.support.frames import CLOSE, FIN, HANDSHAKE, PING, PONG, Decoder


def address(number: int) -> str:
    """Return one of 62,500 addresses of this machine, never 127.0.0.1."""
    return f"127.7.{number // 250 % 250}.{number % 250 + 1}"


class Crowd:
    """Sockets, all of which are closed at the end.

    :param target: the port where they connect, or the path of a UNIX socket.
    """

    def __init__(self, target: int | str) -> None:
        self._target = target
        self.sockets: list[socket.socket] = []
        # Their descriptors are this process's.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < min(hard, 16384):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))

    def connect(self, source: str, says: bytes = b"") -> socket.socket:
        """Connect one more socket from an address of this machine, and send something at once."""
        one = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
        self.sockets.append(one)
        if isinstance(self._target, str):
            one.connect(self._target)  # with a time-out it would not wait for its turn
        else:
            one.settimeout(10)
            one.bind((source, 0))
            one.connect(("127.0.0.1", self._target))
        if says:
            with suppress(ConnectionError):  # refused already
                one.sendall(says)
        return one

    def leave(self) -> None:
        """Close them all."""
        for one in self.sockets:
            one.close()
        self.sockets.clear()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def opened(crowd: Crowd, source: str, handshake: bytes = HANDSHAKE) -> socket.socket:
    """Return a connection whose opening handshake is done."""
    one = crowd.connect(source, handshake)
    answer = one.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return one


def sent_of(one: socket.socket, data: bytes, patience: float = 5.0) -> int:
    """Return how many of these bytes could be sent until the peer ended the connection, or took no more for a while."""
    sent = 0
    one.settimeout(patience)
    with suppress(ConnectionError, TimeoutError):
        while sent < len(data):
            sent += one.send(data[sent : sent + 65536])
    return sent


def heard(sockets: Sequence[socket.socket]) -> list[bytes]:
    """Return what each socket has received so far; nothing for a closed one."""
    received = []
    for one in sockets:
        data = b""
        one.setblocking(False)
        with suppress(BlockingIOError, ConnectionError):
            data = one.recv(65536)
        received.append(data)
        one.setblocking(True)
    return received


def to_the_end(one: socket.socket) -> bytes:
    """Return everything that the relay sends until it ends the connection, by a close or an abort.

    :raises TimeoutError: where it does not.
    """
    data = b""
    with suppress(ConnectionError):
        while received := one.recv(65536):
            data += received
    return data


def farewell(one: socket.socket) -> tuple[int, str, int]:
    """Wait for the relay's close; return its code and reason, and the number of pongs before it.

    :raises TimeoutError: where it does not.
    :raises AssertionError: where it sends something else than pings, pongs and a close frame, or ends the connection
        without a word.
    """
    decoder, pongs = Decoder(), 0
    while received := one.recv(65536):
        for first, payload in decoder.feed(received):
            if first == FIN | CLOSE:
                return frames.close_code(payload), payload[2:].decode(), pongs
            assert first in (FIN | PING, FIN | PONG), (first, payload)
            pongs += first == FIN | PONG
    raise AssertionError(f"the relay ended the connection without a word, after {pongs} pongs")


def close_code(one: socket.socket) -> int:
    """Wait for the relay's close, as `farewell` does; return its code."""
    return farewell(one)[0]


def still_open(sockets: Sequence[socket.socket]) -> int:
    """Return how many of the sockets the relay has not closed."""
    count = 0
    for one in sockets:
        one.setblocking(False)
        try:
            while one.recv(65536):
                pass
        except BlockingIOError:
            count += 1
        except ConnectionError:
            pass
        one.setblocking(True)
    return count
