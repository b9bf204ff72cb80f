"""
What the console tells the developer of a wrongly configured site, and a site that deletes cookies it does not know.
"""

from __future__ import annotations

import http.cookies
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.client_page import PREPARE, QUICK, Client, Clients
from tests.support import ROOT
from tests.support.programs import RelayProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route


def warnings_of(client: Client) -> list[str]:
    """Return what the client has written to the console as warnings."""
    warnings: list[str] = []
    client.page.on("console", lambda said: warnings.append(said.text) if said.type == "warning" else None)
    return warnings


# ---- What the console says --------------------------------------------------------------------------


def deny(connection: Any) -> None:
    """Answer as a relay that denies each login."""
    connection.send('{"type":"auth-response","response":false}')


def test_site_that_contradicts_itself_has_a_warning(clients: Clients) -> None:
    anna = clients.open("Anna")
    warnings = warnings_of(anna)
    anna.meet(deny)
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    for _ in range(3):
        anna.wait_for("logged-out")
        anna.page.evaluate("client.connect()")
    anna.wait_for("logged-out")
    (warning,) = warnings
    assert "whoami says that user 1 is logged in" in warning
    assert "the relay was told" in warning
    assert "docs/webserver.rst" in warning


def test_logout_and_denied_session_id_have_no_warning(clients: Clients) -> None:
    anna = clients.open("Anna")
    warnings = warnings_of(anna)
    anna.meet(deny)
    answers = iter([1, 1, 1])
    # Still logged in when the second handshake begins, but not when it is denied.
    anna.page.route("**/whoami", lambda route: route.fulfill(json={"loggedin": True, "uID": next(answers, 2)}))
    for options in ("{user: 1, login: () => 'wrong'}", "{user: 1, whoami: () => null}"):
        anna.start(clients.relay, options)
        anna.wait_for("logged-out")
    assert warnings == []


def test_unusable_answer_of_whoami_has_a_warning(clients: Clients) -> None:
    answers: list[tuple[Callable[[Route], None], str, str]] = [
        (lambda route: route.fulfill(status=404, body="no"), "waiting", "status 404"),
        (lambda route: route.fulfill(body="<h1>hello</h1>", content_type="text/html"), "waiting", "is not JSON"),
        (lambda route: route.fulfill(json={"user": 1}), "logged-out", "loggedin"),
        (lambda route: route.fulfill(json={"loggedin": "true", "uID": 1}), "logged-out", "loggedin"),
        (lambda route: route.fulfill(json={"loggedin": True, "uid": 1}), "logged-out", "uID"),
    ]
    anna = clients.open("Anna")
    warnings = warnings_of(anna)
    for answer, state, said in answers:
        warnings.clear()
        anna.page.route("**/whoami", answer)
        anna.start(clients.relay, f"{{user: 1, whoami: '/whoami', {QUICK}}}")
        anna.wait_for(state)
        if state == "waiting":
            anna.wait_until(lambda: anna.states.count("waiting") > 2)
        anna.page.evaluate("client.close()")
        anna.page.unroute("**/whoami")
        (warning,) = warnings
        assert "/whoami" in warning
        assert said in warning
        assert '{"loggedin": true, "uID": …}' in warning


# ---- A site that deletes a cookie it does not know --------------------------------------------------


class Cookies(ThreadingHTTPServer):
    """
    A site as many frameworks make them: each answer deletes the cookie of an unknown session.

    :ivar users: session -> uID
    :ivar relay: the relay that asks the site
    """

    daemon_threads = True
    relay: RelayProcess

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.users = {"anna": 1}
        self.has_logged_in = threading.Event()


class _Page(BaseHTTPRequestHandler):
    server: Cookies

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        cookie = http.cookies.SimpleCookie(self.headers.get("Cookie", "")).get("sid")
        user = self.server.users.get(cookie.value) if cookie else None
        if self.path != "/whoami":
            script = (ROOT / "chatrelay" / "static" / "chatrelay.js").read_bytes()
            is_script = self.path.endswith(".js")
            return self.answer(script if is_script else b"<p>", "text/javascript" if is_script else "text/html")
        deletes = cookie is not None and user is None
        if deletes:
            self.server.has_logged_in.wait(10)
            time.sleep(0.1)  # the other answer arrives
        said = {"loggedin": False} if user is None else {"loggedin": True, "uID": user}
        self.answer(json.dumps(said).encode(), "application/json", "sid=; Max-Age=0; Path=/" if deletes else None)

    def do_POST(self) -> None:
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.path == "/session":
            user = self.server.users.get(form["SESSID"][0])
            said = {"loggedin": False} if user is None else {"loggedin": True, "uID": user}
            return self.answer(json.dumps(said).encode(), "application/json")
        # A login as Bo in the browser of Anna, whose session is over, and so is her chat.
        self.server.users.clear()
        self.server.users["bo"] = 2
        assert self.server.relay.ops("POST", "/v1/revoke", {"uID": 1}, TOKEN)[0] == 200
        time.sleep(0.2)
        self.answer(b"", "text/html", "sid=bo; Path=/; HttpOnly")
        self.server.has_logged_in.set()

    def answer(self, body: bytes, kind: str, cookie: str | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if cookie is not None:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)


TOKEN = secrets.token_hex(16)


@pytest.fixture
def cookies(tmp_path: Path) -> Iterator[Cookies]:
    """Start the site and its relay."""
    site = Cookies()
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    origin = f"http://127.0.0.1:{site.server_port}"
    token = tmp_path / "ops-token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with RelayProcess(
        tmp_path,
        *("--auth-url", f"{origin}/session", "--session-cookie", "sid", "--origin", origin, "--message-log", "none"),
        *("--ops-listen", "tcp:0:interface=127.0.0.1", "--ops-token-file", str(token)),
    ) as site.relay:
        site.relay.ready()
        yield site
    site.shutdown()
    site.server_close()
    thread.join()


def test_page_closed_by_a_login_does_not_use_the_new_cookie(browser: Browser, cookies: Cookies) -> None:
    origin = f"http://127.0.0.1:{cookies.server_port}"
    context = browser.new_context()
    context.set_default_timeout(15_000)
    context.add_cookies([{"name": "sid", "value": "anna", "url": origin}])
    page, login = context.new_page(), context.new_page()
    for each in (page, login):
        each.goto(f"{origin}/page")
    page.evaluate(PREPARE.replace("/static/", "/"))
    anna = Client(page)
    anna.start(cookies.relay.url, "{user: 1, whoami: '/whoami'}")
    anna.wait_for("connected")

    login.evaluate("fetch('/login', { method: 'POST', body: 'name=Bo' })")
    anna.wait_for("logged-out")
    assert [cookie["value"] for cookie in context.cookies()] == ["bo"]
    assert anna.state["somebodyElse"] == 2
    context.close()
