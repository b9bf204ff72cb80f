"""What is logged of the end of each connection, in each phase and both formats, and why a connection was lost."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.tcp import Server
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from chatrelay.app.json_log import line_of
from chatrelay.limits.pace import SlowReaders
from chatrelay.websocket import closing as ends
from chatrelay.websocket import sendqueue
from chatrelay.websocket.flushes import FlushScheduler
from chatrelay.websocket.opening import MAX_REFUSED
from chatrelay.websocket.outbox import Outbox, seconds_unacknowledged
from chatrelay.wire import codes
from tests.support.frames import BINARY, CLOSE, close_frame, frame
from tests.support.memory import ProxiedClient
from tests.support.relay_case import ConnectingTestCase, logged_lines

PEER = "192.0.2.1:4321"


def tls_error(*reasons: str) -> SSL.Error:
    """Return the error that pyOpenSSL raises for these entries in OpenSSL's queue."""
    return SSL.Error([("SSL routines", "", reason) for reason in reasons])


class Why(SynchronousTestCase):
    """The causes for Twisted's reasons."""

    def test_each_reason_of_twisted_has_its_cause(self) -> None:
        for error, over_tls, unacknowledged, by, reason in (
            (ConnectionDone(), False, 0.0, "client", "closed without a close frame"),
            (ConnectionDone(), True, 0.0, "client", "closed without a close frame"),
            (ConnectionLost(), False, 0.0, "network", "reset by peer"),
            (ConnectionLost(), True, 0.0, "network", "TLS: cut off without a goodbye"),
            (ConnectionLost(), False, 35.2, "network", "timed out: nothing acknowledged for 35 s"),
            (ConnectionLost(), True, 35.2, "network", "timed out: nothing acknowledged for 35 s"),
            (ConnectionAborted(), False, 0.0, "relay", "cut"),
            (tls_error("tlsv1 alert unknown ca"), True, 0.0, "network", "TLS: tlsv1 alert unknown ca"),
            (tls_error("one", "the last"), True, 0.0, "network", "TLS: the last"),
            (SSL.Error([]), True, 0.0, "network", "TLS: failed"),
            (SSL.SysCallError(104, "ECONNRESET"), True, 0.0, "network", "TLS: failed"),
            (RuntimeError("CANARY"), False, 0.0, "relay", "a defect, logged before this"),
        ):
            end = ends.of_loss(error, over_tls, unacknowledged)
            self.assertEqual((end.by, end.code, end.reason), (by, 1006, reason))


class ByAProxy(ConnectingTestCase):
    """A proxy closes with 1001 in its own name, whatever frame of the client it interrupts."""

    def test_close_by_a_proxy_is_not_logged_as_a_protocol_error(self) -> None:
        told = logged_lines(self)
        unmasked, masked = b"\x88\x02\x03\xe9", frame(b"\x03\xe9", CLOSE)
        half = frame(b"x" * 1000)[:500]
        for before, closing, is_by_proxy in (
            (b"", unmasked, True),
            (half, unmasked, True),
            (half, masked, True),
            (half, unmasked + masked, True),
            (frame(b"{}"), unmasked, True),
            (b"", frame(b"{}", masked=False), False),
            (b"", b"\x88\x02\x03\xe8", False),  # 1000
            (half, b"\xff" * 4, False),
        ):
            for pieces in ((before, closing), (before + closing,)):
                told.clear()
                client = self.client().open().log_in()
                for piece in filter(None, pieces):
                    client.write(piece)
                client.read()
                client.lost()
                (line,) = [line for line in told if "ended by" in line]
                self.assertEqual("with 1001" in line and "a proxy in between closed it" in line, is_by_proxy, line)
                self.assertEqual("ended by the client" in line, is_by_proxy, line)

    def test_earlier_close_of_the_relay_is_logged_although_a_close_follows(self) -> None:
        told = logged_lines(self)
        unmasked, masked = b"\x88\x02\x03\xe9", frame(b"\x03\xe9", CLOSE)
        for before, code in ((frame(b"?") * 10, 4502), (frame(b"x", BINARY), 1003), (frame(b"x" * 70000), 1009)):
            for closing in (unmasked, masked):
                told.clear()
                client = self.client().open().log_in()
                client.write(before + closing)
                client.read()
                client.lost()
                (line,) = [line for line in told if "ended by" in line]
                self.assertIn(f"ended by the relay with {code}", line)


