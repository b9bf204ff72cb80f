#!/bin/bash
# picows: send_close() without arguments sends close code 0, which a peer must refuse
#
# Guess:     The default, WSCloseCode.NO_INFO, sends a Close with an empty payload, as RFC 6455 writes "no code".
# Behaviour: NO_INFO is 0 and is sent as a code of two bytes. Codes below 1000 are not used (RFC 6455, section 7.4.2), so
#            the peer fails the connection with 1002, a protocol error.
# Matters:   A clean close appears in the peer's log as a protocol error. Pass WSCloseCode.OK.
# Seen:      by default: bytes of the Close 88020000; websockets answered 1002 invalid status code
#            with WSCloseCode.OK: bytes of the Close 880203e8; websockets answered 1000
# Versions:  picows 2.3.1, websockets 17.4, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check picows==2.3.1 websockets==17.4

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys

from picows import WSCloseCode, WSListener, ws_create_server
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def close(arguments):
    """Give the bytes of the server's Close, and the code and reason with which websockets answers it."""

    class Listener(WSListener):
        def on_ws_connected(self, transport):
            transport.send_close(*arguments)

        def on_ws_frame(self, transport, frame):
            transport.disconnect()

    server = await ws_create_server(lambda request: Listener(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    frame = await reader.readexactly(4)
    writer.close()
    client = await connect(f"ws://127.0.0.1:{port}", proxy=None, close_timeout=5)
    try:
        await client.recv()
    except ConnectionClosed as closed:
        answer = closed.sent
    server.close()
    return frame.hex(), answer.code, answer.reason


async def main():
    default, ok = await close(()), await close((WSCloseCode.OK,))
    for name, (frame, code, reason) in (("by default", default), ("with WSCloseCode.OK", ok)):
        print(f"{name}: bytes of the Close {frame}; websockets answered {code} {reason}".rstrip())
    return default[:2] == ("88020000", 1002) and ok[:2] == ("880203e8", 1000)


if not asyncio.run(asyncio.wait_for(main(), 50)):
    sys.exit("The behaviour has changed.")
PYTHON
