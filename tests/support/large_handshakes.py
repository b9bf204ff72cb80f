"""Opening handshakes as large as the relay accepts."""

from __future__ import annotations

from chatrelay.wire.request_head import MAX_PARTS
from tests.support.frames import DEFLATE

FILL = 15_000
"""Bytes of a value that is large, and fits into a handshake."""

PAGE = "Origin: https://example.com"

HANDSHAKES: dict[str, tuple[str, list[str]]] = {
    "many headers": ("/", [f"x{number}: {number:0120}" for number in range(MAX_PARTS - 6)]),
    "a long header": ("/", ["User-Agent: " + "x" * FILL]),
    "a long origin": ("/", ["Origin: https://" + "x" * FILL + ".example"]),
    "a cookie that is not ours": ("/", [PAGE, "Cookie: other=" + "x" * FILL]),
    "a long path": ("/" + "x" * FILL, []),
    "many query parameters": ("/?" + "&".join(f"{number}={number:0100}" for number in range(MAX_PARTS)), []),
    "many subprotocols": (
        "/",
        ["Sec-WebSocket-Protocol: chatrelay.v1, " + ", ".join(f"{number:0100}" for number in range(MAX_PARTS - 1))],
    ),
    "many extensions": (
        "/",
        ["Sec-WebSocket-Extensions: " + ", ".join(f"x{number}; a={number:0100}" for number in range(MAX_PARTS // 2))],
    ),
    "compressed, with many headers": ("/", [DEFLATE, *(f"x{number}: {number:0120}" for number in range(90))]),
}
"""A description of each handshake, its target, and its headers besides the required ones."""
