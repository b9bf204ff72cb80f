"""Whom a service tells how it is, and what it says there."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatrelay import Config, build
from chatrelay.app.process import RelayProcess
from chatrelay.app.systemd import ALIVE, READY, STOPPING, Supervisor, supervisor
from chatrelay.app.twistd_log import TwistdLog
from chatrelay.testing import HeldMessageLog, KnownSessions


class EnvironmentTests(SynchronousTestCase):
    """What systemd sets."""

    def test_who_is_to_be_told(self) -> None:
        self.assertIsNone(supervisor({}, 7))
        for address in ("", "vsock:2:3", "run/notify"):
            self.assertIsNone(supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, 7))

    def test_how_often(self) -> None:
        for more, seconds in (
            ({}, 0.0),
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, 1.5),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, 0.0),  # a child of whom it is asked
            ({"WATCHDOG_USEC": "0"}, 0.0),
            ({"WATCHDOG_USEC": "-1"}, 0.0),
            ({"WATCHDOG_USEC": "soon"}, 0.0),
        ):
            found = supervisor({"NOTIFY_SOCKET": "/run/notify", **more}, 7)
            assert found is not None
            self.assertEqual(found.watchdog, seconds, more)


class SupervisedTests(SynchronousTestCase):
    """A relay under twistd, on a clock of the test's, and the socket of its systemd."""

    def setUp(self) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.listening.close)
        self.address = f"@chatrelay-test-{os.getpid()}"
        self.listening.bind("\0" + self.address[1:])
        self.listening.setblocking(False)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            os.environ.pop(name, None)
            self.addCleanup(os.environ.pop, name, None)
        self.log = HeldMessageLog()

    def told(self) -> list[str]:
        """What it was told since the last look."""
        heard = []
        while True:
            try:
                heard.append(self.listening.recv(4096).decode())
            except BlockingIOError:
                return heard

    def service(self, **environment: str) -> RelayProcess:
        """A relay, not started yet."""
        os.environ.update({"NOTIFY_SOCKET": self.address, **environment})
        self.reactor = MemoryReactorClock()
        relay = build(Config(), self.reactor, KnownSessions({}), self.log)
        return RelayProcess(relay, TwistdLog(), self.reactor)

    def run_reactor(self) -> None:
        """What the reactor does first."""
        self.reactor.running = True
        for call, arguments, keywords in self.reactor.whenRunningHooks:
            call(*arguments, **keywords)

    def test_ready_when_it_serves_and_stopping_when_it_stops(self) -> None:
        service = self.service()
        service.startService()
        self.assertEqual(self.told(), [])  # the reactor does not run yet
        self.run_reactor()
        self.assertEqual(self.told(), [READY])
        self.successResultOf(service.stopService())
        self.assertEqual(self.told(), [STOPPING])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_relay_that_cannot_start_is_not_ready(self) -> None:
        service = self.service()
        self.patch(self.log, "start", {}.__getitem__)
        self.assertRaises(TypeError, service.startService)
        self.run_reactor()
        self.assertEqual(self.told(), [])

    def test_a_sign_of_life_while_the_reactor_turns(self) -> None:
        service = self.service(WATCHDOG_USEC="2000000")
        service.startService()
        self.run_reactor()
        self.assertEqual(self.told(), [READY, ALIVE])
        self.reactor.advance(0.875)
        self.assertEqual(self.told(), [])
        self.reactor.advance(0.25)
        self.assertEqual(self.told(), [ALIVE])
        self.reactor.pump([0.5] * 8)
        self.assertEqual(self.told(), [ALIVE] * 4)
        self.successResultOf(service.stopService())
        self.reactor.advance(10)
        self.assertEqual(self.told(), [STOPPING])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_after_a_hold_up_there_is_a_sign_at_once(self) -> None:
        service = self.service(WATCHDOG_USEC="2000000")
        service.startService()
        self.run_reactor()
        self.told()
        self.reactor.advance(25)
        self.assertEqual(self.told(), [ALIVE])
        self.successResultOf(service.stopService())

    def test_no_sign_of_life_of_one_that_can_log_no_more(self) -> None:
        service = self.service(WATCHDOG_USEC="2000000")
        service.startService()
        self.run_reactor()
        self.patch(self.log, "is_open", False)
        self.reactor.advance(1.5)
        self.assertEqual(self.told(), [READY, ALIVE, ALIVE])  # a full disk is no reason to start anew
        self.patch(self.log, "is_alive", False)
        self.reactor.pump([1.0] * 5)
        self.assertEqual(self.told(), [])
        self.successResultOf(service.stopService())

    def test_a_systemd_that_does_not_listen_hurts_nobody(self) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        Supervisor("/nowhere/notify", 0).notify(READY)
        (event,) = events
        self.assertIs(event["log_level"], LogLevel.warn)
        self.assertIn("systemd could not be notified of READY=1: ", formatEvent(event))
