"""A client made by hand, byte by byte, that can break off anywhere; and what the relay's process takes up meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.end_to_end.saturation import CLOSE, HANDSHAKE, TEXT, masked

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as not happening, on a machine that has much to do."""


PACKED, PACKED_END = TEXT | 0x40, b"\0\0\xff\xff"
"""The first byte of a text frame that is compressed, and what is left out at its end (RFC 7692, sections 6 and 7.2.1)."""


class Caller:
    """One connection to a relay; close it, or leave by `abort`.

    :param port: the relay's.
    :param address: where it comes from: any of 127.0.0.0/8.
    :param tls: how it speaks TLS; None for not at all.
    """

    def __init__(self, port: int, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._address = address
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls, "ssl_shutdown_timeout": 2}
        self._unpacked = zlib.decompressobj(-zlib.MAX_WBITS)

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
        offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n" if compression else b"\r\n"
        self.writer.write(HANDSHAKE[:-2] + offer)
        async with asyncio.timeout(PATIENCE):
            answer = await self.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        assert (b"permessage-deflate" in answer) is compression, answer

    def say(self, value: object) -> None:
        """Send one message, as JSON."""
        self.writer.write(masked(TEXT, json.dumps(value).encode()))

    def say_packed(self, value: object) -> None:
        """Send one message, as JSON, compressed."""
        packing = zlib.compressobj(wbits=-9)  # any receiver has that much of a window
        packed = packing.compress(json.dumps(value).encode()) + packing.flush(zlib.Z_SYNC_FLUSH)
        self.writer.write(masked(PACKED, packed.removesuffix(PACKED_END)))

    def say_close(self, code: int = 1000) -> None:
        """Send a close frame."""
        self.writer.write(masked(CLOSE, struct.pack("!H", code)))

    async def hear(self) -> Any:
        """The next message, as JSON; or the close code, None for an end without one. Pongs are passed over."""
        async with asyncio.timeout(PATIENCE):
            try:
                while True:
                    first, size = await self.reader.readexactly(2)
                    if size == 126:
                        (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                    payload = await self.reader.readexactly(size)
                    if first == TEXT:
                        return json.loads(payload)
                    if first == PACKED:
                        return json.loads(self._unpacked.decompress(payload + PACKED_END))
                    if first == CLOSE:
                        return struct.unpack_from("!H", payload)[0]
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def answer(self, type: str) -> Any:
        """The next message of this type, others' passed over; or the close code, None for an end without one."""
        while True:
            heard = await self.hear()
            if not isinstance(heard, dict) or heard["type"] == type:
                return heard

    async def closed(self) -> int | None:
        """Wait for a close frame; its code, or None for an end without one."""
        heard: int | None = await self.answer("close")
        return heard

    async def cut(self) -> None:
        """Wait until there is no connection any more."""
        while await self.hear() is not None:
            pass

    async def log_in(self, sessid: str) -> Any:
        """Ask to be logged in; the answer."""
        self.say({"type": "auth-request", "SESSID": sessid})
        return await self.answer("auth-response")

    def send(self, to: str, content: str, id: int = 1, packed: bool = False) -> None:
        """Send a message-send-request."""
        message = {"timeStamp": 0, "touID": to, "content": content}
        (self.say_packed if packed else self.say)({"type": "message-send-request", "id": id, "message": message})

    def close_half(self) -> None:
        """Send no more, and read on. (In TLS that is no goodbye, but its end.)"""
        self.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """End it with a reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def forget_peak(pid: int) -> None:
    """From here on `peak` counts."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")


def peak(pid: int) -> int:
    """Bytes of memory that a process had at most."""
    line = next(
        line for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    user, system = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
