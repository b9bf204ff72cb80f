"""The outgoing buffer on Twisted's TCP transport: what is written at once, what waits, and what is unread."""

from __future__ import annotations

import contextlib  # not its names: trial takes a module's `suppress` for warnings of its own
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from chatrelay.limits.pace import MAX_AHEAD, MIN_PROGRESS, SlowReaders, ahead_after_unread_time, ahead_of_pace
from chatrelay.websocket import sendqueue
from chatrelay.websocket.flushes import FlushScheduler
from chatrelay.websocket.outbox import MAX_UNSENT, Outbox
from chatrelay.wire import v1
from chatrelay.wire.codes import Close

MIB = 1024 * 1024
SMALL = 4096
"""Bytes of a client's receive buffer that fills at once; the kernel doubles them."""

USUAL = 0
"""The system's own receive buffer."""


class PolledReactor(MemoryReactorClock):
    """A reactor that writes when the system reports that a socket is writable."""

    def turn(self) -> None:
        """Poll once."""
        _, writable, _ = select.select([], self.getWriters(), [], 0)
        for transport in writable:
            transport.doWrite()


class Closing:
    """A protocol that records how it was closed."""

    code: int | None = None

    def close(self, close: Close) -> None:
        """Begin the closing handshake."""
        self.code = close.code

    def send_text_frame(self, payload: bytes) -> None:
        """Fail: the fast path does not call this."""
        raise AssertionError


