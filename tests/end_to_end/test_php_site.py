"""A site with PHP's own sessions, run by `php -S`, from examples/php."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import PATIENCE, eventually
from tests.support.client import Client
from tests.support.php_site import EXAMPLE, PHP, PhpSite
from tests.support.programs import RelayProcess, StartRelay
from tests.support.v1 import ADMITTED, DENIED

OPS_TOKEN = "0123456789abcdef0123456789abcdef"
UNKNOWN = "abcdefghijklmnopqrstuvwxyz"

pytestmark = pytest.mark.skipif(PHP is None, reason="php is missing (on Debian: apt install php-cli)")


class Browser:
    """The cookies that a visitor's browser keeps of a site."""

    def __init__(self, site: PhpSite) -> None:
        self.site = site
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def get(self, page: str) -> str:
        """Load a page."""
        return self._load(page, None)

    def submit(self, page: str, **fields: str) -> str:
        """Load the page with the form, and send the form with its token."""
        return self.post(page, token=self.token(self.get(page)), **fields)

    def post(self, page: str, **fields: str) -> str:
        """Send a form."""
        return self._load(page, urllib.parse.urlencode(fields).encode())

    def log_in(self, name: str) -> str:
        """Log in at the site; return the session cookie, as the browser would send it."""
        page = self.submit("login.php", name=name, password=name)
        assert f"You are {name}." in page
        return self.session_cookie

    def log_out(self) -> None:
        """Log out at the site."""
        self.post("logout.php", token=self.token(self.get("index.php")))

    @staticmethod
    def token(page: str) -> str:
        """Return the token in a page's first form."""
        found = re.search(r'name="token" value="([0-9a-f]{32})"', page)
        assert found, page
        return found[1]

    @property
    def session_cookie(self) -> str:
        """Return the value of the session cookie."""
        (cookie,) = [cookie for cookie in self.cookies if cookie.name == "PHPSESSID"]
        assert cookie.value is not None
        return cookie.value

    def _load(self, page: str, body: bytes | None) -> str:
        request = urllib.request.Request(f"{self.site.origin}/{page}", body)
        try:
            with self._opener.open(request, timeout=PATIENCE) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read(), "utf-8")


StartSite = Callable[..., PhpSite]


@pytest.fixture
def start_php(tmp_path: Path) -> Iterator[StartSite]:
    """Start PHP sites with php.ini settings, and stop them at the end."""
    with ExitStack() as running:

        def start(*settings: str, pages: Path = EXAMPLE, **environment: str) -> PhpSite:
            return running.enter_context(PhpSite(tmp_path, pages, *settings, **environment))

        yield start


@pytest.fixture
def php(start_php: StartSite) -> PhpSite:
    """Start the example as its README says."""
    return start_php()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartRelay]:
    """Start relays that ask a PHP site."""
    with ExitStack() as running:

        def start(site: PhpSite, *options: str) -> RelayProcess:
            url = f"{site.origin}/session.php"
            return running.enter_context(
                RelayProcess(tmp_path, "--auth-url", url, "--message-log", "memory:", *options)
            )

        yield start


def with_cookie(relay: RelayProcess, site: PhpSite, cookie: str) -> Client:
    """Open a connection as a page of the site does: with its Origin and the site's cookie."""
    return relay.client(origin=site.origin, additional_headers={"Cookie": f"theme=dark; PHPSESSID={cookie}; n=1"})


def converse(alice: Client, bo: Client) -> None:
    """Let Alice write to Bo, and Bo answer."""
    alice.send(2, "Hej från PHP", id="a")
    assert bo.hear()["message"] == {"timeStamp": "0", "fromuID": 1, "touID": 2, "content": "Hej från PHP"}
    assert alice.hear()["response"] == {"id": "a", "value": True}
    bo.send("1", "hej hej", id="b")
    assert alice.hear()["message"] == {"timeStamp": "0", "fromuID": 2, "touID": "1", "content": "hej hej"}
    assert bo.hear()["response"] == {"id": "b", "value": True}


