"""The relay as a service: starting, draining and stopping it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatrelay import Config, LoggedIn, build
from chatrelay.app import descriptors
from chatrelay.app.service import ChatRelayService
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import LogUnavailable
from chatrelay.testing import HeldMessageLog, KnownSessions
from chatrelay.websocket import shutdown as stopping
from tests.support.memory import MemoryClient
from tests.support.message_logs import message


class Running(SynchronousTestCase):
    """Starting and stopping a relay, on a fake reactor."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.running = True
        self.log = HeldMessageLog()
        self.service = self.make()

    def make(self, **options: Any) -> ChatRelayService:
        """Return a relay with known sessions on the fake reactor."""
        options.setdefault("listen", ("tcp:8080",))
        options.setdefault("ping_interval", 0)  # no pings among what a test receives
        return build(Config(**options), self.reactor, KnownSessions({"alice": 1, "bo": 2}), self.log)

    def start(self, **options: Any) -> ChatRelayService:
        """Start a relay."""
        self.service = self.make(**options)
        self.service.startService()
        return self.service

    def client(self, sessid: str) -> MemoryClient:
        """Return a logged-in client."""
        return MemoryClient(self.service.factory).open().log_in(sessid)

    def test_started_relay_listens_on_its_endpoint(self) -> None:
        self.start(listen=("tcp:8080", "tcp:8081:interface=127.0.0.1"))
        self.assertEqual(
            [(server[0], server[3]) for server in self.reactor.tcpServers], [(8080, ""), (8081, "127.0.0.1")]
        )

    def test_old_messages_are_deleted_from_the_start_to_the_stop(self) -> None:
        MemoryMessageLog.append(self.log, [message(received_at=1_000_000_000.0)])
        self.start(keep=86_400)
        self.reactor.advance(0)
        self.assertEqual(self.log.trimmed, 1)
        MemoryMessageLog.append(self.log, [message(received_at=1_000_000_000.0), message(received_at=4e9)])
        self.reactor.pump([1.0] * 61)
        self.assertEqual(self.log.trimmed, 2)
        self.service.stopService()
        MemoryMessageLog.append(self.log, [message(received_at=1_000_000_000.0)])
        self.reactor.pump([1.0] * 61)
        self.assertEqual(self.log.trimmed, 2)

    def test_limit_of_connections_comes_from_the_descriptors_or_the_option(self) -> None:
        self.patch(descriptors, "limit", lambda: 5000)
        for options, given, most in (
            ({}, {}, descriptors.max_connections(5000, 32)),
            ({"connections": 7}, {}, 7),
            ({"connections": 0}, {}, 0),
            ({}, {"connections": 8}, 8),
            ({}, {"connections": 0}, 0),
            ({"connections": 7}, {"connections": 8}, 7),
        ):
            service = build(Config(**options), self.reactor, KnownSessions({}), self.log, **given)
            self.assertEqual(service.factory.parts.admission.max_connections, most)

    def test_ops_endpoint_listens_on_loopback_by_default(self) -> None:
        self.start(listen=(), ops_listen="tcp:8081")
        self.assertEqual([(server[0], server[3]) for server in self.reactor.tcpServers], [(8081, "127.0.0.1")])

    def test_running_relay_with_an_open_log_is_ready(self) -> None:
        service = self.start()
        self.assertIsNone(service.not_ready())
        self.patch(self.log, "is_open", False)
        self.assertIn("message log", service.not_ready() or "")
        self.patch(self.log, "is_open", True)
        client = self.client("alice")
        stopped = service.stopService()
        self.assertEqual(service.not_ready(), "the relay is stopping")
        client.lost()
        self.successResultOf(stopped)

    def test_ops_endpoint_listens_until_the_last_client_has_disconnected(self) -> None:
        service = self.start(ops_listen="tcp:8081")
        assert service.ops is not None
        client = self.client("alice")
        stopped = service.stopService()
        self.reactor.advance(1)
        self.assertTrue(service.ops.running)
        client.lost()
        self.successResultOf(stopped)
        self.assertFalse(service.ops.running)

    def test_relay_without_endpoints_starts(self) -> None:
        self.start(listen=())
        self.assertEqual(self.reactor.tcpServers, [])

    def test_start_raises_log_unavailable(self) -> None:
        def refuse() -> None:
            raise LogUnavailable("no disk")

        self.patch(self.log, "start", refuse)
        self.assertRaises(LogUnavailable, self.service.startService)

    def test_failed_port_leaves_the_log_closed(self) -> None:
        closed: list[str] = []
        self.patch(self.log, "stop", lambda: closed.append("closed") or succeed(None))

        def refuse() -> None:
            raise FileNotFoundError("no folder for the socket")

        self.patch(self.service.services[0], "startService", refuse)
        self.assertRaises(FileNotFoundError, self.service.startService)
        self.assertEqual(closed, ["closed"])

    def test_stopped_relay_can_be_started_again(self) -> None:
        self.start(listen=())
        self.successResultOf(self.service.stopService())
        self.service.startService()
        self.client("alice").send(1, "note")
        self.reactor.advance(0)
        self.assertEqual(len(self.log.batches), 1)

    def test_stop_answers_then_closes_connections_then_closes_the_log(self) -> None:
        service = self.start()
        order: list[str] = []
        self.patch(self.log, "stop", lambda: order.append("log closed") or succeed(None))
        alice, bo = self.client("alice"), self.client("bo")
        alice.send(2, "last words", id="x")
        self.reactor.advance(0)
        stopped = service.stopService()
        self.reactor.advance(1)
        self.assertEqual((alice.hear(), bo.hear(), order), ([], [], []))
        alice.send(2, "too late", id="y")
        self.log.commit()
        self.reactor.advance(0)
        self.assertEqual(bo.hear()[0]["message"]["content"], "last words")
        self.assertEqual(
            alice.hear(),
            [
                {"type": "send-request-response", "response": {"id": "x", "value": True}},
                (4000, "the relay is stopping"),
            ],
        )
        self.assertNoResult(stopped)
        self.assertEqual(order, [])
        alice.lost()
        bo.lost()
        self.assertEqual(order, ["log closed"])
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def crowd(self, count: int, first_turn: int = 1, rate: float = 1.0) -> list[MemoryClient]:
        """Connect this many members, alternately Alice and Bo, who have their turns at this rate when the relay
        stops.
        """
        self.patch(stopping, "FIRST_TURNS", first_turn)
        self.patch(stopping, "MIN_TURNS_PER_SECOND", rate)
        return [self.client(("alice", "bo")[number % 2]) for number in range(count)]

    def test_stop_closes_connections_in_turns_and_random_order(self) -> None:
        service = self.start(drain_time=10)
        crowd = self.crowd(9)
        stopped = service.stopService()
        order: list[int] = []
        by_second = []
        self.reactor.advance(0.0625)  # so that nothing is due at the moment of the check
        for _ in range(9):
            self.reactor.pump([0.125] * 8)
            told = [number for number, client in enumerate(crowd) if (4000, "the relay is stopping") in client.hear()]
            by_second.append(len(told))
            order += told
            for number in told:
                crowd[number].lost()
        self.assertEqual(by_second, [2, 1, 1, 1, 1, 1, 1, 1, 0])
        self.assertEqual(sorted(order), list(range(9)))
        self.assertNotEqual(order, list(range(9)))  # with a chance of one in a thousand hundreds
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_connection_sends_and_receives_until_its_turn(self) -> None:
        service = self.start(drain_time=10)
        crowd = self.crowd(6)
        stopped = service.stopService()
        self.reactor.pump([0.05] * 20)
        closed = [client for client in crowd if client.protocol.state != client.protocol.STATE_OPEN]
        alice = next(client for client in crowd[::2] if client not in closed)
        bo = next(client for client in crowd[1::2] if client not in closed)
        alice.send(2, "still here", id="x")
        self.reactor.advance(0)
        self.log.commit()
        self.reactor.advance(0)
        self.assertEqual(bo.hear()[0]["message"]["content"], "still here")
        self.assertEqual(alice.hear()[0]["response"], {"id": "x", "value": True})
        alice.send(2, "the last before the end", id="y")
        self.reactor.pump([0.05] * 100)  # everybody's turn has come, and the log is slow
        self.assertEqual(alice.hear(), [])
        alice.send(2, "too late", id="z")
        self.log.commit()
        self.reactor.pump([0.05] * 2)
        self.assertEqual(
            alice.hear(),
            [
                {"type": "send-request-response", "response": {"id": "y", "value": True}},
                (4000, "the relay is stopping"),
            ],
        )
        for client in crowd:
            client.lost()
        self.assertEqual(self.log.batches, [])
        self.successResultOf(stopped)

    def test_new_connection_during_a_stop_is_refused_and_an_early_one_gets_a_turn(self) -> None:
        service = self.start(drain_time=10)
        early = [MemoryClient(service.factory) for _ in range(3)]  # which have not sent a handshake yet
        crowd = self.crowd(3)
        stopped = service.stopService()
        late = MemoryClient(service.factory)  # an embedding site's own port may still be open
        self.assertIn(b"the relay is stopping", late.shake())
        here = [client.open() for client in early if not client.transport.aborted]
        self.assertGreaterEqual(len(here), 2)
        for client in here:
            client.log_in("alice")
        self.reactor.pump([0.05] * 120)
        for client in here:
            self.assertEqual(client.hear(), [(4000, "the relay is stopping")])
        for client in (late, *early, *crowd):
            client.lost()
        self.successResultOf(stopped)

    def test_stop_ends_with_the_last_connection(self) -> None:
        service = self.start(drain_time=1000)
        crowd = self.crowd(9)
        stopped = service.stopService()
        self.reactor.advance(0.5)
        for client in crowd:
            self.assertNoResult(stopped)
            client.lost()
        self.reactor.advance(0.05)
        self.successResultOf(stopped)

    def test_unanswered_sender_is_closed_with_4000(self) -> None:
        service = self.start(drain_time=10)
        alice, bo = self.client("alice"), self.client("bo")
        alice.send(2, "never committed")
        self.reactor.advance(0)
        stopped = service.stopService()
        self.reactor.pump([0.25] * 35)
        self.assertEqual(alice.hear() + bo.hear(), [])
        self.reactor.pump([0.25] * 2)
        self.assertEqual([client.hear() for client in (alice, bo)], [[(4000, "the relay is stopping")]] * 2)
        self.assertFalse(alice.transport.aborted)
        self.reactor.pump([0.25] * 4)
        self.assertTrue(alice.transport.aborted)
        for client in (alice, bo):
            client.lost()
        self.log.commit()
        self.successResultOf(stopped)

    def test_stop_without_a_time_limit_waits_for_all_answers(self) -> None:
        service = self.start(drain_time=0, connections_per_user=0)
        crowd = self.crowd(30)
        self.patch(
            self.service.factory.registry, "closing_deadlines", type(self.service.factory.registry.closing_deadlines)(0)
        )
        stopped = service.stopService()
        self.reactor.pump([0.25] * 4 * 31)
        for client in crowd:
            self.assertEqual(client.hear(), [(4000, "the relay is stopping")])
        self.reactor.pump([60.0] * 60)
        self.assertNoResult(stopped)
        for client in crowd:
            client.lost()
        self.successResultOf(stopped)

    def test_stop_takes_no_longer_than_drain_time(self) -> None:
        service = self.start(drain_time=5)
        client = self.client("alice")
        self.patch(
            self.service.factory.registry, "closing_deadlines", type(self.service.factory.registry.closing_deadlines)(0)
        )
        stopped = service.stopService()
        self.reactor.pump([0.25] * 19)
        self.assertNoResult(stopped)
        self.assertFalse(client.transport.aborted)
        self.reactor.pump([0.25] * 2)
        self.assertTrue(client.transport.aborted)
        self.successResultOf(stopped)

    def test_hanging_message_log_does_not_delay_a_stop(self) -> None:
        service = self.start(drain_time=5)
        hanging: Deferred[None] = Deferred()
        self.patch(self.log, "stop", lambda: hanging)
        alice = self.client("alice")
        alice.send(1, "never committed")
        self.reactor.advance(0)
        stopped = service.stopService()
        self.reactor.pump([0.25] * 38)
        self.assertNoResult(stopped)
        self.reactor.pump([0.25] * 4)
        self.successResultOf(stopped)

    def test_stop_of_an_idle_relay_ends_at_once(self) -> None:
        self.successResultOf(self.start().stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_start_logs_the_endpoint_and_unsafe_settings(self) -> None:
        events: list[str] = []

        def observe(event: Any) -> None:
            if event.get("log_namespace") == "chatrelay.app":
                events.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        service = build(Config(message_log="none", listen=("tcp:8080",)), self.reactor, KnownSessions({}))
        service.startService()
        self.assertEqual(events, [])  # the reactor does not run yet, so that a signal would end it without a word
        self.reactor.advance(0)
        said = "\n".join(events)
        self.assertIn("pages of any origin may connect", said)
        self.assertIn("messages are not logged", said)
        self.assertIn("listens on tcp:8080; message log: none", said)
        events.clear()
        self.start(origin=("https://example.com",))
        self.reactor.advance(0)
        said = "\n".join(events)
        self.assertIn("message log: the application's own", said)
        self.assertNotIn("any origin", said)
        self.assertNotIn("not logged", said)

    def test_embedders_authenticator_and_log_are_used(self) -> None:
        class Own:
            def authenticate(self, sessid: str) -> Deferred[Any]:
                return succeed(LoggedIn(sessid))

        log = MemoryMessageLog()
        self.service = build(Config(listen=()), self.reactor, Own(), log)
        self.service.startService()
        self.client("me").send("me", "note")
        self.reactor.advance(0)
        self.assertEqual([row.message.content for row in log.rows], ["note"])
