"""How connections end: closing handshakes, a stopping relay, lost clients, and what is logged of each."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from tests.support.frames import BINARY, close_frame, frame
from tests.support.relay_case import WebSocketTestCase


class ClosedConnections(WebSocketTestCase):
    """Connections that end, and receive nothing afterwards."""

    def test_client_that_closes_is_gone_at_once(self) -> None:
        client = self.client().open().log_in()
        client.write(close_frame())
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(client.hear()[0][0], 1000)
        self.assertTrue(client.transport.disconnecting)

    def test_client_that_breaks_the_protocol_is_gone_at_once(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"x", BINARY))
        self.assertEqual(len(self.directory), 0)

    def test_lost_client_is_gone_at_once(self) -> None:
        client = self.client().open().log_in()
        client.lost()
        self.assertEqual(len(self.directory), 0)

    def test_unanswered_close_aborts_the_connection(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"x", BINARY))
        self.pass_time(1.5)
        self.assertFalse(client.transport.aborted)
        self.pass_time(1)
        self.assertTrue(client.transport.aborted)

    def test_closed_client_may_stay_for_closing_timeout(self) -> None:
        self.factory = self.make_factory(closing_timeout=7)
        closed, refused = self.client().open().log_in(), self.client()
        closed.write(frame(b"x", BINARY))
        refused.shake("Sec-WebSocket-Protocol: nonsense")
        self.pass_time(6.75)
        self.assertEqual([client.transport.aborted for client in (closed, refused)], [False, False])
        self.pass_time(0.5)
        self.assertEqual([client.transport.aborted for client in (closed, refused)], [True, True])

    def test_closing_timeout_of_zero_is_a_quarter_of_a_second(self) -> None:
        for seconds in (0, 0.01):
            self.factory = self.make_factory(closing_timeout=seconds)
            client = self.client().open().log_in()
            client.write(frame(b"x", BINARY))
            self.assertEqual(client.hear()[0][0], 1003)
            self.pass_time(0.125)
            self.assertFalse(client.transport.aborted)
            self.pass_time(0.5)
            self.assertTrue(client.transport.aborted)

    def test_answered_close_ends_the_connection(self) -> None:
        client = self.client().open()
        client.write(frame(b"x", BINARY))
        client.write(close_frame(1003))
        self.assertTrue(client.transport.aborted or client.transport.disconnecting)

    def test_stopping_relay_closes_with_4000(self) -> None:
        member, visitor, accepted = self.client().open().log_in(), self.client().open(), self.client()
        closed = self.factory.registry.close_all()
        self.assertEqual(member.hear(), [(4000, "the relay is stopping")])
        self.assertEqual(visitor.hear(), [(4000, "the relay is stopping")])
        self.assertTrue(accepted.transport.aborted)
        self.assertNoResult(closed)
        for client in (member, visitor, accepted):
            client.lost()
        self.successResultOf(closed)

    def test_failure_to_close_one_client_does_not_keep_the_others_open(self) -> None:
        first, second = (self.client().open().log_in(name) for name in ("alice", "bo"))
        troubled, other = (
            (first, second) if next(iter(self.factory.registry.connections)) is first.protocol else (second, first)
        )
        with patch.object(troubled.protocol, "close", side_effect=RuntimeError("trouble")):
            self.factory.registry.close_all()
        self.assertEqual(other.hear(), [(4000, "the relay is stopping")])
        with patch.object(troubled.protocol, "abort", side_effect=RuntimeError("trouble")):
            self.factory.registry.abort_all()
        self.assertTrue(other.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_connection_to_a_stopped_relay_is_aborted(self) -> None:
        self.factory.registry.abort_all()
        client = self.client()
        self.assertTrue(client.transport.aborted)
        client.lost()
        self.factory.start_sweeping()
        self.client().open().log_in()

    def test_message_to_a_stopping_relay_is_not_accepted(self) -> None:
        client = self.client().open().log_in()
        told = Deferred.fromCoroutine(self.factory.registry.close_by_turns())
        self.successResultOf(told)
        client.send(1)
        self.clock.advance(0)
        self.assertEqual((client.hear(), self.log.rows), ([(4000, "the relay is stopping")], []))


class LoggedEnds(WebSocketTestCase):
    """What is logged when a connection has ended."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def told(self, level: LogLevel = LogLevel.info) -> list[str]:
        """Return the lines of a level since the last call."""
        lines = [formatEvent(event) for event in self.events if event["log_level"] is level]
        self.events.clear()
        return lines

    def test_log_says_who_closed_and_with_which_code(self) -> None:
        for close, code in ((close_frame(1001, "my words"), 1001), (close_frame(None), 1005)):
            client = self.client().open().log_in()
            self.pass_time(1.5)
            client.write(close)
            client.lost()
            self.assertEqual(
                self.told(),
                [f"connection of 1 from 192.0.2.1:4321 ended by the client with {code} after 1.5 s: it closed"],
            )

    def test_log_says_how_a_connection_was_lost(self) -> None:
        self.client().open().log_in("bo").lost()
        self.client().open().log_in("bo").lost(ConnectionLost())
        self.assertEqual(
            self.told(),
            [
                "connection of 2 from 192.0.2.1:4321 ended by the client with 1006 after 0.0 s: "
                "closed without a close frame",
                "connection of 2 from 192.0.2.1:4321 ended by the network with 1006 after 0.0 s: reset by peer",
            ],
        )

    def test_log_says_why_the_relay_closed(self) -> None:
        binary = self.client().open().log_in()
        binary.write(frame(b"x", BINARY))
        crooked = self.client().open().log_in()
        crooked.write(frame(b"x", rsv=1))
        stopped = self.client().open().log_in()
        self.factory.registry.close_all()
        for client in (binary, crooked, stopped):
            client.lost()
        binary_line, crooked_line, stopped_line = self.told()
        self.assertIn("ended by the relay with 1003 after 0.0 s: binary messages are not accepted", binary_line)
        self.assertIn("ended by the relay with 1002 after 0.0 s: ", crooked_line)
        self.assertIn("ended by the relay with 4000 after 0.0 s: the relay is stopping", stopped_line)

    def test_end_without_a_login_is_logged_at_debug(self) -> None:
        visitor = self.client().open()
        visitor.say_login("CANARY")
        for client in (visitor, self.client()):
            client.lost()
        debug = [event for event in self.events if event["log_namespace"].startswith("chatrelay.")]
        self.assertEqual([event["log_level"] for event in debug], [LogLevel.debug] * 2)
        self.assertNotIn("CANARY", str(debug))

    def test_many_ends_at_once_are_logged_as_a_count(self) -> None:
        clients = [self.client().open().log_in() for _ in range(30)]
        for client in clients:
            client.lost()
        self.assertEqual(len(self.told()), 25)
        self.pass_time(0.25)
        self.assertEqual(self.told(), ["too many log messages at once: 5 more connections ended"])
        self.pass_time(0.25)
        self.assertEqual(self.told(), [])
        self.client().open().log_in().lost()
        self.assertEqual(len(self.told()), 1)

    def test_json_log_has_every_end(self) -> None:
        self.factory = self.make_factory(log_format="json")
        clients = [self.client().open().log_in() for _ in range(30)]
        for client in clients:
            client.lost()
        self.assertEqual(len(self.told()), 30)

    def test_json_log_has_every_refused_handshake(self) -> None:
        for _ in range(26):
            self.client().shake("Sec-WebSocket-Protocol: nonsense")
        self.assertEqual(len(self.told()), 25)
        self.factory.stop_sweeping()
        self.assertEqual(self.told(), ["too many log messages at once: 1 more handshakes refused"])
