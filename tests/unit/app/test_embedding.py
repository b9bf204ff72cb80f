"""chatrelay inside an application: built, started and stopped in the reactor that runs the tests.

pytest runs these with pytest-twisted. trial finds none of them.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site

from chatrelay import ChatRelayService, Config, LoggedIn, build
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import LogUnavailable
from chatrelay.testing import HeldAuthenticator, KnownSessions
from tests.support import PATIENCE
from tests.support.twisted_client import TwistedClient

LOOPBACK = "tcp:0:interface=127.0.0.1"
USERS: dict[str, str | int] = {"alice-session": 1, "bo-session": 2}

async_test = pytest_twisted.ensureDeferred


def ports() -> set[Any]:
    """Return the listening ports of this reactor."""
    return {reader for reader in reactor.getReaders() if IListeningPort.providedBy(reader)}


async def connect(port: Any, *headers: str, target: str = "/") -> TwistedClient:
    """Open a connection to a port of this reactor."""
    return await TwistedClient.connect(reactor, port.getHost().port, *headers, target=target)


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check that no port, connection, delayed call or thread is left in the reactor after the block."""
    readers, calls = set(reactor.getReaders()), set(reactor.getDelayedCalls())
    threads = set(threading.enumerate())
    yield
    # The other end of a connection that was closed here learns of it in a later turn.
    for _ in range(100):
        if set(reactor.getReaders()) <= readers:
            break
        await deferLater(reactor, 0.01)
    assert set(reactor.getReaders()) - readers == set()
    assert set(reactor.getDelayedCalls()) - calls == set()
    assert set(threading.enumerate()) - threads == set()


@asynccontextmanager
async def running(relay: ChatRelayService) -> AsyncIterator[Any]:
    """Start a relay, yield its port if it has one, and stop it."""
    before = ports()
    relay.startService()
    try:
        opened = ports() - before
        yield opened.pop() if opened else None
    finally:
        if relay.running:
            await relay.stopService()


@async_test
async def test_embedded_relay_delivers_messages_and_leaves_nothing_behind() -> None:
    message_log = MemoryMessageLog()
    config = Config(listen=(LOOPBACK,), message_log="memory:")
    async with nothing_left_behind():
        relay = build(config, reactor, authenticator=KnownSessions(USERS), message_log=message_log)
        async with running(relay) as port:
            alice, bo = await connect(port), await connect(port)
            assert await alice.log_in("stolen") == {"type": "auth-response", "response": False}
            assert await alice.log_in("alice-session") == {"type": "auth-response", "response": True}
            assert await bo.log_in("bo-session") == {"type": "auth-response", "response": True}
            alice.send(2, "hej", id=21)
            assert await bo.hear() == {
                "type": "message",
                "message": {"timeStamp": 1, "fromuID": 1, "touID": 2, "content": "hej"},
            }
            assert await alice.hear() == {"type": "send-request-response", "response": {"id": 21, "value": True}}
            await bo.leave()
            alice.send(2, "gone?", id=22)
            assert (await alice.hear())["response"]["reason"] == "receiving-user-not-connected"
        assert await alice.closed == 4000
    assert [(row.number, row.message.content) for row in message_log.rows] == [(1, "hej")]


@async_test
async def test_embedded_relay_with_an_sqlite_log_leaves_no_thread_behind(tmp_path: Path) -> None:
    config = Config(listen=(LOOPBACK,), message_log=f"sqlite:{tmp_path / 'log.sqlite3'}")
    async with nothing_left_behind():
        async with running(build(config, reactor, authenticator=KnownSessions(USERS))) as port:
            alice = await connect(port)
            await alice.log_in("alice-session")
            alice.send(1, "note to self")
            assert (await alice.hear())["type"] == "message"
            assert (await alice.hear())["response"]["value"] is True
        assert await alice.closed == 4000


@async_test
async def test_stop_cancels_pending_requests_to_the_session_page() -> None:
    authenticator = HeldAuthenticator()
    async with nothing_left_behind():
        relay = build(Config(listen=(LOOPBACK,), message_log="none"), reactor, authenticator=authenticator)
        async with running(relay) as port:
            visitor = await connect(port)
            visitor.say({"type": "auth-request", "SESSID": "alice-session"})
            while not authenticator.asked:
                await deferLater(reactor, 0.01)
        assert await visitor.closed == 4000
    assert authenticator.cancelled == ["alice-session"]


STARTABLE = ("startup_check", "stop_startup_check", "close")
"""The methods of an authenticator that are called when the relay starts and stops, in this order."""


@pytest.mark.parametrize("methods", [has for count in range(4) for has in combinations(STARTABLE, count)])
@async_test
async def test_methods_for_start_and_stop_are_called_only_if_all_three_exist(methods: tuple[str, ...]) -> None:
    called: list[str] = []

    def method(name: str) -> Callable[[object], Deferred[None]]:
        def call(self: object) -> Deferred[None]:
            called.append(name)
            return succeed(None)

        return call

    kind = type("Starting", (KnownSessions,), {name: method(name) for name in methods})
    async with nothing_left_behind():
        relay = build(Config(listen=(), message_log="none"), reactor, authenticator=kind(USERS))
        async with running(relay):
            await deferLater(reactor, 0.01)  # the check begins once the reactor runs
    assert called == (list(STARTABLE) if len(methods) == len(STARTABLE) else [])


