"""Asking the webserver, over real sockets: every answer it can give, and every way it can fail to."""

from __future__ import annotations

import gc
import gzip
import html
import json
import socket
import time
import zlib
from typing import Any
from urllib.parse import quote

import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from twisted.web.client import BrowserLikePolicyForHTTPS

from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.breaker import BreakerState
from chatrelay.auth.client import MAX_OVERHEAD_BYTES, NO_COOKIES
from chatrelay.auth.redaction import MAX_SEARCHED_BYTES, NOT_SHOWN, redacted, without
from chatrelay.auth.verdicts import ConnectFailed, InvalidAnswer, judge_body
from chatrelay.config.options import Config
from chatrelay.limits.alarms import Alarm
from chatrelay.model import Denied, LoggedIn, Unavailable, is_uid
from tests.support.session_page_case import IN, Conversation, WebserverTestCase, answer

reactor: Any = untyped_reactor

MAX_ANSWER = Config().webserver_answer_size
MAX_SENT = MAX_ANSWER + MAX_OVERHEAD_BYTES


def sleep(seconds: float) -> Deferred[None]:
    """Wait, in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


class FirstLook(WebserverTestCase):
    """At its start a relay looks once whether the page answers as it should."""

    async def looked(self, **options: Any) -> list[str]:
        """What the operator is told of a look."""
        told = self.told()
        authenticator = self.authenticator(**options)
        authenticator.startup_check()
        assert authenticator._startup_check is not None
        await authenticator._startup_check
        return told

    async def test_it_asks_about_a_session_that_there_cannot_be(self) -> None:
        self.answering(answer(b'{"loggedin":false}'))
        for _ in range(2):
            (line,) = await self.looked(secret="s3cret")
            self.assertIn("made up, as it should", line)
        (_, headers, first), (_, _, second) = self.requests
        self.assertEqual(headers["authorization"], "Bearer s3cret")
        self.assertRegex(first, b"^SESSID=chatrelay-at-start-[0-9a-f]{16}$")
        self.assertNotEqual(first, second)

    async def test_what_is_no_answer_is_told_once_with_the_option(self) -> None:
        page = b"<html>Not found</html>"
        for reply, said in (
            (answer(page, "404 Not Found"), "it answered with status 404"),
            (answer(page), "not JSON"),
            (answer(b"", "302 Found", "Location: /login"), "a redirect to '/login', which is not followed"),
            (answer(b"", "400 Bad Request"), "it answered with status 400"),
        ):
            self.answering(reply)
            (line,) = await self.looked()
            self.assertIn("the startup check of the session page at http://127.0.0.1:", line)
            self.assertIn("nobody can log in: ", line)
            self.assertIn(said, line)
            self.assertRegex(line, "auth-(url|host)")
            self.assertNotIn("chatrelay-at-start", line)

    async def test_a_site_that_is_not_there(self) -> None:
        (line,) = await self.looked(url="http://127.0.0.1:1/session")
        self.assertIn("refused", line)
        (line,) = await self.looked(url="http://nowhere.invalid/session")
        self.assertIn("nowhere.invalid", line)

    async def test_a_site_that_says_nothing(self) -> None:
        self.reply = lambda conversation: None
        (line,) = await self.looked(timeout=0.05)
        self.assertIn("no complete response within 0.05 s", line)

    async def test_a_site_that_lets_everybody_in(self) -> None:
        (line,) = await self.looked()
        self.assertIn("so anybody can log in here", line)
        self.assertNotIn("chatrelay-at-start", line)

    async def test_it_is_no_login(self) -> None:
        told = self.told()
        authenticator = self.authenticator(checks=1, breaker_failures=1)
        self.reply = lambda conversation: None
        authenticator.startup_check()
        while not self.requests:
            await deferLater(reactor, 0.01)
        # It has taken nobody's turn; and when it fails, that is no failure to the breaker.
        self.reply = lambda conversation: conversation.write(answer(IN))
        self.assertEqual(await authenticator.authenticate("a"), LoggedIn(7))
        self.conversations[0].write(answer(b"", "500 Oops"))
        await authenticator._startup_check
        self.assertEqual(await authenticator.authenticate("a"), LoggedIn(7))
        self.assertEqual(len(told), 1)

    async def test_a_relay_that_stops_meanwhile_says_nothing(self) -> None:
        told = self.told()
        authenticator = self.authenticator()
        self.reply = lambda conversation: None
        authenticator.startup_check()
        while not self.requests:
            await deferLater(reactor, 0.01)
        await authenticator.close()
        await authenticator._startup_check
        self.assertEqual(told, [])


class Questions(WebserverTestCase):
    """What is posted."""

    async def test_as_a_form(self) -> None:
        self.assertEqual(await self.authenticator().authenticate("a b&c=å+/%"), LoggedIn(7))
        ((line, headers, body),) = self.requests
        self.assertEqual(line, "POST /session?x=1 HTTP/1.1")
        self.assertEqual(headers["content-type"], "application/x-www-form-urlencoded")
        self.assertEqual(body, b"SESSID=a+b%26c%3D%C3%A5%2B%2F%25")
        # Of bytes that are no UTF-8, as a cookie may have them, each as it came.
        await self.authenticator().authenticate("\udce5\u00e5\udc85")
        self.assertEqual(self.requests[-1][2], b"SESSID=%E5%C3%A5%85")
        self.assertNotIn("authorization", headers)

    async def test_as_json_with_a_secret(self) -> None:
        await self.authenticator(format="json", secret="s3cret").authenticate('"å')
        ((_, headers, body),) = self.requests
        self.assertTrue(headers["content-type"].startswith("application/json"))
        self.assertEqual(json.loads(body), {"SESSID": '"å'})
        self.assertEqual(headers["authorization"], "Bearer s3cret")

    async def test_one_users_cookies_never_go_out_with_anothers_question(self) -> None:
        self.answering(answer(IN, "200 OK", "Set-Cookie: who=alice; Path=/"))
        authenticator = self.authenticator()
        await authenticator.authenticate("alice")
        await authenticator.authenticate("bo")
        self.assertEqual([headers.get("cookie") for _, headers, _ in self.requests], [None, None])
        self.assertEqual(list(NO_COOKIES), [])

    async def test_an_ipv6_address(self) -> None:
        def conversation(address: object) -> Conversation:
            return Conversation(self)

        factory = Factory()
        factory.buildProtocol = conversation  # type: ignore[assignment,method-assign]
        try:
            port = reactor.listenTCP(0, factory, interface="::1")
        except CannotListenError as error:
            raise SkipTest("this machine has no IPv6: enable it on the loopback interface") from error
        number = port.getHost().port
        self.assertEqual(await self.authenticator(url=f"http://[::1]:{number}/").authenticate("sid"), LoggedIn(7))
        self.assertEqual(self.requests[0][1]["host"], f"[::1]:{number}")
        await port.stopListening()

    async def test_the_host_is_the_one_that_was_meant(self) -> None:
        await self.authenticator().authenticate("sid")
        self.assertEqual(self.requests[0][1]["host"], f"127.0.0.1:{self.port.getHost().port}")

    async def test_connections_are_kept(self) -> None:
        authenticator = self.authenticator()
        for _ in range(5):
            await authenticator.authenticate("sid")
        self.assertEqual(len(self.conversations), 1)


class Answers(WebserverTestCase):
    """What the webserver says, and what it means."""

    async def test_logged_in(self) -> None:
        bodies = {b'{"loggedin":true,"uID":"chen","extra":[1]}': "chen", b' {"uID":0,"loggedin":true}\n': 0}
        for body, uid in bodies.items():
            self.answering(answer(body))
            self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(uid))

    async def test_denied(self) -> None:
        for raw in (
            answer(b'{"loggedin":false}'),
            answer(b"go away", "401 Unauthorized"),
            answer(b"", "403 Forbidden"),
        ):
            self.answering(raw)
            self.assertEqual(await self.authenticator().authenticate("sid"), Denied())
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_anything_else_is_trouble_and_says_what_came(self) -> None:
        for raw, said in (
            (answer(b"", "500 Internal Server Error"), "status 500"),
            (answer(IN, "201 Created"), "status 201"),
            (answer(b"", "204 No Content"), "status 204"),
            (answer(b"", "302 Found", "Location: https://elsewhere.test/login"), "https://elsewhere.test/login"),
            (answer(IN, "303 See Other", "Location: /x"), "a redirect to '/x'"),
            (answer(b"<html>log in</html>"), "<html>log in</html>"),
            (answer(b""), "not JSON"),
            (answer(b'"false"'), 'no "loggedin"'),
            (answer(b"1"), 'no "loggedin"'),
            (answer(b'{"loggedin":"false"}'), 'no "loggedin"'),
            (answer(b'{"loggedin":1,"uID":7}'), 'no "loggedin"'),
            (answer(b'{"loggedin":true}'), 'no "uID"'),
            (answer(b'{"loggedin":true,"uID":""}'), 'no "uID"'),
            (answer(b'{"loggedin":true,"uID":7.5}'), 'no "uID"'),
            (answer(b'{"loggedin":true,"uID":7,"expires_in":0}'), '"expires_in" that is not a number'),
            (answer(b'{"loggedin":true,"uID":7,"expires_in":"60"}'), '"expires_in" that is not a number'),
            (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0-OpenSSH"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n", "nonsense"),
        ):
            self.answering(raw)
            self.assertIn(said, await self.trouble(self.authenticator(timeout=1)), raw)
        self.flushLoggedErrors()

    async def test_the_operator_gets_one_line(self) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.answering(answer(b"<html>"))
        await self.trouble()
        ours = [event for event in events if event.get("log_namespace", "").startswith("chatrelay")]
        self.assertEqual(len(ours), 1)
        self.assertEqual(ours[0]["url"], self.url.removesuffix("?x=1"))
        self.assertIn("<html>", ours[0]["what"])
        self.assertNotIn("sid", str(ours[0]).replace("inside", ""))

    async def test_a_session_id_that_comes_back_is_not_told(self) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        sessid = "CANARY/å +"
        back = [sessid.encode(), b"CANARY%2F%C3%A5%20%2B", b"CANARY%2F%C3%A5+%2B", b"CANARY/%C3%A5%20%2B"]
        for form in back:
            for raw in (
                answer(b"unknown session " + form),
                answer(b"x" * 190 + form),
                answer(b"", "302 Found", "Location: /login?PHPSESSID=" + form.decode()),
                answer(b"", "302 Found", "Location: /login;" + form.decode()),
                b"HTTP/1.1 " + form + b"\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: " + form + b"\r\n\r\n",
            ):
                self.answering(raw)
                got = await self.authenticator(timeout=1).authenticate(sessid)
                self.assertIsInstance(got, Unavailable)
                self.assertNotIn("CANARY", str(got))
        self.flushLoggedErrors()
        self.assertNotIn("CANARY", "".join(str(event) for event in events))

    def test_a_session_id_that_comes_back_in_pieces_is_not_told(self) -> None:
        sessid = "left0123456789é'/+right0123456789"
        for text, left in (
            ("no session left01234567...", "no session <SESSID>..."),
            ("no session ...ght0123456789", "no session ...<SESSID>"),
            ("left012345, 0123456789é'/+righ, right012", "<SESSID>, <SESSID>, <SESSID>"),
            ("no session left012", "no session left012"),  # seven characters are in many a word
            (json.dumps({"s": sessid}), '{"s": "<SESSID>"}'),
            (ascii(json.dumps({"s": sessid})), r"""'{"s": "<SESSID>\<SESSID>"}'"""),  # Python quotes a quote
            (html.escape(sessid), "<SESSID>"),
            ("no session", "no session"),
            ("", ""),
        ):
            self.assertEqual(without(sessid, text), left)
        long = "é" * 4096
        for text in (long, ascii(long), json.dumps(long), quote(long)):
            self.assertLess(len(without(long, text[:2000])), 20)
        self.assertEqual(without("x", "an x"), "an <SESSID>")

    def test_of_an_answer_about_a_long_session_id_nothing_is_quoted(self) -> None:
        for sessid, said in (
            ("a" * MAX_SEARCHED_BYTES, "<html>"),
            ("a" * (MAX_SEARCHED_BYTES + 1), NOT_SHOWN),
            ("é" * 65, NOT_SHOWN),
        ):
            self.assertEqual(redacted(InvalidAnswer("not JSON: ", "<html>", "."), sessid), f"not JSON: {said}.")

    def test_a_long_session_id_costs_no_time(self) -> None:
        # Whoever brings it chooses it: looking for its pieces took 300 ms of everybody's time.
        for error in (InvalidAnswer("it answered with status 500"), InvalidAnswer("it is not JSON: ", "<html>" * 1000)):
            for sessid in ("😀" * 4096, "\"&<'" * 1024, '"&<' * (MAX_SEARCHED_BYTES // 3)):
                seconds = []
                for _ in range(5):
                    began = time.perf_counter()
                    redacted(error, sessid)
                    seconds.append(time.perf_counter() - began)
                self.assertLess(min(seconds), 0.01)

    async def test_a_session_id_that_comes_back_in_utf_16_is_not_told(self) -> None:
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            self.answering(answer("no session CANARY-0123456789".encode(encoding)))
            got = await self.authenticator().authenticate("CANARY-0123456789")
            assert isinstance(got, Unavailable)
            self.assertIn("no session <SESSID>", got.why)

    async def test_an_answer_up_to_its_size_and_no_further(self) -> None:
        def padded(size: int) -> bytes:
            return b'{"loggedin":true,"uID":7}'.ljust(size)

        self.answering(answer(padded(MAX_ANSWER)))
        self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(7))
        self.answering(answer(padded(MAX_ANSWER + 1)))
        self.assertIn("larger than 8192 bytes", await self.trouble())

    async def test_its_size_is_as_was_said(self) -> None:
        for size in (len(IN), 100_000):
            authenticator = self.authenticator(answer_size=size)
            self.answering(answer(IN.ljust(size)))
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
            self.answering(answer(IN.ljust(size + 1)))
            self.assertEqual(await self.trouble(authenticator), f"its response is larger than {size} bytes")
            least = answer(IN, "200 OK", "X: " + "x" * 10_000, "Y: ")
            self.answering(least.replace(b"Y: ", b"Y: " + b"y" * (10 + MAX_OVERHEAD_BYTES - 10_000)))
            if size == len(IN):
                self.assertIn(f"{size + MAX_OVERHEAD_BYTES} bytes, with its headers", await self.trouble(authenticator))
            else:
                self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))

    async def test_no_limit_of_its_size_is_none(self) -> None:
        authenticator = self.authenticator(answer_size=0)
        for packed in (
            answer(IN.ljust(2**20)),
            answer(gzip.compress(IN.ljust(2**20)), "200 OK", "Content-Encoding: gzip"),
        ):
            self.answering(packed)
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))

    async def test_an_answer_up_to_its_size_as_it_is_sent_and_no_further(self) -> None:
        def padded(size: int) -> bytes:
            headers = "X: " + "x" * 10000, "Y: "  # a line of 16 KiB would be too long for Twisted
            least = answer(IN, "200 OK", *headers)
            return least.replace(b"Y: ", b"Y: " + b"y" * (size - len(least)))

        authenticator = self.authenticator()
        for _ in range(3):
            self.answering(padded(MAX_SENT))
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
        self.assertEqual(len(self.conversations), 1)
        self.answering(padded(MAX_SENT + 1))
        self.assertEqual(await self.trouble(), "its response is larger than 24576 bytes, with its headers")

    async def test_what_comes_without_end_before_the_body_is_cut(self) -> None:
        for again in (b"x: y\r\n", b"X: \r\n" + b" folded\r\n", b"\r\nHTTP/1.1 102 Processing\r\n"):
            self.answering(b"HTTP/1.1 102 Processing\r\n" + again * 10000)
            self.assertIn("larger than 24576 bytes", await self.trouble(), again)

    async def test_so_is_a_body_of_no_stated_length_that_unpacks_to_little(self) -> None:
        packed = b"".join(gzip.compress(IN if number == 0 else b"") for number in range(3000))
        self.answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + packed)
        self.assertIn("larger than 24576 bytes", await self.trouble())

    async def test_a_compressed_answer_is_read_up_to_its_decoded_size(self) -> None:
        self.answering(answer(gzip.compress(IN.ljust(MAX_ANSWER)), "200 OK", "Content-Encoding: gzip"))
        self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(7))
        self.answering(answer(gzip.compress(IN.ljust(MAX_ANSWER + 1)), "200 OK", "Content-Encoding: gzip"))
        self.assertIn("larger than 8192 bytes", await self.trouble())

    async def test_a_compressed_bomb_is_not_unpacked(self) -> None:
        most: list[int] = []
        real = zlib.decompressobj

        class Watched:
            def __init__(self, *arguments: Any) -> None:
                self.real = real(*arguments)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

            def decompress(self, data: bytes) -> bytes:
                out: bytes = self.real.decompress(data)
                most.append(len(out))
                return out

        self.patch(zlib, "decompressobj", Watched)
        bomb = gzip.compress(b" " * 50_000_000)
        self.answering(answer(bomb, "200 OK", "Content-Encoding: gzip"))
        self.assertIn("larger than 8192 bytes", await self.trouble())
        await sleep(0.05)  # what is left of the answer is still being thrown away
        self.assertLess(sum(most), 1_000_000)

    async def test_what_was_unpacked_of_it_is_not_kept_until_garbage_is_collected(self) -> None:
        unpacked: list[int] = []
        let_go: list[int] = []
        real = zlib.decompressobj

        class Piece(bytes):
            def __del__(self) -> None:
                let_go.append(len(self))

        class Watched:
            def __init__(self, *arguments: Any) -> None:
                self.real = real(*arguments)

            def decompress(self, data: bytes) -> bytes:
                out = Piece(self.real.decompress(data))
                unpacked.append(len(out))
                return out

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        self.patch(zlib, "decompressobj", Watched)
        self.answering(answer(gzip.compress(b" " * 50_000_000), "200 OK", "Content-Encoding: gzip"))
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(3):
            self.assertIn("larger than 8192 bytes", await self.trouble())
        await sleep(0.05)  # what is left of the answer is still being thrown away
        self.assertGreater(sum(unpacked), 3 * 100_000)
        self.assertEqual(sum(unpacked), sum(let_go))

    async def test_a_broken_compressed_answer(self) -> None:
        for body in (b"not gzip at all", IN, gzip.compress(IN)[:-8] + b"12345678"):
            self.answering(answer(body, "200 OK", "Content-Encoding: gzip"))
            self.assertEqual(await self.trouble(), "its response is not gzip, although its Content-Encoding says so")
        await sleep(0.05)  # the rest of the answer is still to come, and the connection to be kept or not
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_every_way_to_say_gzip_and_to_write_it(self) -> None:
        half = len(IN) // 2
        members = gzip.compress(IN[:half]) + gzip.compress(b"") + gzip.compress(IN[half:])
        packed = gzip.compress(IN)
        for coding, body in (
            *((coding, packed) for coding in ("gzip", "GZIP", "GZip", "x-gzip", "X-GZIP", " gzip ", "gzip, identity")),
            ("", IN),
            ("identity", IN),
            ("UTF-8", IN),  # which some pages say
            ("none", IN),
            ("gzip, x-gzip", gzip.compress(packed)),
            ("gzip", members),
            ("gzip", members + b"\0" * 512),
            ("gzip", packed + b"\x1f"),
            ("gzip", packed + b"<!-- 3 ms -->"),
        ):
            for body_of in (answer, chunked):
                self.answering(body_of(body, "200 OK", f"Content-Encoding: {coding}"))
                self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(7), (coding, body))

    async def test_members_and_layers_add_up_to_the_size(self) -> None:
        over = gzip.compress(IN) + gzip.compress(b" " * (MAX_ANSWER - len(IN) + 1))
        for coding, body in (("gzip", over), ("gzip,gzip", gzip.compress(over))):
            self.answering(answer(body, "200 OK", f"Content-Encoding: {coding}"))
            self.assertIn("larger than 8192 bytes", await self.trouble())
        self.answering(answer(IN, "200 OK", "Content-Encoding: gzip, gzip, gzip, gzip, gzip"))
        self.assertIn("more than 4 Content-Encodings", await self.trouble())
        await sleep(0.05)  # likewise

    async def test_another_coding_is_named(self) -> None:
        self.answering(answer(b"\x0b\x02", "200 OK", "Content-Encoding: BR"))
        self.assertEqual(
            await self.trouble(), "its response has the Content-Encoding 'br', and the relay asked for gzip only"
        )


def chunked(body: bytes, status: str, *headers: str) -> bytes:
    """An answer in chunks of one byte."""
    lines = [f"HTTP/1.1 {status}", "Transfer-Encoding: chunked", *headers]
    pieces = b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body)))
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + pieces + b"0\r\n\r\n"


class Failures(WebserverTestCase):
    """The ways a question ends without an answer."""

    async def test_nobody_listens(self) -> None:
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        url = f"http://127.0.0.1:{port.getHost().port}/"
        await port.stopListening()
        self.assertIn("refused", (await self.trouble(self.authenticator(url=url))).lower())

    async def test_a_webserver_that_does_not_take_the_connection(self) -> None:
        # A socket whose backlog is full: what comes next is left without an answer, as by a firewall.
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            self.addCleanup(one.close)
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        authenticator = self.authenticator(url=f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.3)
        self.assertIn("within 0.3 s", await self.trouble(authenticator))
        asking = authenticator.authenticate("sid")
        await sleep(0.1)
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking

    async def test_a_denial_leaves_no_connection_half_read(self) -> None:
        self.answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000\r\n\r\n")
        self.assertEqual(await self.authenticator().authenticate("sid"), Denied())
        await self.conversations[0].gone

    async def test_no_tls_where_https_is_expected(self) -> None:
        authenticator = self.authenticator(url=self.url.replace("http:", "https:"), timeout=2)
        self.assertIn("does not speak TLS on that port", await self.trouble(authenticator))

    async def test_tls_that_is_never_answered(self) -> None:
        self.reply = lambda conversation: None
        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        authenticator = self.authenticator(url=f"https://127.0.0.1:{port.getHost().port}/", timeout=0.3)
        self.assertIn("within 0.3 s", await self.trouble(authenticator))
        await port.stopListening()

    async def test_an_answer_has_its_time(self) -> None:
        def late(conversation: Conversation) -> None:
            reactor.callLater(0.3, conversation.write, answer(IN))

        self.reply = late
        self.assertEqual(await self.authenticator(timeout=2).authenticate("sid"), LoggedIn(7))
        self.assertIn("within 0.1 s", await self.trouble(self.authenticator(timeout=0.1)))
        await sleep(0.4)

    async def test_the_time_is_up_to_the_last_byte(self) -> None:
        stalled = answer(IN)[:-1]
        self.answering(stalled)
        self.assertIn("within 0.2 s", await self.trouble(self.authenticator(timeout=0.2)))
        await self.conversations[-1].gone  # and the connection is not left open

    async def test_drops_do_not_prolong_it(self) -> None:
        def drip(conversation: Conversation) -> None:
            for number, byte in enumerate(answer(IN)):
                reactor.callLater(0.04 * number, conversation.write, bytes([byte]))

        self.reply = drip
        self.assertIn("within 1 s", await self.trouble(self.authenticator(timeout=1)))
        await sleep(2)

    async def test_a_kept_connection_that_died_is_asked_once_more_on_a_fresh_one(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate("first")
        first = self.conversations[0]

        def reply(conversation: Conversation) -> None:
            if conversation is first:
                conversation.hang_up()
            else:
                conversation.write(answer(IN))

        self.reply = reply
        self.assertEqual(await authenticator.authenticate("second"), LoggedIn(7))
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=second", b"SESSID=second"])

    async def test_a_fresh_connection_that_died_is_not_asked_again(self) -> None:
        self.reply = Conversation.hang_up
        await self.trouble()
        self.assertEqual(len(self.requests), 1)

    async def test_a_kept_connection_that_died_twice_is_trouble(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate("first")
        self.reply = Conversation.hang_up
        await self.trouble(authenticator)
        self.assertEqual(len(self.requests), 3)

    async def test_a_kept_connection_that_died_inside_an_answer_is_not_asked_again(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate("first")

        def reply(conversation: Conversation) -> None:
            conversation.write(b"HTTP/1.1 2")
            conversation.hang_up()

        self.reply = reply
        await self.trouble(authenticator)
        self.assertEqual(len(self.requests), 2)

    async def test_a_timeout_on_a_kept_connection_is_not_asked_again(self) -> None:
        authenticator = self.authenticator(timeout=0.2)
        await authenticator.authenticate("first")
        self.reply = lambda conversation: None
        await self.trouble(authenticator)
        await sleep(0.1)
        self.assertEqual(len(self.requests), 2)

    async def test_a_question_that_is_given_up_cuts_its_connection(self) -> None:
        self.reply = lambda conversation: None
        asking = self.authenticator().authenticate("sid")
        while not self.requests:
            await sleep(0.01)
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking
        await self.conversations[0].gone


class Kept(WebserverTestCase):
    """Connections are kept after every answer that came whole."""

    async def test_an_answer_without_a_body_leaves_nothing_to_cut(self) -> None:
        for reply in (answer(b"", "401 Unauthorized"), answer(b"", "500 Oops"), answer(b"no JSON")):
            self.answering(reply)
            authenticator = self.authenticator(checks=1, breaker_failures=0)
            before = len(self.conversations)
            await gatherResults([authenticator.authenticate(f"sid{number}") for number in range(10)])
            self.assertEqual(len(self.conversations) - before, 1)


class Turns(WebserverTestCase):
    """How many questions are out at once."""

    async def test_no_more_than_allowed_at_once_and_all_get_their_turn(self) -> None:
        out: list[Conversation] = []
        most = 0

        def reply(conversation: Conversation) -> None:
            nonlocal most
            out.append(conversation)
            most = max(most, len(out))

            def done() -> None:
                out.remove(conversation)
                conversation.write(answer(IN))

            reactor.callLater(0.02, done)

        self.reply = reply
        authenticator = self.authenticator(checks=4)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(20)])
        self.assertEqual(list(verdicts), [LoggedIn(7)] * 20)
        self.assertEqual(most, 4)

    async def test_the_default_is_32(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator()
        asking = [authenticator.authenticate(str(number)) for number in range(40)]
        await sleep(0.5)
        self.assertEqual(len(self.requests), 32)
        for question in asking:
            question.addErrback(lambda failure: failure.trap(CancelledError) and None)
            question.cancel()
        await gatherResults(asking)

    async def test_waiting_for_a_turn_has_its_time(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=1, queue_timeout=0.2, timeout=1)
        first = authenticator.authenticate("first")
        self.assertIn("webserver-checks", await self.trouble(authenticator))
        self.assertIsInstance(await first, Unavailable)
        self.reply = lambda conversation: conversation.write(answer(IN))
        self.assertEqual(await authenticator.authenticate("after"), LoggedIn(7))

    async def test_a_question_given_up_in_the_queue_leaves_its_place(self) -> None:
        held: list[Conversation] = []
        self.reply = held.append
        authenticator = self.authenticator(checks=1)
        first, second, third = (authenticator.authenticate(name) for name in ("first", "second", "third"))
        second.cancel()
        with self.assertRaises(CancelledError):
            await second
        while not held:
            await sleep(0.01)
        self.reply = lambda conversation: conversation.write(answer(IN))
        held[0].write(answer(IN))
        self.assertEqual(await first, LoggedIn(7))
        self.assertEqual(await third, LoggedIn(7))
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=third"])

    async def test_who_came_first_is_asked_about_first(self) -> None:
        authenticator = self.authenticator(checks=1)
        await gatherResults([authenticator.authenticate(str(number)) for number in range(20)])
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=%d" % number for number in range(20)])

    async def test_a_queue_up_to_its_size_and_no_further(self) -> None:
        held: list[Conversation] = []
        self.reply = held.append
        told = self.told()
        authenticator = self.authenticator(checks=1, queue=3)
        out, *waiting = [authenticator.authenticate(str(number)) for number in range(4)]
        # Refused at once, not when the time in the queue would have passed; who knows the way in is not refused.
        for number in range(4, 8):
            refused = self.successResultOf(authenticator.authenticate(str(number)))
            self.assertIn("webserver-checks", refused.why)
        waiting.append(authenticator.authenticate("3"))
        self.assertEqual(len(told), 1)
        while not held:
            await sleep(0.01)
        self.reply = lambda conversation: conversation.write(answer(IN))
        held[0].write(answer(IN))
        self.assertEqual(await gatherResults([out, *waiting]), [LoggedIn(7)] * 5)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=%d" % number for number in range(4)])
        # There is room again, and the next refusal is told again.
        self.assertEqual(await authenticator.authenticate("7"), LoggedIn(7))
        self.reply = held.append
        asking = [authenticator.authenticate(str(number)) for number in range(4)]
        self.assertIsInstance(self.successResultOf(authenticator.authenticate("4")), Unavailable)
        self.assertEqual(len(told), 2)
        for question in asking:
            question.addErrback(lambda failure: failure.trap(CancelledError) and None)
            question.cancel()

    async def test_a_queue_of_which_some_are_in_time(self) -> None:
        # Each answer takes 0.1 s: two get their turn within 0.25 s, the rest are told that they do not.
        clock = Clock()

        def reply(conversation: Conversation) -> None:
            clock.advance(0.1)
            conversation.write(answer(IN))

        self.reply = reply
        told = self.told()
        authenticator = self.authenticator(checks=1)
        authenticator._queue_alarm = Alarm(clock, 0.25, authenticator._queued_too_long)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(10)])
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=%d" % number for number in range(3)])
        self.assertEqual(verdicts[:3], [LoggedIn(7)] * 3)
        self.assertEqual({type(verdict) for verdict in verdicts[3:]}, {Unavailable})
        self.assertEqual(len(told), 1)

    async def test_who_is_told_may_have_others_leave(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=1, queue_timeout=0.1, timeout=0.5)
        out = authenticator.authenticate("out")
        first, second, third = (authenticator.authenticate(name) for name in ("a", "a", "b"))
        first.addCallback(lambda _: (second.cancel(), third.cancel()))
        for left in (second, third):
            with self.assertRaises(CancelledError):
                await left
        self.assertIsInstance(await out, Unavailable)

    async def test_zero_is_no_limit(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=0, timeout=2)
        asking = [authenticator.authenticate(str(number)) for number in range(50)]
        await gatherResults(asking)
        self.assertEqual(len(self.requests), 50)


class Stopping(WebserverTestCase):
    async def test_what_is_cut_off_by_it_is_no_trouble(self) -> None:
        lines = self.told()
        authenticator = self.authenticator(breaker_failures=1)

        def look_up(sessid: str, is_ticket: bool) -> Deferred[Any]:
            # Twisted calls it a failed lookup where one is cancelled.
            return Deferred(lambda asking: asking.errback(ConnectFailed("DNSLookupError")))

        self.patch(authenticator._page, "ask", look_up)
        verdict = authenticator.authenticate("sid")
        authenticator.give_up(verdict)
        await authenticator.close()
        self.assertEqual(await verdict, Unavailable("the relay is stopping"))
        self.assertEqual(lines, [])
        self.assertIs(authenticator._breaker.state, BreakerState.CLOSED)


class OverTLS(WebserverTestCase):
    """A webserver that speaks TLS, and keeps its connections."""

    def setUp(self) -> None:
        super().setUp()
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        self.tls = reactor.listenSSL(0, self.factory, PrivateCertificate.loadPEM(pem).options(), interface="127.0.0.1")
        trusted = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        self.asks = self.authenticator(
            url=f"https://127.0.0.1:{self.tls.getHost().port}/", tls_policy=BrowserLikePolicyForHTTPS(trusted)
        )

    async def tearDown(self) -> None:
        # None of them is told that it has been cut off, or of the end of a connection where it reads no more.
        for conversation in self.conversations:
            conversation.transport.transport.abortConnection()  # of TCP, below TLS
        await gatherResults([conversation.gone for conversation in self.conversations])
        self.conversations.clear()
        await maybeDeferred(self.tls.stopListening)
        await super().tearDown()

    async def test_stopping_waits_for_no_silent_webserver(self) -> None:
        def answer_and_fall_silent(conversation: Conversation) -> None:
            conversation.write(answer(IN))
            conversation.transport.transport.pauseProducing()  # of TCP, below TLS

        self.reply = answer_and_fall_silent
        self.assertEqual(await self.asks.authenticate("sid"), LoggedIn(7))
        await self.asks.close().addTimeout(2, reactor)

    async def test_a_kept_connection_that_died_and_then_no_webserver(self) -> None:
        self.assertEqual(await self.asks.authenticate("sid"), LoggedIn(7))
        await self.tls.stopListening()
        self.reply = lambda conversation: conversation.hang_up()
        self.assertIn("refused", await self.trouble(self.asks))


class SingleFlight(WebserverTestCase):
    """Those who ask about the same session at the same time are one question to the webserver."""

    def setUp(self) -> None:
        super().setUp()
        self.held: list[Conversation] = []
        self.reply = self.held.append

    async def asked(self, times: int = 1) -> None:
        """Wait until the webserver has been asked so often in all."""
        while len(self.requests) < times:
            await sleep(0.01)

    async def test_one_post_for_all_who_ask_meanwhile(self) -> None:
        authenticator = self.authenticator()
        asking = [authenticator.authenticate("sid") for _ in range(50)]
        await self.asked()
        asking += [authenticator.authenticate("sid") for _ in range(50)]
        other = authenticator.authenticate("other")
        await self.asked(2)
        for conversation in self.held:
            conversation.write(answer(IN))
        self.assertEqual(await gatherResults([*asking, other]), [LoggedIn(7)] * 101)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=sid", b"SESSID=other"])

    async def test_in_the_queue_too(self) -> None:
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate(name) for name in ("first", "second", "second", "first", "second")]
        await self.asked()
        self.reply = lambda conversation: conversation.write(answer(IN))
        self.held[0].write(answer(IN))
        self.assertEqual(await gatherResults(asking), [LoggedIn(7)] * 5)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=second"])

    async def test_nothing_is_remembered(self) -> None:
        authenticator = self.authenticator()
        for raw, expected in (
            (answer(b'{"loggedin":false}'), Denied()),
            (answer(b"", "500 Internal Server Error"), Unavailable("it answered with status 500")),
            (answer(IN), LoggedIn(7)),
        ):
            self.answering(raw)
            asking = [authenticator.authenticate("sid") for _ in range(3)]
            self.assertEqual(await gatherResults(asking), [expected] * 3)
        self.assertEqual(len(self.requests), 3)

    async def test_asking_again_when_answered_is_another_question(self) -> None:
        authenticator = self.authenticator()
        self.reply = lambda conversation: conversation.write(answer(IN))
        again = authenticator.authenticate("sid").addCallback(lambda _: authenticator.authenticate("sid"))
        self.assertEqual(await again, LoggedIn(7))
        self.assertEqual(len(self.requests), 2)

    async def test_one_who_leaves_does_not_take_the_others_along(self) -> None:
        authenticator = self.authenticator()
        first, second, third = (authenticator.authenticate("sid") for _ in range(3))
        await self.asked()
        for leaving in (first, third):
            leaving.cancel()
            with self.assertRaises(CancelledError):
                await leaving
        self.held[0].write(answer(IN))
        self.assertEqual(await second, LoggedIn(7))
        self.assertEqual(len(self.requests), 1)

    async def test_the_last_one_who_leaves_gives_the_question_up(self) -> None:
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate("sid") for _ in range(3)]
        await self.asked()
        for leaving in asking:
            leaving.cancel()
            with self.assertRaises(CancelledError):
                await leaving
        await self.held[0].gone
        # Its turn is another's now, and who asks about the same session asks anew.
        self.reply = lambda conversation: conversation.write(answer(IN))
        self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
        self.assertEqual(len(self.requests), 2)

    async def test_one_that_is_out_keeps_its_turn_when_it_is_given_up(self) -> None:
        authenticator = self.authenticator(checks=1)
        given_up = [authenticator.authenticate("sid") for _ in range(2)]
        await self.asked()
        waits = authenticator.authenticate("waits")
        for one in given_up:
            authenticator.give_up(one)
        authenticator.give_up(waits)
        with self.assertRaises(CancelledError):  # at once, as nobody has been asked about it
            await waits
        # What comes now may be older than what was said to the relay since: it is not shared any more.
        again = authenticator.authenticate("sid")
        await sleep(0.05)
        self.assertEqual(len(self.requests), 1)
        self.reply = lambda conversation: conversation.write(answer(b'{"loggedin":false}'))
        self.held[0].write(answer(IN))
        self.assertEqual(await again, Denied())
        self.assertEqual(await gatherResults(given_up), [LoggedIn(7)] * 2)
        self.assertEqual(len(self.requests), 2)

    async def test_who_still_waits_has_others_join(self) -> None:
        authenticator = self.authenticator()
        leaves, stays = (authenticator.authenticate("sid") for _ in range(2))
        await self.asked()
        authenticator.give_up(leaves)
        joins = authenticator.authenticate("sid")
        self.held[0].write(answer(IN))
        self.assertEqual(await gatherResults([leaves, stays, joins]), [LoggedIn(7)] * 3)
        self.assertEqual(len(self.requests), 1)

    async def test_trouble_with_one_that_was_given_up_counts_and_is_told(self) -> None:
        told = self.told()
        authenticator = self.authenticator(timeout=1, breaker_failures=1)
        asking = authenticator.authenticate("sid")
        await self.asked()
        authenticator.give_up(asking)
        self.assertEqual(await asking, Unavailable("no complete response within 1 s"))
        self.assertIsInstance(await authenticator.authenticate("other"), Unavailable)
        self.assertEqual((len(told), len(self.requests)), (2, 1))

    async def test_closing_gives_up_all(self) -> None:
        authenticator = self.authenticator(checks=1)
        out, waits = (authenticator.authenticate(name) for name in ("out", "waits"))
        await self.asked()
        authenticator.give_up(out)
        await authenticator.close()
        self.assertEqual(await waits, Unavailable("the relay is stopping"))
        with self.assertRaises(CancelledError):
            await out
        await self.held[0].gone

    async def test_a_timeout_is_all_theirs(self) -> None:
        told = self.told()
        authenticator = self.authenticator(timeout=0.1)
        verdicts = await gatherResults([authenticator.authenticate("sid") for _ in range(3)])
        self.assertEqual(verdicts, [Unavailable("no complete response within 0.1 s")] * 3)
        self.assertEqual(len(told), 1)

    async def test_what_is_given_up_while_connecting_is_not_told(self) -> None:
        told = self.told()
        asking = self.authenticator().authenticate("sid")
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking
        self.assertIsInstance(await self.authenticator(timeout=0.000001).authenticate("sid"), Unavailable)
        self.assertEqual([line.partition("asked: ")[2] for line in told], ["no complete response within 1e-06 s"])

    async def test_a_defect_is_all_theirs_and_holds_no_turn(self) -> None:
        authenticator = self.authenticator(checks=1)
        self.patch(authenticator._page, "_body", {}.__getitem__)
        for _ in range(2):
            for asking in [authenticator.authenticate("sid") for _ in range(2)]:
                with self.assertRaises(KeyError):
                    await asking

    async def test_a_session_id_is_in_no_repr(self) -> None:
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate(name) for name in ("CANARY", "CANARY", "CANARY too")]
        (out, waiting) = authenticator._shared.values()
        for thing in (authenticator, out, waiting, authenticator._queue, authenticator._pending, out.asking, *asking):
            self.assertNotIn("CANARY", repr(thing))
        for question in asking:
            question.cancel()
            with self.assertRaises(CancelledError) as caught:
                await question
            self.assertNotIn("CANARY", Failure(caught.exception).getTraceback())


class BreakerOpens(WebserverTestCase):
    """A webserver that keeps failing is left alone, but for one question at a time."""

    NO = answer(b"", "500 Internal Server Error")

    async def broken(self, failures: int = 3, **options: Any) -> SessionPageAuthenticator:
        """An authenticator whose breaker has just opened."""
        self.answering(self.NO)
        authenticator = self.authenticator(breaker_failures=failures, **options)
        # The last of the row is the relay's own.
        for number in range(max(1, failures - 1)):
            self.assertIn("status 500", await self.trouble(authenticator), number)
        while authenticator._breaker.state is BreakerState.CLOSED:
            await sleep(0.01)
        return authenticator

    async def test_past_the_limit_nobody_is_asked_about(self) -> None:
        authenticator = await self.broken()
        for _ in range(20):
            refused = self.successResultOf(authenticator.authenticate("sid"))
            self.assertIn("breaker-failures", refused.why)
        self.assertEqual(len(self.requests), 3)

    async def test_up_to_the_limit_everybody_is(self) -> None:
        self.answering(self.NO, self.NO, answer(b"", "403 Forbidden"), self.NO, self.NO, answer(IN))
        authenticator = self.authenticator(breaker_failures=4)
        verdicts = [await authenticator.authenticate("sid") for _ in range(6)]
        self.assertEqual(verdicts[2], Denied())
        self.assertEqual(verdicts[5], LoggedIn(7))

    async def test_zero_is_no_breaker(self) -> None:
        self.answering(self.NO)
        authenticator = self.authenticator(breaker_failures=0)
        for _ in range(30):
            await self.trouble(authenticator)
        self.assertEqual(len(self.requests), 30)

    async def test_one_probe_then_everybody(self) -> None:
        told = self.told()
        authenticator = await self.broken()
        held: list[Conversation] = []
        self.reply = held.append
        await sleep(1.05)
        probe = authenticator.authenticate("probe")
        # One at a time, even for the same session: nobody else waits.
        for name in ("probe", "other"):
            self.assertIsInstance(self.successResultOf(authenticator.authenticate(name)), Unavailable)
        while not held:
            await sleep(0.01)
        held[0].write(answer(IN))
        self.assertEqual(await probe, LoggedIn(7))
        self.reply = lambda conversation: conversation.write(answer(IN))
        self.assertEqual(await authenticator.authenticate("after"), LoggedIn(7))
        self.assertEqual(
            [line for line in told if "could not be asked" not in line][1:],
            [f"the session page at {self.url.removesuffix('?x=1')} answers again"],
        )
        self.assertIn("has failed 3 times in a row", told[3])
        self.assertEqual(len(told), 5)

    async def test_a_probe_that_fails_is_not_told(self) -> None:
        told = self.told()
        authenticator = await self.broken()
        self.assertEqual(len(told), 4)
        await sleep(1.05)
        self.assertIn("status 500", await self.trouble(authenticator))
        self.assertIn("breaker-failures", await self.trouble(authenticator))
        self.assertEqual(len(told), 4)

    async def test_a_probe_whose_asker_leaves_is_no_verdict_on_the_webserver(self) -> None:
        authenticator = await self.broken()
        self.reply = lambda conversation: None
        await sleep(1.05)
        probe = authenticator.authenticate("probe")
        probe.cancel()
        with self.assertRaises(CancelledError):
            await probe
        self.reply = lambda conversation: conversation.write(answer(IN))
        self.assertEqual(await authenticator.authenticate("next"), LoggedIn(7))

    async def test_those_who_wait_for_their_turn_are_told_at_once(self) -> None:
        self.answering(self.NO)
        authenticator = self.authenticator(breaker_failures=3, checks=1)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(50)])
        self.assertEqual({type(verdict) for verdict in verdicts}, {Unavailable})
        self.assertEqual(len(self.requests), 3)

    def failing_over(self, odd: str) -> None:
        """The site fails over one session id, and lets everybody else in."""
        no, yes = self.NO, answer(IN)
        self.reply = lambda conversation: conversation.write(no if odd.encode() in self.requests[-1][2] else yes)

    async def test_who_logs_in_by_what_the_site_fails_over_shuts_nobody_out(self) -> None:
        told = self.told()
        self.failing_over("odd")
        authenticator = self.authenticator(breaker_failures=3)
        for number in range(20):
            odd = await gatherResults([authenticator.authenticate(f"odd {number} {each}") for each in range(5)])
            self.assertEqual({type(verdict) for verdict in odd}, {Unavailable})
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
        self.assertFalse([line for line in told if "in a row" in line])
        own = [body for _, _, body in self.requests if b"odd" not in body and b"sid" not in body]
        self.assertTrue(0 < len(own) <= 100 / 2, len(own))
        self.assertEqual(len(set(own)), len(own))  # nobody can have such a session, or answer for it in advance
        for body in own:
            self.assertRegex(body, rb"\ASESSID=[0-9a-f]{32}\Z")

    async def test_nor_by_being_the_probe(self) -> None:
        authenticator = await self.broken(breaker_wait=0.0)
        self.failing_over("odd")
        self.assertIn("status 500", (await authenticator.authenticate("odd")).why)  # type: ignore[union-attr]
        while authenticator._breaker.state is not BreakerState.CLOSED:
            await sleep(0.01)
        self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))

    async def test_a_question_of_its_own_goes_out_in_its_turn(self) -> None:
        most = 0

        def reply(conversation: Conversation) -> None:
            nonlocal most
            most = max(most, len(authenticator._pending))
            reactor.callLater(0.01, conversation.write, self.NO)

        self.reply = reply
        authenticator = self.authenticator(breaker_failures=5, checks=2)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(50)])
        self.assertEqual({type(verdict) for verdict in verdicts}, {Unavailable})
        self.assertEqual(most, 2)
        self.assertLessEqual(len(self.requests), 7)

    async def test_a_question_of_its_own_is_given_up_when_the_relay_stops(self) -> None:
        self.answering(self.NO)
        authenticator = self.authenticator(breaker_failures=2)
        await self.trouble(authenticator)
        (own,) = authenticator._pending
        self.assertTrue(own.is_own)
        await authenticator.close()
        self.assertFalse(authenticator._pending)

    async def test_a_timeout_is_a_failure(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(breaker_failures=2, timeout=0.1)
        for _ in range(2):
            self.assertIn("within 0.1 s", await self.trouble(authenticator))
        self.assertIn("breaker-failures", await self.trouble(authenticator))

    async def test_a_defect_of_ours_is_none(self) -> None:
        authenticator = self.authenticator(breaker_failures=1)
        self.patch(authenticator._page, "_body", {}.__getitem__)
        for _ in range(3):
            with self.assertRaises(KeyError):
                await authenticator.authenticate("sid")

    async def test_a_session_id_is_told_nowhere(self) -> None:
        told = self.told()
        authenticator = self.authenticator(breaker_failures=1, checks=1)
        self.reply = lambda conversation: conversation.write(answer(b"no " + self.requests[-1][2], "200 OK"))
        verdicts = await gatherResults([authenticator.authenticate("CANARY"), authenticator.authenticate("CANARY 2")])
        self.assertNotIn("CANARY", "".join([*told, repr(verdicts), repr(vars(authenticator._breaker))]))


class Tickets(WebserverTestCase):
    """SESSIDs that are good for one question."""

    async def test_each_is_a_question_of_its_own_even_at_the_same_time(self) -> None:
        self.answering(answer(IN), answer(b'{"loggedin":false}'))
        authenticator = self.authenticator(checks=1)
        verdicts = await gatherResults([authenticator.authenticate_ticket("ticket") for _ in range(2)])
        self.assertEqual(verdicts, [LoggedIn(7), Denied()])
        self.assertEqual(len(self.requests), 2)

    async def test_what_is_no_ticket_is_shared_all_the_same(self) -> None:
        authenticator = self.authenticator()
        cookies = [authenticator.authenticate("sid") for _ in range(10)]
        tickets = [authenticator.authenticate_ticket("sid") for _ in range(10)]
        cookies.append(authenticator.authenticate("sid"))
        self.assertEqual(await gatherResults(cookies + tickets), [LoggedIn(7)] * 21)
        self.assertEqual(len(self.requests), 1 + 10)

    async def test_what_is_no_ticket_goes_out_on_a_kept_connection(self) -> None:
        authenticator = self.authenticator()
        for number in range(3):
            await authenticator.authenticate_ticket(f"ticket {number}")
            await authenticator.authenticate("sid")
        self.assertEqual(len(self.conversations), 3 + 1)

    async def test_none_goes_out_on_a_connection_that_may_have_died(self) -> None:
        authenticator = self.authenticator()
        for number in range(3):
            await authenticator.authenticate_ticket(str(number))
        self.assertEqual(len(self.conversations), 3)

    async def test_none_is_asked_about_twice(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate_ticket("first")
        self.reply = Conversation.hang_up
        self.assertIsInstance(await authenticator.authenticate_ticket("sid"), Unavailable)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=sid"])

    async def test_none_is_remembered(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate_ticket("CANARY") for _ in range(2)]
        self.assertEqual(authenticator._shared, {})
        self.assertNotIn("CANARY", repr(vars(authenticator)))
        for question in asking:
            question.cancel()
            with self.assertRaises(CancelledError):
                await question


class Verdicts(SynchronousTestCase):
    """The meaning of an answer, as a pure function."""

    def test_uids(self) -> None:
        for uid in (0, -1, 2**53, -(2**53), "7", "a" * 64, "å b", "名前"):
            self.assertTrue(is_uid(uid), uid)
        for not_uid in ("", "a" * 65, "a\n", "a\0", "\ud800", 2**53 + 1, -(2**53) - 1, 1.0, True, None, [], {}):
            self.assertFalse(is_uid(not_uid), not_uid)
            self.assertRaises(ValueError, LoggedIn, not_uid)

    def test_what_to_ask_by_next(self) -> None:
        for session in ("x", "x" * 4096, "å\U0001f511"):
            self.assertEqual(
                judge_body(json.dumps({"loggedin": True, "uID": 7, "session": session}).encode()),
                LoggedIn(7, session=session),
            )
        self.assertEqual(judge_body(b'{"loggedin":true,"uID":7,"session":null}'), LoggedIn(7))
        for session in ("", "CANARY" * 1000, 7, True, ["CANARY"], "CANARY\ud83d"):
            error = self.assertRaises(ValueError, LoggedIn, 7, session=session)
            self.assertNotIn("CANARY", str(error))
        for session in ("", "CANARY" * 1000, 7, ["CANARY"]):
            error = self.assertRaises(
                InvalidAnswer, judge_body, json.dumps({"loggedin": True, "uID": 7, "session": session}).encode()
            )
            self.assertNotIn("CANARY", str(error))
        self.assertNotIn("CANARY", repr(LoggedIn(7, session="CANARY")))

    def test_what_to_ask_by_next_is_not_told(self) -> None:
        for body in (
            b'{"loggedin":true,"uID":"","session":"CANARY"}',
            b'{"loggedin":true,"uID":7,"expires_in":0,"session" : "\\"CANARY"}',
            b'{"loggedin":1,"session":"CANARY',
            b'<br>Warning: x<br>{"session":"CANARY"}',
        ):
            error = self.assertRaises(InvalidAnswer, judge_body, body)
            self.assertIn("<hidden>", str(error))
            self.assertNotIn("CANARY", str(error))

    def test_expiries(self) -> None:
        for seconds in (1, 0.5, 3600, 2**31 - 1):
            self.assertEqual(
                judge_body(json.dumps({"loggedin": True, "uID": 7, "expires_in": seconds}).encode()),
                LoggedIn(7, seconds),
            )
        self.assertEqual(judge_body(b'{"loggedin":true,"uID":7,"expires_in":null}'), LoggedIn(7))
        for seconds in (0, -1, 2**31, "60", True, [], float("nan"), float("inf")):
            self.assertRaises(ValueError, LoggedIn, 7, seconds)

    @settings(deadline=None)  # the first call of all pays for what is made once
    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_verdict_or_one_kind_of_error(self, body: bytes) -> None:
        try:
            self.assertIsInstance(judge_body(body), LoggedIn | Denied)
        except ValueError as error:
            self.assertIn("response", str(error))

    @settings(deadline=None)
    @given(
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)
    )
    def test_only_true_is_true(self, loggedin: object) -> None:
        body = json.dumps({"loggedin": loggedin, "uID": 7}).encode()
        if loggedin is True:
            self.assertEqual(judge_body(body), LoggedIn(7))
        elif loggedin is False:
            self.assertEqual(judge_body(body), Denied())
        else:
            self.assertRaises(InvalidAnswer, judge_body, body)
