"""Notifications to systemd: where they are sent, which ones, and when."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chatrelay import Config, build
from chatrelay.app.process import RelayProcess
from chatrelay.app.systemd import ALIVE, MORE_TIME, READY, STOPPING, Supervisor, supervisor
from chatrelay.app.twistd_log import TwistdLog
from chatrelay.testing import HeldMessageLog, KnownSessions
from tests.support.relay_case import logged_events


class EnvironmentTests(SynchronousTestCase):
    """The variables that systemd sets."""

    def test_no_supervisor_without_a_usable_socket_address(self) -> None:
        self.assertIsNone(supervisor({}, 7))
        for address in ("", "vsock:2:3", "run/notify"):
            self.assertIsNone(supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, 7))

    def test_watchdog_seconds_come_from_the_environment(self) -> None:
        for more, seconds in (
            ({}, 0.0),
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, 1.5),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, 0.0),  # set for another process
            ({"WATCHDOG_USEC": "0"}, 0.0),
            ({"WATCHDOG_USEC": "-1"}, 0.0),
            ({"WATCHDOG_USEC": "soon"}, 0.0),
        ):
            found = supervisor({"NOTIFY_SOCKET": "/run/notify", **more}, 7)
            assert found is not None
            self.assertEqual(found.watchdog, seconds, more)


class UpgradedMessageLog(HeldMessageLog):
    """A message log whose start takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.on_progress: Callable[[], object] = lambda: None

    def start(self) -> None:
        self.on_progress()


class SupervisedTests(SynchronousTestCase):
    """A relay under twistd with a fake clock, and a socket in the place of systemd's."""

    def setUp(self) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.listening.close)
        self.address = f"@chatrelay-test-{os.getpid()}"
        self.listening.bind("\0" + self.address[1:])
        self.listening.setblocking(False)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            os.environ.pop(name, None)
            self.addCleanup(os.environ.pop, name, None)
        self.log: HeldMessageLog = HeldMessageLog()

    def received(self) -> list[str]:
        """Return the notifications since the last call."""
        heard = []
        while True:
            try:
                heard.append(self.listening.recv(4096).decode())
            except BlockingIOError:
                return heard

    def service(self, **environment: str) -> RelayProcess:
        """Return a relay that has not started."""
        os.environ.update({"NOTIFY_SOCKET": self.address, **environment})
        self.reactor = MemoryReactorClock()
        relay = build(Config(), self.reactor, KnownSessions({}), self.log)
        return RelayProcess(relay, TwistdLog(), self.reactor)

    def run_reactor(self) -> None:
        """Do what a reactor does first."""
        self.reactor.running = True
        for call, arguments, keywords in self.reactor.whenRunningHooks:
            call(*arguments, **keywords)

    def test_running_relay_is_ready_and_a_stopping_relay_is_stopping(self) -> None:
        service = self.service()
        service.startService()
        self.assertEqual(self.received(), [])  # the reactor does not run yet
        self.run_reactor()
        self.assertEqual(self.received(), [READY])
        self.successResultOf(service.stopService())
        self.assertEqual(self.received(), [STOPPING])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_failed_start_sends_no_ready(self) -> None:
        service = self.service()
        self.patch(self.log, "start", {}.__getitem__)
        self.assertRaises(TypeError, service.startService)
        self.run_reactor()
        self.assertEqual(self.received(), [])

    def test_message_log_that_is_upgraded_at_the_start_extends_the_time_for_it(self) -> None:
        self.log = UpgradedMessageLog()
        service = self.service()
        service.startService()
        self.assertEqual(self.received(), [MORE_TIME])
        self.run_reactor()
        self.assertEqual(self.received(), [READY])
        self.successResultOf(service.stopService())

    def test_running_reactor_sends_alive_at_half_the_watchdog_time(self) -> None:
        service = self.service(WATCHDOG_USEC="2000000")
        service.startService()
        self.run_reactor()
        self.assertEqual(self.received(), [READY, ALIVE])
        self.reactor.advance(0.875)
        self.assertEqual(self.received(), [])
        self.reactor.advance(0.25)
        self.assertEqual(self.received(), [ALIVE])
        self.reactor.pump([0.5] * 8)
        self.assertEqual(self.received(), [ALIVE] * 4)
        self.successResultOf(service.stopService())
        self.reactor.advance(10)
        self.assertEqual(self.received(), [STOPPING])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_reactor_that_was_blocked_sends_alive_at_once(self) -> None:
        service = self.service(WATCHDOG_USEC="2000000")
        service.startService()
        self.run_reactor()
        self.received()
        self.reactor.advance(25)
        self.assertEqual(self.received(), [ALIVE])
        self.successResultOf(service.stopService())

    def test_dead_message_log_stops_alive_and_a_full_disk_does_not(self) -> None:
        service = self.service(WATCHDOG_USEC="2000000")
        service.startService()
        self.run_reactor()
        self.patch(self.log, "is_open", False)
        self.reactor.advance(1.5)
        self.assertEqual(self.received(), [READY, ALIVE, ALIVE])  # a restart does not help against a full disk
        self.patch(self.log, "is_alive", False)
        self.reactor.pump([1.0] * 5)
        self.assertEqual(self.received(), [])
        self.successResultOf(service.stopService())

    def test_missing_socket_is_logged_as_a_warning(self) -> None:
        events = logged_events(self)
        Supervisor("/nowhere/notify", 0).notify(READY)
        (event,) = events
        self.assertIs(event["log_level"], LogLevel.warn)
        self.assertIn("systemd could not be notified of READY=1: ", formatEvent(event))
