"""
The client ``chatrelay.js`` on a page that has nothing else, with the real relay.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.browser.conftest import Demo, Line, People

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

PREPARE = """
async () => {
  const { ChatClient } = await import("/static/chatrelay.js");
  globalThis.ChatClient = ChatClient;
  globalThis.start = (url, options) => {
    globalThis.states = [];
    globalThis.messages = [];
    globalThis.client = new ChatClient(url, options);
    client.addEventListener("state", ({ state }) => states.push(state));
    client.addEventListener("message", ({ message }) => messages.push(message.content));
    client.connect();
  };
}
"""


@attrs.define
class Client:
    """
    A tab with nothing but a client in it.

    :ivar page: Playwright's page
    """

    page: Page

    def start(self, url: str, options: str) -> None:
        """
        :param options: of the client, in JavaScript
        """
        self.page.evaluate(f"start({json.dumps(url)}, {options})")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.page.evaluate("client.state")
        return state

    def wait_for(self, *names: str) -> dict[str, Any]:
        """
        :param names: of states
        :return: the state, once it is one of these
        """
        self.wait_until(lambda: self.state["name"] in names)
        return self.state

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Until it is so, or the test fails. The pages' policy forbids Playwright's own wait_for_function."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, f"did not come to be; the client is {self.state}, after {self.states}"
            self.page.wait_for_timeout(20)

    def send(self, to: int | str, text: str) -> dict[str, Any]:
        """
        :return: the outcome
        """
        outcome: dict[str, Any] = self.page.evaluate("([to, text]) => client.send(to, text)", [to, text])
        return outcome

    @property
    def states(self) -> list[str]:
        """The names of the states it has been in."""
        names: list[str] = self.page.evaluate("states.map(({ name }) => name)")
        return names

    @property
    def messages(self) -> list[str]:
        """What was written in the messages that came."""
        contents: list[str] = self.page.evaluate("messages")
        return contents


def log_in(context: BrowserContext, demo: Demo, name: str) -> None:
    """What another tab of this browser would do."""
    assert context.request.post(f"{demo.url}login", form={"name": name}).ok


@attrs.define
class Clients:
    """Opens tabs with a client in them, each in a browser with cookies of its own unless it is told one."""

    people: People
    demo: Demo

    def open(self, context: BrowserContext) -> Client:
        page = context.new_page()
        page.set_default_timeout(15_000)
        # Of the demo, but without its script. Chromium keeps a page that a test makes up away from 127.0.0.1.
        page.goto(f"{self.demo.url}nothing")
        page.evaluate(PREPARE)
        return Client(page)

    def browser(self, name: str) -> BrowserContext:
        context = self.people.arrive().page.context
        log_in(context, self.demo, name)
        return context

    @property
    def relay(self) -> str:
        return f"ws://127.0.0.1:{self.demo.relay_port}/"

    def connect(self, name: str, user: int | str, options: str = "") -> Client:
        """Somebody who is logged in, and connected."""
        client = self.open(self.browser(name))
        client.start(self.relay, f"{{user: {json.dumps(user)}, whoami: '/whoami', {options}}}")
        client.wait_for("connected")
        return client


@pytest.fixture
def clients(people: People, demo: Demo) -> Clients:
    return Clients(people, demo)


QUICK = "firstDelay: 50, longestDelay: 200"
"""Options of a client that has a short wait before it tries again."""


# ---- One user --------------------------------------------------------------------------------------


def test_a_page_does_not_reconnect_as_the_user_who_logged_in_in_another_tab(
    clients: Clients, people: People, demo: Demo, line: Line
) -> None:
    anna = clients.connect("Anna", 1, QUICK)
    chidi = clients.connect("Chidi", 3)
    assert anna.send(3, "by Anna")["result"] == "delivered"

    log_in(anna.page.context, demo, "Bo")
    line.cut()
    line.mend()
    state = anna.wait_for("logged-out")
    assert state["somebodyElse"] == 2
    assert anna.send(3, "by whom?") == {"result": "not-sent"}
    chidi.wait_for("connected")
    # Nor was a message for Bo told as delivered to this page.
    assert chidi.send(2, "for Bo")["reason"] == "receiving-user-not-connected"
    assert chidi.messages == ["by Anna"]
    assert anna.messages == []


def test_a_login_during_the_handshake_is_noticed_before_anything_is_sent(
    clients: Clients, people: People, demo: Demo, line: Line
) -> None:
    anna = clients.connect("Anna", 1, QUICK)
    asked: list[str] = []

    def answer_late(route: Route) -> None:
        answer = route.fetch()
        asked.append(answer.text())
        if len(asked) == 1:
            log_in(anna.page.context, demo, "Bo")  # between the site's answer and the handshake
        route.fulfill(response=answer)

    anna.page.route("**/whoami", answer_late)
    line.cut()
    line.mend()
    assert anna.wait_for("logged-out")["somebodyElse"] == 2
    assert json.loads(asked[0])["uID"] == 1
    assert json.loads(asked[-1])["uID"] == 2
    assert anna.states.count("connected") == 1  # before


def test_a_message_for_another_user_ends_the_connection_unshown(clients: Clients) -> None:
    anna = clients.open(clients.browser("Anna"))
    asked: list[Route] = []

    def answer_once(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            route.continue_()

    def relay(connection: Any) -> None:
        def answer(_: str) -> None:
            connection.send('{"type":"auth-response","response":true}')
            for to, text in (("1", "to Anna"), (2, "to Bo")):
                message = {"timeStamp": 1, "fromuID": 3, "touID": to, "content": text}
                connection.send(json.dumps({"type": "message", "message": message}))

        connection.on_message(answer)

    anna.page.route("**/whoami", answer_once)
    anna.page.route_web_socket(re.compile("^ws:"), relay)
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    assert anna.wait_for("logged-out")["somebodyElse"] == 2
    assert anna.messages == ["to Anna"]
    assert "connected" not in anna.states


def _json(answer: object) -> Callable[[Route], None]:
    return lambda route: route.fulfill(json=answer)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (_json({"loggedin": True, "uID": "1"}), "connected"),
        (_json({"loggedin": False, "uID": 1}), "logged-out"),
        (_json({"loggedin": True}), "logged-out"),
        (lambda route: route.fulfill(status=401), "logged-out"),
        (lambda route: route.fulfill(status=403, body="<h1>no</h1>"), "logged-out"),
        (lambda route: route.fulfill(status=500), "waiting"),
        (lambda route: route.fulfill(body="<h1>hello</h1>", content_type="text/html"), "waiting"),
        (lambda route: route.abort(), "waiting"),
    ],
    ids=["user", "nobody", "no-uid", "401", "403", "500", "not-json", "no-answer"],
)
def test_each_answer_about_who_is_logged_in_has_its_state(
    clients: Clients, answer: Callable[[Route], None], state: str
) -> None:
    anna = clients.open(clients.browser("Anna"))
    anna.page.route("**/whoami", answer)
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    found = anna.wait_for(state)
    if state == "waiting":
        assert found["reason"] == "webserver-unavailable"
        anna.page.unroute("**/whoami")
        anna.wait_for("connected")


def test_a_page_that_leads_to_the_login_page_says_nobody(clients: Clients, demo: Demo) -> None:
    anna = clients.open(clients.browser("Anna"))
    # To a page of HTML, as sites do.
    anna.page.route("**/whoami", lambda route: route.fulfill(status=303, headers={"Location": demo.url}))
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    anna.wait_for("logged-out")


def test_a_function_may_say_who_is_logged_in(clients: Clients) -> None:
    anna = clients.open(clients.browser("Anna"))
    anna.start(clients.relay, "{user: '1', whoami: async () => (await (await fetch('/whoami')).json()).uID}")
    anna.wait_for("connected")
    anna.start(clients.relay, "{user: 1, whoami: () => null}")
    anna.wait_for("logged-out")
    anna.start(clients.relay, "{user: 1, whoami: () => {}}")
    anna.wait_for("logged-out")


def test_a_login_elsewhere_is_noticed_when_the_page_has_it_checked(clients: Clients, demo: Demo) -> None:
    anna = clients.connect("Anna", 1)
    anna.page.evaluate("client.check()")
    assert anna.states[-1] == "connected"
    log_in(anna.page.context, demo, "Bo")
    anna.page.evaluate("client.check()")
    assert anna.wait_for("logged-out")["somebodyElse"] == 2
    log_in(anna.page.context, demo, "Anna")
    anna.page.evaluate("client.check()")
    anna.wait_for("connected")
    anna.page.evaluate("client.close()")
    anna.page.evaluate("client.check()")
    assert anna.states[-1] == "idle"


@pytest.mark.parametrize(
    "options", ["undefined", "{}", "{whoami: '/whoami'}", "{user: 1}", "{user: null, whoami: '/'}"]
)
def test_a_client_that_would_be_whoever_is_logged_in_cannot_be_made(clients: Clients, options: str) -> None:
    anna = clients.open(clients.browser("Anna"))
    error = f"() => {{ try {{ new ChatClient('/', {options}); }} catch (error) {{ return String(error); }} }}"
    assert "TypeError: ChatClient needs `" in anna.page.evaluate(error)
