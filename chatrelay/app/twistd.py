"""`twistd chatrelay`: the service made of the options on its command line.

What can't work is told in one sentence, without a traceback.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
)
from twisted.python.components import Componentized
from twisted.scripts._twistd_unix import ServerOptions

import chatrelay
from chatrelay.app import systemd
from chatrelay.app.command_line import Options as Options
from chatrelay.app.descriptors import raise_limit
from chatrelay.app.endpoints import CannotOpenError
from chatrelay.app.json_log import line_of
from chatrelay.app.logs import LogQueue, RotatedFile, syslog_render, take_by_descriptor, take_by_syslog
from chatrelay.app.service import ChatRelayService
from chatrelay.app.signals import at_start, let_end, on_terminal
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.config.sources import Given
from chatrelay.model import LogUnavailable
from chatrelay.permissions import why_not_found, why_not_used, why_not_written_in

log = Logger("chatrelay.app")

# Twisted's documentation does not promise `twisted.scripts._twistd_unix`, nor that a reactor schedules by its own
# `seconds`.


class _PlainlySpoken(MultiService):
    """Runs a relay under twistd: says in one sentence why it can't, and heeds signals.

    :param relay: the relay.
    :param log: what twistd is to log with.
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
        self._living = LoopingCall(self._tell_alive)
        self._living.clock = reactor
        relay.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        # Here twistd hands us its Application, which it will ask in a moment what to log with
        # (twisted.application.app.AppLogger.start). What was logged until then is kept, and logged then.
        if self._twistd_log.observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._twistd_log.observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        if self._twistd_log.queue is not None:
            self._twistd_log.queue.start()  # twistd forks no more
        with self._said_plainly():
            super().privilegedStartService()

    def startService(self) -> None:
        self._has_terminal = at_start.has_terminal or on_terminal()
        # Before the relay says that it listens: who reads that may send the signal, which would end it.
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hung_up))
        if at_start.has_begun and signal.getsignal(signal.SIGUSR1) == at_start.keep:
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(self._rotate))
        with self._said_plainly():
            super().startService()
        self._supervisor = systemd.supervisor(os.environ, os.getpid())
        self._reactor.callWhenRunning(self._tell_ready)
        if self._twistd_log.queue is not None:
            self._reactor.addSystemEventTrigger("after", "shutdown", self._twistd_log.queue.finish)
        if at_start.has_begun:
            self._reactor.callWhenRunning(at_start.release, self._reactor.sigInt)

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            with _said_plainly(self._given):
                yield
        except CannotStartError:
            self._relay.abandon()
            raise

    def _tell_ready(self) -> None:
        if self.running and self._supervisor is not None:
            self._supervisor.tell(systemd.READY)
            if self._supervisor.watchdog:
                # Twice as often as need be, as sd_watchdog_enabled(3) advises. A reactor that hangs tells nothing.
                self._living.start(self._supervisor.watchdog / 2)

    def _tell_alive(self) -> None:
        if self._supervisor is not None and self._relay.message_log.is_alive:
            self._supervisor.tell(systemd.ALIVE)

    def _hung_up(self) -> None:
        """SIGHUP came: from the operator, who has new certificates, or because the terminal was closed."""
        if not self._has_terminal or on_terminal():
            self._relay.read_certificates_anew()
        elif self.running:
            self._reactor.stop()

    def _rotate(self) -> None:
        """Begin a new log file: SIGUSR1 came."""
        if not self._twistd_log.rotate():
            log.info("there is no log file to rotate: --logfile of twistd names one")

    def stopService(self) -> Deferred[Any]:
        # From here on, another signal ends the process as it ends any other:
        # what was acknowledged is in the log, which needs no goodbye.
        let_end()
        if self._supervisor is not None:
            self._supervisor.tell(systemd.STOPPING)
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        if self._living.running:
            self._living.stop()
        return result


def in_foreground(twistd: ServerOptions) -> bool:
    """Whether twistd keeps in the foreground."""
    return bool(twistd["nodaemon"] or twistd["debug"])


class CannotStartError(SystemExit, Exception):
    """Why the relay can't start, in one sentence.

    To Python it is the end of the process, which prints the sentence and no traceback. It is an `Exception` for
    twistd: that catches those alone when it starts a service, to take its pid file away and, in the background, to
    tell the process that was called, which else waits for ever.
    """


@contextmanager
def _said_plainly(given: Given) -> Iterator[None]:
    try:
        yield
    except CannotOpenError as error:
        raise CannotStartError(f"chatrelay: {given.placed(ConfigError(error.option, error.problem))}") from error
    except ConfigError as error:
        raise CannotStartError(f"chatrelay: {given.placed(error)}") from error
    except LogUnavailable as error:
        place = given.places.get("message_log")
        raise CannotStartError(f"chatrelay: {place}: {error}" if place else f"chatrelay: {error}") from error