def test_users_of_a_php_site_exchange_messages_by_sessid(php: PhpSite, start: StartRelay) -> None:
    relay = start(php)
    with relay.client() as alice, relay.client() as bo:
        assert alice.log_in(Browser(php).log_in("alice")) == ADMITTED
        assert bo.log_in(Browser(php).log_in("bo")) == ADMITTED
        converse(alice, bo)


def test_users_of_a_php_site_exchange_messages_by_cookie(php: PhpSite, start: StartRelay) -> None:
    relay = start(php, "--session-cookie", "PHPSESSID", "--origin", php.origin)
    alices, bos = Browser(php).log_in("alice"), Browser(php).log_in("bo")
    with with_cookie(relay, php, alices) as alice, with_cookie(relay, php, bos) as bo:
        assert alice.log_in(None) == ADMITTED
        assert bo.log_in(None) == ADMITTED
        converse(alice, bo)
    with with_cookie(relay, php, UNKNOWN) as stranger:
        assert stranger.log_in(None) == DENIED


def test_cookie_encoded_by_php_logs_in(start_php: StartSite, start: StartRelay) -> None:
    php = start_php("session.sid_bits_per_character=6", "session.sid_length=250")
    cookies = (Browser(php).log_in("alice") for _ in range(10))
    cookie = next(cookie for cookie in cookies if "%2C" in cookie)  # one id of this length in 50 has no comma
    relay = start(php, "--session-cookie", "PHPSESSID", "--origin", php.origin)
    with with_cookie(relay, php, cookie) as alice, relay.client() as tab:
        assert alice.log_in(None) == ADMITTED
        assert tab.log_in(urllib.parse.unquote(cookie)) == ADMITTED


UNUSABLE = [
    *(UNKNOWN, "x", "../../../../etc/passwd", "..", ".", "a/b", "a b", "a\r\nb", UNKNOWN + "\n", UNKNOWN + "%00"),
    *("%2e%2e%2fpasswd", "<script>", "ÅÄÖ", "å&SESSID[]=x", "a" * 256, "a" * 257, "a" * 4096),
]


def test_sessid_unknown_to_php_is_denied_and_leaves_no_session_file(php: PhpSite, start: StartRelay) -> None:
    known = Browser(php).log_in("bo")
    before = php.session_files()
    relay = start(php)
    for sessid in (*UNUSABLE, f" {known}", f"{known}\n", f"./{known}", f"{known}%00"):
        with relay.client() as stranger:
            assert (sessid, stranger.log_in(sessid)) == (sessid, DENIED)
    assert php.session_files() == before


def test_user_who_logged_out_or_never_logged_in_is_denied(php: PhpSite, start: StartRelay) -> None:
    relay = start(php)
    alice, visitor = Browser(php), Browser(php)
    sessid = alice.log_in("alice")
    alice.log_out()
    visitor.get("login.php")  # which opens a session, with nobody in it
    with relay.client() as client:
        assert client.log_in(sessid) == DENIED
        assert client.log_in(visitor.session_cookie) == DENIED
    assert f"sess_{sessid}" not in php.session_files()


def ends_chats(start_php: StartSite, start: StartRelay, tmp_path: Path) -> tuple[PhpSite, RelayProcess]:
    """Start the example with its two settings for the ops endpoint, and a relay that asks it once in five minutes."""
    (tmp_path / "ops-token").write_text(f"{OPS_TOKEN}\n")
    settings = tmp_path / "settings.php"
    settings.write_text("<?php ")  # the port is known when the relay runs, which asks the site
    php = start_php(f"auto_prepend_file={settings}", "opcache.enable=0")  # which would not see the change for 2 s
    relay = start(
        php,
        *("--session-cookie", "PHPSESSID", "--origin", php.origin),
        *("--ops-listen", "tcp:0", "--ops-token-file", "ops-token"),
    )
    settings.write_text(
        f"<?php putenv('CHATRELAY_OPS=http://127.0.0.1:{relay.ops_port}');"
        f"putenv('CHATRELAY_OPS_TOKEN_FILE={tmp_path / 'ops-token'}');"
    )
    return php, relay


