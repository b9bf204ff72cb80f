#!/bin/bash
# websockets: close() with unread messages ends with 1006, while the server sees a clean 1000
#
# Guess:     close() discards what was not read and ends with the code of the server's answer.
# Behaviour: With more than max_queue (16) unread frames the client has stopped reading its socket, and close() does not
#            resume it. The server's Close stays behind the unread messages. close() waits for close_timeout (10 s by
#            default), drops the connection and reports 1006. The server got its Close and reports 1000.
# Matters:   A client that only sends, or leaves early, closes slowly, and the two logs disagree on whether the close was
#            clean.
# Seen:      16 unread: client 1000, waited for close_timeout: no, server 1000
#            17 unread: client 1006, waited for close_timeout: yes, server 1000
# Versions:  websockets 17.4, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check websockets==17.4

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
import time

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

CLOSE_TIMEOUT = 2.0


async def close_with_unread(count):
    """Give the client's code, whether close() took its whole time-out, and the server's code."""
    server_code = asyncio.get_running_loop().create_future()

    async def handler(connection):
        for number in range(count):
            await connection.send(str(number))
        await connection.wait_closed()
        server_code.set_result(connection.close_code)

    async with serve(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await connect(f"ws://127.0.0.1:{port}", proxy=None, close_timeout=CLOSE_TIMEOUT)
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await client.close()
        waited = time.monotonic() - began >= CLOSE_TIMEOUT * 0.9
        return client.close_code, waited, await server_code


async def main():
    few, many = await close_with_unread(16), await close_with_unread(17)
    for count, (client, waited, server) in ((16, few), (17, many)):
        whole = "yes" if waited else "no"
        print(f"{count} unread: client {client}, waited for close_timeout: {whole}, server {server}")
    return few == (1000, False, 1000) and many == (1006, True, 1000)


if not asyncio.run(asyncio.wait_for(main(), 50)):
    sys.exit("The behaviour has changed.")
PYTHON