def makeService(options: Options) -> IService:
    """Make what twistd runs."""
    from twisted.internet import reactor

    assert options.chosen is not None, "postOptions was not called"
    raise_limit()  # of this process, which is the relay's own; an embedding program's limits are its own business
    # Without twistd another program sees to its reactor, and to its log.
    twistd = options.parent if isinstance(options.parent, ServerOptions) else None
    if twistd is not None:
        keep_steady_time(reactor)
    with _said_plainly(options.given):
        relay = chatrelay.build(options.chosen, reactor)
        log = TwistdLog() if twistd is None else twistd_log(options.chosen, twistd)
        service = _PlainlySpoken(relay, log, reactor, options.given)
    if at_start.has_begun:
        # Before twistd writes its pid file, which in the background another process does.
        if twistd is None or in_foreground(twistd):
            at_start.hold()
        else:
            at_start.hold_in_child()
    return service


def keep_steady_time(reactor: object) -> None:
    """Have a reactor measure time by a clock that nobody sets.

    Twisted's is the wall clock. Set forward, it would end every time limit at
    once; set back an hour, it would have nothing looked at for an hour. Under
    twistd the process is ours, and so is its reactor. One on which something
    is scheduled already is left as it is: that has its time by the wall clock.
    """
    if isinstance(reactor, ReactorBase) and not reactor.getDelayedCalls():
        vars(reactor)["seconds"] = time.monotonic


@attrs.frozen
class TwistdLog:
    """What twistd is to log with.

    :ivar observer: None for what it chooses itself.
    :ivar queue: of the lines that wait to be written; None where the observer writes them itself.
    :ivar file: the log file; None where there is none of ours.
    """

    observer: ILogObserver | None = None
    queue: LogQueue | None = None
    file: RotatedFile | None = None

    def rotate(self) -> bool:
        """Begin a new log file, behind what was logged before.

        :returns: whether there is one.
        """
        if self.queue is None or self.file is None:
            return False
        self.queue.rotate(self.file.rotate)
        return True


def twistd_log(config: Config, twistd: ServerOptions) -> TwistdLog:
    """Make what twistd is to log with: its own choice of a place, our format and lowest level.

    :raises ConfigError: for options of twistd that don't go with ``log-format``, or a file that can't be opened.
    """
    as_json = config.log_format == "json"
    if twistd["logger"]:
        if as_json:
            raise ConfigError("log-format", "json does not go with twistd's --logger, which brings a format of its own")
        return TwistdLog()
    if as_json and twistd["syslog"]:
        raise ConfigError("log-format", "json goes to standard output or to twistd's --logfile, not to --syslog")
    render = line_of if as_json else formatEventAsClassicLogText
    file: RotatedFile | None = None
    if twistd["syslog"]:
        queue = LogQueue(syslog_render(twistd["prefix"]), take_by_syslog)
    elif twistd["logfile"] not in (None, "", "-") or not in_foreground(twistd):
        file = _log_file(twistd["logfile"] or "twistd.log")
        queue = LogQueue(render, file.take)
    else:
        descriptor = _descriptor(sys.stdout)
        if descriptor is None:  # not a file: another program has put its own in its place
            return TwistdLog(_leveled(FileLogObserver(sys.stdout, render), config))
        queue = LogQueue(render, take_by_descriptor(descriptor), sys.stdout.encoding)
    atexit.register(queue.finish)
    if in_foreground(twistd):
        queue.start()
    return TwistdLog(_leveled(queue, config), queue, file)


def _leveled(observer: ILogObserver, config: Config) -> ILogObserver:
    # twistd itself leaves no level out, and a scanner could fill the log with its lines.
    lowest = LogLevel.levelWithName(config.log_level)
    return FilteringLogObserver(observer, [LogLevelFilterPredicate(defaultLogLevel=lowest)])


def _log_file(path: str) -> RotatedFile:
    """Open the file of ``--logfile``."""
    if path == "-":
        raise ConfigError(
            "logfile", "- is standard output, which twistd has only with -n: give that as well, or a file", "--logfile"
        )
    try:
        return RotatedFile.fromFullPath(path)  # type: ignore[no-any-return]
    except OSError as error:
        path = os.path.abspath(error.filename or path)
        if error.errno == errno.ESPIPE:  # a pipe or a terminal, as /dev/stdout often is
            why = "it is not a file; the log goes to standard output with -n and without --logfile"
        else:
            folder = os.path.dirname(path)
            cause = why_not_found(path) or why_not_used(path, write=True) or why_not_written_in(folder)
            remedy = "give --logfile=FILE before chatrelay, or -n without --logfile for standard output"
            why = f"{cause or error.strerror}: {remedy}"
        raise ConfigError("logfile", f"{path} cannot be opened: {why}", "--logfile") from error


def _descriptor(stream: Any) -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        return int(stream.fileno())
    return None
