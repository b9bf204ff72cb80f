"""Find, prepare, start and stop chatrelay and its peers.

A server whose runtime is missing is skipped, and reported with the remedy. Every server listens on 127.0.0.1, is pinned
to one core, and writes its output to a file that is shown after a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import attrs

from bench.ports import free_port

BENCH = Path(__file__).parent
ROOT = BENCH.parent
PATIENCE = 20.0
"""The seconds in which a server must start or stop."""

RELAYS_ONLY = "only relays: asks no session page, checks little, no limits, no log"

LEAN_REACTOR = "chatrelay-epoll"
"""The name of chatrelay's own reactor for ``twistd --reactor=``."""

PER_CONNECTION_RATES = {
    # All limits are on. The rates are set so high that this load does not reach them.
    "messages_per_second": "10000000",
    "message_burst": "10000000",
    "user_messages_per_second": "10000000",
    "new_recipients_per_minute": "10000000",
    "logins_per_minute": "10000000",
    "unauthenticated": "100000",
    "unauthenticated_per_address": "100000",
    "connections": "15000",
    "connections_per_address": "100000",
    "connections_per_user": "100000",
    # The load generator expects only answers and deliveries. Pings every 20 s would cost nothing in comparison.
    "ping_interval": "0",
}


class Missing(Exception):
    """A server is not available here. The text says what is missing and how to install it."""


class Failed(Exception):
    """A server did not start, or ended. The text has its output."""


@dataclass(frozen=True)
class Place:
    """The environment of a server.

    :ivar folder: the folder for its files, which is removed afterwards.
    :ivar webserver: the URL of the session page.
    :ivar private_key: a PEM file, for a server with TLS; likewise `certificate`.
    """

    port: int
    folder: Path
    webserver: str
    private_key: Path
    certificate: Path


@dataclass(frozen=True)
class Server:
    """One of the compared servers.

    :ivar remarks: the parts of chatrelay's work that it does, or leaves out.
    :ivar version: returns its version and the version of its runtime.
    :ivar prepare: installs or builds it.
    :ivar command: returns the command that starts it.
    :ivar dialect: its protocol; see `bench.load.Plan`.
    :ivar tls: whether clients connect with TLS.

    `version` and `prepare` raise `Missing` if it is not available.
    """

    name: str
    title: str
    remarks: str
    version: Callable[[], str]
    command: Callable[[Place], list[str]]
    prepare: Callable[[], None] = lambda: None
    dialect: str = "v1"
    tls: bool = False


# Python -----------------------------------------------------------------------


def _python(*packages: str) -> Callable[[], str]:
    def version() -> str:
        try:
            return ", ".join(f"{package} {metadata.version(package)}" for package in packages)
        except metadata.PackageNotFoundError as error:
            raise Missing(
                f"the Python package {error.name} is missing: pip install -r bench/requirements.txt"
            ) from None

    return version


def _python_peer(name: str, title: str, module: str, *packages: str) -> Server:
    def command(place: Place) -> list[str]:
        return [sys.executable, str(BENCH / "peers" / f"{module}.py"), str(place.port)]

    return Server(name, title, RELAYS_ONLY, _python(*packages), command)


# npm --------------------------------------------------------------------------

NODE_MODULES = BENCH / "node_modules"


def _pinned(package: str) -> str:
    versions: dict[str, str] = json.loads((BENCH / "package.json").read_text())["dependencies"]
    return versions[package]


def _installed(package: str) -> str | None:
    path = NODE_MODULES / package / "package.json"
    return json.loads(path.read_text())["version"] if path.exists() else None


def npm_install() -> None:
    """Install the pinned npm packages into bench, unless they are there.

    :raises Missing: if that does not succeed.
    """
    if all(_installed(package) == _pinned(package) for package in ("bun", "socket.io", "undici", "ws")):
        return
    if shutil.which("npm") is None:
        raise Missing("npm is missing: apt install npm (and nodejs)")
    done = subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=BENCH, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"'npm ci' in bench/ failed: {done.stderr.strip()[-500:]}")


def node_version(package: str) -> str:
    """Return the pinned version of an npm package, and the version of Node.

    :raises Missing: if there is no Node.
    """
    if shutil.which("node") is None:
        raise Missing("node is missing: apt install nodejs")
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{package} {_pinned(package)}, Node {node.removeprefix('v')}"


