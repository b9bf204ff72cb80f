"""The outgoing buffer on Twisted's own TCP transport: what goes straight to the socket, what does not, what is unread."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.policies import ProtocolWrapper
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from chatrelay.outgoing import LEAST_TAKEN, OutgoingBuffer, SlowReaders, Turn

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
        self.now = 0.0
        self.slow_readers = SlowReaders(10, lambda: self.now)
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
        buffer = OutgoingBuffer(protocol, transport, self.turn, self.slow_readers, budget, fast=True)
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

    def behind(self, pace: int, inflow: int, wrapped: bool = False) -> int | None:
        """Whether a client who is behind is closed within a minute, and with which code.

        :param pace: bytes it takes a second.
        :param inflow: bytes it is sent a second.
        """
        protocol, client, transport, buffer = self.connection(budget=10**7)
        while not transport.dataBuffer and not transport._tempDataBuffer:
            buffer.send(b"x" * 100)
            buffer.flush()
        for _ in range(300):
            buffer.send(b"x" * 1000)
        self.end_turn()
        buffer.pauseProducing()
        for _ in range(60):
            self.now += 1
            self.pull(client, transport, pace)
            if inflow:
                buffer.send(b"x" * inflow)
                self.end_turn()
            if transport.dataBuffer or transport._tempDataBuffer:
                buffer.pauseProducing()
            else:
                buffer.resumeProducing()
            for slow in self.slow_readers.expired(self.now):
                slow.unread_for_long()
        return protocol.code

    def pull(self, client: socket.socket, transport: Any, count: int) -> None:
        """Have a client read so much, and the transport fill up what became free."""
        while count > 0:
            try:
                count -= len(client.recv(min(count, 4096)))
            except BlockingIOError:
                return
            transport.doWrite()

    def test_who_takes_nothing_is_closed(self) -> None:
        self.assertEqual(self.behind(0, 0), 4002)

    def test_who_takes_a_byte_now_and_then_is_closed(self) -> None:
        self.assertEqual(self.behind(1, 0), 4002)

    def test_who_is_slow_and_takes_enough_stays(self) -> None:
        self.assertIsNone(self.behind(LEAST_TAKEN // 5, 0))

    def test_so_does_who_never_has_all_of_it(self) -> None:
        self.assertIsNone(self.behind(LEAST_TAKEN // 5, LEAST_TAKEN // 5))

    def test_but_not_who_takes_too_little_of_what_keeps_coming(self) -> None:
        self.assertEqual(self.behind(LEAST_TAKEN // 20, LEAST_TAKEN // 10), 4002)

    def test_what_is_not_acknowledged_has_its_time(self) -> None:
        if not hasattr(socket, "TCP_USER_TIMEOUT"):
            raise SkipTest("this system has no TCP_USER_TIMEOUT")
        with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()) as client:
            accepted, _ = port.accept()
            self.addCleanup(accepted.close)
            transport: Any = Server(accepted, None, client.getsockname(), None, 0, MemoryReactorClock())  # type: ignore[arg-type]
            for below in (transport, ProtocolWrapper(None, None)):  # type: ignore[arg-type]
                if below is not transport:
                    below.transport = transport  # as TLS is, and the PROXY protocol
                buffer = OutgoingBuffer(self.protocol, below, self.turn, self.slow_readers, 0, fast=True)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
                buffer.give_up_after(35)
                self.assertEqual(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 35_000)
                buffer.give_up_after(0)
                self.assertEqual(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 35_000)

    def test_a_unix_socket_has_none_and_that_is_no_trouble(self) -> None:
        self.buffer.give_up_after(35)
