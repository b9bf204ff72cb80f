"""Peer: picows (WebSocket in Cython) on uvloop, with msgspec (JSON in C): about the lowest cost in Python.

Fragmented messages are not joined, because the load generator sends none.

    python bench/peers/picows_msgspec.py PORT
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server


class AuthRequest(msgspec.Struct, tag_field="type", tag="auth-request", gc=False):
    sessid: str = msgspec.field(name="SESSID")


class Outgoing(msgspec.Struct, gc=False):
    timeStamp: str | int
    touID: str | int
    content: str


class SendRequest(msgspec.Struct, tag_field="type", tag="message-send-request", gc=False):
    id: str | int
    message: Outgoing


class Delivered(msgspec.Struct, gc=False):
    timeStamp: str | int
    fromuID: str
    touID: str | int
    content: str


class Message(msgspec.Struct, tag_field="type", tag="message", gc=False):
    message: Delivered


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    id: str | int
    value: bool
    reason: str = ""


class SendResponse(msgspec.Struct, tag_field="type", tag="send-request-response", gc=False):
    response: Answer


MEMBERS: dict[str, list[WSTransport]] = {}
decode = msgspec.json.Decoder(AuthRequest | SendRequest).decode
encode = msgspec.json.Encoder().encode


class Peer(WSListener):
    """One connection."""

    uid: str | None = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        request = decode(frame.get_payload_as_memoryview())
        if isinstance(request, AuthRequest):
            self.uid = request.sessid
            MEMBERS.setdefault(self.uid, []).append(transport)
            transport.send(WSMsgType.TEXT, b'{"type":"auth-response","response":true}')
        elif self.uid is not None:
            message = request.message
            members = MEMBERS.get(str(message.touID))
            if members:
                delivery = encode(Message(Delivered(message.timeStamp, self.uid, message.touID, message.content)))
                for member in members:
                    member.send(WSMsgType.TEXT, delivery)
                answer = Answer(request.id, True)
            else:
                answer = Answer(request.id, False, "receiving-user-not-connected")
            transport.send(WSMsgType.TEXT, encode(SendResponse(answer)))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.uid is not None:
            MEMBERS[self.uid].remove(transport)


def new_peer(request: WSUpgradeRequest) -> WSListener:
    return Peer()


async def main(port: int) -> None:
    server = await ws_create_server(new_peer, "127.0.0.1", port, backlog=511)
    await asyncio.shield(server.serve_forever())


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
