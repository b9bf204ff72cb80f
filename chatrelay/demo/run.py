"""Run the demo website and the relay in one process on 127.0.0.1, until Ctrl-C.

Only this module of the demo knows both of them, the terminal and the signals.
"""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import shlex
import signal
import socket
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import FrameType

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import MultiService
from twisted.internet.base import ReactorBase
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

import chatrelay
from chatrelay.demo.ops import RelayOps
from chatrelay.demo.website import SESSION_COOKIE, Website
from chatrelay.model import LogUnavailable

ADDRESS = "127.0.0.1"
MESSAGE_LOG = "chatrelay-demo.sqlite3"


class CannotStartError(Exception):
    """The demo can't start. The text gives the cause and the remedy."""


def main(arguments: list[str]) -> int:
    """Run the demo until a signal stops it.

    :param arguments: the command line after ``python -m chatrelay.demo``.
    :returns: the exit status: 0 after Ctrl-C or SIGTERM, 1 if the demo could not start.
    """
    options = _parse(arguments)
    try:
        _check_free(options.port, "the website")
        _check_free(options.relay_port, "the relay")
        ops_port = _free_port()
        directory = _made(options.directory)
    except CannotStartError as error:
        print(error, file=sys.stderr)
        return 1

    # Importing it installs it. Nothing before this line needs a reactor.
    from twisted.internet import reactor

    assert isinstance(reactor, ReactorBase)
    _report_warnings()
    return _run(reactor, options, ops_port, directory / MESSAGE_LOG)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chatrelay.demo",
        description="A demo website with a chat page, and the relay beside it, on this machine only.",
    )
    parser.add_argument("--port", type=_port, default=8000, help="the website's TCP port (default: 8000)")
    parser.add_argument("--relay-port", type=_port, default=8080, help="the relay's TCP port (default: 8080)")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(),
        help=f"the folder of the message log {MESSAGE_LOG} (default: the current folder)",
    )
    options = parser.parse_args(arguments)
    if options.port == options.relay_port:
        parser.error("the website and the relay need different ports: change --port or --relay-port")
    return options


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a TCP port: give a number from 1 to 65535")
    return int(text)


def _check_free(port: int, whose: str) -> None:
    """Check that a port is free, so that a port in use is reported in one sentence.

    :param whose: the program that needs it, for the sentence.
    :raises CannotStartError: if no program can listen on the port.
    """
    with socket.socket() as trial:
        # Twisted does the same: a port whose last user has just ended counts as free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((ADDRESS, port))
            trial.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                problem = f"Port {port}, which {whose} needs, is in use by another program."
            else:
                problem = f"Port {port}, which {whose} needs, can't be used: {error.strerror}."
            raise CannotStartError(f"{problem}\nChoose other ports:  make run PORT=8001 RELAY_PORT=8081") from None


def _free_port() -> int:
    """Return a free port for the relay's ops endpoint. Only the website needs to know it."""
    with socket.socket() as trial:
        trial.bind((ADDRESS, 0))
        port: int = trial.getsockname()[1]
        return port


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStartError(
            f"The message log can't be kept in {directory}: {error.strerror}. Give another folder with --directory."
        ) from None
    return directory.resolve()


def _report_warnings() -> None:
    """Log warnings and errors on standard error, and nothing less important."""
    observer = FilteringLogObserver(
        textFileLogObserver(sys.stderr),
        [LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)],
    )
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)


def _services(reactor: ReactorBase, website: Website, ops: RelayOps, message_log: Path) -> MultiService:
    services = MultiService()
    endpoint = TCP4ServerEndpoint(reactor, website.port, interface=ADDRESS)
    StreamServerEndpointService(endpoint, website.site()).setServiceParent(services)
    with NamedTemporaryFile("w") as token_file:  # only this user can read it, and the relay reads it once
        token_file.write(ops.token)
        token_file.flush()
        relay = chatrelay.build(
            chatrelay.Config(
                auth_url=f"http://{ADDRESS}:{website.port}/session",
                listen=(f"tcp:{website.relay_port}:interface={ADDRESS}",),
                message_log=f"sqlite:{message_log}",
                ops_listen=f"tcp:{ops.port}:interface={ADDRESS}",
                ops_token_file=token_file.name,
                origin=website.origins,
                session_cookie=SESSION_COOKIE,
            ),
            reactor,
        )
    relay.setServiceParent(services)
    return services


def _run(reactor: ReactorBase, options: argparse.Namespace, ops_port: int, message_log: Path) -> int:
    ops = RelayOps(reactor, ops_port, secrets.token_hex(32))
    website = Website(options.port, options.relay_port, ops.end_session)
    services = _services(reactor, website, ops, message_log)

    code = 0

    def start() -> None:
        try:
            services.startService()
        except (LogUnavailable, CannotListenError) as error:
            print(f"The demo can't start: {error}", file=sys.stderr)
            nonlocal code
            code = 1
            reactor.stop()
        else:
            reactor.addSystemEventTrigger("before", "shutdown", services.stopService)
            print(_welcome(website, message_log), flush=True)

    reactor.callWhenRunning(start)
    _stop_on_signals(reactor)
    reactor.run(installSignalHandlers=False)
    if code == 0:
        print(f"\n  Stopped. The messages are in {_short(message_log)}.", flush=True)
    return code


def _stop_on_signals(reactor: ReactorBase) -> None:
    """Stop the relay in order at the first signal, and end the process at once at the second.

    Twisted's own handlers would call ``stop`` again and log a traceback.
    """
    stopping = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            # No message is lost: no sender got value true before the message was in the message log.
            os._exit(1)
        stopping = True
        reactor.callFromThread(reactor.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell makes its background jobs ignore Ctrl-C. Do not change that.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


def _welcome(website: Website, message_log: Path) -> str:
    first, second = website.origins
    command = Path(sys.executable).with_name("chatrelay")
    chatrelay_command = shlex.quote(_short(command)) if command.exists() else "chatrelay"
    log = _short(message_log)
    return f"""
  chatrelay is running. To see it work, be two people:

    1. open  {first}  and log in as Anna
    2. open  {second}  and log in as Bo
       (to a browser these are two sites, each with its own login; you can
       also use two browsers, or a normal and a private window)
    3. write to each other

  Every message is kept in {log}. To read it:
    {chatrelay_command} messages --message-log {shlex.quote("sqlite:" + log)}

  Ctrl-C stops it.
"""


def _short(path: Path) -> str:
    """Return a path as it is typed in the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
