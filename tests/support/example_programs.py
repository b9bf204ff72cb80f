"""The programs of examples/, as processes."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from bench.ports import free_port
from tests.support import PATIENCE, ROOT
from tests.support.client import Client

# A job that a shell started in the background ignores SIGINT, and so would what it starts.
HEARS_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


class Example:
    """An example, run as its first lines say, on a free port.

    :ivar output: what it has printed so far, a line each.
    """

    def __init__(self, name: str | Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEARS_SIGINT, sys.executable, str(ROOT / "examples" / name), str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until = time.monotonic() + PATIENCE
        while not any(re.search(rf"ws://127\.0\.0\.1:{self.port}/", line) for line in list(self.output)):
            assert time.monotonic() < until and self.process.poll() is None, self.output
            time.sleep(0.01)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        print("the example said:", *self.output, sep="\n    ")


class SiteExample(Example):
    """The example with a site around the relay."""

    @property
    def origin(self) -> str:
        """Return the origin of its pages."""
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: str | None = None, **headers: str) -> http.client.HTTPResponse:
        """Load a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def cookie(self, name: str) -> str:
        """Log in at the site; return the cookie."""
        answer = self.request("POST", "/login", f"name={name}")
        assert answer.status == 302
        cookie = answer.headers["Set-Cookie"]
        assert "httponly" in cookie.lower() and "samesite=lax" in cookie.lower()
        return cookie.split(";")[0]

    def client(self, cookie: str | None, **options: Any) -> Client:
        """Open a connection as the site's page does."""
        options.setdefault("origin", self.origin)
        headers = {} if cookie is None else {"Cookie": cookie}
        options.setdefault("additional_headers", headers)
        return Client(f"ws://127.0.0.1:{self.port}/chat", **options)
