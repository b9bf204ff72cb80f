"""A log that is not read or cannot be written delays neither the relay nor its end."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import unix_connect

from tests.support import PATIENCE, ROOT, eventually
from tests.support.client import Client
from tests.support.programs import TWISTD, Site
from tests.support.v1 import ADMITTED

REFUSED = 4000
"""The number of handshakes whose lines fill a pipe and the relay's queue."""


class UnreadRelay:
    """`twistd -n chatrelay`, whose standard output is read only on request.

    :param folder: where it runs.
    :param url: of the session page.
    :param ours: the descriptor that its output is read from.
    :param theirs: the descriptor of its standard output; it is closed here.
    :param options: of chatrelay.
    :ivar output: what was read so far.
    """

    def __init__(self, folder: Path, url: str, ours: int, theirs: int, *options: str) -> None:
        self._ours = ours
        self.output = b""
        listen = ("--listen", "tcp:0:interface=127.0.0.1", "--message-log", "memory:")
        self.process = subprocess.Popen(
            [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "chatrelay", "--auth-url", url, *listen, *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},
        )
        os.close(theirs)

    def read(self, until: bytes | None = None) -> bytes:
        """Read up to a text, or (None) everything until the end; return everything that was read."""
        patience = time.monotonic() + PATIENCE
        while until is None or until not in self.output:
            assert time.monotonic() < patience, self.output[-2000:]
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    more = os.read(self._ours, 65536)
                except OSError:  # Linux: a terminal whose other side was closed
                    more = b""
                if not more:
                    assert until is None, self.output[-2000:]
                    break
                self.output += more
        return self.output

    @property
    def port(self) -> int:
        """The port on which it listens."""
        found = re.search(rb"starting on (\d+)", self.read(b"listens on"))
        assert found
        return int(found[1])

    def events(self) -> list[dict[str, Any]]:
        """Return the output as JSON, and check that every line is complete."""
        assert self.output.endswith(b"\n")
        return [json.loads(line) for line in self.output.splitlines()]


def pipe() -> tuple[int, int]:
    """Return a supervisor's pipe."""
    return os.pipe()


def stream_socket() -> tuple[int, int]:
    """Return the journal's socket."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def stopped_terminal() -> tuple[int, int]:
    """Return a terminal that was stopped with Ctrl-S, and accepts no more than its buffer."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    return ours, theirs


@pytest.fixture
def start(tmp_path: Path, site: Site) -> Iterator[Callable[..., UnreadRelay]]:
    """Start relays whose output is not read, and end them."""
    with ExitStack() as running:

        def begin(kind: Callable[[], tuple[int, int]], *options: str) -> UnreadRelay:
            ours, theirs = kind()
            running.callback(os.close, ours)
            relay = UnreadRelay(tmp_path, site.url, ours, theirs, *options)
            running.callback(relay.process.wait)
            running.callback(relay.process.kill)
            return relay

        yield begin


@contextmanager
def talking(port: int) -> Iterator[Callable[[], None]]:
    """Log Alice and Bo in; return a function that lets them exchange a message."""
    with Client(f"ws://127.0.0.1:{port}/") as alice, Client(f"ws://127.0.0.1:{port}/") as bo:
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED

        def exchange() -> None:
            alice.send(2, "hej")
            assert bo.hear()["message"]["content"] == "hej"
            assert alice.hear()["response"]["value"] is True

        yield exchange


