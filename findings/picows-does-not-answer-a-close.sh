#!/bin/bash
# picows: a server that handles only text does not answer the client's Close
#
# Guess:     The library answers a Close frame and ends the connection (RFC 6455, section 5.5.1), as it answers pings.
# Behaviour: A Close frame comes to on_ws_frame() like any other frame. A listener that handles only TEXT leaves it there: the
#            client waits until its own time-out and reports 1006. The listener has to send the Close and disconnect.
# Matters:   Every client closes slowly and reports an abnormal end, while messages work as they should.
# Seen:      only TEXT handled: client 1006, waited for close_timeout: yes
#            CLOSE handled, too: client 1000, waited for close_timeout: no
# Versions:  picows 2.3.1, websockets 17.4, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check picows==2.3.1 websockets==17.4

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
import time

from picows import WSListener, WSMsgType, ws_create_server
from websockets.asyncio.client import connect

CLOSE_TIMEOUT = 2.0


class OnlyText(WSListener):
    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_bytes())


class WithClose(OnlyText):
    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


async def close(listener):
    """Give the client's code, and whether close() took its whole time-out."""
    server = await ws_create_server(lambda request: listener(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = await connect(f"ws://127.0.0.1:{port}", proxy=None, close_timeout=CLOSE_TIMEOUT)
    await client.send("hello")
    await client.recv()
    began = time.monotonic()
    await client.close()
    waited = time.monotonic() - began >= CLOSE_TIMEOUT * 0.9
    server.close()
    return client.close_code, "yes" if waited else "no"


async def main():
    only_text, with_close = await close(OnlyText), await close(WithClose)
    print("only TEXT handled: client {}, waited for close_timeout: {}".format(*only_text))
    print("CLOSE handled, too: client {}, waited for close_timeout: {}".format(*with_close))
    return (only_text, with_close) == ((1006, "yes"), (1000, "no"))


if not asyncio.run(asyncio.wait_for(main(), 30)):
    sys.exit("The behaviour has changed.")
PYTHON
