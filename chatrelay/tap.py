"""`twistd chatrelay`: the options on its command line, and the service made of them.

The options are those of `chatrelay.config.Config`, one for one. What can't
work is told in one sentence, without a traceback.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    LegacyLogObserverWrapper,
    LogLevel,
    LogLevelFilterPredicate,
)
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.scripts._twistd_unix import ServerOptions, UnixAppLogger

import chatrelay
from chatrelay import systemd
from chatrelay.config import HEADINGS, Config, ConfigError, option_name, read, value_of
from chatrelay.descriptors import raise_limit
from chatrelay.interfaces import LogUnavailable
from chatrelay.jsonlog import line_of
from chatrelay.service import ChatRelayService

TWISTED_NAMES = ("UnixAppLogger._getLogObserver",)
"""What we use of twistd that its documentation does not promise; a test looks it up.

So is `twisted.scripts._twistd_unix`, which is imported, and so is that a reactor schedules by its own `seconds`.
"""


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
    :param log_observer: what twistd is to log with; None for what it chooses itself.
    :param reactor: the one that twistd runs.
    """

    def __init__(self, relay: ChatRelayService, log_observer: ILogObserver | None, reactor: Any) -> None:
        super().__init__()
        self._relay = relay
        self._log_observer = log_observer
        self._reactor = reactor
        self._has_terminal = False
        self._supervisor: systemd.Supervisor | None = None
        self._living = LoopingCall(self._tell_alive)
        self._living.clock = reactor
        relay.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        # Here twistd hands us its Application, which it will ask in a moment what to log with
        # (twisted.application.app.AppLogger.start). What was logged until then is kept, and logged then.
        if self._log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._log_observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        with _said_plainly():
            super().privilegedStartService()

    def startService(self) -> None:
        self._has_terminal = _on_terminal()
        # Before the relay says that it listens: who reads that may send the signal, which would end it.
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hung_up))
        with _said_plainly():
            super().startService()
        self._supervisor = systemd.supervisor(os.environ, os.getpid())
        self._reactor.callWhenRunning(self._tell_ready)

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
        if not self._has_terminal or _on_terminal():
            self._relay.read_certificates_anew()
        elif self.running:
            self._reactor.stop()

    def stopService(self) -> Deferred[Any]:
        # From here on, another signal ends the process as it ends any other:
        # what was acknowledged is in the log, which needs no goodbye.
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell has its background jobs ignore Ctrl-C
                signal.signal(number, signal.SIG_DFL)
        if self._supervisor is not None:
            self._supervisor.tell(systemd.STOPPING)
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        if self._living.running:
            self._living.stop()
        return result


def _on_terminal() -> bool:
    """Whether standard input is a terminal; one that was closed is none."""
    try:
        return os.isatty(0)
    except OSError:  # there is no standard input
        return False


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
    if isinstance(options.parent, ServerOptions):  # else another program sees to its reactor
        keep_steady_time(reactor)
    with _said_plainly():
        relay = chatrelay.build(options.chosen, reactor)
        return _PlainlySpoken(relay, _log_observer(options.chosen, options.parent), reactor)


def keep_steady_time(reactor: object) -> None:
    """Have a reactor measure time by a clock that nobody sets.

    Twisted's is the wall clock. Set forward, it would end every time limit at
    once; set back an hour, it would have nothing looked at for an hour. Under
    twistd the process is ours, and so is its reactor. One on which something
    is scheduled already is left as it is: that has its time by the wall clock.
    """
    if isinstance(reactor, ReactorBase) and not reactor.getDelayedCalls():
        vars(reactor)["seconds"] = time.monotonic


def _log_observer(config: Config, twistd: usage.Options | None) -> ILogObserver | None:
    """What twistd is to log with: its own choice of a place, our format and lowest level.

    :param twistd: the options before ``chatrelay``; where they are not twistd's, another program sees to its log.
    :returns: None where the log is no business of ours.
    :raises ConfigError: for options of twistd that don't go with ``log-format``, or a file that can't be opened.
    """
    as_json = config.log_format == "json"
    if not isinstance(twistd, ServerOptions):
        return None
    if twistd["logger"]:
        if as_json:
            raise ConfigError("log-format", "json does not go with twistd's --logger, which brings a format of its own")
        return None
    # Standard output, or which file, and when it is rotated: as twistd itself would have it.
    try:
        observer = UnixAppLogger(twistd)._getLogObserver()
    except OSError as error:
        raise ConfigError("logfile", f"{error.filename} cannot be opened: {error.strerror}") from error
    if not isinstance(observer, FileLogObserver):
        if as_json:
            raise ConfigError("log-format", "json goes to standard output or to twistd's --logfile, not to --syslog")
        observer = LegacyLogObserverWrapper(observer)
    elif as_json:
        observer.formatEvent = line_of
    # twistd itself leaves no level out, and a scanner could fill the log with its lines.
    lowest = LogLevel.levelWithName(config.log_level)
    return FilteringLogObserver(observer, [LogLevelFilterPredicate(defaultLogLevel=lowest)])
