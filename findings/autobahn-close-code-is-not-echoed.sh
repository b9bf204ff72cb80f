#!/bin/bash
# Autobahn: a server answers every close code with 1000
#
# Guess:     A server that receives Close 4500 answers with 4500, as RFC 6455, section 5.5.1, calls typical.
# Behaviour: Autobahn answers 1000 to any code, unless the option echoCloseCodeReason is set. The server's own onClose is
#            told the right code.
# Matters:   The client that closed reads the code of the answer, so the two ends log different reasons for one close.
#            A client that sorts its own closes by code takes each of them for a normal one.
# Seen:      Autobahn: server told 4500, client told 1000
#            Autobahn with echoCloseCodeReason: server told 4500, client told 4500
#            websockets: server told 4500, client told 4500
# Versions:  autobahn 26.10.2, websockets 17.4, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check autobahn==26.10.2 websockets==17.4

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys

from autobahn.asyncio.websocket import WebSocketServerFactory, WebSocketServerProtocol
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve


async def close_with_4500(port):
    """Give the code that the client ends with."""
    async with connect(f"ws://127.0.0.1:{port}", proxy=None) as client:
        await client.close(4500, "enough")
    return client.close_code


async def autobahn(echo):
    loop = asyncio.get_running_loop()
    told = loop.create_future()

    class Protocol(WebSocketServerProtocol):
        def onClose(self, wasClean, code, reason):
            told.set_result(code)

    factory = WebSocketServerFactory(loop=loop)
    factory.protocol = Protocol
    factory.setProtocolOptions(echoCloseCodeReason=echo)
    server = await loop.create_server(factory, "127.0.0.1", 0)
    client = await close_with_4500(server.sockets[0].getsockname()[1])
    code = await told
    server.close()
    return code, client


async def websockets():
    told = asyncio.get_running_loop().create_future()

    async def handler(connection):
        await connection.wait_closed()
        told.set_result(connection.close_code)

    async with serve(handler, "127.0.0.1", 0) as server:
        client = await close_with_4500(server.sockets[0].getsockname()[1])
        return await told, client


async def main():
    plain, echoing, other = await autobahn(False), await autobahn(True), await websockets()
    for name, codes in (("Autobahn", plain), ("Autobahn with echoCloseCodeReason", echoing), ("websockets", other)):
        print("{}: server told {}, client told {}".format(name, *codes))
    return (plain, echoing, other) == ((4500, 1000), (4500, 4500), (4500, 4500))


if not asyncio.run(asyncio.wait_for(main(), 30)):
    sys.exit("The behaviour has changed.")
PYTHON
