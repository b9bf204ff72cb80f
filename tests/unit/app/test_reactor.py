"""The lean reactor: it reads as Twisted's epoll reactor does, and an error closes only its own connection."""

from __future__ import annotations

import socket
import time
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.app.reactor import EPOLL_REACTOR_NAMES, LeanEPollReactor


class Echo(Protocol):
    """Sends back what it receives. ``break`` makes it raise an error, ``other`` aborts its neighbour's connection.

    :ivar ended: why its connection ended.
    """

    ended: Failure | None = None
    neighbour: Echo | None = None

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if data == b"break":
            raise ZeroDivisionError("broken")
        if data == b"other":
            assert self.neighbour is not None and self.neighbour.transport is not None
            self.neighbour.transport.abortConnection()
        self.transport.write(data)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.ended = reason


class LeanReactorTests(SynchronousTestCase):
    """A second reactor beside the one of the tests, which the test iterates."""

    def setUp(self) -> None:
        self.reactor = LeanEPollReactor()
        self.addCleanup(self.close)
        self.served: list[Echo] = []
        factory: Factory = Factory()
        factory.noisy = False
        factory.buildProtocol = self.build  # type: ignore[method-assign, assignment]
        port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.address = ("127.0.0.1", port.getHost().port)

    def close(self) -> None:
        """Close what a reactor keeps open until the end of its process."""
        waker = self.reactor.waker
        for selectable in self.reactor.removeAll():
            selectable.connectionLost(Failure(ConnectionLost()))
        waker.connectionLost(Failure(ConnectionLost()))
        self.reactor._poller.close()

    def test_calls_are_scheduled_by_the_monotonic_clock(self) -> None:
        self.assertIs(self.reactor.seconds, time.monotonic)
        scheduled = self.reactor.callLater(100, self.fail)
        self.assertTrue(0 < scheduled.getTime() - time.monotonic() <= 100)
        self.assertTrue(0 < (self.reactor.timeout() or 0) <= 100)
        scheduled.cancel()

    def build(self, _: object) -> Echo:
        self.served.append(Echo())
        return self.served[-1]

    def client(self) -> socket.socket:
        """Return a connection that the server has accepted."""
        client = socket.create_connection(self.address)
        client.settimeout(10)
        self.addCleanup(client.close)
        count = len(self.served)
        while len(self.served) == count:
            self.reactor.iterate(0.1)
        return client

    def turn(self, times: int = 3) -> None:
        """Iterate the reactor a few times."""
        for _ in range(times):
            self.reactor.iterate(0.05)

    def test_connections_are_read_and_written(self) -> None:
        first, second = self.client(), self.client()
        first.sendall(b"one")
        second.sendall(b"two")
        self.turn()
        self.assertEqual((first.recv(10), second.recv(10)), (b"one", b"two"))

    def test_error_while_reading_is_logged_and_closes_only_its_connection(self) -> None:
        broken, whole = self.client(), self.client()
        broken.sendall(b"break")
        whole.sendall(b"hej")
        self.turn()
        self.assertEqual(whole.recv(10), b"hej")
        self.assertEqual(broken.recv(10), b"")
        ended = self.served[0].ended
        assert ended is not None
        self.assertIsInstance(ended.value, ZeroDivisionError)
        self.assertIsNone(self.served[1].ended)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_closed_and_reset_connections_have_twisteds_reasons(self) -> None:
        self.client().close()
        resets = self.client()
        resets.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        resets.close()
        self.turn()
        kinds: list[Any] = [echo.ended.type if echo.ended else None for echo in self.served]
        self.assertEqual(kinds, [ConnectionDone, ConnectionLost])

    def test_connection_closed_earlier_in_the_turn_is_not_read(self) -> None:
        first, second = self.client(), self.client()
        self.served[0].neighbour, self.served[1].neighbour = self.served[1], self.served[0]
        first.sendall(b"other")
        second.sendall(b"other")
        self.turn()
        self.assertEqual(sorted(echo.ended is not None for echo in self.served), [False, True])

    def test_poll_waits_for_an_event_or_its_timeout(self) -> None:
        client = self.client()
        client.sendall(b"hej")
        self.reactor.doPoll(None)  # reads, and waits until it may write
        self.reactor.doPoll(None)
        self.assertEqual(client.recv(10), b"hej")
        before = time.monotonic()
        self.reactor.doPoll(0.05)
        self.assertGreaterEqual(time.monotonic() - before, 0.04)

    def test_twisted_has_the_names_that_the_reactor_uses(self) -> None:
        for name in EPOLL_REACTOR_NAMES:
            self.assertTrue(hasattr(self.reactor, name), f"Twisted has moved {name}; see chatrelay/app/reactor.py")
