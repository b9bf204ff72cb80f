"""
How the client keeps its connection, and notices that it is lost, with the real relay.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.client_page import PREPARE, QUICK, SLOW, Client, Clients, admit, log_in
from tests.browser.people import Demo, Line, People
from tests.support import ROOT
from tests.support.programs import RelayProcess, Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MINUTE = 60_000

HOUR = 60 * MINUTE


# ---- Sessions that are renewed, and that end ----------------------------------------------------------


@pytest.fixture
def recheck_interval() -> int:
    """Return the seconds between re-checks; 0 for a relay that sends none."""
    return 1


@pytest.fixture
def other_relay(demo: Demo, line: Line, tmp_path: Path, recheck_interval: int) -> Iterator[RelayProcess]:
    """
    Start a relay for the browsers. The demo revokes the session at every logout, so its own relay needs no re-check.
    """
    with RelayProcess(
        tmp_path,
        *("--auth-url", f"{demo.url}session", "--session-cookie", "demo_session"),
        *("--origin", demo.url.rstrip("/"), "--recheck-interval", str(recheck_interval), "--message-log", "none"),
    ) as relay:
        line.target = relay.ready().port
        yield relay


def test_renewed_cookie_keeps_the_user_logged_in(clients: Clients, demo: Demo, other_relay: RelayProcess) -> None:
    anna = clients.connect("Anna", 1)
    log_in(anna.page.context, demo, "Anna")  # another session id; the old one is denied from now on
    anna.wait_until(lambda: anna.states == ["connecting", "connected"] * 2)
    assert len(anna.urls) == 2
    assert anna.send(1, "still here")["result"] == "delivered"


def test_ended_session_is_tried_once_more(clients: Clients, demo: Demo, other_relay: RelayProcess) -> None:
    anna = clients.open("Anna")
    # It goes by what the relay says alone.
    anna.start(clients.relay, f"{{user: 1, whoami: () => 1, {QUICK}}}")
    anna.wait_for("connected")
    anna.page.context.request.post(f"{demo.url}logout")
    anna.wait_for("logged-out")
    assert anna.states == ["connecting", "connected", "connecting", "logged-out"]
    anna.page.wait_for_timeout(500)
    assert len(anna.urls) == 2


def test_logged_in_user_reconnects_once_after_a_logout_in_another_browser(clients: Clients) -> None:
    anna = clients.open("Anna")
    connections = anna.meet(admit)
    anna.page.clock.install()
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    anna.wait_for("connected")
    connections[-1].close(code=4505)  # as after a logout elsewhere
    assert anna.wait_for("ended")["code"] == 4505
    for _ in range(200):
        if anna.state["name"] == "connected":
            break
        anna.page.clock.run_for(500)
        anna.page.wait_for_timeout(20)  # the site answers in its own time
    assert anna.states == ["connecting", "connected", "ended", "connecting", "connected"]
    connections[-1].close(code=4505)  # at once, by an operator who means it
    assert anna.wait_for("ended")["code"] == 4505
    for _ in range(40):
        anna.page.clock.run_for(1_000)
        anna.page.wait_for_timeout(20)
    assert anna.state == {"name": "ended", "code": 4505}
    assert len(connections) == 2
    assert anna.states == ["connecting", "connected", "ended", "connecting", "connected", "ended"]


def test_session_id_without_whoami_is_not_tried_again(clients: Clients) -> None:
    anna = clients.open("Anna")
    connections = anna.meet(lambda connection: connection.close(code=4505))
    anna.page.clock.install()
    anna.start(clients.relay, "{user: 1, login: () => 'signed'}")
    anna.wait_for("ended")
    for _ in range(3):
        anna.page.clock.run_for(MINUTE)
        anna.page.wait_for_timeout(20)
    assert len(connections) == 1


def test_unreadable_login_is_tried_again_later(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.page.evaluate("globalThis.sessid = 42")  # not a string
    anna.start(clients.relay, f"{{user: 1, login: () => sessid, {SLOW}}}")
    assert anna.wait_for("waiting")["reason"] == "invalid-auth-request"
    assert len(anna.urls) == 1


def test_site_that_alternately_admits_and_denies_causes_no_loop(clients: Clients) -> None:
    anna = clients.open("Anna")
    connections = anna.meet(admit)
    anna.start(clients.relay, f"{{user: 1, whoami: '/whoami', {QUICK}}}")
    for _ in range(2):
        anna.wait_for("connected")
        anna.page.wait_for_timeout(50)
        connections[-1].close(code=4501)
        anna.wait_until(lambda: anna.states[-1] != "connected" or len(connections) == 2)
    anna.wait_for("logged-out")
    assert len(connections) == 2


def test_fresh_ticket_is_fetched_for_every_login(demo: Demo, clients: Clients, line: Line, tmp_path: Path) -> None:
    site = Site()
    tickets: list[str] = []

    def take(request: Any) -> None:
        once = site.users.pop(site.asked[-1], None)
        request.reply(200, {"loggedin": False} if once is None else {"loggedin": True, "uID": once})

    def give() -> str:
        tickets.append(f"ticket-{secrets.token_hex(8)}")
        site.users[tickets[-1]] = 1
        return tickets[-1]

    site.answer = take
    options = ("--auth-url", site.url, "--auth-tickets", "yes", "--message-log", "none")
    anna = clients.open("Anna")
    anna.page.expose_function("ticket", give)
    for _ in range(2):  # a relay, and another after a restart
        with RelayProcess(tmp_path, *options) as relay:
            line.target = relay.ready().port
            if not tickets:
                anna.start(clients.relay, f"{{user: 1, login: async () => await ticket(), {QUICK}}}")
            anna.wait_for("connected")
            assert anna.send(1, "Hej")["result"] == "delivered"
            come_online(anna)  # it checks the connection, with another ticket
            anna.wait_until(lambda: len(tickets) > 1 and tickets[-2] in site.asked)
            anna.wait_until(lambda: site.asked[-1] == tickets[-1])
            relay.stop()
        anna.wait_for("waiting", "connecting")
    site.close()
    assert len(site.asked) == len(set(site.asked)) >= 4
    assert "logged-out" not in anna.states


def test_login_function_without_a_user_or_with_an_error_is_reported(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.start(clients.relay, "{user: 1, login: async () => null}")
    anna.wait_for("logged-out")
    anna.start(clients.relay, "{user: 1, login: () => { throw new Error('mistake'); }}")
    assert anna.wait_for("waiting")["reason"] == "webserver-unavailable"
    assert "mistake" in anna.page.evaluate("String(client.state.error)")
    assert anna.urls == []


# ---- The back/forward cache -------------------------------------------------------------------------


@pytest.fixture
def anna_and_bo(browser: Browser, cacheable_page: str, tmp_path: Path) -> Iterator[tuple[Client, Client]]:
    """Open two pages that are connected."""
    site = Site()
    site.users |= {"anna's": 1, "bo's": 2}
    clients = []
    with RelayProcess(tmp_path, "--auth-url", site.url, "--message-log", "none") as relay:
        relay.ready()
        for user, sessid in ((1, "anna's"), (2, "bo's")):
            page = browser.new_context().new_page()
            page.set_default_timeout(15_000)
            page.goto(cacheable_page)
            page.evaluate(PREPARE.replace("/static/", "/"))
            clients.append(Client(page))
            clients[-1].start(relay.url, f"{{user: {user}, login: () => {json.dumps(sessid)}}}")
            clients[-1].wait_for("connected")
        yield clients[0], clients[1]
        for client in clients:
            client.page.context.close()
    site.close()


ABSENT = {"result": "refused", "reason": "receiving-user-not-connected"}


def wait_until_absent(client: Client, user: int) -> None:
    """Wait until the relay reports the other user as absent: the browser closes the connection in its own time."""
    for _ in range(100):
        if client.send(user, "while the page is on its way out") == ABSENT:
            break
        client.page.wait_for_timeout(150)  # the relay takes ten messages a second


def test_page_in_the_back_forward_cache_is_not_connected(anna_and_bo: tuple[Client, Client]) -> None:
    anna, bo = anna_and_bo
    assert bo.send(1, "seen")["result"] == "delivered"

    there = anna.page.url
    anna.page.goto(there.replace("notice", "login"))
    wait_until_absent(bo, 1)
    for _ in range(5):
        assert bo.send(1, "unseen") == ABSENT

    anna.page.go_back(wait_until="commit")  # a page from the cache has no load event
    assert anna.page.url == there
    # A reload of the page would have removed its script.
    anna.wait_for("connected")
    assert anna.states == ["connecting", "connected", "idle", "connecting", "connected"]
    assert bo.send(1, "seen again")["result"] == "delivered"
    anna.wait_until(lambda: anna.messages[-1] == "seen again")
    assert "unseen" not in anna.messages


def test_closed_page_that_returns_from_the_cache_stays_closed(anna_and_bo: tuple[Client, Client]) -> None:
    anna, _ = anna_and_bo
    anna.page.evaluate("client.close()")
    anna.page.goto(anna.page.url.replace("notice", "login"))
    anna.page.go_back(wait_until="commit")  # a page from the cache has no load event
    anna.page.wait_for_timeout(300)
    assert anna.states == ["connecting", "connected", "idle"]


# ---- Connections that are dead ------------------------------------------------------------------------


def hide(page: Page, hidden: bool) -> None:
    """Hide the page as changing tabs does; headless Chromium counts every tab as visible."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            Object.defineProperty(document, "visibilityState", { value: hidden ? "hidden" : "visible", configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def come_online(anna: Client) -> None:
    anna.page.evaluate("dispatchEvent(new Event('online'))")


