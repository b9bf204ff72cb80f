"""TestCases with a relay that has no port, on a clock that the test moves."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.app.build import build_parts
from chatrelay.config.options import Config
from chatrelay.interfaces import Authenticator, MessageLog
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.testing import KnownSessions
from chatrelay.websocket.factory import ChatFactory
from tests.support.memory import OFFICE, MemoryClient, Transport, address

# The same tests hold with the fast path and without it; end to end, the relay reads this variable itself.
FAST_PATH = os.environ.get("CHATRELAY_FAST_PATH", "yes") == "yes"


def logged_events(test: SynchronousTestCase) -> list[Any]:
    """Collect the events that are logged from now on."""
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    test.addCleanup(globalLogPublisher.removeObserver, events.append)
    return events


def logged_lines(test: SynchronousTestCase) -> list[str]:
    """Collect the lines that are logged from now on."""
    lines: list[str] = []

    def note(event: Any) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    test.addCleanup(globalLogPublisher.removeObserver, note)
    return lines


def chat_factory(
    config: Config, clock: Any, authenticator: Authenticator, message_log: MessageLog | None = None, **parts: Any
) -> ChatFactory:
    """Build a factory as the relay does, on a clock that the test moves.

    :param message_log: by default one in memory.
    :param parts: further arguments of `chatrelay.app.build.build_parts`.
    """
    log = MemoryMessageLog() if message_log is None else message_log
    return ChatFactory(build_parts(config, clock, authenticator, log, now=clock.seconds, **parts))


class WebSocketTestCase(SynchronousTestCase):
    """A relay where Alice is 1 and Bo is 2.

    :ivar chance: what the relay has for a random number.
    """

    chance = 0.5

    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = self.make_factory()

    def make_factory(self, authenticator: Any = None, **options: Any) -> ChatFactory:
        """Build a factory with these options."""
        self.log = MemoryMessageLog()
        options.setdefault("fast_path", FAST_PATH)
        options.setdefault("unauthenticated_per_address", 0)  # no client here disconnects
        options.setdefault("ping_interval", 0)  # tests check what is received
        known = authenticator or KnownSessions({"alice": 1, "bo": 2})
        factory = chat_factory(Config(**options), self.clock, known, self.log, chance=lambda: self.chance)
        self.directory = factory.directory
        factory.start_sweeping()
        self.addCleanup(factory.stop_sweeping)
        return factory

    def client(self) -> MemoryClient:
        """Make a new TCP connection."""
        return MemoryClient(self.factory)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, a sweep at a time."""
        self.clock.pump([0.125] * int(seconds / 0.125))


class ConnectingTestCase(WebSocketTestCase):
    """A relay to which clients come from many addresses, and what it logs."""

    def setUp(self) -> None:
        super().setUp()
        self.events = logged_events(self)

    def limit(self, authenticator: Any = None, **options: Any) -> None:
        """Start again with these options, and the defaults."""
        options.setdefault("unauthenticated_per_address", 100)
        self.factory = self.make_factory(authenticator, **options)

    def said(self, *levels: LogLevel) -> list[str]:
        """Return the lines that were logged, of these levels or of all above debug."""
        levels = levels or (LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical)
        return [formatEvent(event) for event in self.events if event["log_level"] in levels]

    def come(self, host: str = OFFICE) -> MemoryClient:
        """Connect from an address, and send nothing yet."""
        return MemoryClient(self.factory, Transport(address(host)))

    def is_refused(self, client: MemoryClient) -> bool:
        """Whether a client that has just connected is refused when it sends something."""
        client.write(b"GET / HTTP/1.1\r\n")
        return client.transport.disconnecting and client.transport.value().startswith(b"HTTP/1.1 ")

    def refuses(self, host: str) -> bool:
        """Whether a client from this address is refused; one that is not disconnects again."""
        client = self.come(host)
        is_refused = self.is_refused(client)
        client.lost()
        return is_refused
