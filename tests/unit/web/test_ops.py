"""The ops endpoint, over real sockets."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

from treq import content
from treq.client import HTTPClient
from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, ResponseNeverReceived

from chatrelay.auth.session_index import SessionIndex
from chatrelay.model import LogUnavailable
from chatrelay.relay.directory import Directory
from chatrelay.testing import RecordedConnection
from chatrelay.web import ops
from chatrelay.web.ops import (
    MAX_BODY,
    MAX_CONNECTIONS,
    REQUEST_SECONDS,
    BoundedConnections,
    Ops,
    OpsRequest,
    OpsSite,
    Revocation,
    on_loopback,
)
from tests.support.relay_case import logged_events
from tests.support.session_page_case import sleep

reactor: Any = untyped_reactor

JSON = {"Authorization": "Bearer s3cret", "Content-Type": "application/json"}


class Raw(Protocol):
    """A connection on which the test writes bytes; `answered` has everything received until its end."""

    def __init__(self) -> None:
        self.answered: Deferred[bytes] = Deferred()
        self._received = b""

    def dataReceived(self, data: bytes) -> None:
        self._received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.answered.callback(self._received)


class OpsTestCase(TestCase):
    """An ops endpoint on a real port, with one user on two connections."""

    token: str | None = "s3cret"

    def setUp(self) -> None:
        self.events = logged_events(self)
        self.why: str | None = None
        self.directory = Directory()
        self.logins = SessionIndex(self.directory, b"key")
        self.members = [RecordedConnection(), RecordedConnection()]
        for member in self.members:
            self.directory.add("7", member)
            self.logins.entered(member, ["CANARY"])
        self.saved: list[Deferred[None]] = []  # what waits until it is saved
        self.is_saved = True
        site = OpsSite(Ops(self.logins, lambda: self.why, self.token, reactor, self.save), reactor)
        self.port = reactor.listenTCP(0, BoundedConnections(site, reactor), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def save(self) -> Deferred[None]:
        """Say that it is saved, or let the test do that."""
        if self.is_saved:
            return succeed(None)
        self.saved.append(Deferred())
        return self.saved[-1]

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """Send a request; return its status, and the answer as JSON."""
        self.response = await HTTPClient(Agent(reactor)).request(
            method,
            f"http://127.0.0.1:{self.port.getHost().port}{path}",
            data=body or None,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        received = await content(self.response)
        self.assertEqual(self.response.headers.getRawHeaders("content-type"), ["application/json"])
        return self.response.code, json.loads(received) if received else None

    async def revoke(self, value: object, **headers: str) -> tuple[int, Any]:
        """Post to ``/v1/revoke``."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.ask("POST", "/v1/revoke", body, **{**JSON, **headers})

    async def refused(self, value: object, **headers: str) -> tuple[int, str]:
        """Post a request that is refused; return the status and the reason."""
        status, answer = await self.revoke(value, **headers)
        self.assertEqual(sorted(answer), ["detail", "reason"])
        self.assertTrue(answer["detail"])
        self.assertEqual([member.closed for member in self.members], [None, None])
        return status, answer["reason"]


class Health(OpsTestCase):
    """Whether the relay is alive, and whether it is ready."""

    async def test_healthz_answers_200(self) -> None:
        self.why = "the relay is stopping"
        self.assertEqual(await self.ask("GET", "/healthz"), (200, {"status": "alive"}))

    async def test_readyz_answers_200_or_503_with_the_cause(self) -> None:
        self.assertEqual(await self.ask("GET", "/readyz"), (200, {"status": "ready"}))
        self.why = "the relay is stopping"
        self.assertEqual(
            await self.ask("GET", "/readyz"), (503, {"reason": "not-ready", "detail": "the relay is stopping"})
        )

    async def test_head_has_no_body(self) -> None:
        self.assertEqual(await self.ask("HEAD", "/healthz"), (200, None))
        self.why = "the relay is stopping"
        self.assertEqual(await self.ask("HEAD", "/readyz"), (503, None))

    async def test_other_methods_and_paths_are_refused(self) -> None:
        for method, path, status, allow in (
            ("POST", "/healthz", 405, "GET, HEAD"),
            ("DELETE", "/readyz", 405, "GET, HEAD"),
            ("GET", "/v1/revoke", 405, "POST"),
            ("BREW", "/v1/revoke", 405, "POST"),
            ("GET", "/", 404, None),
            ("GET", "/healthz/more", 404, None),
            ("GET", "/v1", 404, None),
        ):
            got, answer = await self.ask(method, path)
            self.assertEqual((got, sorted(answer)), (status, ["detail", "reason"]), path)
            self.assertEqual(self.response.headers.getRawHeaders("allow"), None if allow is None else [allow])