def come_back_after_a_minute(anna: Client) -> None:
    hide(anna.page, True)
    anna.page.clock.run_for(MINUTE + 1_000)
    hide(anna.page, False)


def hear_nothing_for_minutes(anna: Client) -> None:
    anna.page.clock.run_for(4.5 * MINUTE)  # the page's clock goes on by itself, too
    assert anna.auth_requests == 1
    while anna.auth_requests == 1:
        anna.page.clock.run_for(5_000)


@pytest.mark.parametrize("event", [come_online, come_back_after_a_minute, hear_nothing_for_minutes])
def test_client_that_only_reads_notices_a_dead_connection(
    clients: Clients, line: Line, event: Callable[[Client], None]
) -> None:
    anna = clients.open("Anna")
    anna.page.clock.install()
    anna.start(clients.relay, f"{{user: 1, whoami: '/whoami', answerTimeout: {10 * MINUTE}, {QUICK}}}")
    anna.wait_for("connected")
    line.hold_answers()
    event(anna)
    anna.wait_until(lambda: anna.auth_requests == 2)
    anna.page.clock.run_for(8 * MINUTE)
    assert anna.state["name"] == "connected"
    anna.page.clock.run_for(2 * MINUTE)
    anna.wait_until(lambda: anna.states[-1] != "connected")
    line.pass_answers()
    anna.page.clock.resume()
    anna.wait_until(lambda: len(anna.urls) > 1 and anna.states[-1] == "connected")


