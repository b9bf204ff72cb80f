"""Which clients may connect, byte by byte: refused connections, and too many of an address or a user."""

from __future__ import annotations

from typing import Any

from autobahn.websocket import protocol as autobahn
from autobahn.websocket.compress import PerMessageDeflateOffer
from autobahn.websocket.types import ConnectionDeny
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from chatrelay.model import Denied, LoggedIn
from chatrelay.testing import HeldAuthenticator, KnownSessions
from chatrelay.websocket import closing, handshake, opening
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.websocket.states import ConnectionState
from chatrelay.wire import codes
from tests.support.frames import HANDSHAKE
from tests.support.memory import (
    ELSEWHERE,
    OFFICE,
    MemoryClient,
    Transport,
)
from tests.support.relay_case import ConnectingTestCase, chat_factory

FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 77\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Connection: close\r\n"
    b"Retry-After: 10\r\n"
    b"\r\n"
    b"chatrelay speaks WebSocket here, and refused this request: the relay is full\n"
)


class Defects(ConnectingTestCase):
    """A handshake during which an exception is raised."""

    SECRET = "alice-session"

    def refusal(self) -> tuple[bytes, str]:
        """Send a handshake; return the answer and the operator's lines."""
        answer = self.come().shake(f"Cookie: SESSID={self.SECRET}")
        return answer, "\n".join(self.said())

    def check(self, answer: bytes, said: str, where: str) -> None:
        """Check that the client gets no details, the log names the place, and neither contains the cookie."""
        self.assertTrue(answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n"), answer)
        self.assertTrue(answer.endswith(f"refused this request: {handshake.DEFECT}\n".encode()), answer)
        self.assertIn("a handshake raised ValueError, which is a bug; please report it", said)
        self.assertIn(f", in {where}\n", said)
        self.assertNotIn(self.SECRET, said)

    def test_exception_in_a_handshake_is_logged_and_answered_with_500(self) -> None:
        def check_origin(request: bytes) -> None:
            raise ValueError(request)

        self.patch(self.factory.parts.handshakes, "check_origin", check_origin)
        self.check(*self.refusal(), where="check_origin")

    def test_exception_in_a_subclass_is_logged_and_answered_with_500(self) -> None:
        class Sync(ChatProtocol):
            def onConnect(self, request: Any) -> Any:
                raise ValueError(request.headers)

        class Async(ChatProtocol):
            async def onConnect(self, request: Any) -> Any:  # type: ignore[override]
                raise ValueError(request.headers)

        for protocol in (Sync, Async):
            self.events.clear()
            self.factory.protocol = protocol
            self.check(*self.refusal(), where="onConnect")

    def test_denial_by_a_subclass_is_sent_to_the_client(self) -> None:
        class Denying(ChatProtocol):
            def onConnect(self, request: Any) -> Any:
                raise ConnectionDeny(403, "members only")

        self.factory.protocol = Denying
        answer, said = self.refusal()
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"))
        self.assertTrue(answer.endswith(b": members only\n"))
        self.assertNotIn("a handshake raised", said)

    def test_connection_lost_while_a_subclass_decides_is_not_opened(self) -> None:
        decisions: list[Deferred[Any]] = []

        class Undecided(ChatProtocol):
            def onConnect(self, request: Any) -> Any:
                decisions.append(Deferred())
                return decisions[-1]

        self.factory.protocol = Undecided
        for decision in (None, Failure(ConnectionDeny(403, "members only"))):
            client = self.come()
            client.write(HANDSHAKE)
            client.lost()
            self.events.clear()
            decisions[-1].callback(decision)
            protocol, registry = client.protocol, self.factory.registry
            self.assertEqual((protocol.connection_state, protocol.session), (ConnectionState.LOST, None))
            self.assertEqual(protocol.state, protocol.STATE_CLOSED)
            self.assertEqual((len(registry.login_deadlines), len(registry.closing_deadlines)), (0, 0))
            self.assertEqual(self.said(), [])

    def test_exception_in_on_open_aborts_the_connection(self) -> None:
        class Failing(ChatProtocol):
            def onOpen(self) -> None:
                super().onOpen()
                raise ValueError(self.http_request_data)

        self.factory.protocol = Failing
        client = self.come()
        client.shake(f"Cookie: SESSID={self.SECRET}")
        self.assertTrue(client.transport.aborted)
        client.lost(ConnectionAborted())
        defect, end = self.said(LogLevel.critical), self.said(LogLevel.debug)[-1]
        self.assertEqual(len(defect), 1)
        self.assertIn(", in onOpen\n", defect[0])
        self.assertNotIn(self.SECRET, defect[0])
        self.assertIn("ended by the relay with 1006", end)
        self.assertTrue(end.endswith("a defect, logged before this"))
        self.assertEqual(len(self.factory.registry.connections), 0)

    def test_many_exceptions_at_once_are_logged_as_a_count(self) -> None:
        self.patch(self.factory.parts.handshakes, "check_origin", None)
        for _ in range(closing.MAX_LOGGED_PER_SWEEP + 5):
            self.refusal()
        self.pass_time(1)
        lines = [line for line in self.said() if "raised" in line]
        self.assertEqual(len(lines), closing.MAX_LOGGED_PER_SWEEP + 1)
        self.assertIn("too many log messages at once: 5 more handshakes that raised an exception", lines)

    def test_exception_that_autobahn_catches_is_not_quoted(self) -> None:
        def fail(*_: object) -> None:
            raise ValueError(f"{self.SECRET} is wrong")

        self.limit(compression=True)
        for holder, name, header, says in (
            (PerMessageDeflateOffer, "parse", "Sec-WebSocket-Extensions: permessage-deflate", handshake.UNREADABLE),
            (autobahn, "_url_to_origin", "Origin: https://example.com", "HTTP Origin header invalid"),
            (autobahn, "parseHttpHeader", "X: y", "Error during parsing of HTTP status line / request headers"),
        ):
            self.events.clear()
            self.patch(holder, name, fail)
            answer = self.come().shake(header)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
            self.assertTrue(answer.endswith(f": {says}\n".encode()), answer)
            self.assertNotIn(self.SECRET, "\n".join(self.said()))


class Refusals(ConnectingTestCase):
    """A full relay refuses clients at little cost, and frees the descriptor at once."""

    def test_refused_connection_is_answered_in_one_write(self) -> None:
        self.limit(connections=1)
        self.come()
        refused = self.come()
        self.assertEqual(refused.transport.value(), b"")  # many clients cannot handle an answer before their request
        for _ in range(2):
            refused.write(b"G")
            self.assertEqual(refused.transport.value(), FULL_ANSWER)
            self.assertTrue(refused.transport.disconnecting)
        self.assertEqual(self.said(), ["connection from 192.0.2.1:4321 refused: the relay is full (connections 1)"])

    def test_connections_beyond_max_refused_are_answered_at_once(self) -> None:
        self.limit(connections=1)
        self.come()
        clients = [self.come() for _ in range(30)]
        waited_for = [client for client in clients if not client.transport.disconnecting]
        self.assertEqual(len(waited_for), opening.MAX_REFUSED)
        for client in clients:
            client.write(b"G")
            self.assertEqual(client.transport.value(), FULL_ANSWER)
            client.lost()
        self.assertFalse(self.come().transport.disconnecting)

    def test_refused_connection_over_tls_is_aborted_without_an_answer(self) -> None:
        self.limit(connections=1)
        self.come()
        transport = Transport()
        directlyProvides(transport, ISSLTransport)
        MemoryClient(self.factory, transport)
        self.assertTrue(transport.aborted)
        self.assertEqual(transport.value(), b"")

    def test_refused_client_may_stay_for_closing_timeout(self) -> None:
        for seconds in (0.5, 20.0):
            self.limit(connections=1, closing_timeout=seconds, handshake_timeout=0)
            self.come()
            refused = self.come()
            self.pass_time(seconds - 0.125)
            self.assertFalse(refused.transport.aborted)
            self.pass_time(0.5)
            self.assertTrue(refused.transport.aborted)
            refused.lost()

    def test_lost_connection_makes_room_for_another(self) -> None:
        self.limit(connections=2)
        first, second = self.come(), self.come()
        self.assertTrue(self.is_refused(self.come()))
        first.open().log_in()
        first.protocol.close(codes.STOPPING)
        self.assertTrue(self.is_refused(self.come()))  # it has its descriptor until it is gone
        first.lost()
        self.come().open().log_in("bo")
        self.assertTrue(self.is_refused(self.come()))
        second.open()

    def test_many_refused_connections_are_logged_as_a_count(self) -> None:
        self.limit(connections=1)
        self.come()
        for _ in range(60):
            self.come()
        self.pass_time(0.25)
        self.assertEqual(len([line for line in self.said() if "(connections 1)" in line]), 25)
        self.assertIn("too many log messages at once: 35 more connections refused", self.said())

    def test_connections_are_limited_by_descriptors_without_an_option(self) -> None:
        for options, given, most in (({}, 2, 2), ({"connections": 3}, 2, 3), ({"connections": 0}, 2, 0), ({}, 0, 0)):
            self.limit(**options)
            factory = chat_factory(self.factory.parts.config, self.clock, KnownSessions({}), connections=given)
            for _ in range(most or 50):
                self.assertFalse(self.is_refused(MemoryClient(factory)))
            self.assertEqual(self.is_refused(MemoryClient(factory)), bool(most))


class Unauthenticated(ConnectingTestCase):
    """Clients that do not log in have few slots; a login frees its slot for the next client."""

    def test_101st_unauthenticated_connection_of_an_address_is_refused(self) -> None:
        self.limit()
        clients = [self.come() for _ in range(100)]
        refused = self.come()
        refused.write(b"GET / HTTP/1.1\r\n\r\n")
        self.assertTrue(refused.transport.value().startswith(b"HTTP/1.1 429 Too Many Requests\r\n"))
        self.assertIn(b"\r\nRetry-After: 10\r\n", refused.transport.value())
        self.assertEqual(
            self.said(),
            [
                "connection from 192.0.2.1:4321 refused: too many connections from this address are not logged in yet "
                "(unauthenticated-per-address 100)"
            ],
        )
        self.assertFalse(self.refuses(ELSEWHERE))
        clients[0].lost()
        self.assertFalse(self.refuses(OFFICE))

    def test_ipv6_network_counts_as_one_address(self) -> None:
        self.limit(unauthenticated_per_address=2)
        self.come("2001:db8:1:2::1")
        self.come("2001:db8:1:2:ffff::2")
        self.assertTrue(self.refuses("2001:db8:1:2:3::3"))
        self.assertFalse(self.refuses("2001:db8:1:3::1"))

    def test_login_makes_room_and_denial_does_not(self) -> None:
        authenticator = HeldAuthenticator()
        self.limit(authenticator, unauthenticated_per_address=1)
        client = self.come().open()
        for sessid, verdict, room in (("nobody", Denied(), False), ("alice", LoggedIn(1), True)):
            client.say_login(sessid)
            self.assertTrue(self.refuses(OFFICE))
            authenticator.answer(verdict)
            self.assertEqual(self.refuses(OFFICE), not room)
        # Logging in again neither frees a second slot nor takes one.
        self.come()
        client.say_login("alice")
        authenticator.answer(LoggedIn(1))
        self.assertTrue(self.refuses(OFFICE))
        client.lost()
        self.assertTrue(self.refuses(OFFICE))

    def test_unauthenticated_connection_beyond_the_limit_is_refused(self) -> None:
        self.limit(unauthenticated=3)
        clients = [self.come(f"192.0.2.{number}") for number in range(3)]
        self.assertTrue(self.refuses(ELSEWHERE))
        clients[0].open().log_in()
        self.come(ELSEWHERE)
        self.assertTrue(self.refuses("198.51.100.8"))
        self.assertIn("(unauthenticated 3)", self.said()[-1])

    def test_connection_beyond_connections_per_address_is_refused(self) -> None:
        self.limit(connections_per_address=2)
        first = self.come().open().log_in()
        self.come().open().log_in("bo")
        self.assertTrue(self.refuses(OFFICE))
        self.assertFalse(self.refuses(ELSEWHERE))
        first.lost()
        self.assertFalse(self.refuses(OFFICE))


class OfAUser(ConnectingTestCase):
    """The limit on connections of a user; the newest ones stay."""

    def test_11th_connection_of_a_user_closes_the_oldest(self) -> None:
        self.limit()
        other = self.come().open().log_in("bo")
        clients = [self.come().open().log_in() for _ in range(10)]
        self.assertEqual([client.hear() for client in clients], [[]] * 10)
        newest = self.come().open().log_in()
        heard = [client.hear() for client in clients]
        self.assertEqual(heard, [[(4504, "too many connections of this user: the oldest goes")], *[[]] * 9])
        other.send(1)
        self.clock.advance(0)
        self.assertEqual([len(client.hear()) for client in [*clients[1:], newest]], [1] * 10)
        self.assertEqual(len(other.hear()), 1)

    def test_closing_connection_does_not_count_for_its_user(self) -> None:
        self.limit(connections_per_user=2)
        first, second = (self.come().open().log_in() for _ in range(2))
        second.protocol.close(codes.STOPPING)
        second.hear()
        self.come().open().log_in()
        self.assertEqual((first.hear(), second.hear()), ([], []))
        self.come().open().log_in()
        self.assertEqual(first.hear()[0][0], 4504)

    def test_second_login_of_a_connection_closes_nothing(self) -> None:
        self.limit(connections_per_user=2)
        clients = [self.come().open().log_in() for _ in range(2)]
        for client in clients:
            client.log_in()
        self.assertEqual([client.hear() for client in clients], [[], []])
