"""Peer: aiohttp on uvloop, as its documentation shows it, with Python's own json.

python bench/peers/aiohttp_uvloop.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop
from aiohttp import WSMsgType, web

MEMBERS: dict[str, list[web.WebSocketResponse]] = {}


async def peer(http_request: web.Request) -> web.WebSocketResponse:
    connection = web.WebSocketResponse(compress=False)
    await connection.prepare(http_request)
    uid: str | None = None
    try:
        async for received in connection:
            if received.type is not WSMsgType.TEXT:
                continue
            request = json.loads(received.data)
            if request["type"] == "auth-request":
                uid = str(request["SESSID"])
                MEMBERS.setdefault(uid, []).append(connection)
                await connection.send_str(encode({"type": "auth-response", "response": True}))
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
                        await member.send_str(frame)
                else:
                    answer["reason"] = "receiving-user-not-connected"
                await connection.send_str(encode({"type": "send-request-response", "response": answer}))
    except ConnectionError:  # the client disconnected while the server wrote to it
        pass
    finally:
        if uid is not None:
            MEMBERS[uid].remove(connection)
    return connection


def encode(frame: Any) -> str:
    return json.dumps(frame, separators=(",", ":"))


async def main(port: int) -> None:
    application = web.Application()
    application.router.add_get("/", peer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=511).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