def test_live_connection_is_checked_seldom_and_kept(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.page.clock.install()
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    anna.wait_for("connected")
    # In less than a minute the client takes its word for it.
    hide(anna.page, True)
    anna.page.clock.run_for(MINUTE / 2)
    hide(anna.page, False)
    anna.page.clock.run_for(3 * MINUTE)
    assert anna.send(1, "Something has come.")["result"] == "delivered"
    anna.page.clock.run_for(4.5 * MINUTE)
    assert anna.auth_requests == 1
    for _ in range(20 * 6):
        anna.page.clock.run_for(10_000)
        anna.wait_until(lambda: anna.auth_requests == anna.auth_responses)
    # Each after 5 to 6 minutes.
    assert 3 <= anna.auth_requests - 1 <= 5
    assert anna.states == ["connecting", "connected"]
    assert len(anna.urls) == 1


FAILURES = pytest.mark.parametrize("failure", ["throw new Error('no ticket')", "return new Promise(() => {})"])


@FAILURES
def test_site_that_gives_no_ticket_is_asked_no_more_often(anna_and_bo: Any, failure: str) -> None:
    anna, _ = anna_and_bo
    anna.page.evaluate("client.close()")
    anna.page.clock.install()
    login = f'() => {{ if (!calls++) return "anna\'s"; if (calls > 50) return new Promise(() => {{}}); {failure}; }}'
    anna.page.evaluate("globalThis.calls = 0")
    anna.start(anna.urls[0], f"{{user: 1, login: {login}}}")
    anna.wait_for("connected")
    for _ in range(20 * 6):
        anna.page.clock.run_for(10_000)
    # Each after 5 to 6 minutes, and the page's clock may have been quick by a minute.
    assert 3 <= anna.page.evaluate("calls") - 1 <= 5
    assert anna.states == ["connecting", "connected"]


@pytest.mark.parametrize("recheck_interval", [0])
def test_denied_check_reconnects_with_the_current_cookie(
    clients: Clients, demo: Demo, other_relay: RelayProcess
) -> None:
    anna = clients.connect("Anna", 1)
    log_in(anna.page.context, demo, "Anna")
    come_online(anna)
    anna.wait_until(lambda: anna.states == ["connecting", "connected"] * 2)
    anna.page.context.request.post(f"{demo.url}logout")
    come_online(anna)
    anna.wait_for("logged-out")


# ---- Waiting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["focus", "online", "visibilitychange"])
def test_returning_user_does_not_wait(clients: Clients, line: Line, event: str) -> None:
    anna = clients.connect("Anna", 1, SLOW)
    line.cut()
    state = anna.wait_for("waiting")
    assert 0 < state["retryAt"] - anna.page.evaluate("performance.now()") < HOUR
    line.repair()
    target = "document" if event == "visibilitychange" else "window"
    anna.page.evaluate(f"{target}.dispatchEvent(new Event('{event}'))")
    anna.wait_for("connected")


def test_hidden_page_waits_longer_and_never_gives_up(clients: Clients, line: Line) -> None:
    anna = clients.open("Anna")
    anna.page.clock.install()
    anna.start(clients.relay, f"{{user: 1, whoami: () => 1, {SLOW}, longestDelay: 30_000}}")
    anna.wait_for("connected")

    hide(anna.page, True)
    line.cut()
    while len(anna.waits) < 4:
        anna.wait_for("waiting")
        anna.page.clock.run_for(5 * MINUTE)
    # Half of it, at random, up to the whole.
    assert all(2.5 * MINUTE <= wait <= 5 * MINUTE for wait in anna.waits)
    hidden = len(anna.waits)
    hide(anna.page, False)
    anna.wait_until(lambda: len(anna.waits) > hidden)
    assert anna.waits[-1] <= 30_000
    line.repair()
    anna.page.clock.run_for(30_000)
    anna.wait_for("connected")


def test_durations_do_not_depend_on_a_set_clock(clients: Clients, line: Line) -> None:
    anna = clients.connect("Anna", 1, QUICK)
    anna.page.evaluate("Date.now = () => 0")
    line.cut()
    anna.wait_until(lambda: len(anna.waits) > 4)
    assert all(0 < wait <= 200 for wait in anna.waits)
    line.repair()
    anna.wait_for("connected")


def test_closed_client_is_garbage_collected(clients: Clients) -> None:
    anna = clients.connect("Anna", 1)
    anna.page.evaluate("client.send(1, 'Hej')")
    anna.page.evaluate("globalThis.reference = new WeakRef(client); client.close(); globalThis.client = null")
    deadline = time.monotonic() + 15
    while anna.page.evaluate("gc(), reference.deref() !== undefined"):
        assert time.monotonic() < deadline, "something holds the client"
        anna.page.wait_for_timeout(100)


# ---- What the browser forbids ---------------------------------------------------------------------------


def test_insecure_address_on_a_secure_page_is_reported(people: People) -> None:
    anna = Client(people.arrive().page)
    script = (ROOT / "chatrelay" / "static" / "chatrelay.js").read_text()

    def answer(route: Any) -> None:
        if route.request.url.endswith(".js"):
            route.fulfill(body=script, content_type="text/javascript")
        else:
            route.fulfill(body="<!DOCTYPE html>", content_type="text/html")

    anna.page.route("https://site.example/**", answer)
    anna.page.goto("https://site.example/")
    anna.page.evaluate(PREPARE)
    anna.start("ws://site.example/chat", "{user: 1, whoami: () => 1, longestDelay: 50}")
    assert anna.wait_for("waiting")["reason"] == "insecure-url"
    anna.wait_until(lambda: anna.states.count("connecting") > 2)


def test_relay_forbidden_by_the_policy_is_reported(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.start("ws://127.0.0.1:9/", f"{{user: 1, whoami: '/whoami', {QUICK}}}")
    anna.wait_until(lambda: anna.state.get("reason") == "blocked-by-policy")
    anna.wait_until(lambda: anna.states.count("connecting") > 2)


def test_site_address_forbidden_by_the_policy_is_reported(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.start(clients.relay, f"{{user: 1, whoami: 'http://127.0.0.1:9/whoami', {QUICK}}}")
    anna.wait_until(lambda: anna.state.get("reason") == "blocked-by-policy")


def test_other_violation_of_the_policy_is_not_reported(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.page.route("**/whoami", lambda route: None)  # it takes its time
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    anna.page.evaluate(
        """url => new Promise((then) => {
            document.addEventListener("securitypolicyviolation", then);
            document.body.append(Object.assign(document.createElement("iframe"), { src: url }));
        })""",
        f"{clients.demo.url}elsewhere",
    )
    assert anna.states == ["connecting"]


def test_relay_address_may_be_relative_to_the_page(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.start("/chat", "{user: 1, whoami: '/whoami'}")
    anna.wait_until(lambda: anna.urls)
    assert anna.urls[0] == clients.demo.url.replace("http:", "ws:") + "chat"
