"""The kernel's send queue of one connection: bound it, and read what it holds.

It knows sockets and options of Linux. This module must not know what waits in the process, what a frame is, or what
follows from an answer.

The queue holds what the process has written and the client's kernel has not acknowledged. On a UNIX socket it holds
what the client has not read.
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
"""The send buffer gets this part of a budget. Linux doubles it, to have room for its own bookkeeping."""

MAX_OVERSHOOT = 128 * 1024
"""Bytes that Linux takes beyond a send buffer. It checks the bound before it fills a segment. 77 KB were seen."""

MAX_BUFFER = 2**31 - 1
"""Bytes of a send buffer: setsockopt(2) takes an int. The system has a lower bound of its own."""

TCP_INFO_SIZE = 128
"""Bytes of ``struct tcp_info`` that are read; Linux has had them since 4.1."""


def bound(connection: socket.socket, budget: int) -> int:
    """Bound the send queue by a part of a budget. That ends the kernel's own tuning of it.

    :param budget: bytes, 1 or more.
    :returns: how many bytes the queue can hold.
    """
    with suppress(OSError):  # the connection is lost already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(budget // BUDGET_DIVISOR, MAX_BUFFER))
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + MAX_OVERSHOOT
    return MAX_OVERSHOOT


def unacknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the queue holds (SIOCOUTQ, tcp(7) and unix(7)); None where the system does not tell."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError):  # the socket is closed
            return int.from_bytes(ioctl(connection, TIOCOUTQ, bytes(4)), sys.byteorder)
    return None


def acknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the client's kernel has acknowledged in all; None where the system does not tell.

    They are ``tcpi_bytes_acked`` and, for what came after a lost segment, about ``tcpi_sacked`` segments of
    ``tcpi_snd_mss``. A UNIX socket has none of these.
    """
    if sys.platform == "linux":
        with suppress(OSError, struct.error):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            size, sacked, acked = struct.unpack_from("=16xI8xI88xQ", info)
            return int(acked + sacked * size)
    return None


def give_up_after(connection: socket.socket, seconds: float) -> bool:
    """Have the system end the connection when what was sent stays unacknowledged for so long.

    Linux can do that for TCP (RFC 5482).

    :param seconds: 0 for the system's own timeout, which is long.
    :returns: whether the system does so.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # a UNIX socket, or a client that has left already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
            return True
    return False


def attempts(connection: socket.socket) -> tuple[int, int, float]:
    """Return the system's unanswered attempts to reach the client, and the seconds since its last answer.

    The attempts are those to send something again (``tcpi_retransmits``) and the requests for a larger window
    (``tcpi_probes``); the seconds are from ``tcpi_last_ack_recv``. A client that reads nothing, but whose kernel
    answers, has no unanswered attempts. Other systems have no such struct, or a different one of that name.
    """
    if sys.platform == "linux":
        with suppress(OSError, struct.error):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            retransmits, probes, milliseconds = struct.unpack_from("=2xBB52xI", info)
            return retransmits, probes, milliseconds / 1000
    return 0, 0, 0.0