def _node(place: Place) -> list[str]:
    return ["node", str(BENCH / "peers" / "node_ws.cjs"), str(place.port)]


def _bun() -> str:
    """Return the path of Bun's program. npm installs one for each kind of machine, and an install script moves it."""
    for path in (*NODE_MODULES.glob("bun/bin/bun.exe"), *sorted(NODE_MODULES.glob("@oven/bun-*/bin/bun"))):
        with suppress(OSError):
            if subprocess.run([path, "--version"], capture_output=True).returncode == 0:
                return str(path)
    raise Missing("npm brought no bun that runs here: remove bench/node_modules and try again")


def _bun_prepare() -> None:
    npm_install()
    _bun()


# Debian -----------------------------------------------------------------------

GOPATH = Path("/usr/share/gocode")
"""The folder of Debian's sources of Go libraries."""

GORILLA = BENCH / "build" / "gorilla"


def _debian_version(package: str) -> str:
    done = subprocess.run(["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "of unknown version"


def _gorilla_version() -> str:
    if shutil.which("go") is None or not (GOPATH / "src/github.com/gorilla/websocket").is_dir():
        raise Missing("Go or gorilla/websocket is missing: apt install golang-go golang-github-gorilla-websocket-dev")
    go = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return f"gorilla/websocket {_debian_version('golang-github-gorilla-websocket-dev')}, Go {go.removeprefix('go')}"


def _gorilla_build() -> None:
    GORILLA.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        ["go", "build", "-o", str(GORILLA), str(BENCH / "peers" / "gorilla.go")],
        env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH), "GOFLAGS": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Missing(f"Go could not build the peer: {done.stderr.strip()[-500:]}")


def _mosquitto() -> str:
    path = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        raise Missing("mosquitto is missing: apt install mosquitto")
    return path


def _mosquitto_version() -> str:
    _mosquitto()
    return f"Mosquitto {_debian_version('mosquitto')}"


def _mosquitto_command(place: Place) -> list[str]:
    configuration = place.folder / "mosquitto.conf"
    plain = free_port()
    configuration.write_text(
        # Without a second, plain listener, Mosquitto serves the WebSocket listener late.
        f"listener {plain} 127.0.0.1\nlistener {place.port} 127.0.0.1\nprotocol websockets\n"
        "allow_anonymous true\nset_tcp_nodelay true\nmax_inflight_messages 0\nmax_queued_messages 0\n"
        "log_type error\nlog_type warning\n"
    )
    return [_mosquitto(), "-c", str(configuration)]


# chatrelay ----------------------------------------------------------------------

# The `twistd` script, with the Python that runs the benchmark.
TWISTD = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"


def _chatrelay(reactor: str | None = None, log: bool = False, tls: bool = False) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        from chatrelay.config.checks import option_name
        from chatrelay.config.options import Config

        if tls:
            files = f"privateKey={place.private_key}:certKey={place.certificate}"
            listen = f"ssl:{place.port}:interface=127.0.0.1:{files}"
        else:
            listen = f"tcp:{place.port}:interface=127.0.0.1"
        options = {
            "auth_url": place.webserver,
            "listen": listen,
            "message_log": f"sqlite:{place.folder / 'messages.sqlite3'}" if log else "none",
        }
        there = {field.name for field in attrs.fields(Config)}
        options |= {name: value for name, value in PER_CONNECTION_RATES.items() if name in there}
        return [
            sys.executable,
            "-c",
            TWISTD,
            "--nodaemon",
            "--pidfile=",
            *([] if reactor is None else [f"--reactor={reactor}"]),
            "chatrelay",
            *(f"--{option_name(name)}={value}" for name, value in options.items()),
        ]

    return command


def _lean_reactor() -> None:
    from twisted.application.reactors import getReactorTypes

    if LEAN_REACTOR not in {kind.shortName for kind in getReactorTypes()}:
        raise Missing(f"this chatrelay does not have its own reactor (twistd --reactor={LEAN_REACTOR})")


_chatrelay_version = _python("chatrelay", "autobahn", "Twisted")
_LOGS_NOTHING = "no message log here"
_LOGS = "logs each message, synced, before it is delivered"

SERVERS = {
    server.name: server
    for server in (
        _python_peer("autobahn", "Autobahn, stock", "autobahn_stock", "autobahn", "Twisted"),
        _python_peer("websockets", "websockets", "websockets_asyncio", "websockets"),
        _python_peer("aiohttp", "aiohttp, uvloop", "aiohttp_uvloop", "aiohttp", "uvloop"),
        _python_peer("picows", "picows, msgspec", "picows_msgspec", "picows", "msgspec", "uvloop"),
        Server("node", "Node ws", RELAYS_ONLY, lambda: node_version("ws"), _node, npm_install),
        Server(
            "node-login",
            "Node ws, undici",
            "limits nothing, checks little",
            lambda: f"{node_version('ws')}, undici {_pinned('undici')}",
            lambda place: [*_node(place), place.webserver],
            npm_install,
        ),
        Server(
            "bun",
            "Bun",
            RELAYS_ONLY,
            lambda: f"Bun {_pinned('bun')}",
            lambda place: [_bun(), str(BENCH / "peers" / "bun_ws.js"), str(place.port)],
            _bun_prepare,
        ),
        Server(
            "gorilla",
            "Go gorilla",
            RELAYS_ONLY,
            _gorilla_version,
            lambda place: [str(GORILLA), str(place.port)],
            _gorilla_build,
        ),
        Server(
            "mosquitto",
            "Mosquitto",
            "MQTT: publishes at QoS 1, delivers at QoS 0 without a sender's name; logs in nobody, reads no JSON",
            _mosquitto_version,
            _mosquitto_command,
            dialect="mqtt",
        ),
        Server("chatrelay", "chatrelay", _LOGS_NOTHING, _chatrelay_version, _chatrelay()),
        Server(
            "chatrelay-lean",
            "chatrelay, lean reactor",
            _LOGS_NOTHING,
            _chatrelay_version,
            _chatrelay(reactor=LEAN_REACTOR),
            _lean_reactor,
        ),
        Server("chatrelay-log", "chatrelay, SQLite", _LOGS, _chatrelay_version, _chatrelay(log=True)),
        Server(
            "chatrelay-v2",
            "chatrelay v2, SQLite",
            "logs as above; clients of v2, which know each other and send no received frames",
            _chatrelay_version,
            _chatrelay(log=True),
            dialect="v2",
        ),
        Server(
            "chatrelay-lean-log",
            "chatrelay, SQLite, lean reactor",
            _LOGS,
            _chatrelay_version,
            _chatrelay(reactor=LEAN_REACTOR, log=True),
            _lean_reactor,
        ),
        Server("chatrelay-tls", "chatrelay, TLS", _LOGS_NOTHING, _chatrelay_version, _chatrelay(tls=True), tls=True),
    )
}


# Running ------------------------------------------------------------------------


@contextmanager
def process(
    command: list[str], port: int, core: int, folder: Path, name: str, patience: float = PATIENCE
) -> Iterator[int]:
    """Run a server on one core during the block; yield its process id. When the block begins, it listens on `port`.

    :param patience: the seconds in which it must start or stop.
    :raises Failed: if it does not start, or ends before the block.
    """
    output = folder / f"{name}.output"
    # CHATRELAY_ variables from outside would change the relay.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATRELAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "NODE_ENV": "production"}
    with output.open("wb") as file:
        running = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(running, port, output, patience)
        yield running.pid
        if running.poll() is not None:
            raise Failed(f"{name} ended with status {running.returncode}:\n{_said(output)}")
    finally:
        running.terminate()
        try:
            running.wait(patience)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(running: subprocess.Popen[bytes], port: int, output: Path, patience: float = PATIENCE) -> None:
    """Wait until a server listens on a port of 127.0.0.1.

    :param output: the file that it writes to.
    :param patience: the seconds in which it must listen.
    :raises Failed: if it ends, or does not listen in time.
    """
    until = time.monotonic() + patience
    while running.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise Failed(f"it did not listen on port {port}:\n{_said(output)}")


def _said(output: Path) -> str:
    text = output.read_text(errors="replace")
    return re.sub(r"^", "    ", text.strip()[-2000:], flags=re.MULTILINE)