class Revoke(OpsTestCase):
    """Ending sessions, and the token that is required."""

    async def test_revoke_by_uid_ends_the_sessions_of_the_user(self) -> None:
        other = RecordedConnection()
        self.directory.add("8", other)
        self.assertEqual(await self.revoke({"uID": 7}), (200, {"ended": 2}))
        self.assertEqual([member.closed and member.closed[0] for member in self.members], [4505, 4505])
        self.assertIsNone(other.closed)
        self.assertEqual(await self.revoke({"uID": "nobody"}), (200, {"ended": 0}))

    async def test_revoke_by_sessid_ends_the_session(self) -> None:
        self.assertEqual(await self.revoke({"SESSID": "CANARY"}), (200, {"ended": 2}))
        self.assertEqual([member.closed and member.closed[0] for member in self.members], [4505, 4505])

    async def test_revoke_is_answered_when_it_is_saved(self) -> None:
        self.is_saved = False
        answer = Deferred.fromCoroutine(self.revoke({"uID": 7}))
        while not self.saved:
            await sleep(0)
        self.assertEqual([member.closed and member.closed[0] for member in self.members], [4505, 4505])
        self.assertEqual(await self.ask("GET", "/healthz"), (200, {"status": "alive"}))
        self.assertNoResult(answer)
        self.saved.pop().callback(None)
        self.assertEqual(await answer, (200, {"ended": 2}))

    async def test_revoke_that_cannot_be_saved_is_answered_503(self) -> None:
        self.is_saved = False
        for error in (LogUnavailable("the disk is full"), None):
            self.patch(ops, "SAVE_SECONDS", 0.05 if error is None else 60)
            answer = Deferred.fromCoroutine(self.revoke({"SESSID": "CANARY"}))
            while not self.saved:
                await sleep(0)
            waiting = self.saved.pop()
            if error is not None:
                waiting.errback(error)
            status, refusal = await answer
            self.assertEqual((status, refusal["reason"]), (503, "not-saved"))
            self.assertIn("Repeat the request", refusal["detail"])

    async def test_client_that_leaves_before_it_is_saved_leaves_nothing(self) -> None:
        self.is_saved = False
        answer = Deferred.fromCoroutine(self.revoke({"uID": 7}))
        while not self.saved:
            await sleep(0)
        answer.cancel()
        await self.assertFailure(answer, CancelledError, ResponseNeverReceived)
        waiting = self.saved.pop()
        while not waiting.called:
            await sleep(0)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_revoke_accepts_any_sessid_up_to_the_longest(self) -> None:
        sessid = "\U0001f511" * 4096
        member = RecordedConnection()
        self.logins.entered(member, [sessid])
        self.assertEqual(await self.revoke({"SESSID": sessid}), (200, {"ended": 1}))
        self.assertEqual(await self.refused({"SESSID": sessid + "x"}), (400, "invalid-request"))

    async def test_revoke_without_the_token_is_refused(self) -> None:
        for given in ("", "s3cret", "Bearer", "Bearer ", "Bearer wrong", "Bearer s3cretx", "Basic s3cret", "Bearer å"):
            self.assertEqual(await self.refused({"uID": 7}, Authorization=given), (401, "unauthorized"), given)
            self.assertEqual(self.response.headers.getRawHeaders("www-authenticate"), ["Bearer"])
        for given in ("Bearer s3cret", "bearer s3cret"):
            self.assertEqual((await self.revoke({"uID": 9}, Authorization=given))[0], 200)

    async def test_token_is_compared_in_constant_time(self) -> None:
        """Check that `hmac.compare_digest` alone decides."""
        for says, given, status in ((True, "wrong", 200), (False, "s3cret", 401)):
            with patch("hmac.compare_digest", return_value=says) as compare:
                answer = self.revoke if status == 200 else self.refused
                self.assertEqual((await answer({"uID": 9}, Authorization=f"Bearer {given}"))[0], status)
            compare.assert_called_once_with(given.encode(), b"s3cret")

    async def test_invalid_request_is_refused(self) -> None:
        for value in (
            b"",
            b"nonsense",
            b"\xff",
            b"[" * 5000,
            [],
            {},
            {"uID": 7, "SESSID": "CANARY"},
            {"uID": None},
            {"uID": True},
            {"uID": 7.5},
            {"uID": ""},
            {"uID": "x" * 65},
            {"uID": 2**53 + 1},
            {"SESSID": ""},
            {"SESSID": 7},
            {"SESSID": "CANARY", "more": 1},
        ):
            self.assertEqual(await self.refused(value), (400, "invalid-request"), value)

    async def test_content_type_other_than_json_is_refused(self) -> None:
        for given in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
            status, reason = await self.refused(b'{"uID":7}', **{"Content-Type": given})
            self.assertEqual((status, reason), (415, "unsupported-media-type"), given)
        self.assertEqual((await self.revoke({"uID": 9}, **{"Content-Type": "Application/JSON; charset=utf-8"}))[0], 200)

    async def test_body_beyond_the_limit_is_refused(self) -> None:
        body = b'{"uID":9}'
        self.assertEqual(await self.revoke(body.ljust(MAX_BODY)), (200, {"ended": 0}))
        self.assertEqual(await self.refused(body.ljust(MAX_BODY + 1)), (413, "too-large"))

    async def test_body_of_unknown_length_is_limited(self) -> None:
        kept: list[int] = []
        received = OpsRequest.requestReceived

        def noted(request: OpsRequest, *arguments: bytes) -> None:
            assert request.content is not None
            kept.append(request.content.tell())
            received(request, *arguments)

        self.patch(OpsRequest, "requestReceived", noted)
        raw = Raw()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        await connectProtocol(endpoint, raw)
        assert raw.transport is not None
        head = "\r\n".join(f"{name}: {value}" for name, value in JSON.items())
        raw.transport.write(
            f"POST /v1/revoke HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(100):
            raw.transport.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
        raw.transport.write(b"0\r\n\r\n")
        answered = await raw.answered
        self.assertTrue(answered.startswith(b"HTTP/1.1 413 "), answered)
        self.assertEqual(kept, [MAX_BODY + 1])

    async def test_requests_are_not_logged(self) -> None:
        await self.revoke({"SESSID": "CANARY"})
        await self.revoke({"SESSID": "CANARY", "uID": "CANARY"})
        await self.revoke(b'{"SESSID":"CANARY')
        await self.ask("POST", "/v1/revoke?SESSID=CANARY", b"CANARY", Content_Type="multipart/form-data; boundary=x")
        self.assertNotIn("CANARY", "".join(str(event) for event in self.events))
        self.assertNotIn("CANARY", repr(Revocation(sessid="CANARY")))


class WithoutToken(OpsTestCase):
    """Without a token file, every revocation is refused."""

    token = None

    async def test_revoke_without_a_token_file_is_always_refused(self) -> None:
        for given in ("", "Bearer ", "Bearer None"):
            self.assertEqual(await self.refused({"uID": 7}, Authorization=given), (403, "no-token"))
        self.assertEqual((await self.ask("GET", "/healthz"))[0], 200)


class Bounded(SynchronousTestCase):
    """The limits on connections and their time, whatever is sent on them."""

    def setUp(self) -> None:
        self.clock = Clock()
        ops = Ops(SessionIndex(Directory(), b"key"), lambda: None, None, reactor)
        self.factory = BoundedConnections(OpsSite(ops, self.clock), self.clock)

    def connect(self) -> tuple[Any, StringTransportWithDisconnection]:
        """Return a connection, and what is sent on it."""
        protocol, transport = self.factory.buildProtocol(None), StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return protocol, transport

    def test_connection_is_ended_after_its_time_whatever_it_sends(self) -> None:
        dripping, transport = self.connect()
        for byte in b"GET /heal":
            self.clock.pump([REQUEST_SECONDS / 100] * 10)
            dripping.dataReceived(bytes([byte]))
        self.assertTrue(transport.connected)
        self.clock.pump([REQUEST_SECONDS / 100] * 11)
        self.assertFalse(transport.connected)

    def test_answered_connection_leaves_no_timer(self) -> None:
        asking, transport = self.connect()
        asking.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b'{"status":"alive"}', transport.value())
        self.assertFalse(transport.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connection_beyond_the_limit_ends_the_oldest(self) -> None:
        transports = [self.connect()[1] for _ in range(MAX_CONNECTIONS)]
        self.assertTrue(all(transport.connected for transport in transports))
        for count in (1, 2):
            transports.append(self.connect()[1])
            self.assertEqual(
                [transport.connected for transport in transports], [False] * count + [True] * MAX_CONNECTIONS
            )

    def test_ended_connections_do_not_count(self) -> None:
        first, _ = self.connect()
        for _ in range(MAX_CONNECTIONS * 2):
            self.connect()[1].loseConnection()
        self.assertTrue(first.transport.connected)


class Loopback(SynchronousTestCase):
    """The addresses on which the endpoint listens."""

    def test_loopback_is_added_unless_an_interface_is_given(self) -> None:
        for given, used in (
            ("tcp:8081", "tcp:8081:interface=127.0.0.1"),
            ("tcp:port=8081", "tcp:port=8081:interface=127.0.0.1"),
            ("tcp:8081:interface=10.0.0.5", "tcp:8081:interface=10.0.0.5"),
            ("tcp:8081:interface=", "tcp:8081:interface="),
            ("ssl:8081:privateKey=k", "ssl:8081:privateKey=k:interface=127.0.0.1"),
            ("tcp6:8081", r"tcp6:8081:interface=\:\:1"),
            ("haproxy:tcp:8081", "haproxy:tcp:8081:interface=127.0.0.1"),
            ("unix:ops.socket", "unix:ops.socket"),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
        ):
            self.assertEqual(on_loopback(given), used)
