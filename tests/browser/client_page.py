"""
A page with nothing but a client in it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from tests.browser.people import Demo, People

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

PREPARE = """
async () => {
  const { ChatClient } = await import("/static/chatrelay.js");
  globalThis.ChatClient = ChatClient;
  globalThis.wire = { urls: [], authRequests: 0, authResponses: 0 };
  globalThis.WebSocket = class extends WebSocket {
    constructor(...options) {
      super(...options);
      wire.urls.push(this.url);
      this.addEventListener("message", ({ data }) => {
        if (JSON.parse(data).type === "auth-response") ++wire.authResponses;
      });
    }
    send(text) {
      if (JSON.parse(text).type === "auth-request") ++wire.authRequests;
      super.send(text);
    }
  };
  globalThis.start = (url, options) => {
    globalThis.states = [];
    globalThis.messages = [];
    globalThis.client = new ChatClient(url, options);
    client.addEventListener("state", ({ state }) => states.push({ ...state, at: performance.now() }));
    client.addEventListener("message", ({ message }) => messages.push(message.content));
    client.connect();
  };
}
"""


@attrs.define
class Client:
    """
    The client of a page.

    :ivar page: Playwright's page
    """

    page: Page

    def start(self, url: str, options: str) -> None:
        """
        :param options: of the client, in JavaScript
        """
        self.page.evaluate(f"start({json.dumps(url)}, {options})")

    def meet(self, answer: Callable[[Any], object]) -> list[Any]:
        """
        Let the page meet a stand-in instead of every relay.

        :param answer: called with the connection for each message that the client sends
        :return: the connections that it makes, in order
        """
        connections: list[Any] = []

        def relay(connection: Any) -> None:
            connections.append(connection)
            connection.on_message(lambda _: answer(connection))

        self.page.route_web_socket(re.compile("^ws:"), relay)
        return connections

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.page.evaluate("client.state")
        return state

    def wait_for(self, *names: str) -> dict[str, Any]:
        """
        :param names: of states
        :return: the state, once it is one of these
        """
        seen: list[dict[str, Any]] = []

        def is_there() -> bool:
            seen.append(self.state)  # looked at once: it may be another one by the next look
            return seen[-1]["name"] in names

        self.wait_until(is_there)
        return seen[-1]

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds. The pages' policy forbids Playwright's own wait_for_function."""
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
        """Return the names of the states it has been in."""
        names: list[str] = self.page.evaluate("states.map(({ name }) => name)")
        return names

    @property
    def waits(self) -> list[float]:
        """Return the ms that it meant to wait in each state ``waiting``."""
        waits: list[float] = self.page.evaluate(
            "states.filter(({ name }) => name === 'waiting').map(({ at, retryAt }) => retryAt - at)"
        )
        return waits

    @property
    def urls(self) -> list[str]:
        """Return the URLs it has tried to connect to, in order."""
        urls: list[str] = self.page.evaluate("wire.urls")
        return urls

    @property
    def auth_requests(self) -> int:
        """Return how many auth-requests it has sent."""
        number: int = self.page.evaluate("wire.authRequests")
        return number

    @property
    def auth_responses(self) -> int:
        """Return how many auth-responses have come."""
        number: int = self.page.evaluate("wire.authResponses")
        return number

    @property
    def messages(self) -> list[str]:
        """Return the contents of the messages that came."""
        contents: list[str] = self.page.evaluate("messages")
        return contents


def log_in(context: BrowserContext, demo: Demo, name: str) -> None:
    """Log in as another tab of this browser would."""
    assert context.request.post(f"{demo.url}login", form={"name": name}).ok


@attrs.define
class Clients:
    """Opens pages with a client in them, each in a browser context with its own cookies."""

    people: People
    demo: Demo

    def open(self, name: str | None) -> Client:
        """
        Open a page of a logged-in user, or of nobody; its client is not started yet.
        """
        page = self.people.arrive().page  # the login page, which has no script
        if name is not None:
            log_in(page.context, self.demo, name)
        page.evaluate(PREPARE)
        return Client(page)

    @property
    def relay(self) -> str:
        return f"ws://127.0.0.1:{self.demo.relay_port}/"

    def connect(self, name: str, user: int | str, options: str = "") -> Client:
        """Open a page of a logged-in user, and connect."""
        client = self.open(name)
        client.start(self.relay, f"{{user: {json.dumps(user)}, whoami: '/whoami', {options}}}")
        client.wait_for("connected")
        return client


def admit(connection: Any) -> None:
    """Answer as a relay that accepts every login."""
    connection.send('{"type":"auth-response","response":true}')


QUICK = "firstDelay: 50, longestDelay: 200"
"""Options of a client that has a short wait before it tries again."""

SLOW = "firstDelay: 3_600_000, longestDelay: 3_600_000"
"""Options of a client that tries again in an hour, so no test waits for it."""
