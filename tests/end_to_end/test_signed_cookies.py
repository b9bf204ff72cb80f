"""Sites that keep the session in a signed cookie, so that nothing on the server ends with a logout."""

from __future__ import annotations

import http.cookiejar
import importlib.util
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
from typing import Any, Self

import pytest

from tests.end_to_end.programs import PATIENCE, ROOT, Client, RelayProcess

ADMITTED = {"type": "auth-response", "response": True}
TOKEN = "0123456789abcdef0123456789abcdef"
MODULES = {"flask": "flask", "starlette": "starlette", "django": "django", "jwt": "jwt"}


class Site:
    """One of `tests.end_to_end.signed_cookie_sites` as a process, and the relay that asks it.

    :ivar relay: looks for ended sessions three times a second.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.signed_cookie_sites", kind],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
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
        """A connection that a page of the site opens and logs in."""
        client = self.relay.client(origin=self.origin, additional_headers={"Cookie": f"session={cookie}"})
        assert client.log_in(None) == ADMITTED
        return client

    def revoke(self, **whose: object) -> Any:
        """``POST /v1/revoke``."""
        status, answer = self.relay.ops("POST", "/v1/revoke", whose, TOKEN)
        assert status == 200
        return answer

    def whose(self, cookie: str) -> Any:
        """Ask the session page as the relay does."""
        return json.loads(Browser(self).post("session", SESSID=cookie))

    def times_asked(self) -> int:
        """How often the session page was asked about a valid cookie."""
        return int(Browser(self).get("asked"))

    @contextmanager
    def file(self, name: str, content: object = "") -> Iterator[None]:
        """With a file in the site's folder, by which it does something else."""
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


class Browser:
    """What a visitor's browser keeps of a site: its cookies."""

    def __init__(self, site: Site) -> None:
        self._origin = site.origin
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
        """Load pages until the site has replaced the cookie; the signatures name seconds."""
        before, until = self.cookie, time.monotonic() + PATIENCE
        while self.cookie == before:
            assert time.monotonic() < until, "the site does not sign the cookie again"
            time.sleep(0.05)
            self.get("page")
        return self.cookie

    @property
    def cookie(self) -> str:
        """The value of the session cookie."""
        (cookie,) = [cookie for cookie in self._cookies if cookie.name == "session"]
        assert cookie.value is not None
        return cookie.value

    def _load(self, page: str, body: bytes | None) -> str:
        with self._opener.open(f"{self._origin}/{page}", body, timeout=PATIENCE) as answer:
            return str(answer.read(), "utf-8")


@pytest.fixture(scope="module", params=MODULES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running site, and its relay."""
    module = MODULES[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'chatrelay[test]'")
    with Site(request.param, tmp_path_factory.mktemp(request.param)) as site:
        yield site


def delivered(sender: Client, recipient: Client, uid: int) -> bool:
    """Whether a message to a user is told as delivered, and comes."""
    sender.send(uid, "Are you there?")
    response = sender.hear()["response"]
    return bool(response["value"]) and recipient.hear()["message"]["content"] == "Are you there?"


def test_a_logged_out_cookie_stays_good_and_its_connection_is_delivered_to(site: Site) -> None:
    browser = Browser(site)
    cookie = browser.log_in(1)
    with site.page(cookie) as alice, site.page(Browser(site).log_in(2)) as bo:
        browser.log_out()
        assert site.whose(cookie) == {"loggedin": True, "uID": 1}
        before, until = site.times_asked(), time.monotonic() + PATIENCE
        while site.times_asked() < before + 4:  # two re-checks of each
            assert time.monotonic() < until
            time.sleep(0.05)
        assert delivered(bo, alice, 1)
        site.page(cookie).close()


def test_a_logout_that_revokes_by_uid_ends_all_connections_of_the_user(site: Site) -> None:
    browser = Browser(site)
    cookie = browser.log_in(1)
    with (
        site.file("ops-port", site.relay.ops_port),
        site.page(cookie) as alice,
        site.page(cookie) as tab,
        site.page(Browser(site).log_in(2)) as bo,
    ):
        browser.log_out()
        # The relay closes them before it answers the site.
        assert alice.closed()[0] == tab.closed()[0] == 4505
        bo.send(1, "Are you there?")
        assert bo.hear()["response"]["reason"] == "receiving-user-not-connected"


def test_revoking_by_sessid_misses_a_cookie_that_was_signed_again(site: Site) -> None:
    browser = Browser(site)
    with site.page(browser.log_in(1)) as alice, site.page(Browser(site).log_in(2)) as bo:
        assert site.revoke(SESSID=browser.cookie_signed_again()) == {"ended": 0}
        assert delivered(bo, alice, 1)
        assert site.revoke(uID=1) == {"ended": 1}
        assert alice.closed()[0] == 4505


def test_a_site_that_notes_its_logouts_ends_that_login_alone(site: Site) -> None:
    """With a short ``expires_in``, and without the ops endpoint."""
    browser, other = Browser(site), Browser(site)
    with (
        site.file("ended-logins"),
        site.page(browser.log_in(1)) as alice,
        site.page(other.log_in(1)) as elsewhere,
        site.page(Browser(site).log_in(2)) as bo,
    ):
        browser.log_out()
        assert alice.closed()[0] == 4501
        assert delivered(bo, elsewhere, 1)


def test_a_relay_that_is_not_there_keeps_nobody_from_logging_out(site: Site) -> None:
    browser = Browser(site)
    browser.log_in(1)
    with site.file("ops-port", 1):
        browser.log_out()