def refuse(port: int, times: int) -> None:
    """Send requests that are not WebSocket handshakes, each on its own connection."""
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert stranger.recv(65536).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("kind", [pipe, stream_socket, stopped_terminal])
def test_unread_output_delays_no_client_and_dropped_lines_are_counted(
    start: Callable[..., UnreadRelay], kind: Callable[[], tuple[int, int]]
) -> None:
    relay = start(kind, "--log-format", "json")
    port = relay.port
    with talking(port) as exchange:
        for _ in range(10):
            refuse(port, REFUSED // 10)
            exchange()
        relay.read(b"lines of this log were dropped")
        exchange()
        relay.process.send_signal(signal.SIGTERM)
        relay.read()
    assert relay.process.wait(PATIENCE) == -signal.SIGTERM
    events = relay.events()
    told = sum(event["fields"].get("phase") == "handshake" for event in events)
    dropped = [event["fields"]["count"] for event in events if "were dropped" in event["text"]]
    assert told + sum(dropped) == REFUSED
    assert dropped[0] > 0
    times = [event["time"] for event in events]
    assert times == sorted(times)
    lines = relay.output.splitlines()
    assert len(set(lines)) == len(lines)
    assert "Server Shut Down" in events[-1]["text"]
    assert any(event["text"] == "chatrelay has stopped" for event in events)


def test_unread_output_does_not_delay_the_end(start: Callable[..., UnreadRelay]) -> None:
    relay = start(pipe, "--log-format", "json")
    port = relay.port
    with talking(port) as exchange:
        refuse(port, 500)
        exchange()
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("output", ["/dev/full", "broken pipe"])
def test_unwritable_output_delays_nothing(start: Callable[..., UnreadRelay], tmp_path: Path, output: str) -> None:
    def broken() -> tuple[int, int]:
        ours, theirs = os.pipe()
        if output == "broken pipe":
            os.close(ours)
            return os.open(os.devnull, os.O_RDONLY), theirs
        os.close(theirs)
        return ours, os.open(output, os.O_WRONLY)

    relay = start(broken, "--listen", "unix:socket")
    eventually(lambda: (tmp_path / "socket").exists())
    with unix_connect(str(tmp_path / "socket"), open_timeout=PATIENCE) as visitor:
        visitor.send('{"type":"auth-request","SESSID":"alice-session"}')
        assert json.loads(visitor.recv(PATIENCE)) == ADMITTED
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.wait(PATIENCE) == -signal.SIGTERM


def test_log_file_in_the_background_is_rotated_by_a_signal(tmp_path: Path, site: Site) -> None:
    options = ("--auth-url", site.url, "--listen", "tcp:0:interface=127.0.0.1", "--message-log", "memory:")
    started = subprocess.run(
        [sys.executable, "-c", TWISTD, "--logfile", "relay.log", "chatrelay", "--log-format", "json", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert started.returncode == 0

    def said(text: str) -> bytes:
        until = time.monotonic() + PATIENCE
        while True:
            with suppress(FileNotFoundError):
                output = (tmp_path / "relay.log").read_bytes()
                if text.encode() in output:
                    return output
            assert time.monotonic() < until
            time.sleep(0.02)

    first = said("listens on")
    found = re.search(rb"starting on (\d+)", first)
    assert found
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        refuse(int(found[1]), 1)
        said("handshake")
        os.kill(pid, signal.SIGUSR1)
        eventually(lambda: (tmp_path / "relay.log.1").exists())
        refuse(int(found[1]), 1)
        said("handshake")
    finally:
        os.kill(pid, signal.SIGTERM)
    lines = (tmp_path / "relay.log.1").read_bytes() + said("Server Shut Down")
    texts = [json.loads(line)["text"] for line in lines.splitlines()]
    assert "starting up" in texts[0]
    assert sum("no handshake from" in text for text in texts) == 2
    assert "Server Shut Down" in texts[-1]
    assert len(texts) == len(set(lines.splitlines()))  # lines that were logged before the fork appear once
    eventually(lambda: not (tmp_path / "twistd.pid").exists())


def test_terminal_with_tostop_does_not_stop_a_relay_in_the_background(tmp_path: Path, site: Site) -> None:
    ours, theirs = os.openpty()
    options = ("--auth-url", site.url, "--listen", "tcp:0:interface=127.0.0.1", "--message-log", "memory:")
    relay = (sys.executable, "-c", TWISTD, "-n", "--pidfile=", "chatrelay", *options)
    shell = subprocess.Popen(
        ["setsid", "--ctty", "sh", "-c", 'stty tostop; set -m; "$@" & while :; do sleep 0.1; done', "sh", *relay],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},
    )
    os.close(theirs)
    try:
        output = b""
        while b"listens on" not in output:
            assert select.select([ours], [], [], PATIENCE)[0], output
            output += os.read(ours, 65536)
        found = re.search(rb"starting on (\d+)", output)
        assert found
        with talking(int(found[1])) as exchange:
            exchange()
    finally:
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        shell.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        shell.wait(PATIENCE)
        os.close(ours)
