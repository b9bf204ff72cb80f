"""The outgoing buffer on Twisted's own TCP transport: what goes straight to the socket, what does not, what is unread."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.outgoing import OutgoingBuffer, Turn

ROOM = 64 * 1024
"""About how much the system takes for a client before it reads, in bytes."""


class Closing:
    """A protocol that notes how it was closed."""

    code: int | None = None

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.code = int(code)

    def send_text_frame(self, payload: bytes) -> None:
        """Not called on the fast path."""
        raise AssertionError


class OutgoingTests(SynchronousTestCase):
    """A buffer over a real transport over a real socket, whose turns are taken by hand."""

    def setUp(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.turn = Turn(self.soon.append)
        self.protocol, self.client, self.transport, self.buffer = self.connection()

    def connection(self, budget: int = 1000) -> tuple[Closing, socket.socket, Any, OutgoingBuffer]:
        """A client, and the relay's side of its connection."""
        client, accepted = socket.socketpair()
        for end in (client, accepted):
            end.setblocking(False)
            self.addCleanup(end.close)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        transport = Server(accepted, None, ("192.0.2.1", 4321), None, 0, MemoryReactorClock())  # type: ignore[arg-type]
        protocol = Closing()
        buffer = OutgoingBuffer(protocol, transport, self.turn, budget, fast=True)
        buffer.open()
        return protocol, client, transport, buffer

    def end_turn(self) -> None:
        """Do what is due."""
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()

    def test_one_turn_is_one_write(self) -> None:
        self.buffer.send(b"one")
        self.buffer.send(b"two")
        self.assertRaises(BlockingIOError, self.client.recv, 100)
        self.end_turn()
        self.assertEqual(self.client.recv(100), b"\x81\x03one\x81\x03two")

    def test_a_connection_that_was_upgraded_to_tls_is_not_written_past_it(self) -> None:
        written: list[bytes] = []
        self.patch(self.transport, "write", written.append)
        self.transport.TLS = True  # as startTLS leaves it
        self.buffer.send(b"secret")
        self.end_turn()
        self.assertRaises(BlockingIOError, self.client.recv, 100)
        self.assertEqual(written, [b"\x81\x06secret"])

    def test_ones_trouble_is_not_anothers(self) -> None:
        _, client, _, buffer = self.connection()
        self.buffer.append("no bytes")  # type: ignore[arg-type]
        buffer.send(b"whole")
        self.end_turn()
        self.assertEqual(client.recv(100), b"\x81\x05whole")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.buffer.send(b"again")
        self.end_turn()
        self.assertEqual(self.client.recv(100), b"\x81\x05again")

    def fill(self) -> None:
        """Send until the client is behind."""
        while not self.transport.dataBuffer and not self.transport._tempDataBuffer:
            self.buffer.send(b"x" * 100)
            self.buffer.flush()
        self.buffer.pauseProducing()

    def test_who_is_slow_and_keeps_up_stays(self) -> None:
        self.fill()
        sent = 0
        while sent < 100_000:
            self.assertTrue(self.buffer.send(b"x" * 100))
            sent += 100
            self.end_turn()
            self.client.recv(1000)
            self.transport.doWrite()
            self.buffer.pauseProducing()  # and never all is taken
        self.assertIsNone(self.protocol.code)

    def test_who_falls_behind_goes(self) -> None:
        self.fill()
        taken = 0
        while self.buffer.send(b"x" * 100):
            taken += 100
            self.end_turn()
        self.assertEqual(self.protocol.code, 4002)
        self.assertLessEqual(taken, 1000)
