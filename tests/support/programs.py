"""The programs around a test: a site and a relay.

The relay is `twistd` as an operator starts it; the site is Python's own HTTP server, with faults on request. Nothing of
chatrelay is imported here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import PATIENCE, ROOT
from tests.support.client import Client

HIGH_RATES = (
    *("--messages-per-second", "10000000", "--message-burst", "10000000"),
    *("--user-messages-per-second", "10000000", "--new-recipients-per-minute", "10000000"),
    *("--unauthenticated-per-address", "10000000", "--connections-per-user", "10000000"),
)
"""Options for a relay under load: its limits are active, but not reached."""


def connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    """Connect to a port of this machine, from one of its own addresses (on Linux, all of 127.0.0.0/8)."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE, (address, 0))


class Site:
    """A website that knows some sessions.

    :ivar users: SESSID -> uID.
    :ivar asked: the SESSIDs of the requests, in order.
    :ivar requests: (headers, body) of each request.
    :ivar answer: when set, called with the request to answer in its own way.
    :ivar counts_first_look: whether the request that a relay sends at its start counts; otherwise it is denied, and not
        recorded.
    :ivar seconds: how long it takes for each answer.
    """

    def __init__(self) -> None:
        self.users: dict[str, str | int] = {}
        self.asked: list[str] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Any = None
        self.counts_first_look = False
        self.seconds = 0.0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get_content_type() == "application/json":
                    sessid = json.loads(body)["SESSID"]
                else:
                    sessid = urllib.parse.parse_qs(body.decode(), keep_blank_values=True)["SESSID"][0]
                if sessid.startswith("chatrelay-at-start-") and not site.counts_first_look:
                    self.reply(200, {"loggedin": False})
                    return
                site.requests.append((dict(self.headers.items()), body))
                site.asked.append(sessid)
                if site.seconds:
                    time.sleep(site.seconds)
                if site.answer is not None:
                    site.answer(self)
                elif sessid in site.users:
                    self.reply(200, {"loggedin": True, "uID": site.users[sessid]})
                else:
                    self.reply(200, {"loggedin": False})

            def reply(self, status: int, body: object, **headers: str) -> None:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a relay that hangs up is what some tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/session"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RelayProcess:
    """`twistd -n chatrelay` with some options, in its own folder.

    :param under: a program that runs it, such as strace, and its options.
    :param twistd: options before ``chatrelay``.
    :param prelude: Python to run before twistd begins.
    :ivar output: what it has printed so far, a line each.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        under: tuple[str, ...] = (),
        listen: str | None = "tcp:0:interface=127.0.0.1",
        reactor: str | None = None,
        twistd: tuple[str, ...] = (),
        measured: bool = True,
        stdin: int | None = None,
        prelude: str = "",
        **environment: str,
    ) -> None:
        if not measured:
            # Not in the coverage: measuring makes a relay several times as slow, and a killed one reports nothing.
            environment |= {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
        self.folder = folder
        self.output: list[str] = []
        program = (sys.executable, "-c", f"{prelude}\n{TWISTD}")
        self._runs_under = bool(under)
        reading = () if reactor is None else (f"--reactor={reactor}",)
        listening = () if listen is None else ("--listen", listen)
        self.process = subprocess.Popen(
            [*under, *program, "-n", "--pidfile=", *reading, *twistd, "chatrelay", *listening, *options],
            cwd=folder,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))

    def ready(self) -> Self:
        """Wait until the relay listens; find out where."""
        self.said(r"chatrelay \S+ listens on")
        line = self.said(r"ChatFactory.* starting on ")
        found = re.search(r"starting on (\d+)", line)
        if found:
            self.port = int(found[1])
        return self

    def said(self, pattern: str, times: int = 1) -> str:
        """Wait for a printed line that matches; return it."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            lines = [line for line in list(self.output) if re.search(pattern, line)]
            if len(lines) >= times:
                return lines[times - 1]
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"the relay did not say {pattern!r}; it said:\n" + "\n".join(self.output))

    @property
    def url(self) -> str:
        """Return the URL of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/"

    def client(self, **options: Any) -> Client:
        """Open a connection."""
        return Client(self.url, **options)

    @property
    def ops_port(self) -> int:
        """Return the port of the ops endpoint."""
        found = re.search(r"starting on (\d+)", self.said(r"OpsSite.* starting on "))
        assert found
        return int(found[1])

    def ops(self, method: str, path: str, value: object = None, token: str | None = None) -> tuple[int, Any]:
        """Send a request to the ops endpoint; return the status, and the answer as JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ops_port}{path}", method=method)
        if value is not None:
            request.data = json.dumps(value).encode()
            request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with _NO_PROXY.open(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.status, json.load(refusal)

    @property
    def pid(self) -> int:
        """Return the pid of the relay itself: a child of the program that it runs under, or what that program
        became.
        """
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if self._runs_under else []
        return int(children[0]) if children else pid

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """End the relay with a signal; return its exit status, or that of the program it runs under."""
        if self.process.poll() is None:
            os.kill(self.pid, sign)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of the relay; return its exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Self:
        with ExitStack() as unless_ready:
            unless_ready.callback(self.process.kill)
            self.ready()
            unless_ready.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        print("the relay said:", *self.output, sep="\n    ")  # pytest shows it where a test failed


_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# As the `twistd` script does, of the Python that runs the tests.
TWISTD = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
"""The code that every relay runs; tests put other code before it."""


def orphans(relay: RelayProcess) -> list[str]:
    """Return the commands that a relay logged for the write-ahead logs that it set aside."""
    return [line.partition("To read them: ")[2] for line in relay.output if "was renamed to" in line]


def follow(command: str) -> str:
    """Execute a logged command in a shell, unchanged; return what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


StartRelay = Callable[..., RelayProcess]
"""What starts a relay with further options: see `tests.support.relay_fixtures.start_relay`."""
