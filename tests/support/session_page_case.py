"""A TestCase with a site's session page on a real port, whose answers the test decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.config.options import Config
from chatrelay.model import Unavailable

reactor: Any = untyped_reactor

IN = b'{"loggedin":true,"uID":7}'


def authenticator_for(url: str, clock: Any = reactor, **options: Any) -> SessionPageAuthenticator:
    """Return an authenticator; options that are not given are the relay's defaults."""
    config = Config()
    defaults = {
        "timeout": config.webserver_timeout,
        "checks": config.webserver_checks,
        "queue_timeout": config.login_timeout,
        "answer_size": config.webserver_answer_size,
        "breaker_failures": config.breaker_failures,
        "breaker_wait": config.breaker_wait,
        "breaker_longest_wait": config.breaker_longest_wait,
    }
    return SessionPageAuthenticator(clock, url, **{**defaults, **options})


def sleep(seconds: float) -> Deferred[None]:
    """Wait, in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """Return an HTTP response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Conversation(Protocol):
    """A connection from the relay to the site; a function of the test answers its requests."""

    transport: Any  # TCP's or TLS's

    def __init__(self, site: SessionPageTestCase) -> None:
        self.site = site
        self.received = b""
        self.requests = 0
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.site.conversations.append(self)

    def dataReceived(self, data: bytes) -> None:
        if data.startswith(b"\x16\x03"):  # a TLS ClientHello: respond like nginx
            self.write(response(b"The plain HTTP request was sent to HTTPS port", "400 Bad Request"))
            return
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, rest = self.received.split(b"\r\n\r\n", 1)
            lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
            length = int(headers["content-length"])
            if len(rest) < length:
                return
            self.received = rest[length:]
            self.requests += 1
            self.site.requests.append((lines[0], headers, rest[:length]))
            self.site.reply(self)

    def write(self, data: bytes) -> None:
        """Send bytes to the relay."""
        assert self.transport is not None
        self.transport.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        assert self.transport is not None
        self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.gone.callback(None)


class SessionPageTestCase(TestCase):
    """A site on a real port; the test decides its responses."""

    def setUp(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.conversations: list[Conversation] = []
        self.reply: Callable[[Conversation], None] = lambda conversation: conversation.write(response(IN))
        self.factory = Factory.forProtocol(Conversation)
        self.factory.buildProtocol = lambda address: Conversation(self)  # type: ignore[method-assign]
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/session?x=1"
        self.authenticators: list[SessionPageAuthenticator] = []

    async def tearDown(self) -> None:
        for authenticator in self.authenticators:
            await authenticator.close()
        await self.port.stopListening()
        for conversation in self.conversations:
            conversation.transport.abortConnection()
        await gatherResults([conversation.gone for conversation in self.conversations])

    def authenticator(self, **options: Any) -> SessionPageAuthenticator:
        """Return an authenticator that asks this site."""
        authenticator = authenticator_for(options.pop("url", self.url), **options)
        self.authenticators.append(authenticator)
        return authenticator

    def respond_with(self, *answers: bytes) -> None:
        """Send these responses, one for each request; the last one for all further requests."""
        left = list(answers)
        self.reply = lambda conversation: conversation.write(left.pop(0) if len(left) > 1 else left[0])

    def logged(self) -> list[str]:
        """Return a list to which each message logged from now on is added."""
        lines: list[str] = []

        def note(event: Any) -> None:
            if event.get("log_namespace", "").startswith("chatrelay"):
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        return lines

    async def failure(self, authenticator: SessionPageAuthenticator | None = None) -> str:
        """Ask once; return why there is no verdict."""
        got = await (authenticator or self.authenticator()).authenticate("sid")
        assert isinstance(got, Unavailable), got
        return got.why
