"""
A page in the background that the browser freezes to save power or memory.

It does not use Playwright, which makes every page believe that it is visible. A visible page is never frozen.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.browser.people import CHROMIUM_FLAGS, chromium
from tests.support import PATIENCE, eventually
from tests.support.client import Client
from tests.support.programs import RelayProcess, Site

START = """(async () => {
  const { ChatClient } = await import("/chatrelay.js");
  globalThis.states = [];
  globalThis.contents = [];
  globalThis.client = new ChatClient("%s", { user: 1, login: () => "anna's" });
  client.addEventListener("state", ({ state }) => states.push(state.name));
  client.addEventListener("message", ({ message }) => contents.push(message.content));
  client.connect();
})()"""


class Chromium:
    """
    The browser, by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

    :param profile: a folder for its files
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._last = 0

    def __enter__(self) -> Self:
        # "new" is the browser that people have, without a window; the old one knows no tabs in the background.
        flags = [*CHROMIUM_FLAGS, "--headless=new", f"--user-data-dir={self._profile}", "--remote-debugging-port=0"]
        with ExitStack() as stack:
            output = stack.enter_context((self._profile / "output").open("w"))
            process = subprocess.Popen([chromium(), *flags, "about:blank"], stderr=output)
            stack.callback(process.wait, PATIENCE)
            stack.callback(process.terminate)
            address = self._profile / "DevToolsActivePort"
            eventually(lambda: address.exists() and len(address.read_text().split()) == 2)
            port, path = address.read_text().split()
            self._connection = stack.enter_context(Client(f"ws://127.0.0.1:{port}{path}"))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def call(self, method: str, session: str | None = None, **parameters: object) -> Any:
        """Call a method; return its result."""
        self._last += 1
        request = {"id": self._last, "method": method, "params": parameters}
        self._connection.say(request if session is None else {**request, "sessionId": session})
        while (answer := self._connection.hear()).get("id") != self._last:
            pass  # an event
        return answer["result"]

    def open(self, url: str) -> tuple[str, str]:
        """Open a tab; return the ids of the tab and of a session with it."""
        tab = self.call("Target.createTarget", url=url)["targetId"]
        return tab, self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]

    def evaluate(self, session: str, expression: str) -> Any:
        """Return the value of an expression of JavaScript on the page."""
        parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        return self.call("Runtime.evaluate", session, **parameters)["result"].get("value")


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    """Start a relay and a site where Anna is 1 and Bo is 2."""
    site = Site()
    site.users |= {"anna's": 1, "bo's": 2}
    with RelayProcess(tmp_path, "--auth-url", site.url, "--message-log", "none") as relay:
        relay.ready()
        yield relay
    site.close()


def test_page_frozen_by_the_browser_is_not_connected(relay: RelayProcess, cacheable_page: str, tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    with Chromium(tmp_path / "profile") as browser, relay.client() as bo:
        bo.log_in("bo's")

        def answer(content: str) -> dict[str, Any]:
            bo.send(1, content)
            response: dict[str, Any] = bo.hear()["response"]
            return response

        anna = browser.open(cacheable_page)[1]
        eventually(lambda: browser.evaluate(anna, "location.href") == cacheable_page)
        eventually(lambda: browser.evaluate(anna, "document.readyState") == "complete")
        browser.evaluate(anna, START % relay.url)
        eventually(lambda: browser.evaluate(anna, "client.state.name") == "connected")
        assert answer("seen")["value"]

        browser.call("Target.activateTarget", targetId=browser.open("about:blank")[0])
        eventually(lambda: browser.evaluate(anna, "document.hidden"))
        browser.call("Page.setWebLifecycleState", anna, state="frozen")
        eventually(
            lambda: answer("while it is on its way out").get("reason") == "receiving-user-not-connected", pause=0.15
        )
        assert not answer("unseen")["value"]

        browser.call("Page.setWebLifecycleState", anna, state="active")
        eventually(lambda: browser.evaluate(anna, "client.state.name") == "connected")
        assert browser.evaluate(anna, "states") == ["connecting", "connected", "idle", "connecting", "connected"]
        assert answer("seen again")["value"]
        eventually(lambda: browser.evaluate(anna, "contents.at(-1)") == "seen again")
        assert "unseen" not in browser.evaluate(anna, "contents")
