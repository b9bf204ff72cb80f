"""A framework's website and its relay as processes, and the browsers of its visitors."""

from __future__ import annotations

import http.cookiejar
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.programs import RelayProcess
from tests.support.v1 import ADMITTED

TOKEN = "0123456789abcdef0123456789abcdef"


class Site:
    """One of `tests.support.framework_sites` as a process, and the relay that asks it.

    :ivar relay: looks for ended sessions three times a second.
    """

    def __init__(self, kind: str, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.framework_sites", kind],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.origin = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        (folder / "ops-token").write_text(TOKEN)
        self.relay = RelayProcess(
            folder,
            *("--auth-url", f"{self.origin}/session", "--session-cookie", "session", "--origin", self.origin),
            *("--message-log", "memory:", "--recheck-interval", "0.3"),
            *("--ops-listen", "tcp:0", "--ops-token-file", "ops-token"),
        )

    def page(self, cookie: str) -> Client:
        """Open a connection as a page of the site does, and log in."""
        client = self.relay.client(origin=self.origin, additional_headers={"Cookie": f"session={cookie}"})
        assert client.log_in(None) == ADMITTED
        return client

    def revoke(self, **whose: object) -> Any:
        """Send ``POST /v1/revoke``; return the answer."""
        status, answer = self.relay.ops("POST", "/v1/revoke", whose, TOKEN)
        assert status == 200
        return answer

    def whose(self, cookie: str) -> Any:
        """Ask the session page as the relay does."""
        return json.loads(Browser(self).post("session", SESSID=cookie))

    def times_asked(self) -> int:
        """Return how often the session page was asked about a valid cookie."""
        return int(Browser(self).get("asked"))

    @contextmanager
    def file(self, name: str, content: object = "") -> Iterator[None]:
        """Put a file in the site's folder for a while, which changes how the site behaves."""
        path = self.folder / name
        path.write_text(str(content))
        yield
        path.unlink()

    def __enter__(self) -> Self:
        self.relay.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.__exit__(None, None, None)
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


class HasOrigin(Protocol):
    """A running site."""

    origin: str


class Browser:
    """What a visitor's browser keeps of a site: its cookies.

    :param session_cookie: the name of the site's session cookie.
    """

    def __init__(self, site: HasOrigin, session_cookie: str = "session") -> None:
        self._origin = site.origin
        self._session_cookie = session_cookie
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._cookies)
        )

    def get(self, page: str) -> str:
        """Load a page."""
        return self._load(page, None)

    def post(self, page: str, **fields: str) -> str:
        """Send a form."""
        return self._load(page, urllib.parse.urlencode(fields).encode())

    def log_in(self, uid: int) -> str:
        """Log in at the site; return the session cookie."""
        assert self.post("login", uid=str(uid)) == "in"
        assert self.get("page") == str(uid)
        return self.cookie

    def log_out(self) -> None:
        """Log out at the site, which takes the cookie away."""
        assert self.post("logout") == "out"
        assert self.get("page") == "None"

    def cookie_signed_again(self) -> str:
        """Load pages until the site has replaced the cookie; signatures contain the time in seconds."""
        before, until = self.cookie, time.monotonic() + PATIENCE
        while self.cookie == before:
            assert time.monotonic() < until, "the site does not sign the cookie again"
            time.sleep(0.05)
            self.get("page")
        return self.cookie

    @property
    def cookie(self) -> str:
        """Return the value of the session cookie."""
        (cookie,) = [cookie for cookie in self._cookies if cookie.name == self._session_cookie]
        assert cookie.value is not None
        return cookie.value

    def _load(self, page: str, body: bytes | None) -> str:
        with self._opener.open(f"{self._origin}/{page}", body, timeout=PATIENCE) as answer:
            return str(answer.read(), "utf-8")
