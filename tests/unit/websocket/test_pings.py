"""Pings: which connections get them, when, and what follows an answer or its absence."""

from __future__ import annotations

from twisted.internet.task import Clock

from chatrelay.config.options import Config
from chatrelay.testing import KnownSessions
from chatrelay.websocket import outbox as outgoing
from chatrelay.wire import codes
from tests.support.frames import PING, PONG, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase, chat_factory


class Pings(WebSocketTestCase):
    """Pings of open connections, and the close of those that do not answer."""

    def setUp(self) -> None:
        super().setUp()
        self.factory = self.make_factory(ping_interval=20, ping_timeout=15)

    def pinged(self) -> MemoryClient:
        """Return a client that has just been pinged."""
        client = self.client().open().log_in()
        while not (heard := client.hear()):
            self.pass_time(0.125)
        self.assertEqual(heard, [(PING, b"")])
        return client

    def test_answered_ping_keeps_the_connection_and_is_followed_by_another(self) -> None:
        client = self.client().open().log_in()
        heard = []
        for _ in range(800):
            self.pass_time(0.125)
            for ping in client.hear():
                heard.append(ping)
                client.write(frame(b"", PONG))
        self.assertEqual(heard, [(PING, b"")] * 5)

    def test_unanswered_ping_closes_with_4004(self) -> None:
        client = self.pinged()
        self.pass_time(14.875)
        self.assertEqual((client.hear(), len(self.directory)), ([], 1))
        self.pass_time(0.75)
        self.assertEqual((client.hear(), len(self.directory)), ([(4004, "no answer to pings")], 0))
        self.pass_time(2.5)
        self.assertTrue(client.transport.aborted)

    def test_any_bytes_answer_a_ping(self) -> None:
        for sign in (frame(b"", PONG), frame(b"p", PING), frame(b"{}")):
            client = self.pinged()
            client.write(sign)
            client.hear()
            self.pass_time(18)
            self.assertNotIn(4004, [heard[0] for heard in client.hear() if isinstance(heard, tuple)])
            client.lost()

    def test_bytes_from_before_the_ping_do_not_answer_it(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"", PONG))
        self.pass_time(36)
        self.assertEqual(client.hear(), [(PING, b""), (4004, "no answer to pings")])

    def test_silent_client_closes_within_40_seconds_with_the_defaults(self) -> None:
        for chance in (0.0, 0.3, 0.9999):
            self.clock = Clock()
            self.chance = chance
            self.factory = self.make_factory(ping_interval=Config().ping_interval)
            client = self.client().open().log_in()
            while not client.transport.aborted:
                self.pass_time(0.125)
                self.assertLess(self.clock.seconds(), 40)

    def test_pings_are_spread_over_the_interval(self) -> None:
        chances = iter([number / 100 for number in range(100)])
        factory = chat_factory(
            Config(ping_interval=20, login_timeout=0),
            self.clock,
            KnownSessions({}),
            chance=lambda: next(chances),
        )
        clients = [MemoryClient(factory).open() for _ in range(100)]
        pinged = []
        for _ in range(82):
            factory.parts.sweep.run()
            pinged.append(sum(client.hear() == [(PING, b"")] for client in clients))
            self.clock.advance(0.25)
        self.assertEqual(sum(pinged), 100)
        self.assertLessEqual(max(pinged), 2)

    def test_client_that_is_behind_is_closed_by_unread_time_only(self) -> None:
        client = self.client().open().log_in()
        client.protocol.outgoing.pauseProducing()
        self.factory.registry.slow_readers.caught_up(client.protocol.outgoing)  # that one's time is another test's
        self.pass_time(60)
        self.assertEqual(client.hear(), [])
        client.protocol.outgoing.resumeProducing()
        self.pass_time(20.25)
        self.assertEqual(client.hear(), [(PING, b"")])

    def test_client_that_was_behind_at_ping_timeout_is_found_later(self) -> None:
        client = self.pinged()
        self.pass_time(10)
        client.protocol.outgoing.pauseProducing()
        self.pass_time(8)
        client.protocol.outgoing.resumeProducing()  # the kernel took it all; the client reads nothing
        self.pass_time(15)
        self.assertEqual(client.hear(), [(4004, "no answer to pings")])

    def test_unread_pings_count_towards_unread_size_without_unread_time(self) -> None:
        self.factory = self.make_factory(
            ping_interval=1, ping_timeout=0, unread_time=0, unread_size=60, login_timeout=0
        )
        client = self.client().open()
        client.protocol.outgoing.pauseProducing()
        self.pass_time(10)
        heard = client.hear()
        self.assertEqual(heard[:-1], [(PING, b"")] * 6)
        self.assertEqual(heard[-1], (4002, "not reading fast enough"))

    def test_tcp_user_timeout_is_ping_interval_plus_ping_timeout(self) -> None:
        told: list[float] = []
        self.patch(outgoing.Outbox, "give_up_after", lambda _, seconds: told.append(seconds))
        for interval, timeout in ((20, 15), (0, 15), (20, 0)):
            self.factory = self.make_factory(ping_interval=interval, ping_timeout=timeout)
            self.client()
        self.assertEqual(told, [35])

    def test_connection_that_is_not_open_is_not_pinged(self) -> None:
        self.factory = self.make_factory(ping_interval=0.25, handshake_timeout=0)
        shaking = self.client()
        closing = self.client().open()
        closing.protocol.close(codes.STOPPING)
        closing.read()
        gone = self.client().open()
        gone.lost()
        self.pass_time(1)
        self.assertEqual((shaking.read(), closing.read(), gone.read()), (b"", b"", b""))
        self.assertEqual(len(self.factory.registry.pings), 0)

    def test_client_closed_by_the_same_sweep_is_not_pinged(self) -> None:
        self.factory = self.make_factory(ping_interval=0.25, ping_timeout=0, login_timeout=1)
        client = self.client().open()
        self.pass_time(1.5)
        heard = client.hear()
        self.assertIn((PING, b""), heard)
        self.assertEqual(heard[-1], (4001, "not logged in in time"))

    def test_ping_follows_what_was_sent_before_it(self) -> None:
        client = self.client().open().log_in()
        client.protocol.outgoing.send(b'"before"')
        client.protocol.ping()
        client.protocol.outgoing.send(b'"after"')
        self.assertEqual(client.hear(), ["before", (PING, b""), "after"])

    def test_ping_interval_of_zero_is_never(self) -> None:
        for options in ({"ping_interval": 0}, {"ping_interval": 20, "ping_timeout": 0}):
            self.factory = self.make_factory(**options)
            client = self.client().open().log_in()
            self.pass_time(100)
            heard = client.hear()
            self.assertEqual(heard, [(PING, b"")] * (5 if options["ping_interval"] else 0))
            client.lost()
