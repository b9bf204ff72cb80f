"""`twistd chatrelay`: the options on its command line, and the service made of them.

The options are those of `chatrelay.config.Config`, one for one. What can't
work is told in one sentence, without a traceback.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
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
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.scripts._twistd_unix import ServerOptions

import chatrelay
from chatrelay import systemd
from chatrelay.config import HEADINGS, Config, ConfigError, option_name, read, value_of
from chatrelay.descriptors import raise_limit
from chatrelay.interfaces import LogUnavailable
from chatrelay.jsonlog import line_of
from chatrelay.logqueue import LogQueue, RotatedFile, syslog_render, take_by_descriptor, take_by_syslog
from chatrelay.service import ChatRelayService
from chatrelay.signals import at_start, let_end, on_terminal

# Twisted's documentation does not promise `twisted.scripts._twistd_unix`, nor that a reactor schedules by its own
# `seconds`.


ALL_OPTIONS = "(all options: twistd chatrelay --help)"


def describe(field: attrs.Attribute[Any]) -> str:
    """What ``--help`` says of an option."""
    about = field.metadata
    parts = [about["help"]]
    if about["repeatable"]:
        if field.default:
            parts.append(f"[default: {' '.join(field.default)}]")
    elif field.default is not None:
        shown = {float: lambda value: f"{value:g}", bool: lambda value: "yes" if value else "no"}
        default = shown.get(about["kind"], str)(field.default)
        parts.append(f"[default: {default}{' ' + about['unit'] if about['unit'] else ''}]")
    if about["zero"]:
        parts.append(f"[0: {about['zero']}]")
    return " ".join(parts)


class Options(usage.Options):
    """The command line. Filled from `Config` below."""

    synopsis = "--auth-url URL [options]"
    longdesc = (
        "Direct messages between the users of the website you already have. Every option can also be "
        "given in a TOML file (--config; auth-url is auth_url there) or in the environment (CHATRELAY_AUTH_URL); "
        "the command line wins over the environment, and that over the file."
    )
    more = (
        'What comes of each option, and which of them go together, is in the documentation: "Operating" for those who '
        'run a relay, "The session page" for what the website answers.'
    )
    optParameters: list[list[Any]] = [
        ["config", None, None, "A TOML file with options."],
        *(
            [option_name(field.name), None, None, describe(field)]
            for field in attrs.fields(Config)
            if not field.metadata["repeatable"]
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.repeated: dict[str, list[str]] = {}
        self.chosen: Config | None = None

    def getUsage(self, width: int | None = None) -> str:
        """What ``--help`` prints below the first line: the options under their headings.

        :param width: columns; None for the terminal's, or 80 where there is none.
        """
        columns = width or min(max(40, shutil.get_terminal_size().columns), 100)

        def wrapped(text: str, indent: str = "") -> str:
            return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

        fields = attrs.fields_dict(Config)
        parts = [wrapped(self.longdesc)]
        for heading, names in HEADINGS:
            parts.append(f"{heading}:")
            for name in names:
                option = f"  --{option_name(name)} {value_of(fields[name])}"
                parts.append(f"{option}\n{wrapped(describe(fields[name]), ' ' * 8)}")
        parts.append("This program:")
        for option, says in (
            ("config FILE", "A TOML file with options."),
            ("help", "Print this and exit."),
            ("version", "Print chatrelay's version and exit."),
        ):
            parts.append(f"  --{option}\n{wrapped(says, ' ' * 8)}")
        parts.append(wrapped(self.more))
        return "\n" + "\n\n".join(parts) + "\n"

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Take the command line.

        :raises SystemExit: with one sentence. (A `usage.UsageError` would be printed below the whole help.)
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"chatrelay: {self._plainly(error)} {ALL_OPTIONS}") from error

    def parseArgs(self, *words: str) -> None:
        """What is left over; nothing may be."""
        if words:
            raise usage.UsageError(f"{words[0]!r} is no option: those begin with --")

    def _plainly(self, error: usage.UsageError) -> str:
        """A complaint of the parser's in our words, with what was meant, where that can be told."""
        unknown = re.fullmatch(r"option (-\S+) not recognized", str(error))
        if unknown is not None:
            known = [f"--{name.removesuffix('=')}" for name in self.longOpt]
            meant = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.7)
            return f"{unknown[1]} is no option" + (f"; did you mean {meant[0]}?" if meant else "")
        return re.sub(r"^option (-\S+) requires argument$", r"\1 wants a value", str(error))

    def opt_version(self) -> None:
        """Print chatrelay's version and exit."""
        print(f"chatrelay {chatrelay.__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Join command line, environment and file, and check every value.

        :raises SystemExit: with one sentence that names the option and the remedy.
        """
        given: dict[str, Any] = {name: tuple(values) for name, values in self.repeated.items()}
        for field in attrs.fields(Config):
            value = self.get(option_name(field.name))
            if value is not None:
                given[field.name] = value
        try:
            self.chosen = read(given, os.environ, self["config"])
            if self.chosen.auth_url is None:
                raise ConfigError(
                    "auth-url",
                    "is missing: give the URL that tells whose session it is, for instance "
                    "--auth-url http://127.0.0.1/session.php",
                )
            if not self.chosen.listen:
                raise ConfigError("listen", "names no endpoint: give at least one, for instance --listen tcp:8080")
        except ConfigError as error:
            raise SystemExit(f"chatrelay: {error} {ALL_OPTIONS}") from error
        if isinstance(self.parent, ServerOptions):
            remove_own_pid_file(self.parent["pidfile"])


def _repeatable(field: attrs.Attribute[Any]) -> Callable[[Options, str], None]:
    def take(self: Options, value: str) -> None:
        self.repeated.setdefault(field.name, []).append(value)

    take.__doc__ = describe(field)
    return take


# usage.Options finds options that may be repeated by the names of methods.
for _field in attrs.fields(Config):
    if _field.metadata["repeatable"]:
        setattr(Options, f"opt_{_field.name}", _repeatable(_field))


class _PlainlySpoken(MultiService):
    """Runs a relay under twistd: says in one sentence why it can't, and heeds signals.

    :param relay: the relay.
    :param log: what twistd is to log with.
    :param reactor: the one that twistd runs.
    """

    log = Logger()

    def __init__(self, relay: ChatRelayService, log: TwistdLog, reactor: Any) -> None:
        super().__init__()
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
            with _said_plainly():
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
            self.log.info("there is no log file to rotate: --logfile of twistd names one")

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


def remove_own_pid_file(path: str) -> None:
    """Remove a pid file with the number of this very process, before twistd takes that for another that runs.

    It was left by one that was killed: in a container the next one has mostly the same number.

    :param path: ``--pidfile``; empty for none.
    """
    try:
        with open(path) as file:
            number = int(file.read(32))
        if number == os.getpid():
            os.remove(path)
    except (OSError, ValueError):  # there is none, or twistd says what is wrong with it
        pass


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
def _said_plainly() -> Iterator[None]:
    try:
        yield
    except CannotListenError as error:
        remedy = "stop what listens there, or choose another port with --listen"
        raise CannotStartError(f"chatrelay: {str(error).rstrip('.')}: {remedy}") from error
    except (LogUnavailable, ConfigError) as error:
        raise CannotStartError(f"chatrelay: {error}") from error
    # Endpoints fail in ways of their own, too: no folder for a UNIX socket, a port past 65535.
    except (OSError, OverflowError) as error:
        raise CannotStartError(f"chatrelay: listen: an endpoint cannot be opened: {error}") from error


def makeService(options: Options) -> IService:
    """Make what twistd runs."""
    from twisted.internet import reactor

    assert options.chosen is not None, "postOptions was not called"
    raise_limit()  # of this process, which is the relay's own; an embedding program's limits are its own business
    # Without twistd another program sees to its reactor, and to its log.
    twistd = options.parent if isinstance(options.parent, ServerOptions) else None
    if twistd is not None:
        keep_steady_time(reactor)
    with _said_plainly():
        relay = chatrelay.build(options.chosen, reactor)
        log = TwistdLog() if twistd is None else twistd_log(options.chosen, twistd)
        service = _PlainlySpoken(relay, log, reactor)
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
            "logfile", "- is standard output, which twistd has only with -n: give that as well, or a file"
        )
    try:
        return RotatedFile.fromFullPath(path)  # type: ignore[no-any-return]
    except OSError as error:
        why = error.strerror
        if error.errno == errno.ESPIPE:  # a pipe or a terminal, as /dev/stdout often is
            why = "it is not a file; the log goes to standard output with -n and without --logfile"
        raise ConfigError("logfile", f"{error.filename or path} cannot be opened: {why}") from error


def _descriptor(stream: Any) -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        return int(stream.fileno())
    return None
