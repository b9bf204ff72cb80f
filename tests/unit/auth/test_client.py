"""The HTTP client over real sockets: what it sends, what it understands, and how it can fail."""

from __future__ import annotations

import json
import socket
from typing import Any

from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SkipTest

from chatrelay.auth.client import NO_COOKIES
from chatrelay.model import Denied, LoggedIn
from tests.support.session_page_case import IN, Conversation, SessionPageTestCase, response, sleep

reactor: Any = untyped_reactor


class Requests(SessionPageTestCase):
    """What is sent."""

    async def test_sessid_is_posted_as_a_form(self) -> None:
        self.assertEqual(await self.authenticator().authenticate("a b&c=å+/%"), LoggedIn(7))
        ((line, headers, body),) = self.requests
        self.assertEqual(line, "POST /session?x=1 HTTP/1.1")
        self.assertEqual(headers["content-type"], "application/x-www-form-urlencoded")
        self.assertEqual(body, b"SESSID=a+b%26c%3D%C3%A5%2B%2F%25")
        # A cookie may have bytes that are not UTF-8. They are sent unchanged.
        await self.authenticator().authenticate("\udce5\u00e5\udc85")
        self.assertEqual(self.requests[-1][2], b"SESSID=%E5%C3%A5%85")
        self.assertNotIn("authorization", headers)

    async def test_sessid_is_posted_as_json_with_the_secret(self) -> None:
        await self.authenticator(format="json", secret="s3cret").authenticate('"å')
        ((_, headers, body),) = self.requests
        self.assertTrue(headers["content-type"].startswith("application/json"))
        self.assertEqual(json.loads(body), {"SESSID": '"å'})
        self.assertEqual(headers["authorization"], "Bearer s3cret")

    async def test_cookies_of_one_user_are_not_sent_with_requests_about_another(self) -> None:
        self.respond_with(response(IN, "200 OK", "Set-Cookie: who=alice; Path=/"))
        authenticator = self.authenticator()
        await authenticator.authenticate("alice")
        await authenticator.authenticate("bo")
        self.assertEqual([headers.get("cookie") for _, headers, _ in self.requests], [None, None])
        self.assertEqual(list(NO_COOKIES), [])

    async def test_url_with_an_ipv6_address_is_supported(self) -> None:
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

    async def test_host_header_is_that_of_the_url(self) -> None:
        await self.authenticator().authenticate("sid")
        self.assertEqual(self.requests[0][1]["host"], f"127.0.0.1:{self.port.getHost().port}")


class Responses(SessionPageTestCase):
    """What a response means."""

    async def test_loggedin_true_is_a_login(self) -> None:
        bodies = {b'{"loggedin":true,"uID":"chen","extra":[1]}': "chen", b' {"uID":0,"loggedin":true}\n': 0}
        for body, uid in bodies.items():
            self.respond_with(response(body))
            self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(uid))

    async def test_loggedin_false_401_and_403_are_denials(self) -> None:
        for raw in (
            response(b'{"loggedin":false}'),
            response(b"go away", "401 Unauthorized"),
            response(b"", "403 Forbidden"),
        ):
            self.respond_with(raw)
            self.assertEqual(await self.authenticator().authenticate("sid"), Denied())
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_any_other_response_is_unavailable_and_quoted(self) -> None:
        for raw, said in (
            (response(b"", "500 Internal Server Error"), "status 500"),
            (response(IN, "201 Created"), "status 201"),
            (response(b"", "204 No Content"), "status 204"),
            (response(b"", "302 Found", "Location: https://elsewhere.test/login"), "https://elsewhere.test/login"),
            (response(IN, "303 See Other", "Location: /x"), "a redirect to '/x'"),
            (response(b"<html>log in</html>"), "<html>log in</html>"),
            (response(b""), "not JSON"),
            (response(b'"false"'), 'no "loggedin"'),
            (response(b"1"), 'no "loggedin"'),
            (response(b'{"loggedin":"false"}'), 'no "loggedin"'),
            (response(b'{"loggedin":1,"uID":7}'), 'no "loggedin"'),
            (response(b'{"loggedin":true}'), 'no "uID"'),
            (response(b'{"loggedin":true,"uID":""}'), 'no "uID"'),
            (response(b'{"loggedin":true,"uID":7.5}'), 'no "uID"'),
            (response(b'{"loggedin":true,"uID":7,"expires_in":0}'), '"expires_in" that is not a number'),
            (response(b'{"loggedin":true,"uID":7,"expires_in":"60"}'), '"expires_in" that is not a number'),
            (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0-OpenSSH"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n", "nonsense"),
        ):
            self.respond_with(raw)
            self.assertIn(said, await self.failure(self.authenticator(timeout=1)), raw)
        self.flushLoggedErrors()


