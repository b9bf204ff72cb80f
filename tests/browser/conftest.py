"""Fixtures of browsers: a demo, a line to it that can be cut, and people at browsers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.ports import free_port
from tests.browser.client_page import Clients
from tests.browser.people import CHROMIUM_FLAGS, Demo, Line, People, chromium
from tests.support import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def ports() -> dict[str, int]:
    """Choose the ports of every demo: of the website, of the relay as the page knows it, and of the line's far end."""
    return {"website": free_port(), "relay": free_port(), "line": free_port()}


# Not for the session: while Playwright runs, no other test could use asyncio.run.
@pytest.fixture(scope="module")
def browser(ports: dict[str, int]) -> Iterator[Browser]:
    """Start the system's Chromium. It connects to the line as if that were the relay."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed: pip install 'chatrelay[test]'")
    executable = chromium()
    detour = f"--host-resolver-rules=MAP 127.0.0.1:{ports['relay']} 127.0.0.1:{ports['line']}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[*CHROMIUM_FLAGS, detour],
            # Playwright switches the cache off, which everybody's browser has on.
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        browser.close()


@pytest.fixture
def demo(ports: dict[str, int], tmp_path: Path) -> Iterator[Demo]:
    """Start a demo with its own message log."""
    demo = Demo(ports["website"], ports["relay"], tmp_path)
    demo.start()
    yield demo
    if demo.process.poll() is None:
        demo.stop()


@pytest.fixture
def line(ports: dict[str, int]) -> Iterator[Line]:
    """Return the line through which the browsers connect to the relay."""
    line = Line(ports["line"], ports["relay"])
    yield line
    line.close()


@pytest.fixture
def people(browser: Browser, demo: Demo, line: Line) -> Iterator[People]:
    """Return people at browsers, with a running demo."""
    people = People(browser, demo, line)
    yield people
    for person in people.everybody:
        person.leave()


@pytest.fixture
def clients(people: People, demo: Demo) -> Clients:
    """Return pages with nothing but a client in them."""
    return Clients(people, demo)


class _Files(SimpleHTTPRequestHandler):
    """The client's folder, without the demo's Cache-Control: no-store, which keeps a page out of the cache."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(ROOT / "chatrelay" / "static"))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def cacheable_page() -> Iterator[str]:
    """Serve a page without a script of its own, which may be kept in the cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/notice.html"
    server.shutdown()
    server.server_close()
    thread.join()
