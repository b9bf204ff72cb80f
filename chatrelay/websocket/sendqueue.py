"""The kernel's send queue of one connection: limit its size, and read how many bytes it holds.

It uses sockets, and options of Linux. This module must not know what waits in the process, what a frame is, or what
follows from the values that it returns.

The queue holds the bytes that the process has written and the client's kernel has not acknowledged. On a UNIX socket it
holds the bytes that the client has not read.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ

BUDGET_DIVISOR = 8
"""The budget divided by this is the size of the send buffer. Linux doubles it, to have room for its own data."""

MAX_OVERSHOOT = 128 * 1024
"""The most bytes that Linux accepts beyond the send buffer, as it checks the limit before it fills a segment. 77 KB
were seen."""

MAX_BUFFER = 2**31 - 1
"""The most bytes of a send buffer that setsockopt(2) accepts, which is an int. The system's own limit is lower."""

TCP_INFO_SIZE = 128
"""Bytes of ``struct tcp_info`` that are read. Linux has provided them since 4.1."""


def bound(connection: socket.socket, budget: int) -> int:
    """Limit the send queue to a part of a budget. The kernel then no longer tunes its size.

    :param budget: bytes, 1 or more.
    :returns: how many bytes the queue can hold.
    """
    with suppress(OSError):  # the connection is lost already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(budget // BUDGET_DIVISOR, MAX_BUFFER))
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + MAX_OVERSHOOT
    return MAX_OVERSHOOT


def unacknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the queue holds (SIOCOUTQ, tcp(7) and unix(7)); None if the system does not tell."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError):  # the socket is closed
            return int.from_bytes(ioctl(connection, TIOCOUTQ, bytes(4)), sys.byteorder)
    return None


def acknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the client's kernel has acknowledged in total; None if the system does not tell.

    This is ``tcpi_bytes_acked`` and, for the bytes after a lost segment, about ``tcpi_sacked`` segments of
    ``tcpi_snd_mss`` bytes. A UNIX socket has none of these.
    """
    if sys.platform == "linux":
        with suppress(OSError, struct.error):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            size, sacked, acked = struct.unpack_from("=16xI8xI88xQ", info)
            return int(acked + sacked * size)
    return None


def give_up_after(connection: socket.socket, seconds: float) -> bool:
    """Have the system end the connection when sent bytes stay unacknowledged for that time.

    Linux can do that for TCP (RFC 5482).

    :param seconds: 0 for the system's own timeout, which is long.
    :returns: whether the system does so.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # a UNIX socket, or a connection that is lost already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
            return True
    return False


def attempts(connection: socket.socket) -> tuple[int, int, float]:
    """Return the system's unanswered attempts to reach the client, and the seconds since its last answer.

    There are two kinds of attempts: retransmissions (``tcpi_retransmits``) and requests for a larger window
    (``tcpi_probes``). The seconds are from ``tcpi_last_ack_recv``. A client that reads nothing, but whose kernel
    answers, has no unanswered attempts. Systems other than Linux have no ``struct tcp_info``, or a different one.
    """
    if sys.platform == "linux":
        with suppress(OSError, struct.error):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            retransmits, probes, milliseconds = struct.unpack_from("=2xBB52xI", info)
            return retransmits, probes, milliseconds / 1000
    return 0, 0, 0.0
