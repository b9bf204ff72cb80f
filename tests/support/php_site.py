"""A PHP site on PHP's own server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from tests.support import PATIENCE, ROOT

PHP = shutil.which("php")
"""The program, if it is there."""

EXAMPLE = ROOT / "examples" / "php"


class PhpSite:
    """`php -S` with sessions in a separate folder.

    :ivar sessions: the folder of the session files.
    :ivar port: where it listens.
    """

    def __init__(self, folder: Path, pages: Path, *settings: str, **environment: str) -> None:
        assert PHP is not None
        self.sessions = folder / "php-sessions"
        self.sessions.mkdir()
        options = [f"session.save_path={self.sessions}", "display_errors=1", "error_reporting=-1", *settings]
        self.process = subprocess.Popen(
            [PHP, *(f"-d{option}" for option in options), "-S", "127.0.0.1:0", "-t", str(pages)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.output: list[str] = []
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._started.wait(PATIENCE), f"php did not start: {self.output}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))
            found = re.search(r"Development Server \(http://127\.0\.0\.1:(\d+)\) started", line)
            if found:
                self.port = int(found[1])
                self._started.set()

    @property
    def origin(self) -> str:
        """Return the origin of its pages."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, body: bytes | None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Ask its session endpoint as the relay does; return status, headers and body."""
        request = urllib.request.Request(f"{self.origin}/session.php", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, dict(answer.headers.items()), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers.items()), error.read()

    def session_files(self) -> set[str]:
        """Return the names of the session files."""
        return {path.name for path in self.sessions.rglob("sess_*")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)  # its workers, where it has some, would live on without it
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        print("php said:", *self.output, sep="\n    ")
