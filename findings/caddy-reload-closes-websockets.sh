#!/bin/bash
# Caddy: a reload closes every WebSocket, and the server takes it for a protocol error
#
# Guess:     caddy reload is graceful: connections that are open continue with the old configuration.
# Behaviour: Each WebSocket through reverse_proxy is closed at once, whatever has changed in the configuration. The client gets
#            1001. The server gets a close frame without the mask that RFC 6455, section 5.1, requires of a client, and answers
#            1002, unless the client's own answer reaches it first.
# Matters:   Adding a site to the configuration disconnects all users of a chat at the same moment, and the server's log has
#            protocol errors that no client made. A client must reconnect after 1001, with waits that differ.
# Seen:      20 open before the reload, 0 after it; clients told 1001: 20; server sent 1001: 1, 1002: 19
# Versions:  Caddy 2.6.2 (Debian 12), websockets 17.4, Python 3.11
# Needs:     Caddy (Debian: caddy)
# Checked:   2026-11-28
set -euo pipefail
if ! command -v caddy >/dev/null; then
    echo "Caddy is missing." >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check websockets==17.4
cd "$folder"
export HOME=$folder XDG_DATA_HOME=$folder XDG_CONFIG_HOME=$folder

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import collections
import logging
import socket
import sys
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

COUNT = 20
CONFIGURATION = """{
    admin unix/%(folder)s/admin
    auto_https off
}
http://127.0.0.1:%(port)d {
    bind 127.0.0.1
    %(header)s
    reverse_proxy 127.0.0.1:%(server)d
}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def caddy(*arguments):
    quiet = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec("caddy", *arguments, stdout=quiet, stderr=quiet)


async def connect_when_ready(url):
    while True:
        try:
            return await connect(url, proxy=None)
        except OSError:
            await asyncio.sleep(0.1)


async def main():
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    at_server = collections.Counter()

    async def echo(connection):
        try:
            async for message in connection:
                await connection.send(message)
        except ConnectionClosed:
            pass
        at_server[connection.protocol.close_sent.code] += 1

    port = free_port()
    async with serve(echo, "127.0.0.1", 0) as server:
        values = {"folder": Path.cwd(), "port": port, "server": server.sockets[0].getsockname()[1]}
        file = Path("Caddyfile")
        file.write_text(CONFIGURATION % {**values, "header": ""})
        running = await caddy("run", "--config", "Caddyfile")
        try:
            clients = [await connect_when_ready(f"ws://127.0.0.1:{port}") for _ in range(COUNT)]
            for client in clients:
                await client.send("hello")
                await client.recv()
            file.write_text(CONFIGURATION % {**values, "header": "header X-New yes"})
            reload = await caddy("reload", "--config", "Caddyfile", "--address", f"unix/{Path.cwd()}/admin")
            for client in clients:
                await client.wait_closed()
            await reload.wait()
            while at_server.total() < COUNT:
                await asyncio.sleep(0.1)
        finally:
            running.terminate()
            await running.wait()
    at_clients = collections.Counter(client.close_code for client in clients)
    told, sent = (", ".join(f"{code}: {count}" for code, count in sorted(ends.items())) for ends in (at_clients, at_server))
    print(f"{COUNT} open before the reload, 0 after it; clients told {told}; server sent {sent}")
    return {*at_clients, *at_server} <= {1001, 1002}


if not asyncio.run(asyncio.wait_for(main(), 50)):
    sys.exit("The behaviour has changed.")
PYTHON
