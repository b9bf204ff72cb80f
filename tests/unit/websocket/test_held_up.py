"""A relay that was held up reads everything that arrived meanwhile before it checks a deadline."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.breaker import BreakerState
from chatrelay.model import LoggedIn, Unavailable, Verdict
from chatrelay.wire import codes
from tests.support.frames import CLOSE, CONTINUATION, HANDSHAKE, PING, PONG, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase, logged_lines
from tests.support.session_page_case import authenticator_for
from tests.support.v1 import ADMITTED

HELD_UP = 25.0
"""Seconds."""

LONGEST = 15.0
"""Seconds: the longest time limit that is tested here."""


class Connections(WebSocketTestCase):
    """Deadlines that the sweep checks: one client's bytes arrive during the hold-up, another's never do."""

    def hold_up(
        self, begin: Callable[[], MemoryClient], arrives: Callable[[MemoryClient], None], seconds: float
    ) -> list[MemoryClient]:
        """Make two such clients with most of their time used, hold the relay up, and return both.

        :param begin: makes one.
        :param arrives: sends the bytes of the client that is in time.
        :param seconds: their time.
        """
        self.pass_time(1)
        clients = [begin(), begin()]
        self.pass_time(seconds - 0.5)
        self.clock.advance(HELD_UP)
        arrives(clients[0])
        self.pass_time(2 * LONGEST)
        return clients

    def test_handshake_that_came_in_time_is_completed(self) -> None:
        def begin() -> MemoryClient:
            client = self.client()
            client.write(HANDSHAKE[:-9])
            return client

        self.factory = self.make_factory(login_timeout=0)
        in_time, silent = self.hold_up(begin, lambda client: client.write(HANDSHAKE[-9:]), 5)
        self.assertTrue(in_time.read().startswith(b"HTTP/1.1 101 "))
        self.assertEqual((in_time.transport.aborted, silent.transport.aborted), (False, True))

    def test_auth_request_that_came_in_time_is_answered(self) -> None:
        in_time, silent = self.hold_up(lambda: self.client().open(), lambda client: client.say_login("alice"), 10)
        self.assertEqual(in_time.hear(), [ADMITTED])
        self.assertEqual(silent.hear(), [(4001, "not logged in in time")])

    def test_message_that_came_in_time_is_accepted(self) -> None:
        def begin() -> MemoryClient:
            client = self.client().open().log_in()
            client.write(frame(b'{"type":', fin=False))
            return client

        in_time, silent = self.hold_up(begin, lambda client: client.write(frame(b'"x"}', CONTINUATION)), 10)
        self.assertEqual([heard["type"] for heard in in_time.hear()], ["error"])
        self.assertEqual(silent.hear(), [(1002, "a message took too long")])

    def test_pong_that_came_in_time_counts(self) -> None:
        self.factory = self.make_factory(ping_interval=LONGEST, ping_timeout=10)

        def begin() -> MemoryClient:
            client = self.client().open().log_in()
            client.protocol.ping()
            return client

        clients = self.hold_up(begin, lambda client: client.write(frame(b"", PONG)), 10)
        # It is pinged again, and does not answer again; that is its end, and not before.
        self.assertEqual(
            [client.hear() for client in clients],
            [
                [(PING, b""), (PING, b""), (4004, "no answer to pings")],
                [(PING, b""), (4004, "no answer to pings")],
            ],
        )

    def test_slow_reader_that_read_in_time_stays(self) -> None:
        self.factory = self.make_factory(unread_time=10)

        def begin() -> MemoryClient:
            client = self.client().open().log_in()
            client.protocol.outgoing.pauseProducing()
            return client

        in_time, silent = self.hold_up(begin, lambda client: client.protocol.outgoing.resumeProducing(), 10)
        self.assertEqual((in_time.hear(), silent.hear()), ([], [(4002, "not reading fast enough")]))

    def test_close_frame_that_came_in_time_is_read(self) -> None:
        self.factory = self.make_factory(closing_timeout=2)

        def begin() -> MemoryClient:
            client = self.client().open().log_in()
            client.protocol.close(codes.ENDED)
            return client

        def arrives(client: MemoryClient) -> None:
            self.assertFalse(client.transport.aborted)
            client.write(frame(b"\x11\x99", CLOSE))
            self.assertTrue(client.transport.aborted)  # Autobahn's way to end what both have closed

        _, silent = self.hold_up(begin, arrives, 2)
        self.assertTrue(silent.transport.aborted)

    def test_hold_up_is_logged_once(self) -> None:
        told = logged_lines(self)
        self.pass_time(1)
        self.clock.advance(1.25)
        self.pass_time(5)
        self.assertEqual(told, [])
        self.clock.advance(HELD_UP)
        self.pass_time(5)
        self.assertEqual(told, ["this process was held up for 25.0 s: that time counts towards no deadline"])

    def test_hold_up_causes_no_further_pings(self) -> None:
        self.factory = self.make_factory(ping_interval=2, ping_timeout=0)
        client = self.client().open().log_in()
        self.pass_time(2.5)
        client.hear()
        self.clock.advance(HELD_UP)
        self.assertEqual(client.hear(), [])


class Questions(SynchronousTestCase):
    """Deadlines that the authenticator checks."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.out: list[Deferred[Verdict]] = []

    def authenticator(self, **options: float) -> SessionPageAuthenticator:
        """Return an authenticator that sends no requests; the test answers instead."""
        authenticator = authenticator_for("http://site.example/", self.clock, **options)

        def ask(sessid: str, is_ticket: bool) -> Deferred[Verdict]:
            self.out.append(Deferred())
            return self.out[-1]

        self.patch(authenticator._page, "ask", ask)
        return authenticator

    def test_answers_that_came_in_time_keep_the_breaker_closed(self) -> None:
        authenticator = self.authenticator(timeout=5.0)
        verdicts = [authenticator.authenticate(str(number)) for number in range(20)]
        self.clock.pump([0.25] * 19)
        self.clock.advance(HELD_UP)
        self.clock.pump([0.25] * 4)
        for answer in self.out[:19]:
            answer.callback(LoggedIn(7))
        self.assertEqual([self.successResultOf(verdict) for verdict in verdicts[:19]], [LoggedIn(7)] * 19)
        self.assertNoResult(verdicts[19])
        self.clock.pump([0.25] * 8)
        self.assertEqual(self.successResultOf(verdicts[19]), Unavailable("no complete response within 5 s"))
        self.assertIs(authenticator._breaker.state, BreakerState.CLOSED)

    def test_queued_login_that_gets_its_turn_in_time_is_sent(self) -> None:
        authenticator = self.authenticator(timeout=0, checks=1, queue_timeout=10.0)
        first, second = (authenticator.authenticate(str(number)) for number in range(2))
        self.clock.pump([0.25] * 39)
        self.clock.advance(HELD_UP)
        self.out[0].callback(LoggedIn(1))
        self.out[1].callback(LoggedIn(2))
        self.assertEqual([self.successResultOf(verdict) for verdict in (first, second)], [LoggedIn(1), LoggedIn(2)])

    def test_answer_to_the_startup_check_that_came_in_time_counts(self) -> None:
        told = logged_lines(self)
        authenticator = self.authenticator(timeout=5.0)
        authenticator.startup_check()
        self.clock.pump([0.25] * 19)
        self.clock.advance(HELD_UP)
        self.assertEqual(told, [])
        self.clock.pump([0.25] * 9)
        self.assertEqual(len(told), 1)
        self.assertIn("no complete response within 5 s", told[0])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connecting_to_the_site_has_no_timeout_of_its_own(self) -> None:
        for timeout in (0.0, 5.0):
            reactor = MemoryReactorClock()
            authenticator = authenticator_for("http://127.0.0.1:9/", reactor, timeout=timeout)
            asking = authenticator.authenticate("sid")
            reactor.advance(1)
            ((_, _, _, connect_timeout, _),) = reactor.tcpClients
            self.assertIsNone(connect_timeout)
            asking.addErrback(lambda _: None)
            asking.cancel()