class Failures(SessionPageTestCase):
    """The ways in which a request ends without a response."""

    async def test_refused_connection_is_unavailable(self) -> None:
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        url = f"http://127.0.0.1:{port.getHost().port}/"
        await port.stopListening()
        self.assertIn("refused", (await self.failure(self.authenticator(url=url))).lower())

    async def test_connection_that_is_not_accepted_times_out(self) -> None:
        # A socket whose backlog is full does not answer the next connection, like a firewall.
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
        self.assertIn("within 0.3 s", await self.failure(authenticator))
        asking = authenticator.authenticate("sid")
        await sleep(0.1)
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking

    async def test_denial_with_an_unread_body_cuts_the_connection(self) -> None:
        self.respond_with(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000\r\n\r\n")
        self.assertEqual(await self.authenticator().authenticate("sid"), Denied())
        await self.conversations[0].gone

    async def test_https_to_a_port_without_tls_is_reported(self) -> None:
        authenticator = self.authenticator(url=self.url.replace("http:", "https:"), timeout=2)
        self.assertIn("does not speak TLS on that port", await self.failure(authenticator))

    async def test_tls_handshake_without_an_answer_times_out(self) -> None:
        self.reply = lambda conversation: None
        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        authenticator = self.authenticator(url=f"https://127.0.0.1:{port.getHost().port}/", timeout=0.3)
        self.assertIn("within 0.3 s", await self.failure(authenticator))
        await port.stopListening()

    async def test_response_within_the_timeout_is_accepted(self) -> None:
        def late(conversation: Conversation) -> None:
            reactor.callLater(0.3, conversation.write, response(IN))

        self.reply = late
        self.assertEqual(await self.authenticator(timeout=2).authenticate("sid"), LoggedIn(7))
        self.assertIn("within 0.1 s", await self.failure(self.authenticator(timeout=0.1)))
        await sleep(0.4)

    async def test_timeout_runs_to_the_last_byte(self) -> None:
        stalled = response(IN)[:-1]
        self.respond_with(stalled)
        self.assertIn("within 0.2 s", await self.failure(self.authenticator(timeout=0.2)))
        await self.conversations[-1].gone  # the connection is closed, too

    async def test_slow_bytes_do_not_extend_the_timeout(self) -> None:
        def drip(conversation: Conversation) -> None:
            for number, byte in enumerate(response(IN)):
                reactor.callLater(0.04 * number, conversation.write, bytes([byte]))

        self.reply = drip
        self.assertIn("within 1 s", await self.failure(self.authenticator(timeout=1)))
        await sleep(2)

    async def test_request_on_a_lost_kept_connection_is_retried_on_a_new_one(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate("first")
        first = self.conversations[0]

        def reply(conversation: Conversation) -> None:
            if conversation is first:
                conversation.hang_up()
            else:
                conversation.write(response(IN))

        self.reply = reply
        self.assertEqual(await authenticator.authenticate("second"), LoggedIn(7))
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=second", b"SESSID=second"])

    async def test_request_on_a_lost_new_connection_is_not_retried(self) -> None:
        self.reply = Conversation.hang_up
        await self.failure()
        self.assertEqual(len(self.requests), 1)

    async def test_request_that_is_lost_twice_is_unavailable(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate("first")
        self.reply = Conversation.hang_up
        await self.failure(authenticator)
        self.assertEqual(len(self.requests), 3)

    async def test_request_is_not_retried_after_the_first_byte_of_a_response(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate("first")

        def reply(conversation: Conversation) -> None:
            conversation.write(b"HTTP/1.1 2")
            conversation.hang_up()

        self.reply = reply
        await self.failure(authenticator)
        self.assertEqual(len(self.requests), 2)

    async def test_request_that_timed_out_is_not_retried(self) -> None:
        authenticator = self.authenticator(timeout=0.2)
        await authenticator.authenticate("first")
        self.reply = lambda conversation: None
        await self.failure(authenticator)
        await sleep(0.1)
        self.assertEqual(len(self.requests), 2)

    async def test_cancelled_request_cuts_its_connection(self) -> None:
        self.reply = lambda conversation: None
        asking = self.authenticator().authenticate("sid")
        while not self.requests:
            await sleep(0.01)
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking
        await self.conversations[0].gone


class Kept(SessionPageTestCase):
    """Connections are kept after every complete response."""

    async def test_connection_is_kept_after_a_complete_response(self) -> None:
        for reply in (response(IN), response(b"", "401 Unauthorized"), response(b"", "500 Oops"), response(b"no JSON")):
            self.respond_with(reply)
            authenticator = self.authenticator(checks=1, breaker_failures=0)
            before = len(self.conversations)
            await gatherResults([authenticator.authenticate(f"sid{number}") for number in range(10)])
            self.assertEqual(len(self.conversations) - before, 1)
