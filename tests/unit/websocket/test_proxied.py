"""Clients behind proxies: whose address counts, and what is logged where a proxy names no client."""

from __future__ import annotations

from twisted.internet.address import UNIXAddress
from twisted.logger import LogLevel

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
from tests.support.relay_case import ConnectingTestCase


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
        answer = refused.transport.value()
        self.assertTrue(answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), answer)
        self.assertTrue(answer.endswith(b": the relay is full\n"), answer)
