"""The process of a relay under twistd: its signals, its notifications to systemd, and its errors at the start.

It starts and stops a `ChatRelayService`. This module must not know connections or messages.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from chatrelay.app import systemd
from chatrelay.app.endpoints import CannotOpenError
from chatrelay.app.service import ChatRelayService
from chatrelay.app.signals import at_start, let_end, on_terminal
from chatrelay.app.twistd_log import TwistdLog
from chatrelay.config.checks import ConfigError
from chatrelay.config.sources import Given
from chatrelay.interfaces import SlowStart
from chatrelay.model import LogUnavailable

log = Logger("chatrelay.app")


class CannotStartError(SystemExit, Exception):
    """The relay can't start. The text gives the cause in one sentence.

    As a `SystemExit` it ends the process, and Python prints the sentence without a traceback. It is an `Exception` as
    well, because twistd catches nothing else when it starts a service. twistd then removes its pid file and, in the
    background, ends the parent process, which would wait for ever otherwise.
    """


@contextmanager
def in_one_sentence(given: Given) -> Iterator[None]:
    """Raise `CannotStartError` instead of the errors that an operator can fix.

    :param given: where the options were set.
    """
    try:
        yield
    except CannotOpenError as error:
        raise CannotStartError(f"chatrelay: {given.placed(ConfigError(error.option, error.problem))}") from error
    except ConfigError as error:
        raise CannotStartError(f"chatrelay: {given.placed(error)}") from error
    except LogUnavailable as error:
        place = given.places.get("message_log")
        raise CannotStartError(f"chatrelay: {place}: {error}" if place else f"chatrelay: {error}") from error


class RelayProcess(MultiService):
    """Runs a relay under twistd.

    :param relay: the relay.
    :param log: the log of the process.
    :param reactor: the one that twistd runs.
    :param given: where the options were set.
    """

    def __init__(self, relay: ChatRelayService, log: TwistdLog, reactor: Any, given: Given | None = None) -> None:
        super().__init__()
        self._given = given or Given({}, {})
        self._relay = relay
        self._twistd_log = log
        self._reactor = reactor
        self._has_terminal = False
        self._supervisor: systemd.Supervisor | None = None
        self._watchdog = LoopingCall(self._notify_alive)
        self._watchdog.clock = reactor
        relay.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        # twistd passes its Application here, and soon asks it for the observer to log with
        # (twisted.application.app.AppLogger.start). Events that were logged before are kept, and logged then.
        if self._twistd_log.observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._twistd_log.observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        if self._twistd_log.queue is not None:
            self._twistd_log.queue.start()  # twistd does not fork after this
        with self._in_one_sentence():
            super().privilegedStartService()

    def startService(self) -> None:
        self._has_terminal = at_start.has_terminal or on_terminal()
        # Install this handler before the relay logs that it listens. A program that reads that log message may send the
        # signal at once, and without the handler the signal would end the relay.
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload_or_stop))
        if at_start.has_begun and signal.getsignal(signal.SIGUSR1) == at_start.keep:
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(self._rotate))
        self._supervisor = systemd.supervisor(os.environ, os.getpid())
        message_log = self._relay.message_log
        if self._supervisor is not None and isinstance(message_log, SlowStart):
            message_log.on_progress = partial(self._supervisor.notify, systemd.MORE_TIME)
        with self._in_one_sentence():
            super().startService()
        self._reactor.callWhenRunning(self._notify_ready)
        if self._twistd_log.queue is not None:
            self._reactor.addSystemEventTrigger("after", "shutdown", self._twistd_log.queue.finish)
        if at_start.has_begun:
            self._reactor.callWhenRunning(at_start.release, self._reactor.sigInt)

    @contextmanager
    def _in_one_sentence(self) -> Iterator[None]:
        try:
            with in_one_sentence(self._given):
                yield
        except CannotStartError:
            self._relay.abandon()
            raise

    def _notify_ready(self) -> None:
        if self.running and self._supervisor is not None:
            self._supervisor.notify(systemd.READY)
            if self._supervisor.watchdog:
                # Notify at half the time, as sd_watchdog_enabled(3) advises. A reactor that hangs sends nothing.
                self._watchdog.start(self._supervisor.watchdog / 2)

    def _notify_alive(self) -> None:
        if self._supervisor is not None and self._relay.message_log.is_alive:
            self._supervisor.notify(systemd.ALIVE)

    def _reload_or_stop(self) -> None:
        """Handle SIGHUP: reload the certificates, or stop if the terminal was closed."""
        if not self._has_terminal or on_terminal():
            self._relay.reload_certificates()
        elif self.running:
            self._reactor.stop()

    def _rotate(self) -> None:
        """Handle SIGUSR1: begin a new log file."""
        if not self._twistd_log.rotate():
            log.info("there is no log file to rotate: name one with twistd's --logfile")

    def stopService(self) -> Deferred[Any]:
        # From here on, another signal ends the process at once. No acknowledged message is lost: it is in the
        # message log.
        let_end()
        if self._supervisor is not None:
            self._supervisor.notify(systemd.STOPPING)
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        if self._watchdog.running:
            self._watchdog.stop()
        return result
