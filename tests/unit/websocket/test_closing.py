"""How connections end: closing handshakes, a stopping relay, lost clients. test_ends.py tests what is logged of each."""

from __future__ import annotations

from unittest.mock import patch

from twisted.internet.defer import Deferred

from tests.support.frames import BINARY, close_frame, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase


class ClosedConnections(WebSocketTestCase):
    """Connections that end, and receive nothing afterwards."""

    def test_client_is_gone_at_once_however_it_ends(self) -> None:
        for end in (
            lambda client: client.write(close_frame()),
            lambda client: client.write(frame(b"x", BINARY)),
            MemoryClient.lost,
        ):
            client = self.client().open().log_in()
            end(client)
            self.assertEqual(len(self.directory), 0)

    def test_close_of_a_client_is_answered(self) -> None:
        client = self.client().open().log_in()
        client.write(close_frame())
        self.assertEqual(client.hear()[0][0], 1000)
        self.assertTrue(client.transport.disconnecting)

    def test_client_that_does_not_leave_is_aborted_after_closing_timeout(self) -> None:
        for seconds, options in ((2, {}), (7, {"closing_timeout": 7})):
            self.factory = self.make_factory(**options)
            closed, refused = self.client().open().log_in(), self.client()
            closed.write(frame(b"x", BINARY))
            refused.shake("Sec-WebSocket-Protocol: nonsense")
            self.pass_time(seconds - 0.25)
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
