"""A site whose session page accepts any SESSID, and answers with the SESSID as the uID.

This is a minimal HTTP server in a separate process. It runs on the load generator's core, so it must use little CPU
time. It supports only HTTP/1.1 with kept connections, and POST with a Content-Length.

    python -m bench.webserver PORT
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast
from urllib.parse import parse_qs

import uvloop

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Questions(asyncio.Protocol):
    """A connection on which a relay sends requests."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            length = CONTENT_LENGTH.search(head + b"\r\n")
            size = int(length[1]) if length else 0
            if not end or len(rest) < size:
                return
            self._data = rest[size:]
            self.ask(rest[:size])

    def ask(self, body: bytes) -> None:
        """Answer a request."""
        self.transport.write(answer(body))


def answer(body: bytes) -> bytes:
    """Return the complete response to a posted form."""
    sessid = parse_qs(body.decode()).get("SESSID", [""])[0]
    verdict = json.dumps({"loggedin": True, "uID": sessid} if sessid else {"loggedin": False}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(verdict)}\r\n\r\n"
    return head.encode() + verdict


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Questions, "127.0.0.1", port, backlog=511)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
