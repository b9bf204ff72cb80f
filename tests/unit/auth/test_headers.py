"""The Host header and further headers of requests to the session page: which are sent, and which are refused."""

from __future__ import annotations

from typing import Any

import trustme
from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import gatherResults
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import BrowserLikePolicyForHTTPS

from chatrelay.auth.breaker import BreakerState
from chatrelay.auth.headers import host_name, read_header
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.config.sources import read
from chatrelay.model import LoggedIn
from tests.support.session_page_case import IN, SessionPageTestCase, response

reactor: Any = untyped_reactor

FORWARDED = ("X-Forwarded-Proto: https", "X-Real-IP:127.0.0.1")


class Options(SynchronousTestCase):
    """Which values the options accept, and how others are refused."""

    def refused(self, **options: Any) -> str:
        """Return the text of a refusal."""
        return str(self.assertRaises(ConfigError, Config, **options))

    def test_host_has_a_name_and_perhaps_a_port(self) -> None:
        for host in ("www.example.com", "localhost", "example.com:8443", "127.0.0.1:80", "[::1]", "[2001:db8::1]:8000"):
            self.assertEqual(Config(auth_host=host).auth_host, host)
        for host in (
            *("", "a b", "a..b", "my_site", "exämple.com", "a:b", "a:0", "a:99999", "a:", "::1", "[::1", "a\r\nb"),
            *("[::1%a\r\nX-Name: b]", "[fe80::1%eth0]", "\u017fite.example", "\u212aelvin.example:80"),
        ):
            said = self.refused(auth_host=host)
            self.assertIn("auth-host: ", said)
            self.assertIn("such as www.example.com", said)
        for host in ("https://www.example.com", "www.example.com/"):
            self.assertIn("without a scheme and slashes", self.refused(auth_host=host))

    def test_host_name_has_no_port(self) -> None:
        for host, name in (
            ("a.example:8443", "a.example"),
            ("a.example", "a.example"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
        ):
            self.assertEqual(host_name(host), name)

    def test_header_has_a_name_and_a_value(self) -> None:
        self.assertEqual(read_header("X-Forwarded-Proto: https"), (b"X-Forwarded-Proto", b"https"))
        self.assertEqual(read_header("X-Real-IP:127.0.0.1 "), (b"X-Real-IP", b"127.0.0.1"))
        self.assertEqual(read_header("A: b: c"), (b"A", b"b: c"))

    def test_invalid_header_is_refused_without_its_value(self) -> None:
        for header, said in (
            ("X-Forwarded-Proto", "has no colon"),
            ("X-Forwarded-Proto https", "has no colon"),
            (": https", "is not the name of a header"),
            ("X Forwarded: s3cret", "is not the name of a header"),
            ("X-Forwarded-Proto : s3cret", "is not the name of a header"),
            ("X-A:", "has no value"),
            ("X-A: s3cret\r\nX-B: c", "one line"),
            ("X-A: s3cret\nX-B: c", "one line"),
            ("X-A: s3cret\x00", "printable ASCII"),
            ("X-A: s3crét", "printable ASCII"),
        ):
            refusal = self.refused(auth_header=(header,))
            self.assertIn("auth-header: ", refusal)
            self.assertIn(said, refusal)
            self.assertIn("X-Forwarded-Proto: https", refusal)  # the example
            self.assertNotIn("s3cr", refusal)

    def test_header_that_the_relay_sets_is_refused_with_a_remedy(self) -> None:
        left_out = [
            *("Content-Length", "Transfer-Encoding", "Accept", "Accept-Encoding", "Connection", "Expect", "Upgrade"),
        ]
        for name, remedy in (
            *(("Host", "auth-host"), ("CONTENT-TYPE", "auth-format"), ("Authorization", "auth-secret-file")),
            *((name, "leave it out") for name in left_out),
        ):
            refusal = self.refused(auth_header=(f"{name}: x",))
            self.assertIn(f"the relay sets {name} itself", refusal)
            self.assertIn(remedy, refusal)

    def test_cookie_header_is_refused(self) -> None:
        self.assertIn("Cookie can't be sent", self.refused(auth_header=("Cookie: session=x",)))

    def test_duplicate_header_is_refused(self) -> None:
        refusal = self.refused(auth_header=("X-A: b", "x-a: c"))
        self.assertIn("x-a is given twice", refusal)

    def test_headers_are_read_from_each_source(self) -> None:
        with open("options.toml", "w") as file:
            file.write(
                'auth_host = "www.example.com"\nauth_header = ["X-Forwarded-Proto: https", "X-Real-IP:127.0.0.1"]\n'
            )
        for config in (
            read({"auth_host": "www.example.com", "auth_header": FORWARDED}, {}),
            read({}, {"CHATRELAY_AUTH_HOST": "www.example.com", "CHATRELAY_AUTH_HEADER": "\n".join(FORWARDED)}),
            read({}, {}, "options.toml"),
        ):
            self.assertEqual(config.auth_host, "www.example.com")
            self.assertEqual([read_header(header) for header in config.auth_header], [*map(read_header, FORWARDED)])

    def test_header_in_the_environment_keeps_its_space(self) -> None:
        self.assertEqual(read({}, {"CHATRELAY_AUTH_HEADER": FORWARDED[0]}).auth_header, FORWARDED[:1])


class Sent(SessionPageTestCase):
    """Every request to the session page has these headers."""

    async def test_headers_are_sent_with_every_kind_of_request(self) -> None:
        asker = self.authenticator(host="www.example.com", headers=FORWARDED, secret="s3cret", breaker_failures=2)
        self.respond_with(
            response(b'{"loggedin":false}'), response(IN), response(IN), response(b"", "500 Oops"), response(IN)
        )
        asker.startup_check()
        await asker._startup_check
        self.assertEqual(await asker.authenticate("login-or-recheck"), LoggedIn(7))
        self.assertEqual(await asker.authenticate_ticket("ticket"), LoggedIn(7))
        await asker.authenticate("a")
        while len(self.requests) < 5:  # with the relay's own request, after invalid answers
            await asker.authenticate("b")
        self.assertIs(asker._breaker.state, BreakerState.CLOSED)
        for line, headers, _ in self.requests:
            self.assertEqual(line, "POST /session?x=1 HTTP/1.1")
            self.assertEqual(headers["host"], "www.example.com")
            self.assertEqual(headers["x-forwarded-proto"], "https")
            self.assertEqual(headers["x-real-ip"], "127.0.0.1")
            self.assertEqual(headers["authorization"], "Bearer s3cret")
            self.assertEqual(headers["content-type"], "application/x-www-form-urlencoded")

    async def test_headers_are_sent_with_a_retry(self) -> None:
        asker = self.authenticator(host="www.example.com", headers=FORWARDED)
        self.reply = lambda conversation: conversation.write(response(IN))
        await asker.authenticate("a")

        def hang_up_once(conversation: Any) -> None:
            self.reply = lambda conversation: conversation.write(response(IN))
            conversation.hang_up()

        self.reply = hang_up_once
        self.assertEqual(await asker.authenticate("b"), LoggedIn(7))
        self.assertEqual(len(self.requests), 3)
        for _, headers, _ in self.requests:
            self.assertEqual((headers["host"], headers["x-forwarded-proto"]), ("www.example.com", "https"))


class Certificates(SessionPageTestCase):
    """Over https, the certificate must be for auth-host, and the site gets that name in TLS (SNI)."""

    async def asked(self, certificate_name: str, host: str | None) -> tuple[Any, list[bytes | None]]:
        """Ask https://127.0.0.1, whose certificate is for a name; return the verdict, and the names sent by SNI."""
        authority = trustme.CA()
        leaf = authority.issue_cert(certificate_name)
        private = PrivateCertificate.loadPEM(leaf.private_key_and_cert_chain_pem.bytes())
        told: list[bytes | None] = []
        options = private.options()
        options.getContext().set_tlsext_servername_callback(lambda asked: told.append(asked.get_servername()))
        port = reactor.listenSSL(0, self.factory, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        root = Certificate.loadPEM(authority.cert_pem.bytes())
        policy = BrowserLikePolicyForHTTPS(trustRootFromCertificates([root]))
        url = f"https://127.0.0.1:{port.getHost().port}/session"
        asker = self.authenticator(url=url, host=host, tls_policy=policy)
        got = await asker.authenticate("sid")
        await asker.close()
        await gatherResults([conversation.gone for conversation in self.conversations])
        self.conversations.clear()  # tearDown need not cut them
        return got, told

    async def test_certificate_must_be_for_auth_host(self) -> None:
        got, told = await self.asked("www.example.com", "www.example.com:8443")
        self.assertEqual(got, LoggedIn(7))
        self.assertEqual(told, [b"www.example.com"])
        self.assertEqual(self.requests[0][1]["host"], "www.example.com:8443")

    async def test_certificate_for_the_host_of_the_url_is_not_enough(self) -> None:
        got, _ = await self.asked("127.0.0.1", "www.example.com")
        self.assertEqual(got.why, "its certificate is not for www.example.com (auth-host)")
        self.assertEqual(self.requests, [])

    async def test_certificate_without_auth_host_must_be_for_the_url(self) -> None:
        got, _ = await self.asked("127.0.0.1", None)
        self.assertEqual(got, LoggedIn(7))
        got, _ = await self.asked("www.example.com", None)
        self.assertEqual(
            got.why,
            "its certificate is not for 127.0.0.1: if it is for the name that visitors use, set --auth-host to that name",
        )
