"""RFC 6455 as a client speaks it: opening handshakes and masked frames out, the relay's frames in.

Every test encodes and decodes with this module. It shares no code with the relay.
"""

from __future__ import annotations

from collections.abc import Iterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
"""Opcodes (section 5.2)."""

FIN = 0x80
COMPRESSED = 0x40
"""Bits of a frame's first byte: the last frame of its message; a compressed message (RFC 7692, section 6)."""

MASK = b"\x37\xfa\x21\x3d"


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Encode a client's frame (section 5.2).

    :param fin: whether it is the last of its message.
    :param rsv: the three reserved bits; 4 marks a compressed message.
    :param masked: False for what only a server may send.
    """
    size = len(payload)
    bit = 0x80 if masked else 0
    first = (FIN if fin else 0) | rsv << 4 | opcode
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    # One operation on integers of that many bytes: a loop over bytes would be slower than the relay.
    key = int.from_bytes((MASK * (size // 4 + 1))[:size], "big")
    return head + MASK + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def close_frame(code: int | None = 1000, reason: str = "", *, masked: bool = True) -> bytes:
    """Encode a close frame (section 5.5.1); None is one without a code."""
    payload = b"" if code is None else code.to_bytes(2, "big") + reason.encode()
    return frame(payload, CLOSE, masked=masked)


def fragments(payload: bytes, count: int, *, rsv: int = 0) -> bytes:
    """Encode a text message in this many frames; the last ones are empty where it is too short.

    :param rsv: the reserved bits of the first frame.
    """
    size = -(-len(payload) // count)
    return b"".join(
        frame(
            payload[number * size : (number + 1) * size],
            CONTINUATION if number else TEXT,
            fin=number == count - 1,
            rsv=0 if number else rsv,
        )
        for number in range(count)
    )


def split(stream: bytes, start: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """Decode the server's whole frames in a stream: (first byte, payload, where it ends). Leave a frame that is cut off.

    :param start: where in the stream the first frame begins.
    """
    size = len(stream)
    while start + 2 <= size:
        length, payload = stream[start + 1], start + 2
        if length >= 126:
            payload += 2 if length == 126 else 8
            if size < payload:
                break
            length = int.from_bytes(stream[start + 2 : payload], "big")
        end = payload + length
        if size < end:
            break
        yield stream[start], stream[payload:end], end
        start = end


def frames(stream: bytes) -> list[tuple[int, bytes]]:
    """Decode a stream of whole frames: (opcode, payload).

    :raises AssertionError: where the last frame is cut off.
    """
    found, end = [], 0
    for first, payload, end in split(stream):  # noqa: B007
        found.append((first & 15, payload))
    assert end == len(stream), f"half a frame: {stream[end:]!r}"
    return found


class Decoder:
    """Decodes a stream that comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames that these bytes complete: (first byte, payload)."""
        self._rest += data
        found, end = [], 0
        for first, payload, end in split(self._rest):  # noqa: B007
            found.append((first, payload))
        self._rest = self._rest[end:]
        return found


def close_code(payload: bytes) -> int:
    """Decode the code of a close frame; 1005 where it has none (section 7.1.5)."""
    return int.from_bytes(payload[:2], "big") if payload else 1005


def handshake(*headers: str, target: str = "/") -> bytes:
    """Encode an opening handshake (section 1.3).

    :param headers: more header lines. Lone surrogates stand for bytes that are not UTF-8, here and in the target.
    """
    lines = (
        f"GET {target} HTTP/1.1",
        "Host: relay.example",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    )
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"


HANDSHAKE = handshake()

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
"""The header that offers compression (RFC 7692, section 7)."""
