"""A program with many users who log in and then send nothing: ``python -m tests.trials.away URL SESSID…``.

It prints a line when all are logged in, and then only reads. It runs where its network can be taken down.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def log_in(url: str, sessids: list[str]) -> None:
    """Log in by all of these sessions, and read until the connections end."""
    sockets = []
    for sessid in sessids:
        socket = await connect(url, proxy=None, compression=None, ping_interval=None)
        sockets.append(socket)
        await socket.send(json.dumps({"type": "auth-request", "SESSID": sessid}))
        assert json.loads(await socket.recv())["response"] is True
    print("in", flush=True)
    with suppress(ConnectionClosed):
        await asyncio.gather(*(socket.recv() for socket in sockets))


if __name__ == "__main__":
    asyncio.run(log_in(sys.argv[1], sys.argv[2:]))
