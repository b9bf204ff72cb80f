#!/bin/bash
# websockets: ws://127.0.0.1 goes through the proxy that https_proxy names
#
# Guess:     https_proxy concerns TLS alone, and a connection to the loopback address needs no proxy.
# Behaviour: connect() takes the proxy of https_proxy, or of http_proxy, for a plain ws:// URL and for 127.0.0.1, too. It
#            sends CONNECT to it. Python's own urllib connects to the same address directly. proxy=None or
#            no_proxy=127.0.0.1 turns it off.
# Matters:   A test suite or a health check that talks to a server on its own machine fails on a machine with a proxy, and
#            shows a proxy the address.
# Seen:      websockets, https_proxy: the proxy got CONNECT 127.0.0.1:PORT HTTP/1.1
#            urllib, https_proxy: direct
#            websockets, https_proxy and no_proxy: direct
# Versions:  websockets 17.4, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check websockets==17.4

unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY ws_proxy wss_proxy socks_proxy
timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import http
import os
import sys
import urllib.request

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import InvalidProxyStatus


async def main():
    asked = []

    async def refuse(reader, writer):
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode())
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    def plain_http(connection, request):
        if "Upgrade" not in request.headers:
            return connection.respond(http.HTTPStatus.OK, "hello")

    async def websocket(url):
        asked.clear()
        try:
            async with connect(url):
                pass
        except InvalidProxyStatus:
            pass
        return asked[0] if asked else None

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with serve(echo, "127.0.0.1", 0, process_request=plain_http) as server:
        port = server.sockets[0].getsockname()[1]
        os.environ["https_proxy"] = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        through = await websocket(f"ws://127.0.0.1:{port}")
        asked.clear()
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10).read())
        urllib_asked = list(asked)
        os.environ["no_proxy"] = "127.0.0.1"
        exempt = await websocket(f"ws://127.0.0.1:{port}")
    proxy.close()

    print("websockets, https_proxy:", f"the proxy got {through}" if through else "direct")
    print("urllib, https_proxy:", f"the proxy got {urllib_asked}" if urllib_asked else "direct")
    print("websockets, https_proxy and no_proxy:", f"the proxy got {exempt}" if exempt else "direct")
    return through == f"CONNECT 127.0.0.1:{port} HTTP/1.1" and body == b"hello" and not urllib_asked and exempt is None


if not asyncio.run(asyncio.wait_for(main(), 50)):
    sys.exit("The behaviour has changed.")
PYTHON