class OutgoingTestCase(SynchronousTestCase):
    """A buffer over a real transport and socket, whose turns the test takes."""

    def setUp(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.flushes = FlushScheduler(self.soon.append)
        self.now = 0.0
        self.reactor = PolledReactor()
        self.slow_readers = SlowReaders(10, lambda: self.now)
        self.protocol, self.client, self.transport, self.buffer = self.connection()

    def connection(
        self, budget: int = MIB, room: int = SMALL, unix: bool = False
    ) -> tuple[Closing, socket.socket, Any, Outbox]:
        """Return a client, and the relay's side of its connection."""
        if unix:
            client, accepted = socket.socketpair()
        else:
            client = socket.socket()
            if room:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            with socket.create_server(("127.0.0.1", 0)) as port:
                client.connect(port.getsockname())
                accepted, _ = port.accept()
        for end in (client, accepted):
            end.setblocking(False)
            self.addCleanup(end.close)
        transport = Server(accepted, None, ("192.0.2.1", 4321), None, 0, self.reactor)  # type: ignore[arg-type]
        protocol = Closing()
        buffer = Outbox(protocol, transport, self.flushes, self.slow_readers, budget, fast=True)
        buffer.open(v1)
        return protocol, client, transport, buffer

    def end_turn(self) -> None:
        """Do what is due."""
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()
        self.reactor.turn()

    def send(self, buffer: Outbox, size: int) -> int:
        """Send messages, each in its own turn; return how many bytes could be sent."""
        sent = 0
        while sent < size and buffer.send(b"x" * 1000):
            sent += 1004
            self.end_turn()
        return sent

    def pull(self, client: socket.socket, count: int) -> int:
        """Let a client read everything available while the reactor writes; return the number of bytes."""
        left, patience = count, time.monotonic() + 0.25  # of the kernel's: an ACK may be put off for 40 ms
        while left > 0 and time.monotonic() < patience:
            self.reactor.turn()
            try:
                left -= len(client.recv(min(left, 4096)))
            except BlockingIOError:
                time.sleep(0.001)
            else:
                patience = time.monotonic() + 0.25
        self.reactor.turn()
        return count - left

    def sweep(self) -> None:
        """Check the deadlines."""
        for slow in self.slow_readers.expired(self.now):
            slow.unread_time_passed()


class Writing(OutgoingTestCase):
    """What is written to the socket at once, and what waits."""

    def test_messages_of_one_turn_are_written_at_once(self) -> None:
        self.buffer.send(b"one")
        self.buffer.send(b"two")
        self.assertRaises(BlockingIOError, self.client.recv, 100)
        self.end_turn()
        self.assertEqual(self.client.recv(100), b"\x81\x03one\x81\x03two")

    def test_connection_upgraded_to_tls_is_written_to_through_tls(self) -> None:
        written: list[bytes] = []
        self.patch(self.transport, "write", written.append)
        self.transport.TLS = True  # as startTLS leaves it
        self.buffer.send(b"secret")
        self.end_turn()
        self.assertRaises(BlockingIOError, self.client.recv, 100)
        self.assertEqual(written, [b"\x81\x06secret"])

    def test_error_of_one_connection_does_not_keep_another_from_being_flushed(self) -> None:
        _, client, _, buffer = self.connection()
        self.buffer.append("no bytes")  # type: ignore[arg-type]
        buffer.send(b"whole")
        self.end_turn()
        self.assertEqual(client.recv(100), b"\x81\x05whole")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.buffer.send(b"again")
        self.end_turn()
        self.assertEqual(self.client.recv(100), b"\x81\x05again")


class Budget(OutgoingTestCase):
    """How much may wait for a client, in the process and in the kernel."""

    def most_unread(self, budget: int, room: int = SMALL, unix: bool = False) -> tuple[int, int]:
        """Send until the client is closed; return the bytes that were sent, and those in the client's kernel."""
        protocol, client, _, buffer = self.connection(budget, room, unix)
        sent = self.send(buffer, 20 * MIB)
        self.assertEqual(protocol.code, 4002)
        return sent, 0 if unix else len(client.recv(MIB))

    def test_bytes_in_the_kernel_count_towards_the_budget(self) -> None:
        for budget in (MIB, 500_000, 65536):
            for room in (SMALL, USUAL):
                sent, had = self.most_unread(budget, room)
                self.assertLessEqual(sent - had, budget + 1004)
                self.assertGreater(sent, budget // 2)

    def test_unread_bytes_of_a_unix_socket_count_towards_the_budget(self) -> None:
        for budget in (MIB, 65536):
            sent, _ = self.most_unread(budget, unix=True)
            self.assertLessEqual(sent, budget + 1004)

    def test_kernel_counts_as_full_if_the_system_reports_nothing(self) -> None:
        self.patch(sendqueue, "unacknowledged", lambda connection: None)
        sent, had = self.most_unread(MIB)
        self.assertLessEqual(sent - had, MIB)
        self.assertGreater(sent, MIB // 2)

    def test_bytes_in_tls_count_towards_the_budget(self) -> None:
        for budget in (MIB, 65536):
            protocol, _, transport, _ = self.connection()
            transport.unregisterProducer()
            wrapping = TLSMemoryBIOFactory(
                optionsForClientTLS("relay.example"), True, Factory.forProtocol(Protocol), self.reactor
            )
            tls: Any = wrapping.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4321))
            tls.makeConnection(transport)  # a handshake that is never done: TLS holds everything
            buffer = Outbox(protocol, tls, self.flushes, self.slow_readers, budget, fast=True)
            buffer.open(v1)
            sent = 0
            while sent < 2 * MIB and buffer.send(b"x" * 1000):
                sent += 1004
                self.end_turn()
                self.reactor.advance(0)
            self.assertEqual(protocol.code, 4002)
            self.assertLessEqual(sent, budget)
            self.assertGreater(sent, budget // 2)

    def test_budget_0_is_no_limit_and_leaves_the_send_buffer_alone(self) -> None:
        protocol, _, transport, buffer = self.connection(budget=0)
        usual = transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertGreater(self.send(buffer, 8 * MIB), 8 * MIB - 1)
        self.assertIsNone(protocol.code)
        _, _, transport, _ = self.connection(budget=MIB)
        self.assertLess(transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), usual)

    def test_kernel_is_not_asked_while_nothing_waits(self) -> None:
        asked: list[object] = []
        for name in ("unacknowledged", "acknowledged", "attempts"):
            self.patch(sendqueue, name, lambda connection: asked.append(connection) or 0)
        for _ in range(1000):
            self.buffer.send(b"x" * 200)
            self.end_turn()
            self.client.recv(MIB)
        self.assertEqual(asked, [])


class Bound(OutgoingTestCase):
    """How much the kernel holds at most."""

    def test_send_queue_holds_no_more_than_its_bound(self) -> None:
        for budget in (1, 20_000, 65536, 262144, MIB):
            for room in (SMALL, USUAL):
                for size in (100, 2000, 14_000, 65536, 131072):
                    _, _, transport, _ = self.connection(0, room)
                    most = sendqueue.bound(transport.socket, budget)
                    held = 0
                    for _ in range(3):
                        with contextlib.suppress(BlockingIOError):
                            while True:
                                transport.socket.send(b"x" * size)
                        held = max(held, sendqueue.unacknowledged(transport.socket) or 0)
                        time.sleep(0.01)
                    self.assertLessEqual(held, most, f"{budget} {room} {size}")

    def test_budget_beyond_setsockopt_is_accepted(self) -> None:
        _, _, transport, _ = self.connection(2**40)
        self.assertGreater(sendqueue.bound(transport.socket, 2**40), sendqueue.bound(transport.socket, 65536))

    def test_other_systems_than_linux_are_not_asked(self) -> None:
        self.patch(sys, "platform", "freebsd14")
        connection: Any = None
        self.assertIsNone(sendqueue.unacknowledged(connection))
        self.assertIsNone(sendqueue.acknowledged(connection))
        self.assertEqual(sendqueue.attempts(connection), (0, 0, 0.0))

    def test_lost_connection_raises_nothing(self) -> None:
        gone = socket.socket()
        gone.close()
        self.assertEqual(sendqueue.bound(gone, MIB), sendqueue.MAX_OVERSHOOT)
        self.assertIsNone(sendqueue.unacknowledged(gone))
        self.assertIsNone(sendqueue.acknowledged(gone))
        self.assertEqual(sendqueue.attempts(gone), (0, 0, 0.0))
        self.assertFalse(sendqueue.give_up_after(gone, 35))

    def test_bytes_after_a_lost_segment_count_as_acknowledged(self) -> None:
        class Lossy:
            def getsockopt(self, level: int, option: int, size: int) -> bytes:
                assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
                # tcp(7): snd_mss, rcv_mss, unacked, sacked; bytes_acked.
                return struct.pack("=16xIIII88xQ", 1448, 536, 40, 14, 48_720)[:size]

        lossy: Any = Lossy()
        self.assertEqual(sendqueue.acknowledged(lossy), 48_720 + 14 * 1448)

    def test_tcp_connection_reports_acknowledged_bytes(self) -> None:
        _, client, transport, _ = self.connection()
        before = sendqueue.acknowledged(transport.socket)
        transport.socket.send(b"x" * 1000)
        until = time.monotonic() + 10
        while sendqueue.unacknowledged(transport.socket) and time.monotonic() < until:
            client.recv(1)
        self.assertEqual((sendqueue.acknowledged(transport.socket) or 0) - (before or 0), 1000)

    def test_unix_socket_reports_unread_bytes_and_no_acknowledged_ones(self) -> None:
        near, far = socket.socketpair()
        for end in (near, far):
            self.addCleanup(end.close)
        near.send(b"x" * 1000)
        self.assertGreaterEqual(sendqueue.unacknowledged(near) or 0, 1000)
        far.recv(1000)
        self.assertEqual(sendqueue.unacknowledged(near), 0)
        self.assertIsNone(sendqueue.acknowledged(near))


class Pace(OutgoingTestCase):
    """Which clients that are behind stay, and which are closed."""

    def behind(
        self, pace: int, seconds: int = 60, room: int = SMALL, inflow: bool = False, unix: bool = False
    ) -> tuple[int | None, float]:
        """Return whether a client that is behind is closed, with which code, and when.

        :param pace: bytes it takes a second.
        :param inflow: whether it is sent as much meanwhile, so that it never has all.
        """
        protocol, client, _, buffer = self.connection(room=room, unix=unix)
        self.send(buffer, 700_000)
        self.assertTrue(buffer.is_slow_reader)
        began = self.now
        for _ in range(seconds):
            self.now += 1
            taken = self.pull(client, pace)
            if inflow:
                self.send(buffer, taken)
            self.sweep()
            if protocol.code is not None:
                break
        return protocol.code, self.now - began

    def test_client_that_takes_nothing_is_closed_after_its_unread_time(self) -> None:
        self.assertEqual(self.behind(0), (4002, 10))

    def test_client_whose_kernel_took_more_before_is_closed_later(self) -> None:
        code, seconds = self.behind(0, room=USUAL)
        self.assertEqual(code, 4002)
        self.assertLessEqual(seconds, 10 * (1 + MAX_AHEAD // MIN_PROGRESS))

    def test_client_that_takes_single_bytes_is_closed(self) -> None:
        self.assertEqual(self.behind(1), (4002, 10))

    def test_client_at_half_the_least_pace_is_closed(self) -> None:
        for room in (SMALL, USUAL):
            self.assertEqual(self.behind(MIN_PROGRESS // 20, 120, room)[0], 4002)

    def test_client_may_fall_behind_once_and_catch_up(self) -> None:
        for pace, code in ((5000, None), (2500, 4002)):
            protocol, client, _, buffer = self.connection()
            self.send(buffer, 700_000)
            for paces in (pace, 9000, 9000):
                for _ in range(10):
                    self.now += 1
                    self.pull(client, paces)
                self.sweep()
            self.assertEqual(protocol.code, code)

    def test_slow_client_at_the_least_pace_stays(self) -> None:
        for room in (SMALL, USUAL):
            for kib in (7, 40, 100):
                self.assertEqual(self.behind(kib * 1024, 60, room, inflow=True), (None, 60), f"{kib} KiB/s, {room}")

    def test_slow_client_on_a_unix_socket_at_the_least_pace_stays(self) -> None:
        for kib in (7, 100):
            self.assertEqual(self.behind(kib * 1024, 60, unix=True, inflow=True), (None, 60))
        self.assertEqual(self.behind(0, unix=True)[0], 4002)

    def test_slow_client_at_the_least_pace_stays_if_the_system_reports_nothing(self) -> None:
        for name in ("unacknowledged", "acknowledged"):
            self.patch(sendqueue, name, lambda connection: None)
        self.assertEqual(self.behind(40 * 1024, inflow=True), (None, 60))
        self.assertEqual(self.behind(0)[0], 4002)

    def test_client_that_emptied_the_kernel_stays_while_the_process_is_held_up(self) -> None:
        protocol, client, transport, buffer = self.connection()
        self.send(buffer, 700_000)
        transport.stopWriting()  # as if the reactor did not run
        while sendqueue.unacknowledged(transport.socket):
            with contextlib.suppress(BlockingIOError):
                client.recv(MIB)
        for _ in range(30):  # more than it may be ahead
            self.now += 10
            self.sweep()
        self.assertIsNone(protocol.code)
        transport.startWriting()
        self.send(buffer, 200_000)
        for _ in range(30):
            self.now += 10
            self.sweep()
        self.assertEqual(protocol.code, 4002)

    def test_ping_may_be_unread_while_bytes_before_it_are(self) -> None:
        self.send(self.buffer, 200_000)
        self.assertFalse(self.buffer.is_slow_reader)
        self.buffer.about_to_ping()
        self.now += 25
        self.assertTrue(self.buffer.may_not_have_read_the_ping(15))
        self.now += 10
        self.assertFalse(self.buffer.may_not_have_read_the_ping(15))

    def test_ping_to_an_empty_queue_or_a_silent_kernel_has_no_more_time(self) -> None:
        self.now += 1
        self.buffer.about_to_ping()
        self.assertFalse(self.buffer.may_not_have_read_the_ping(15))
        self.send(self.buffer, 200_000)
        self.buffer.about_to_ping()
        self.patch(sendqueue, "attempts", lambda connection: (1, 1, 15.0))
        self.assertFalse(self.buffer.may_not_have_read_the_ping(15))

    def test_client_with_a_silent_kernel_is_not_ahead(self) -> None:
        self.patch(sendqueue, "attempts", lambda connection: (0, 2, 10.0))
        self.assertEqual(self.behind(0, room=USUAL), (4002, 10))

    def test_system_does_not_time_out_a_slow_reader(self) -> None:
        if not hasattr(socket, "TCP_USER_TIMEOUT"):
            raise SkipTest("this system has no TCP_USER_TIMEOUT")
        _, client, transport, buffer = self.connection()
        buffer.give_up_after(35)

        def user_timeout() -> int:
            return transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)  # type: ignore[no-any-return]

        buffer.about_to_ping()
        self.assertEqual(user_timeout(), 35_000)
        self.send(buffer, 100_000)
        buffer.about_to_ping()
        self.assertEqual(user_timeout(), 0)
        self.pull(client, 100_400)
        until = time.monotonic() + 10
        while sendqueue.unacknowledged(transport.socket) and time.monotonic() < until:
            time.sleep(0.01)  # the last ACK is put off
        buffer.about_to_ping()
        self.assertEqual(user_timeout(), 35_000)
        self.send(buffer, 100_000)
        for retransmits, probes, expected in ((0, 2, 35_000), (0, 0, 0), (0, 2, 0), (2, 0, 35_000)):
            # Without an answer it is no slow reader; but Linux would count probes from long before.
            self.patch(sendqueue, "attempts", lambda connection, said=(retransmits, probes, 1.0): said)
            buffer.about_to_ping()
            self.assertEqual(user_timeout(), expected)


class Rule(SynchronousTestCase):
    """The rule alone, with readers that acknowledge in jumps."""

    def survives(self, pace: float, jump: int, ahead: float, seconds: int = 1000) -> bool:
        """Whether a client stays that reads all the time and acknowledges after each `jump` bytes."""
        acked = 0
        for now in range(10, seconds, 10):
            taken = int(pace * now) // jump * jump
            ahead = ahead_after_unread_time(ahead, taken - acked)
            acked = taken
            if ahead < 0:
                return False
        return True

    def test_reader_at_the_least_pace_stays_whatever_its_jumps(self) -> None:
        for jump in (1, 65536, 109_568, 590_000):
            had = ahead_of_pace(0.0, jump + MIN_PROGRESS, 0.0)
            self.assertTrue(self.survives(7168, jump, had), jump)

    def test_reader_below_the_least_pace_is_closed_whatever_it_took_before(self) -> None:
        for jump in (1, 65536, 109_568, 590_000):
            self.assertFalse(self.survives(5000, jump, MAX_AHEAD), jump)

    def test_bytes_taken_long_ago_do_not_count(self) -> None:
        self.assertEqual(ahead_of_pace(100_000.0, 5, 300_000.0), 5)
        self.assertEqual(ahead_of_pace(0.0, 2 * MAX_AHEAD, 0.0), MAX_AHEAD)


class Patience(OutgoingTestCase):
    """How long the system waits for an acknowledgement."""

    def test_unacknowledged_bytes_time_out_in_the_system(self) -> None:
        if not hasattr(socket, "TCP_USER_TIMEOUT"):
            raise SkipTest("this system has no TCP_USER_TIMEOUT")
        with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()) as client:
            accepted, _ = port.accept()
            self.addCleanup(accepted.close)
            transport: Any = Server(accepted, None, client.getsockname(), None, 0, MemoryReactorClock())  # type: ignore[arg-type]
            for below in (transport, ProtocolWrapper(None, None)):  # type: ignore[arg-type]
                if below is not transport:
                    below.transport = transport  # as TLS is, and the PROXY protocol
                buffer = Outbox(self.protocol, below, self.flushes, self.slow_readers, 0, fast=True)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
                buffer.give_up_after(35)
                self.assertEqual(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 35_000)
                buffer.give_up_after(0)
                self.assertEqual(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 35_000)

    def test_unix_socket_has_no_timeout_and_raises_nothing(self) -> None:
        self.buffer.give_up_after(35)


class Draining(OutgoingTestCase):
    """The bytes that are unsent, and the call when there are few; see `chatrelay.interfaces.InboxConnection`."""

    def setUp(self) -> None:
        super().setUp()
        self.calls: list[int] = []

    def ask(self, buffer: Outbox) -> None:
        """Have a call made when the buffer has drained, and note how much is unsent then."""
        buffer.call_when_drained(lambda: self.calls.append(buffer.unsent))

    def test_bytes_of_this_turn_and_those_that_the_kernel_does_not_take_are_unsent(self) -> None:
        self.assertEqual(self.buffer.unsent, 0)
        self.buffer.send(b"x" * 1000)
        self.assertEqual(self.buffer.unsent, 1004)
        self.end_turn()
        self.assertEqual(self.buffer.unsent, 0)
        self.send(self.buffer, 400_000)
        self.assertGreater(self.buffer.unsent, 0)

    def test_connection_is_behind_if_bytes_of_an_earlier_turn_wait(self) -> None:
        self.buffer.send(b"x" * 1000)
        self.assertFalse(self.buffer.is_behind)
        self.send(self.buffer, 400_000)
        self.assertTrue(self.buffer.is_behind)

    def test_call_comes_in_a_later_turn_if_little_is_unsent(self) -> None:
        self.ask(self.buffer)
        self.assertEqual(self.calls, [])
        self.end_turn()
        self.assertEqual(self.calls, [0])
        self.end_turn()
        self.assertEqual(len(self.calls), 1)

    def test_call_waits_until_the_client_has_read(self) -> None:
        sent = self.send(self.buffer, 600_000)
        self.assertGreater(self.buffer.unsent, MAX_UNSENT)
        self.ask(self.buffer)
        self.end_turn()
        self.end_turn()
        self.assertEqual((self.calls, self.soon), ([], []))
        self.pull(self.client, sent)
        self.end_turn()
        self.assertEqual(self.calls, [0])

    def test_call_comes_if_bytes_of_one_turn_are_written_after_it_was_asked_for(self) -> None:
        _, _, _, buffer = self.connection(room=USUAL)
        for _ in range(65):
            buffer.send(b"x" * 1000)  # the last one is beyond what is collected
        self.ask(buffer)
        self.end_turn()
        self.assertEqual(len(self.calls), 1)

    def test_closing_connection_makes_no_call(self) -> None:
        self.ask(self.buffer)
        self.buffer.closing()
        self.end_turn()
        self.assertEqual(self.calls, [])

    def test_call_over_tls_comes_when_what_tls_holds_is_written(self) -> None:
        transport = HoldingTransport(self.reactor)
        self.addCleanup(transport.socket.close)
        buffer = Outbox(self.protocol, transport, self.flushes, self.slow_readers, MIB, fast=True)
        buffer.open(v1)
        transport.held = MAX_UNSENT + 1
        self.ask(buffer)
        for _ in range(3):
            self.end_turn()
        self.assertEqual(self.calls, [])
        transport.held = MAX_UNSENT
        self.end_turn()
        self.assertEqual(len(self.calls), 1)


class HoldingTransport(Server):
    """A transport that holds bytes in a layer of its own, as TLS does, and asks for no pause."""

    held = 0

    def __init__(self, reactor: Any) -> None:
        near, far = socket.socketpair()
        far.close()
        super().__init__(near, None, ("192.0.2.1", 4321), None, 0, reactor)  # type: ignore[arg-type]

    @property
    def _tempDataLen(self) -> int:
        return self.held

    @_tempDataLen.setter
    def _tempDataLen(self, value: int) -> None:
        """Keep the number that the test has set."""
