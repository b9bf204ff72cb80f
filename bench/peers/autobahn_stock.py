"""Peer: Autobahn and Twisted as their documentation shows them, with Python's own json.

chatrelay is built on both. Nothing is optimised here.

    python bench/peers/autobahn_stock.py PORT
"""

from __future__ import annotations

import json
import sys
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

MEMBERS: dict[str, list[Peer]] = {}


class Peer(WebSocketServerProtocol):
    """One connection."""

    uid: str | None = None

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        request = json.loads(payload)
        if request["type"] == "auth-request":
            self.uid = request["SESSID"]
            MEMBERS.setdefault(self.uid, []).append(self)
            self.say({"type": "auth-response", "response": True})
        elif request["type"] == "message-send-request" and self.uid is not None:
            message = request["message"]
            to_uid = message["touID"]
            members = MEMBERS.get(str(to_uid), ())
            answer = {"id": request["id"], "value": bool(members)}
            if members:
                delivery = {
                    "timeStamp": message["timeStamp"],
                    "fromuID": self.uid,
                    "touID": to_uid,
                    "content": message["content"],
                }
                frame = encode({"type": "message", "message": delivery})
                for member in members:
                    member.sendMessage(frame)
            else:
                answer["reason"] = "receiving-user-not-connected"
            self.say({"type": "send-request-response", "response": answer})

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.uid is not None:
            MEMBERS[self.uid].remove(self)

    def say(self, frame: Any) -> None:
        self.sendMessage(encode(frame))


def encode(frame: Any) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode()


def main(port: int) -> None:
    from twisted.internet import reactor

    factory = WebSocketServerFactory()
    factory.protocol = Peer
    reactor.listenTCP(port, factory, backlog=511, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