def test_logout_ends_the_chat_at_once(start_php: StartSite, start: StartRelay, tmp_path: Path) -> None:
    php, relay = ends_chats(start_php, start, tmp_path)
    browser = Browser(php)
    with (
        with_cookie(relay, php, browser.log_in("alice")) as alice,
        with_cookie(relay, php, Browser(php).log_in("bo")) as bo,
    ):
        assert alice.log_in(None) == bo.log_in(None) == ADMITTED
        browser.log_out()
        assert alice.closed()[0] == 4505
        bo.send(1, "Are you there?")
        assert bo.hear()["response"]["reason"] == "receiving-user-not-connected"


def test_login_as_another_user_ends_the_chat_of_the_first(
    start_php: StartSite, start: StartRelay, tmp_path: Path
) -> None:
    php, relay = ends_chats(start_php, start, tmp_path)
    browser = Browser(php)
    with with_cookie(relay, php, browser.log_in("alice")) as alice:
        assert alice.log_in(None) == ADMITTED
        cookie = browser.log_in("bo")
        assert alice.closed()[0] == 4505
        with with_cookie(relay, php, cookie) as bo:
            assert bo.log_in(None) == ADMITTED


@pytest.mark.parametrize("token", ["f" * 32, None])
def test_logout_succeeds_and_is_logged_where_the_chat_cannot_be_ended(
    start_php: StartSite, start: StartRelay, tmp_path: Path, token: str | None
) -> None:
    php, _ = ends_chats(start_php, start, tmp_path)
    (tmp_path / "ops-token").unlink()
    if token is not None:
        (tmp_path / "ops-token").write_text(token)
    browser = Browser(php)
    browser.log_in("alice")
    browser.log_out()
    assert "<title>Log in</title>" in browser.get("index.php")
    eventually(lambda: any("could not end the chat of user 1" in line for line in php.output))


def test_logins_in_a_row_succeed_although_php_closes_each_connection(php: PhpSite, start: StartRelay) -> None:
    relay = start(php)
    sessids = [Browser(php).log_in(name) for name in ("alice", "bo")]
    for sessid in sessids * 5:
        with relay.client() as client:
            assert client.log_in(sessid) == ADMITTED
            assert client.log_in(sessid) == ADMITTED
    assert not [line for line in relay.output if "could not be asked" in line]


def test_session_page_with_a_secret_answers_only_those_who_know_it(
    start_php: StartSite, start: StartRelay, tmp_path: Path
) -> None:
    php = start_php(CHATRELAY_SECRET="correct-horse")
    sessid = Browser(php).log_in("alice")
    (tmp_path / "right").write_text("correct-horse\n")
    (tmp_path / "wrong").write_text("battery-staple\n")
    with start(php, "--auth-secret-file", "right").client() as client:
        assert client.log_in(sessid) == ADMITTED
    for options in (("--auth-secret-file", "wrong"), ()):
        relay = start(php, *options)
        with relay.client() as client:
            assert client.log_in(sessid) == {**DENIED, "reason": "webserver-unavailable"}
        relay.said("could not be asked: it answered with status 400")


def test_request_in_another_format_is_answered_with_an_explanation(php: PhpSite, start: StartRelay) -> None:
    relay = start(php, "--auth-format", "json")
    with relay.client() as client:
        assert client.log_in(Browser(php).log_in("alice")) == {**DENIED, "reason": "webserver-unavailable"}
    relay.said("could not be asked: it answered with status 400")


def test_session_endpoint_answers_nothing_but_its_json(php: PhpSite) -> None:
    sessid = Browser(php).log_in("alice")
    for sent, expected in (
        (sessid, {"loggedin": True, "uID": 1}),
        (UNKNOWN, {"loggedin": False}),
        ("", {"loggedin": False}),
    ):
        before = php.session_files()
        status, headers, body = php.ask(
            urllib.parse.urlencode({"SESSID": sent}).encode(), Cookie=f"PHPSESSID={UNKNOWN}"
        )
        assert (status, json.loads(body)) == (200, expected)
        assert headers["Content-Type"] == "application/json"
        assert "Set-Cookie" not in headers
        assert php.session_files() == before
    for unusable in (None, b"", b"SESSID[]=x"):
        assert php.ask(unusable, Cookie=f"PHPSESSID={sessid}")[0] == 400


