"""A client that sends frames faster than they are read, over TCP, TLS and the PROXY protocol, waits and loses
nothing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, v1
from tests.support.authorities import Authorities
from tests.support.client import SocketClient
from tests.support.frames import close_frame, fragments, frame
from tests.support.programs import StartRelay
from tests.support.v1 import ADMITTED

FRAMES_PER_SECOND = 100
MESSAGES, FRAGMENTS = 10, 40
OPTIONS = (
    *("--frames-per-second", str(FRAMES_PER_SECOND), "--message-timeout", "1"),
    # Its pongs wait behind what it has sent, and may take longer than it has for them.
    *("--ping-interval", "0.5", "--ping-timeout", "0.5"),
)


def request(id: int) -> bytes:
    """Return Alice's message to herself, in many frames."""
    return fragments(v1.encoded(v1.message(1, id=id)), FRAGMENTS)


class Alice(SocketClient):
    """A client that sends messages to itself."""

    def answers(self, count: int) -> list[int]:
        """Return the ids of this many sent messages, in the order of their answers."""
        ids: list[int] = []
        while len(ids) < count:
            heard = self.hear()
            assert isinstance(heard, dict), f"closed with {heard}"
            if heard["type"] == "send-request-response":
                assert heard["response"]["value"] is True, heard
                ids.append(heard["response"]["id"])
        return ids


@pytest.fixture(params=["TCP", "TLS", "PROXY"])
def connect(request: pytest.FixtureRequest, start_relay: StartRelay, tmp_path: Path) -> Iterator[Callable[[], Alice]]:
    """Connect to a relay that reads frames slowly."""
    authorities = Authorities(tmp_path / "authorities")
    endpoint = {
        "TCP": "tcp:0:interface=127.0.0.1",
        "TLS": authorities.endpoint(authorities.issue("127.0.0.1")),
        "PROXY": "haproxy:tcp:0:interface=127.0.0.1",
    }[request.param]
    relay = start_relay(*OPTIONS, listen=endpoint)
    with contextlib.ExitStack() as closing:

        def connected() -> Alice:
            alice = Alice(transport()).open()
            assert alice.log_in("alice-session") == ADMITTED
            return alice

        def transport() -> socket.socket:
            plain = closing.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if request.param == "TLS":
                trusting = authorities.trusting()
                return closing.enter_context(trusting.wrap_socket(plain, server_hostname="127.0.0.1"))
            if request.param == "PROXY":
                plain.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 8080\r\n")
            return plain

        yield connected
    relay.stop()
    assert not [line for line in relay.output if "Traceback" in line or "Unhandled" in line]


def test_frames_sent_too_fast_are_answered_later(connect: Callable[[], Alice]) -> None:
    alice = connect()
    begun = time.monotonic()
    alice.write(b"".join(request(number) for number in range(MESSAGES)))
    assert alice.answers(MESSAGES) == list(range(MESSAGES))
    # Two seconds' worth at once, the rest at its rate.
    assert time.monotonic() - begun > (MESSAGES * FRAGMENTS / FRAMES_PER_SECOND - 2) * 0.9


def test_single_bytes_wait_and_are_read_together(connect: Callable[[], Alice]) -> None:
    alice = connect()
    data = b"".join(frame(v1.encoded(v1.message(1, id=number))) for number in range(5))
    for byte in data:
        alice.write(bytes([byte]))  # over TLS, a record each
    assert alice.answers(5) == list(range(5))


def test_closing_handshake_waits_behind_earlier_frames(connect: Callable[[], Alice]) -> None:
    alice = connect()
    alice.write(b"".join(request(number) for number in range(MESSAGES)) + close_frame())
    alice.answers(MESSAGES - 1)  # the last one is read together with the close frame
    while isinstance(heard := alice.hear(), dict):
        assert heard["type"] in ("message", "send-request-response")
    assert heard == 1000
    # TLS has a closing handshake of its own, which both sides have to read.
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        assert alice.socket.recv(1) == b""


def test_client_that_leaves_during_a_pause_is_gone(connect: Callable[[], Alice]) -> None:
    alice = connect()
    alice.write(b"".join(request(number) for number in range(MESSAGES)))
    alice.socket.close()
    assert connect().answers(0) == []
