"""A connection of the load generator that speaks v2; see `bench.load.Member`.

Each message has an id of its own, as long as a UUID. No ``received`` frames are sent. Places must come in ascending
order and without a hole, and once a message of the other user has come, answers must say ``delivered``. So a relay that
is fast because it forgets something fails here.
"""

from __future__ import annotations

import json
from typing import ClassVar, Literal

import msgspec

from bench.load import CONTENT, READ_INTO, Busy, Load, Member, Trouble, masked


class _Inside(msgspec.Struct, rename={"time_stamp": "timeStamp", "sender": "fromuID", "recipient": "touID"}):
    time_stamp: str
    sender: str
    recipient: str
    content: str


class _Delivery(msgspec.Struct, tag_field="type", tag="message"):
    n: int
    at: int
    id: str
    message: _Inside


class _Outcome(msgspec.Struct):
    id: str
    value: bool  # an answer without a place is not read, so it is True
    n: int
    at: int
    delivery: Literal["delivered", "stored"]


class _Answer(msgspec.Struct, tag_field="type", tag="send-request-response"):
    response: _Outcome


class _Login(msgspec.Struct, tag_field="type", tag="auth-response"):
    response: bool  # as above
    n: int


class _Resume(msgspec.Struct, tag_field="type", tag="resume"):
    resume: str


_decode = msgspec.json.Decoder(_Delivery | _Answer | _Login | _Resume).decode


def message_id(number: str) -> str:
    """Return the id of a message with this number. All ids have the length and form of a UUID."""
    return f"00000000-0000-4000-8000-{number:>012}"


class MemberV2(Member):
    """One connection of a user who writes to one other user by v2.

    :ivar place: the last place that came.
    :ivar has_heard: whether a message of the other user has come.
    """

    headers: ClassVar[dict[str, str]] = {"Sec-WebSocket-Protocol": "chatrelay.v2"}

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(load, number)
        self.place = 0
        self.has_heard = False

    def request(self, number: str) -> bytes:
        """Return the frame that sends a message."""
        message = {"timeStamp": number, "touID": self.to_uid, "content": CONTENT}
        request = {"type": "message-send-request", "id": message_id(number), "message": message}
        return json.dumps(request, separators=(",", ":")).encode()

    def meaning(self, payload: bytes) -> tuple[str, str]:
        """Decode a frame, and check its place; see `Member.meaning`."""
        frame = _decode(payload)
        if isinstance(frame, _Delivery):
            if frame.n != self.place + 1:
                raise Trouble(f"place {frame.n} came after place {self.place}")
            self.place = frame.n
            inside = frame.message
            if (inside.sender, inside.recipient, inside.content) == (self.to_uid, self.uid, CONTENT):
                self.has_heard = True
                return "delivery", inside.time_stamp
            # While people get to know each other, an answer may wait, and its place comes as one's own message.
            if inside.sender != self.uid:
                raise Trouble("an unexpected message")
            return "", ""
        if isinstance(frame, _Answer):
            outcome = frame.response
            if outcome.delivery != "delivered" and self.has_heard:
                raise Trouble("the other user is known, and the answer does not say that the message was delivered")
            if outcome.n == self.place + 1:
                self.place = outcome.n
            return "answer", outcome.id[-12:].lstrip("0") or "0"
        if isinstance(frame, _Login):
            self.place = frame.n
            return "login", ""
        return "", ""


class BusyV2(Busy):
    """A connection that is kept busy. Every frame is decoded, because no two are alike."""

    __slots__ = ("_last_number",)

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        self._last_number = self._load.plan.in_flight - 1  # those before are in `_requests`

    def buffer_updated(self, size: int) -> None:
        """Count the frames in the bytes that were read, and send further messages. asyncio calls this."""
        payloads, self._rest = frames_of(self._rest + bytes(READ_INTO[:size]))
        load, member = self._load, self._member
        answers = 0
        for payload in payloads:
            try:
                what, _ = member.meaning(payload)
            except Exception as error:
                load.fail(f"{member.uid} got {payload!r}: {error!r}")
                return
            answers += what == "answer"
            load.deliveries += what == "delivery"
        load.answers += answers
        if answers and load.running:
            load.sent += answers
            first = self._last_number + 1
            self._last_number += answers
            numbers = map(str, range(first, first + answers))
            self._write(b"".join([masked(member.opcode.value, member.request(number)) for number in numbers]))


def frames_of(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the payloads of a server's text frames, and the bytes of a frame that is not complete.

    :raises Trouble: for another kind of frame.
    """
    payloads = []
    start, size = 0, len(data)
    while size - start >= 2:
        if data[start] != 0x81:
            raise Trouble(f"a frame that begins with {data[start]:#x}")
        length, payload = data[start + 1], start + 2
        if length >= 126:
            payload += 2 if length == 126 else 8
            if size < payload:
                break
            length = int.from_bytes(data[start + 2 : payload], "big")
        if size < payload + length:
            break
        payloads.append(data[payload : payload + length])
        start = payload + length
    return payloads, data[start:]
