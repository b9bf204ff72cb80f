"""Which clients may connect, byte by byte: refused connections, too many for a user, clients behind proxies."""

from __future__ import annotations

from typing import Any

from autobahn.websocket import protocol as autobahn
from autobahn.websocket.compress import PerMessageDeflateOffer
from autobahn.websocket.types import ConnectionDeny
from twisted.internet.address import UNIXAddress
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
    PROXY,
    MemoryClient,
    ProxiedClient,
    Transport,
    address,
    proxy_header_1,
    proxy_header_2,
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


class BehindProxies(ConnectingTestCase):
    """X-Forwarded-For of trusted proxies."""

    def test_limits_count_the_clients_of_a_trusted_proxy(self) -> None:
        self.limit(trusted_proxy=("10.0.0.0/8",), unauthenticated_per_address=2)
        for number in range(20):
            self.assertFalse(self.is_refused(self.come(PROXY)))
            self.come(PROXY).open(f"X-Forwarded-For: 203.0.113.{number}")
        for _ in range(2):
            client = self.come(PROXY).open(f"X-Forwarded-For: 198.51.100.1, {OFFICE}", "X-Forwarded-For: 10.0.0.2")
            self.assertEqual(client.protocol.remote.address, OFFICE)
        answer = self.come(PROXY).shake(f"X-Forwarded-For: {OFFICE}")
        self.assertTrue(answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n"), answer)
        self.assertIn(b"\r\nRetry-After: 10\r\n", answer)
        # A client that connects directly from there has the same address.
        self.assertTrue(self.refuses(OFFICE))
        client.log_in()
        self.come(PROXY).open(f"X-Forwarded-For: {OFFICE}")
        self.assertEqual(
            self.said()[0],
            "handshake from 192.0.2.1 refused with 429: too many connections from this address are not logged in yet "
            "(unauthenticated-per-address 2)",
        )

    def test_ipv6_client_counts_by_network_and_is_logged_in_full(self) -> None:
        self.limit(trusted_proxy=(PROXY,))
        protocol = self.come(PROXY).open("X-Forwarded-For: 2001:db8:1:2::7").protocol
        self.assertEqual((protocol.remote.address, protocol.remote.name), ("2001:db8:1:2::/64", "2001:db8:1:2::7"))

    def test_client_that_a_trusted_proxy_does_not_name_has_no_address(self) -> None:
        self.limit(trusted_proxy=(PROXY,), unauthenticated_per_address=1, connections_per_address=1)
        for headers in ((), ("X-Forwarded-For: unknown",), ()):
            client = self.come(PROXY).open(*headers)
            self.assertIsNone(client.protocol.remote.address)
            self.assertEqual(client.protocol.remote.name, f"{PROXY}:4321")

    def nobody_named(self, peer: str, name: str) -> str:
        """Return what is logged, once, about a proxy that names no client."""
        return (
            f"a handshake from {peer} named no client, so no limit for an address applies to clients that come this way: "
            f"have the proxy there set X-Forwarded-For, and set --trusted-proxy {name} here (logged once)"
        )

    def test_trusted_proxy_that_names_no_client_is_logged_once(self) -> None:
        tcp, unix = address(PROXY), UNIXAddress(None)
        for trusted, peer, said, *headers in (
            ("10.0.0.0/8", tcp, self.nobody_named(f"{PROXY}:4321", PROXY)),
            ("10.0.0.0/8", tcp, self.nobody_named(f"{PROXY}:4321", PROXY), "X-Forwarded-For: unknown"),
            ("10.0.0.0/8", tcp, self.nobody_named(f"{PROXY}:4321", PROXY), f"X-Forwarded-For: {PROXY}"),
            ("10.0.0.0/8", tcp, self.nobody_named(f"{PROXY}:4321", PROXY), "X-Forwarded-For:"),
            ("unix", unix, self.nobody_named(str(unix), "unix")),
            ("10.0.0.0/8", unix, self.nobody_named(str(unix), "unix")),
        ):
            self.events.clear()
            self.limit(trusted_proxy=(trusted,))
            for _ in range(3):
                MemoryClient(self.factory, Transport(peer)).open(*headers)
            self.assertEqual(self.said(), [said])

    def test_named_client_and_direct_client_are_not_logged(self) -> None:
        self.limit(trusted_proxy=("unix", PROXY), origin=("https://example.com",))
        self.come(PROXY).open(f"X-Forwarded-For: {OFFICE}")
        MemoryClient(self.factory, Transport(UNIXAddress(None))).open(f"X-Forwarded-For: {OFFICE}")
        self.come(OFFICE).open()
        ProxiedClient(self.factory, proxy_header_1(OFFICE)).open()
        self.come(PROXY).lost()
        self.come(PROXY).write(b"GET /healthz HTTP/1.1\r\nHost: relay.example\r\n\r\n")
        self.assertEqual(self.said(), [])
        # Of both mistakes at once, the line that names the header is enough.
        self.limit()
        MemoryClient(self.factory, Transport(UNIXAddress(None))).open(f"X-Forwarded-For: {OFFICE}")
        self.assertEqual(len(self.said()), 1)

    def test_proxy_behind_the_proxy_protocol_that_names_no_client_is_logged(self) -> None:
        self.limit(trusted_proxy=("203.0.113.1",))
        ProxiedClient(self.factory, proxy_header_1("203.0.113.1")).open()
        self.assertEqual(self.said(), [self.nobody_named("203.0.113.1:4321", "203.0.113.1")])

    def test_forwarded_for_of_an_untrusted_client_is_ignored_and_logged_once(self) -> None:
        for trusted in ((), (PROXY,)):
            self.events.clear()
            self.limit(trusted_proxy=trusted, unauthenticated_per_address=3)
            for number in range(3):
                client = self.come().open(f"X-Forwarded-For: 203.0.113.{number}")
                self.assertEqual(client.protocol.remote.address, OFFICE)
                self.assertEqual(client.protocol.remote.name, f"{OFFICE}:4321")
            self.assertTrue(self.refuses(OFFICE))
            self.assertEqual(
                self.said(LogLevel.warn),
                [
                    f"the X-Forwarded-For of a handshake from {OFFICE}:4321 was ignored: if that is your proxy, set "
                    f"--trusted-proxy {OFFICE} (logged once)"
                ],
            )

    def test_forged_forwarded_address_is_not_counted(self) -> None:
        self.limit(trusted_proxy=(PROXY,), unauthenticated_per_address=1)
        self.come(PROXY).open(f"X-Forwarded-For: {OFFICE}")
        for made_up in ("203.0.113.1", "unknown", PROXY, "", "127.0.0.1"):
            answer = self.come(PROXY).shake(f"X-Forwarded-For: {made_up}, {OFFICE}")
            self.assertTrue(answer.startswith(b"HTTP/1.1 429 "), made_up)

    def test_unix_socket_is_trusted_only_by_option(self) -> None:
        peer = UNIXAddress(None)
        self.limit(unauthenticated_per_address=1, connections_per_address=1)
        for _ in range(3):
            client = MemoryClient(self.factory, Transport(peer)).open(f"X-Forwarded-For: {OFFICE}")
            self.assertIsNone(client.protocol.remote.address)
        self.assertIn("set --trusted-proxy unix (logged once)", self.said(LogLevel.warn)[0])
        self.limit(unauthenticated_per_address=1, trusted_proxy=("unix",))
        client = MemoryClient(self.factory, Transport(peer)).open(f"X-Forwarded-For: {OFFICE}")
        self.assertEqual((client.protocol.remote.address, client.protocol.remote.name), (OFFICE, OFFICE))
        answer = MemoryClient(self.factory, Transport(peer)).shake(f"X-Forwarded-For: {OFFICE}")
        self.assertTrue(answer.startswith(b"HTTP/1.1 429 "))

    def test_header_that_only_resembles_forwarded_for_is_ignored(self) -> None:
        self.limit(trusted_proxy=(PROXY,))
        client = self.come(PROXY).open(f"X-Forwarded-For: {OFFICE}", f"X: a\r\n X-Forwarded-For: {ELSEWHERE}")
        self.assertEqual(client.protocol.remote.address, OFFICE)
        answer = self.come(PROXY).shake(f"X-Forwarded-For: {OFFICE}", f"X-Forwarded-For : {ELSEWHERE}")
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), answer)

    def test_close_is_logged_with_the_forwarded_address(self) -> None:
        self.limit(trusted_proxy=(PROXY,))
        self.come(PROXY).open(f"X-Forwarded-For: {ELSEWHERE}").log_in().lost()
        self.assertIn(f"connection of 1 from {ELSEWHERE} ended by the client", self.said()[-1])


