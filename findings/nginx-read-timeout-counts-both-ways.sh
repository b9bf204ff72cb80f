#!/bin/bash
# nginx: after an upgrade, what the client sends keeps proxy_read_timeout from ending the connection
#
# Guess:     proxy_read_timeout, set between two successive reads from the proxied server, ends a WebSocket whose server is
#            silent for that long.
# Behaviour: Bytes from either side restart the time-out. A server that answers nothing is not noticed while its client
#            keeps sending.
# Matters:   The time-out does not check that the server behind the proxy still works. Client and server need pings of their
#            own, and a client must look for the answer.
# Seen:      both silent: ended by nginx
#            the client sends, the server is silent for 4 time-outs: open
# Versions:  nginx 1.22.1
# Needs:     nginx (Debian: nginx)
# Checked:   2026-11-27
set -euo pipefail
PATH=$PATH:/usr/sbin
if ! command -v nginx >/dev/null; then
    echo "nginx is missing." >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

timeout 60 "${PYTHON:-python3}" - "$folder" <<'PYTHON'
import asyncio
import pathlib
import socket
import subprocess
import sys
import time

FOLDER = pathlib.Path(sys.argv[1])
TIMEOUT = 1
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout {timeout}s;
        }}
    }}
}}
"""


async def silent_server(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + UPGRADE)
    while await reader.read(1000):
        pass
    writer.close()


async def connect(port):
    deadline = time.monotonic() + 10
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101"), head
    return reader, writer


async def is_open(port, sends, seconds):
    """Tell whether the connection is open after this time."""
    reader, writer = await connect(port)
    end = asyncio.ensure_future(reader.read())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not end.done():
        if sends:
            writer.write(b"x")
        await asyncio.sleep(TIMEOUT / 5)
    still_open = not end.done()
    end.cancel()
    writer.close()
    return still_open


async def main():
    server = await asyncio.start_server(silent_server, "127.0.0.1", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = FOLDER / "nginx.conf"
    server_port = server.sockets[0].getsockname()[1]
    file.write_text(CONFIGURATION.format(folder=FOLDER, port=port, server=server_port, timeout=TIMEOUT))
    nginx = subprocess.Popen(["nginx", "-e", FOLDER / "errors", "-c", file])
    try:
        idle = await is_open(port, sends=False, seconds=8 * TIMEOUT)
        busy = await is_open(port, sends=True, seconds=4 * TIMEOUT)
    finally:
        nginx.terminate()
        nginx.wait(10)
        server.close()
    print("both silent:", "open" if idle else "ended by nginx")
    print("the client sends, the server is silent for 4 time-outs:", "open" if busy else "ended by nginx")
    return not idle and busy


subprocess.run(["nginx", "-v"], check=True)
if not asyncio.run(asyncio.wait_for(main(), 50)):
    sys.exit("The behaviour has changed.")
PYTHON