@async_test
async def test_relay_mounted_in_a_site_opens_no_port() -> None:
    # More at once than people send.
    config = Config(listen=(), message_log="memory:", message_burst=1000)
    async with nothing_left_behind():
        relay = build(config, reactor, authenticator=KnownSessions(USERS))
        root = Resource()
        root.putChild(b"chat", relay.websocket_resource())
        async with running(relay) as no_port:
            assert no_port is None
            port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
            alice, bo = await connect(port, target="/chat"), await connect(port, target="/chat")
            await alice.log_in("alice-session")
            await bo.log_in("bo-session")
            for number in range(200):
                alice.send(2, "x" * 16384, id=number)
            for number in range(200):
                assert (await bo.hear())["message"]["content"] == "x" * 16384
                assert await alice.hear() == {
                    "type": "send-request-response",
                    "response": {"id": number, "value": True},
                }
        assert (await alice.closed, await bo.closed) == (4000, 4000)
        await port.stopListening()


@async_test
async def test_relay_in_a_site_reads_cookies_of_several_headers() -> None:
    config = Config(listen=(), message_log="none", session_cookie="session", origin=("https://example.com",))
    async with nothing_left_behind():
        relay = build(config, reactor, authenticator=KnownSessions(USERS))
        root = Resource()
        root.putChild(b"chat", relay.websocket_resource())
        async with running(relay):
            port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
            for cookies in (
                ("city=\u00c5bo", "session=alice-session"),
                ("session=alice-session", "a=b"),
                ("a=b", "c=d; session=alice-session; e=f", "g=h"),
            ):
                headers = (f"Cookie: {cookie}" for cookie in cookies)
                alice = await connect(port, "Origin: https://example.com", *headers, target="/chat")
                alice.say_login()
                assert await alice.hear() == {"type": "auth-response", "response": True}, cookies
        await alice.closed
        await port.stopListening()


@async_test
async def test_two_relays_in_one_application_are_independent() -> None:
    async with nothing_left_behind():
        config = Config(listen=(LOOPBACK,), message_log="memory:")
        relays = [build(config, reactor, authenticator=KnownSessions(USERS)) for _ in range(2)]
        async with running(relays[0]) as one, running(relays[1]) as other:
            alice, bo = await connect(one), await connect(other)
            await alice.log_in("alice-session")
            await bo.log_in("bo-session")
            alice.send(2, "are you there?")
            assert (await alice.hear())["response"]["reason"] == "receiving-user-not-connected"
            # Stopping one leaves the other be.
            await relays[0].stopService()
            assert await alice.closed == 4000
            bo.send(2, "note to self")
            assert (await bo.hear())["type"] == "message"
        assert await bo.closed == 4000


@async_test
async def test_application_ends_one_session_or_all_of_a_user() -> None:
    sessions = KnownSessions({"first": 1, "second": 1, "bo-session": 2})
    relay = build(Config(listen=(LOOPBACK,), message_log="memory:"), reactor, authenticator=sessions)
    async with nothing_left_behind(), running(relay) as port:
        first, second, bo = [await connect(port) for _ in range(3)]
        for client, sessid in ((first, "first"), (second, "second"), (bo, "bo-session")):
            assert (await client.log_in(sessid))["response"] is True
        assert relay.end_session("first") == 1
        assert await first.closed.addTimeout(PATIENCE, reactor) == 4505
        assert relay.end_session("first") == 0
        assert relay.end_user("1") == 1
        assert await second.closed.addTimeout(PATIENCE, reactor) == 4505
        bo.send(2, "still here")
        assert (await bo.hear())["message"]["content"] == "still here"


def test_embedders_authenticator_gets_valid_text_only() -> None:
    """Check that bytes that are not UTF-8 reach a session page only."""
    options = {"listen": (), "message_log": "memory:", "session_cookie": "sid", "origin": ("https://example.com",)}
    url = "http://127.0.0.1:1/session"
    head = b"GET / HTTP/1.1\r\nOrigin: https://example.com\r\nCookie: sid=\xe5\r\n\r\n"
    for authenticator, found in ((None, "\udce5"), (KnownSessions({}), None)):
        relay = build(Config(auth_url=url, **options), reactor, authenticator=authenticator)
        assert relay.factory.parts.handshakes.session_cookie_of(head) == (found, None)


@async_test
async def test_embedders_authenticator_may_answer_later() -> None:
    authenticator = HeldAuthenticator()
    async with nothing_left_behind():
        relay = build(Config(listen=(LOOPBACK,), message_log="memory:"), reactor, authenticator=authenticator)
        async with running(relay) as port:
            alice = await connect(port)
            alice.say({"type": "auth-request", "SESSID": "x"})
            while not authenticator.asked:
                await deferLater(reactor, 0.01)
            alice.say({"type": "auth-request", "SESSID": "y"})
            assert (await alice.hear())["reason"] == "login-pending"
            authenticator.answer(LoggedIn(1))
            assert await alice.hear() == {"type": "auth-response", "response": True}


@async_test
async def test_application_gets_the_error_of_the_message_log(tmp_path: Path) -> None:
    config = Config(listen=(), message_log=f"sqlite:{tmp_path / 'no-such-folder' / 'log.sqlite3'}")
    async with nothing_left_behind():
        relay = build(config, reactor, authenticator=KnownSessions(USERS))
        with pytest.raises(LogUnavailable, match="no-such-folder"):
            relay.startService()
