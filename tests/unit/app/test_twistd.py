"""The relay under twistd: errors in one sentence, and the clock of its reactor."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError, ConnectionLost
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.app.endpoints import NamedEndpoint
from chatrelay.app.twistd import Options, keep_steady_time, makeService


class UnderTwistd(SynchronousTestCase):
    """Errors under twistd: one sentence without a traceback."""

    def options(self, *arguments: str) -> Options:
        """Return parsed options."""
        options = Options()
        options.parseOptions(["--auth-url", "http://127.0.0.1/", *arguments])
        return options

    def test_bad_endpoint_is_one_sentence(self) -> None:
        error = self.assertRaises(SystemExit, makeService, self.options("--listen", "nonsense:1"))
        self.assertTrue(
            str(error).startswith(
                "chatrelay: --listen: 'nonsense:1' cannot be used: did you mean tcp:1:interface=nonsense?"
            )
        )

    def test_message_log_that_cannot_be_opened_is_one_sentence(self) -> None:
        folder = os.path.join(os.path.abspath(self.mktemp()), "missing")
        service: Any = makeService(
            self.options("--listen", "unix:" + self.mktemp(), "--message-log", f"sqlite:{folder}/x")
        )
        self.patch(sys, "stderr", None)
        for part in service.services[0].services:
            self.patch(part, "privilegedStartService", lambda: None)
            self.patch(part, "startService", lambda: None)
        error = self.assertRaises(SystemExit, service.startService)
        self.assertIn("there is no folder", str(error))

    def test_port_in_use_is_one_sentence(self) -> None:
        service: Any = makeService(self.options("--message-log", "none"))

        class Refuses:
            def listen(self, factory: object) -> Deferred[Any]:
                return fail(CannotListenError("127.0.0.1", 8080, OSError(98, "Address already in use")))

        (port,) = service.services[0].services
        port.endpoint = NamedEndpoint(Refuses(), "listen", "tcp:8080")
        error = self.assertRaises(SystemExit, service.privilegedStartService)
        self.assertIn("8080", str(error))
        self.assertIn("Address already in use", str(error))


class SteadyTime(SynchronousTestCase):
    """The clock by which a reactor schedules."""

    def reactor(self) -> SelectReactor:
        """Return a reactor beside the one of the tests."""
        reactor = SelectReactor()

        def close() -> None:
            waker = reactor.waker
            reactor.removeAll()
            waker.connectionLost(Failure(ConnectionLost()))

        self.addCleanup(close)
        return reactor

    def test_reactor_schedules_by_the_monotonic_clock(self) -> None:
        reactor = self.reactor()
        came: list[str] = []
        keep_steady_time(reactor)
        self.assertIs(reactor.seconds, time.monotonic)
        scheduled = reactor.callLater(100, came.append, "came")
        self.assertTrue(0 < scheduled.getTime() - time.monotonic() <= 100)
        self.assertTrue(0 < (reactor.timeout() or 0) <= 100)
        vars(reactor)["seconds"] = lambda: time.monotonic() + 101
        reactor.runUntilCurrent()
        self.assertEqual(came, ["came"])

    def test_reactor_with_scheduled_calls_keeps_its_clock(self) -> None:
        reactor = self.reactor()
        scheduled = reactor.callLater(100, self.fail)
        keep_steady_time(reactor)
        self.assertNotIn("seconds", vars(reactor))
        scheduled.cancel()

    def test_other_reactor_keeps_its_clock(self) -> None:
        clock = Clock()
        keep_steady_time(clock)
        self.assertEqual(clock.seconds(), 0)
