"""Clients that do not read: how much may wait for them, and for how long."""

from __future__ import annotations

from chatrelay.wire import codes
from tests.support.frames import PING, PONG, close_code, frame, frames
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase


class SlowReaders(WebSocketTestCase):
    """Clients that leave bytes unread, and the limits on it."""

    def test_unread_bytes_above_unread_size_close_with_4002(self) -> None:
        self.factory = self.make_factory(unread_size=1000)
        client = self.client().open().log_in()
        outgoing = client.protocol.outgoing
        payload = b"x" * 100
        self.assertTrue(outgoing.send(b"x" * 5000))  # reads fast enough: no budget needed
        outgoing.pauseProducing()
        for _ in range(10):
            outgoing.pauseProducing()  # Twisted repeats it
            self.assertTrue(outgoing.send(payload))
        self.assertFalse(outgoing.send(payload))
        self.assertEqual(close_code(frames(client.read())[-1][1]), 4002)
        self.assertEqual(len(self.directory), 0)
        self.pass_time(2.5)
        self.assertTrue(client.transport.aborted)

    def test_unread_pongs_count_towards_unread_size(self) -> None:
        self.factory = self.make_factory(unread_size=1000)
        client = self.client().open().log_in()
        client.write(frame(b"p" * 90, PING))
        self.assertEqual(client.hear(), [(PONG, b"p" * 90)])
        client.protocol.outgoing.pauseProducing()
        client.write(frame(b"p" * 90, PING) * 10)
        self.assertEqual(len(client.hear()), 10)
        client.write(frame(b"p" * 90, PING) * 10)
        self.assertEqual(client.hear()[0][0], 4002)

    def test_client_that_catches_up_has_its_whole_budget_again(self) -> None:
        self.factory = self.make_factory(unread_size=1000)
        outgoing = self.client().open().log_in().protocol.outgoing
        for _ in range(5):
            outgoing.pauseProducing()
            self.assertTrue(outgoing.send(b"x" * 900))
            outgoing.resumeProducing()

    def test_unread_size_of_zero_is_no_limit(self) -> None:
        self.factory = self.make_factory(unread_size=0, unread_time=0)
        outgoing = self.client().open().log_in().protocol.outgoing
        outgoing.pauseProducing()
        for _ in range(20):
            self.assertTrue(outgoing.send(b"x" * 100_000))
            self.pass_time(1)
        self.assertEqual(len(self.directory), 1)

    def test_client_behind_for_unread_time_closes_with_4002(self) -> None:
        clients = [self.client().open().log_in(sessid) for sessid in ("alice", "bo")]
        for client in clients:
            client.protocol.outgoing.pauseProducing()
        self.pass_time(9.875)
        clients[0].protocol.outgoing.resumeProducing()
        self.pass_time(0.375)
        self.assertEqual(
            [client.hear() for client in clients],
            [[], [(4002, "not reading fast enough")]],
        )
        self.assertEqual(len(self.directory), 1)
        self.pass_time(30)
        self.assertEqual([client.transport.aborted for client in clients], [False, True])

    def test_client_behind_again_has_unread_time_again(self) -> None:
        client = self.client().open().log_in()
        for _ in range(4):
            client.protocol.outgoing.pauseProducing()
            self.pass_time(9)
            client.protocol.outgoing.resumeProducing()
        self.assertEqual(client.hear(), [])

    def test_client_that_leaves_while_behind_is_forgotten(self) -> None:
        for leave in (MemoryClient.lost, lambda client: client.protocol.close(codes.STOPPING)):
            client = self.client().open().log_in()
            client.protocol.outgoing.pauseProducing()
            self.assertEqual(len(self.factory.registry.slow_readers), 1)
            leave(client)
            client.protocol.outgoing.pauseProducing()
            self.assertEqual(len(self.factory.registry.slow_readers), 0)
