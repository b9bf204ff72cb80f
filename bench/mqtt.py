"""The load generator's part for Mosquitto: the same job in MQTT 3.1.1 over WebSocket.

Each connection subscribes to its own topic (QoS 0: deliveries are not acknowledged) and publishes to its partner's
(QoS 1: publications are acknowledged). Mosquitto acknowledges a message as soon as it has accepted it, and does not
report whether anybody got it.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from picows import WSMsgType

from bench.load import CONTENT, Member, Trouble

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
QOS_1 = 0x02


def packet(head: int, body: bytes) -> bytes:
    """Return a control packet of up to 16,383 bytes (MQTT 3.1.1, section 2.2)."""
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([size % 128 | 128, size // 128])
    return bytes([head]) + length + body


def text(value: str) -> bytes:
    """Return a string after its length (section 1.5.3)."""
    encoded = value.encode()
    return struct.pack("!H", len(encoded)) + encoded


def body_of(whole: bytes) -> bytes:
    """Return the part of a packet after its length.

    :raises Trouble: if there is not exactly one complete packet.
    """
    start, size = (2, whole[1]) if whole[1] < 128 else (3, whole[1] % 128 + 128 * whole[2])
    if len(whole) != start + size:
        raise Trouble("a frame that is not exactly one packet")
    return whole[start:]


class MqttMember(Member):
    """One connection of a user."""

    path: ClassVar[str] = "/mqtt"
    headers: ClassVar[dict[str, str]] = {"Sec-WebSocket-Protocol": "mqtt"}
    opcode: ClassVar[WSMsgType] = WSMsgType.BINARY

    def log_in(self) -> None:
        """Connect with a clean session (section 3.1) and subscribe (section 3.8)."""
        connect = text("MQTT") + bytes([4, QOS_1]) + struct.pack("!H", 0) + text(self.uid)
        subscribe = struct.pack("!H", 1) + text(f"to/{self.uid}") + bytes([0])
        self.transport.send(self.opcode, packet(CONNECT, connect))
        self.transport.send(self.opcode, packet(SUBSCRIBE, subscribe))

    def request(self, number: str) -> bytes:
        """Return a message (section 3.3). Packet identifiers begin at 1, and wrap."""
        identifier = struct.pack("!H", int(number) % 65535 + 1)
        content = f"{number} {CONTENT}".encode()
        return packet(PUBLISH | QOS_1, text(f"to/{self.to_uid}") + identifier + content)

    def meaning(self, payload: bytes) -> tuple[str, str]:
        """Decode a packet; see `bench.load.Member.meaning`."""
        head, body = payload[0], body_of(payload)
        if head == CONNACK and body == b"\0\0":
            return "", ""
        if head == SUBACK and body == b"\0\1\0":
            return "login", ""
        if head == PUBACK and len(body) == 2:
            return "answer", str(struct.unpack("!H", body)[0] - 1)
        topic = text(f"to/{self.uid}")
        if head == PUBLISH and body.startswith(topic):
            number, _, content = body[len(topic) :].decode().partition(" ")
            if content == CONTENT:
                return "delivery", number
        raise Trouble("an unexpected frame")