class Silent:
    """A socket whose peer is silent, with the values that Linux would report."""

    def __init__(self, retransmits: int, probes: int, milliseconds: int) -> None:
        self.info = struct.pack("=8B24I", 7, 0, retransmits, probes, 0, 0, 0, 0, *([9] * 12), milliseconds, *([9] * 11))

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """Return TCP_INFO, as tcp(7) describes it."""
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO) and size >= len(self.info)
        return self.info

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Accept any option."""


class Acknowledged(SynchronousTestCase):
    """How long a lost connection had no acknowledgement."""

    def given_up(self, peer: Any, patience: float) -> float:
        """Return what is known when Twisted reports that the system has given the connection up."""
        descriptor = Server.__new__(Server)
        descriptor.socket = peer
        protocol: Any = None
        buffer = Outbox(protocol, descriptor, FlushScheduler(lambda call: None), SlowReaders(0, float), 0, True)
        buffer.give_up_after(patience)
        buffer.stopProducing()
        return buffer.unacknowledged

    def test_unacknowledged_time_is_known_only_after_the_systems_patience(self) -> None:
        for retransmits, probes, milliseconds, patience, seconds in (
            (8, 0, 35_100, 35.0, 35.1),
            (0, 5, 35_100, 35.0, 35.1),
            (8, 0, 34_500, 35.0, 34.5),
            (2, 0, 1_500, 35.0, 0.0),  # sent again, and then it was reset
            (0, 0, 300_000, 315.0, 0.0),  # nothing had been sent for a long time
            (8, 0, 35_100, 0.0, 0.0),
        ):
            self.assertEqual(self.given_up(Silent(retransmits, probes, milliseconds), patience), seconds)

    def test_socket_without_tcp_info_counts_as_acknowledged(self) -> None:
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        self.assertEqual(seconds_unacknowledged(near), 0.0)
        closed = socket.socket()
        closed.close()
        self.assertEqual(seconds_unacknowledged(closed), 0.0)

    def test_tcp_info_of_linux_is_long_enough(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()) as near:
            info = near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, sendqueue.TCP_INFO_SIZE)
            self.assertGreaterEqual(len(info), 60)
            self.assertEqual(info[0], 1)  # established: it is the struct that is meant
            self.assertEqual(seconds_unacknowledged(near), 0.0)


class EndsTestCase(ConnectingTestCase):
    """Reads the logged events that have a phase."""

    def told(self) -> list[tuple[Any, ...]]:
        """Return the events since the last call: level, phase, by, code and reason."""
        of_ends = [event for event in self.events if "phase" in event]
        self.events.clear()
        for event in of_ends:
            self.assertEqual(event["log_namespace"], "chatrelay.websocket")
            fields = json.loads(line_of(event))["fields"]
            self.assertLessEqual({"phase", "peer", "by", "code", "reason", "seconds"}, set(fields))
            self.assertEqual("uid" in fields, event["phase"] == "user")
            self.assertIs(type(fields["seconds"]), float)
        return [
            (event["log_level"].name, *(event[name] for name in ("phase", "by", "code", "reason"))) for event in of_ends
        ]


class InJSON(EndsTestCase):
    """In JSON, every connection has one event, at info, however it ended."""

    level = "info"
    log_format = "json"

    def limit(self, authenticator: Any = None, **options: Any) -> None:
        super().limit(authenticator, log_format=self.log_format, **options)

    def setUp(self) -> None:
        super().setUp()
        self.limit(unauthenticated_per_address=0)

    def test_handshake_timeout_is_logged(self) -> None:
        client = self.come()
        self.pass_time(5.25)
        self.assertTrue(client.transport.aborted)
        self.assertEqual(self.told(), [])
        client.lost(ConnectionAborted())
        self.assertEqual(self.told(), [(self.level, "handshake", "relay", 1006, "no handshake in time")])

    def test_loss_in_the_handshake_is_logged(self) -> None:
        for error, by, reason in (
            (ConnectionDone(), "client", "closed without a close frame"),
            (ConnectionLost(), "network", "reset by peer"),
            (tls_error("http request"), "network", "TLS: http request"),
        ):
            client = self.come()
            client.write(b"GET / HTTP/1.1\r\n")
            client.lost(error)
            self.assertEqual(self.told(), [(self.level, "handshake", by, 1006, reason)])

    def test_loss_over_tls_is_logged(self) -> None:
        client = self.come()
        directlyProvides(client.transport, ISSLTransport)
        client.lost(ConnectionLost())
        self.assertEqual(self.told()[0][1:], ("handshake", "network", 1006, "TLS: cut off without a goodbye"))

    def test_request_that_is_not_a_handshake_is_logged(self) -> None:
        client = self.come()
        client.write(b"GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n")
        client.lost()
        self.assertEqual(self.told(), [(self.level, "handshake", "relay", 426, "HTTP Upgrade header missing")])

    def test_refused_handshake_is_logged_once(self) -> None:
        client = self.come()
        client.shake("Sec-WebSocket-Protocol: nonsense")
        ((level, *told, reason),) = self.told()
        self.assertEqual((level, told), ("info", ["handshake", "relay", 400]))
        self.assertIn("no offered subprotocol is spoken here", reason)
        client.lost()
        self.assertEqual(self.told(), [])

    def test_handshake_refused_after_the_loss_is_not_logged_again(self) -> None:
        client = self.come()
        client.lost()
        self.assertEqual(len(self.told()), 1)
        client.protocol.failHandshake("too late")
        self.assertEqual(self.told(), [])

    def test_login_timeout_of_a_visitor_is_logged(self) -> None:
        client = self.come().open()
        self.pass_time(10.25)
        client.write(close_frame(4001))
        client.lost()
        self.assertEqual(self.told(), [(self.level, "visitor", "relay", 4001, "not logged in in time")])

    def test_close_by_a_visitor_is_logged(self) -> None:
        client = self.come().open()
        client.write(close_frame(1001, "my words"))
        client.lost()
        self.assertEqual(self.told(), [(self.level, "visitor", "client", 1001, "it closed")])

    def test_close_of_a_user_is_logged(self) -> None:
        client = self.come().open().log_in()
        self.pass_time(1.5)
        client.lost(ConnectionLost())
        (event,) = [event for event in self.events if "phase" in event]
        self.assertEqual((event["uid"], event["peer"], event["seconds"]), (1, PEER, 1.5))
        self.assertEqual(self.told(), [("info", "user", "network", 1006, "reset by peer")])

    def test_first_cause_is_logged_for_a_client_that_does_not_leave(self) -> None:
        client = self.come().open().log_in()
        client.protocol.close(codes.ENDED)
        self.pass_time(2.5)
        self.assertTrue(client.transport.aborted)
        client.lost(ConnectionAborted())
        self.assertEqual(self.told(), [("info", "user", "relay", 4505, "ended by the operator or the site")])

    def test_refused_connection_is_logged(self) -> None:
        self.limit(connections=1)
        self.come()
        for _ in range(MAX_REFUSED + 1):
            client = self.come()
            self.assertEqual(self.told(), [("info", "connection", "relay", 503, "the relay is full")])
            client.lost()
        self.assertEqual(self.told(), [])

    def test_connection_to_a_stopped_relay_is_logged(self) -> None:
        self.factory.registry.abort_all()
        client = self.come()
        client.lost(ConnectionAborted())
        self.assertEqual(self.told(), [(self.level, "connection", "relay", 1006, "the relay is stopping")])

    def test_closes_of_a_stopping_relay_are_logged(self) -> None:
        shaking, visitor, user = self.come(), self.come().open(), self.come().open().log_in()
        self.factory.registry.close_all()
        self.factory.registry.abort_all()
        for client in (shaking, visitor, user):
            client.lost(ConnectionAborted())
        self.assertEqual(
            self.told(),
            [
                (self.level, "handshake", "relay", 1006, "the relay is stopping"),
                (self.level, "visitor", "relay", 4000, "the relay is stopping"),
                ("info", "user", "relay", 4000, "the relay is stopping"),
            ],
        )

    def test_tls_that_ended_before_unread_data_is_logged(self) -> None:
        client = ProxiedClient(self.factory, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").open().log_in()
        client.transport.disconnecting = True
        self.pass_time(1.25)
        client.lost(ConnectionAborted())
        ((*_, by, code, reason),) = self.told()
        self.assertEqual((by, code, reason.partition(",")[0]), ("client", 1006, "TLS: closed without a close frame"))

    def test_missing_proxy_header_is_logged(self) -> None:
        client = ProxiedClient(self.factory, b"GET / HTTP/1.1\r\n")
        self.assertTrue(client.transport.disconnecting)
        client.lost()
        reason = "no header of the PROXY protocol came first"
        self.assertEqual(self.told(), [(self.level, "handshake", "relay", 1006, reason)])

    def test_exception_is_logged_as_a_defect(self) -> None:
        client = self.come().open().log_in()
        client.lost(RuntimeError("CANARY"))
        self.assertEqual(self.told(), [("info", "user", "relay", 1006, "a defect, logged before this")])

    def test_many_closes_at_once_are_logged_each_in_json_only(self) -> None:
        """Close many of each kind within a quarter of a second; `InText` tests how many are logged as text."""
        self.limit(unauthenticated_per_address=0, connections=31)
        self.come()
        clients = [self.come() for _ in range(60)]
        for client in clients[:30]:
            client.shake("Sec-WebSocket-Protocol: nonsense")
        for client in clients:
            client.lost()
        for visits in (lambda client: client.open(), lambda client: client.open().log_in()):
            clients = [visits(self.come()) for _ in range(30)]
            for client in clients:
                client.lost()
        told = self.told()
        counts = {(level, phase): 0 for level, phase, *_ in told}
        for level, phase, *_ in told:
            counts[level, phase] += 1
        self.assertEqual(counts, self.many)
        self.events.clear()
        self.pass_time(0.25)
        self.assertEqual(self.said(), self.more)

    many = {("info", "connection"): 30, ("info", "handshake"): 30, ("info", "visitor"): 30, ("info", "user"): 30}
    more: list[str] = []


class InText(InJSON):
    """In text, the number of lines is limited, and ends that need no login are logged at debug."""

    level = "debug"
    log_format = "text"
    many = {("info", "connection"): 25, ("info", "handshake"): 25, ("debug", "visitor"): 30, ("info", "user"): 25}
    more = [
        "too many log messages at once: 5 more connections refused",
        "too many log messages at once: 5 more handshakes refused",
        "too many log messages at once: 5 more connections ended",
    ]


class Lines(EndsTestCase):
    """The wording of the lines."""

    def test_each_line_reads_as_documented(self) -> None:
        self.limit()
        self.come().lost()
        self.come().open().lost(ConnectionLost())
        closing, binary = (self.come().open().log_in() for _ in range(2))
        binary.write(frame(b"x", BINARY))
        binary.lost()
        self.pass_time(1.5)
        closing.write(close_frame(None))
        closing.lost()
        self.assertEqual(
            self.said(LogLevel.debug)[-2:],
            [
                f"connection from {PEER} ended by the client in its handshake, after 0.0 s: closed without a close frame",
                f"connection of a visitor from {PEER} ended by the network with 1006 after 0.0 s: reset by peer",
            ],
        )
        self.assertEqual(
            self.said(LogLevel.info),
            [
                f"connection of 1 from {PEER} ended by the relay with 1003 after 0.0 s: {codes.BINARY_MESSAGE.reason}",
                f"connection of 1 from {PEER} ended by the client with 1005 after 1.5 s: it closed",
            ],
        )

    def test_lines_are_limited_again_from_each_sweep_and_the_rest_is_counted_when_the_sweeps_stop(self) -> None:
        self.limit(unauthenticated_per_address=0)
        for _ in range(2):
            self.events.clear()
            for _ in range(26):
                self.come().shake("Sec-WebSocket-Protocol: nonsense")
            self.assertEqual(len(self.said()), 25)
            self.pass_time(0.25)
        self.come().shake("Sec-WebSocket-Protocol: nonsense")
        self.assertEqual(len(self.said()), 27)
        for _ in range(25):
            self.come().shake("Sec-WebSocket-Protocol: nonsense")
        self.factory.stop_sweeping()
        self.assertEqual(self.said()[-1], "too many log messages at once: 1 more handshakes refused")