class ProxyProtocol(ConnectingTestCase):
    """The PROXY protocol, on a `haproxy:` endpoint."""

    def test_limits_count_the_clients_of_the_proxy_protocol(self) -> None:
        for header in (proxy_header_1, proxy_header_2):
            self.limit(unauthenticated_per_address=1)
            for number in range(10):
                self.assertFalse(ProxiedClient(self.factory, b"").transport.disconnecting)
                ProxiedClient(self.factory, header(f"203.0.113.{number}")).open()
            client = ProxiedClient(self.factory, header(OFFICE)).open()
            self.assertEqual((client.protocol.remote.address, client.protocol.remote.name), (OFFICE, f"{OFFICE}:4321"))
            answer = ProxiedClient(self.factory, header(OFFICE)).shake()
            self.assertTrue(answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n"), answer)
            client.log_in()
            ProxiedClient(self.factory, header(OFFICE)).open()
            ProxiedClient(self.factory, header("2001:db8:1:2::1")).open()
            answer = ProxiedClient(self.factory, header("2001:db8:1:2::2")).shake()
            self.assertTrue(answer.startswith(b"HTTP/1.1 429 "), answer)

    def test_announced_client_without_a_handshake_is_counted(self) -> None:
        for header in (proxy_header_1, proxy_header_2):
            self.limit(unauthenticated_per_address=2, unauthenticated=10)
            silent = [ProxiedClient(self.factory, header(OFFICE)) for _ in range(6)]
            silent[-1].write(b"GET / HTTP/1.1\r\nHost:")
            own, nothing_yet = ProxiedClient(self.factory, proxy_header_2(None)), ProxiedClient(self.factory, b"")
            self.pass_time(0.25)
            refused = [b" 429 " in client.transport.value() for client in silent]
            self.assertEqual(refused, [False, False, True, True, True, True])
            for client in silent[2:]:
                client.lost()
            self.assertEqual(self.factory.parts.admission.unauthenticated, 4)
            self.assertEqual([client.transport.value() for client in (own, nothing_yet)], [b"", b""])
            silent[0].open().log_in()
            own.open()
            nothing_yet.write(header(OFFICE))
            nothing_yet.open()
            for client in (*silent[:2], own, nothing_yet):
                client.lost()
            self.assertEqual(
                (len(self.factory.registry.awaiting_address), self.factory.parts.admission.addresses()), (0, 0)
            )

    def test_proxy_that_speaks_for_itself_has_no_address(self) -> None:
        self.limit(unauthenticated_per_address=1, connections_per_address=1)
        for header in (proxy_header_2(None), b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"):
            client = ProxiedClient(self.factory, header).open()
            self.assertIsNone(client.protocol.remote.address)

    def test_invalid_announced_address_counts_as_no_address_and_is_logged_escaped(self) -> None:
        self.limit(unauthenticated_per_address=1)
        for _ in range(2):
            client = ProxiedClient(self.factory, b"PROXY TCP4 1.2.\x1b[2J 1.2.3.4 1 2\r\n").open()
            self.assertIsNone(client.protocol.remote.address)
            self.assertNotIn("\x1b", client.protocol.remote.name)

    def test_forwarded_for_behind_the_proxy_protocol_is_read(self) -> None:
        # haproxy passes on what nginx (203.0.113.1) has sent, and that names its own client.
        self.limit(trusted_proxy=("203.0.113.1",))
        header = proxy_header_1("203.0.113.1")
        client = ProxiedClient(self.factory, header).open(f"X-Forwarded-For: 198.51.100.9, {OFFICE}")
        self.assertEqual(client.protocol.remote.address, OFFICE)
        client = ProxiedClient(self.factory, proxy_header_1("203.0.113.2")).open(f"X-Forwarded-For: {OFFICE}")
        self.assertEqual(client.protocol.remote.address, "203.0.113.2")

    def test_full_relay_refuses_before_the_proxy_header(self) -> None:
        self.limit(connections=1)
        self.come()
        refused = ProxiedClient(self.factory, b"")
        self.assertEqual(refused.transport.value(), b"")
        refused.write(proxy_header_1(OFFICE) + b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(refused.transport.value(), FULL_ANSWER)