def test_php_sessions_in_nested_folders_are_found(start_php: StartSite, tmp_path: Path) -> None:
    php = start_php(f'session.save_path="2;{tmp_path / "php-sessions"}"')
    for first in "0123456789abcdefghijklmnopqrstuv":
        for second in "0123456789abcdefghijklmnopqrstuv":
            (php.sessions / first / second).mkdir(parents=True)
    sessid = Browser(php).log_in("alice")
    before = php.session_files()
    assert before == {f"sess_{sessid}"}
    assert json.loads(php.ask(f"SESSID={sessid}".encode())[2]) == {"loggedin": True, "uID": 1}
    assert json.loads(php.ask(f"SESSID={UNKNOWN}".encode())[2]) == {"loggedin": False}
    assert php.session_files() == before


def test_login_needs_the_form_token_and_the_password_and_gets_a_new_id(php: PhpSite) -> None:
    browser = Browser(php)
    assert "No user of that name" in browser.submit("login.php", name="alice", password="bo")
    assert "No user of that name" in browser.submit("login.php", name="nobody", password="")
    before = browser.session_cookie
    assert "out of date" in browser.post("login.php", token="0" * 32, name="alice", password="alice")
    assert "<title>Log in</title>" in browser.get("index.php")
    assert browser.log_in("alice") != before
    assert f"sess_{before}" not in php.session_files()
    (cookie,) = browser.cookies
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "Lax"


@pytest.mark.parametrize("counts", [False, True])
def test_recheck_counts_as_activity_only_where_session_php_says_so(
    start_php: StartSite, tmp_path: Path, counts: bool
) -> None:
    """Check what docs/webserver.rst says of PHP: files not used for 24 minutes are collected."""
    pages = tmp_path / "pages"
    shutil.copytree(EXAMPLE, pages)
    if counts:
        code = (pages / "session.php").read_text()
        for old, new in (
            ("'read_and_close' => true, ", ""),
            ("?? null : null;", "?? null : null;\n session_write_close();"),
        ):
            assert old in code
            code = code.replace(old, new)
        (pages / "session.php").write_text(code)
    php = start_php(pages=pages)
    sessid = Browser(php).log_in("alice")
    file = php.sessions / f"sess_{sessid}"
    long_ago = time.time() - 23 * 60
    os.utime(file, (long_ago, long_ago))
    assert json.loads(php.ask(f"SESSID={sessid}".encode())[2]) == {"loggedin": True, "uID": 1}
    assert (file.stat().st_mtime > long_ago + 60) is counts


@pytest.mark.parametrize("closes_early", [False, True])
def test_page_delays_the_login_only_while_it_has_the_session_open(
    start_php: StartSite, start: StartRelay, tmp_path: Path, closes_early: bool
) -> None:
    """Check what the example's README says of PHP's lock, and how to avoid it."""
    pages = tmp_path / "pages"
    shutil.copytree(EXAMPLE, pages)
    close = "session_write_close();" if closes_early else ""
    (pages / "slow.php").write_text(
        f"<?php session_start(); {close} touch('begun'); while (!file_exists('end')) {{ usleep(10000); clearstatcache(); }}"
    )
    php = start_php(pages=pages, PHP_CLI_SERVER_WORKERS="3")
    browser = Browser(php)
    sessid = browser.log_in("alice")
    page = threading.Thread(target=browser.get, args=["slow.php"])
    page.start()
    try:
        eventually(lambda: (pages / "begun").exists())
        with start(php, "--webserver-timeout", "0").client() as client:
            client.say_login(sessid)
            if not closes_early:
                assert client.hears_nothing(1)
                (pages / "end").touch()
            assert client.hear() == ADMITTED
    finally:
        (pages / "end").touch()
        page.join(PATIENCE)
