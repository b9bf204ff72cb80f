"""A client that sends frames faster than they are read, over TCP, TLS and the PROXY protocol: it waits, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.programs import PATIENCE, RelayProcess
from tests.end_to_end.test_tls import Authorities
from tests.trials.crowd import CLOSE, CONTINUATION, HANDSHAKE, PING, PONG, TEXT, auth_request, frame

FRAMES_PER_SECOND = 100
MESSAGES, FRAGMENTS = 10, 40
OPTIONS = (
    *("--frames-per-second", str(FRAMES_PER_SECOND), "--message-timeout", "1"),
    # Its pongs wait behind what it has sent, and may take longer than it has for them.
    *("--ping-interval", "0.5", "--ping-timeout", "0.5"),
)
YES = {"type": "auth-response", "response": True}


def request(id: int) -> bytes:
    """Alice's message to herself."""
    message = {"timeStamp": 1, "touID": 1, "content": "hej"}
    return json.dumps({"type": "message-send-request", "id": id, "message": message}).encode()


def fragments(payload: bytes, count: int) -> bytes:
    """A message in so many frames."""
    step = -(-len(payload) // count)
    parts = [payload[number * step : (number + 1) * step] for number in range(count)]
    return b"".join(
        frame(CONTINUATION if number else TEXT, part, final=number == count - 1) for number, part in enumerate(parts)
    )


class Connection:
    """A client's end, logged in as Alice, whose pings are answered as it reads."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._data = b""
        connected.settimeout(PATIENCE)
        connected.sendall(HANDSHAKE)
        while b"\r\n\r\n" not in self._data:
            self._data += connected.recv(4096)
        self._data = self._data.partition(b"\r\n\r\n")[2]
        connected.sendall(auth_request("alice-session"))
        assert self.hear() == YES

    def hear(self) -> object:
        """The next message, as JSON; of a close frame the code."""
        while True:
            if len(self._data) >= 2 and len(self._data) >= 2 + self._data[1]:
                opcode, payload = self._data[0] & 15, self._data[2 : 2 + self._data[1]]
                self._data = self._data[2 + len(payload) :]
                if opcode == TEXT:
                    return json.loads(payload)
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big")
                assert opcode == PING
                self.socket.sendall(frame(PONG, payload))
            else:
                received = self.socket.recv(65536)
                assert received, "the relay ended the connection without a word"
                self._data += received

    def answers(self, count: int) -> list[int]:
        """The ids of so many messages that were sent, in the order of their answers."""
        ids: list[int] = []
        while len(ids) < count:
            heard = self.hear()
            assert isinstance(heard, dict), f"closed with {heard}"
            if heard["type"] == "send-request-response":
                assert heard["response"]["value"] is True, heard
                ids.append(heard["response"]["id"])
        return ids


@pytest.fixture(params=["TCP", "TLS", "PROXY"])
def connect(
    request: pytest.FixtureRequest, start_relay: Callable[..., RelayProcess], tmp_path: Path
) -> Iterator[Callable[[], Connection]]:
    """Connects to a relay that reads frames slowly."""
    authorities = Authorities(tmp_path / "authorities")
    endpoint = {
        "TCP": "tcp:0:interface=127.0.0.1",
        "TLS": authorities.endpoint(authorities.issue("127.0.0.1")),
        "PROXY": "haproxy:tcp:0:interface=127.0.0.1",
    }[request.param]
    relay = start_relay(*OPTIONS, listen=endpoint)
    with contextlib.ExitStack() as closing:

        def connected() -> Connection:
            plain = closing.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if request.param == "TLS":
                trusting = authorities.trusting()
                return Connection(closing.enter_context(trusting.wrap_socket(plain, server_hostname="127.0.0.1")))
            if request.param == "PROXY":
                plain.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 8080\r\n")
            return Connection(plain)

        yield connected
    relay.stop()
    assert not [line for line in relay.output if "Traceback" in line or "Unhandled" in line]


def test_what_is_sent_too_fast_is_answered_later(connect: Callable[[], Connection]) -> None:
    alice = connect()
    begun = time.monotonic()
    alice.socket.sendall(b"".join(fragments(request(number), FRAGMENTS) for number in range(MESSAGES)))
    assert alice.answers(MESSAGES) == list(range(MESSAGES))
    # Two seconds' worth at once, the rest at its rate.
    assert time.monotonic() - begun > (MESSAGES * FRAGMENTS / FRAMES_PER_SECOND - 2) * 0.9


def test_single_bytes_wait_and_are_taken_together(connect: Callable[[], Connection]) -> None:
    alice = connect()
    data = b"".join(frame(TEXT, request(number)) for number in range(5))
    for byte in data:
        alice.socket.sendall(bytes([byte]))  # over TLS, a record each
    assert alice.answers(5) == list(range(5))


def test_the_closing_handshake_waits_its_turn(connect: Callable[[], Connection]) -> None:
    alice = connect()
    close = frame(CLOSE, (1000).to_bytes(2, "big"))
    alice.socket.sendall(b"".join(fragments(request(number), FRAGMENTS) for number in range(MESSAGES)) + close)
    alice.answers(MESSAGES - 1)  # the last one is read together with the close frame
    while isinstance(heard := alice.hear(), dict):
        assert heard["type"] in ("message", "send-request-response")
    assert heard == 1000
    # TLS says goodbye, too, which both sides have to read.
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        assert alice.socket.recv(1) == b""


def test_who_leaves_in_a_pause_is_gone(connect: Callable[[], Connection]) -> None:
    alice = connect()
    alice.socket.sendall(b"".join(fragments(request(number), FRAGMENTS) for number in range(MESSAGES)))
    alice.socket.close()
    assert connect().answers(0) == []
