"""Peer: the library websockets on asyncio, as its documentation shows it, with Python's own json.

Compression is off, because the load generator does not offer it.

    python bench/peers/websockets_asyncio.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

MEMBERS: dict[str, list[ServerConnection]] = {}


async def peer(connection: ServerConnection) -> None:
    uid: str | None = None
    try:
        async for text in connection:
            request = json.loads(text)
            if request["type"] == "auth-request":
                uid = str(request["SESSID"])
                MEMBERS.setdefault(uid, []).append(connection)
                await connection.send(encode({"type": "auth-response", "response": True}))
            elif request["type"] == "message-send-request" and uid is not None:
                message = request["message"]
                to_uid = message["touID"]
                members = MEMBERS.get(str(to_uid), ())
                answer = {"id": request["id"], "value": bool(members)}
                if members:
                    delivery = {
                        "timeStamp": message["timeStamp"],
                        "fromuID": uid,
                        "touID": to_uid,
                        "content": message["content"],
                    }
                    frame = encode({"type": "message", "message": delivery})
                    for member in members:
                        await member.send(frame)
                else:
                    answer["reason"] = "receiving-user-not-connected"
                await connection.send(encode({"type": "send-request-response", "response": answer}))
    except ConnectionClosed:
        pass
    finally:
        if uid is not None:
            MEMBERS[uid].remove(connection)


def encode(frame: Any) -> str:
    return json.dumps(frame, separators=(",", ":"))


async def main(port: int) -> None:
    async with serve(peer, "127.0.0.1", port, compression=None, backlog=511) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
