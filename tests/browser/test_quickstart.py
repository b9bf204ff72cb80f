"""The code of docs/quickstart.rst, copied into a site with sessions in signed cookies, in a real browser."""

from __future__ import annotations

import importlib.util
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.framework_visitors import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flask") is None, reason="flask is not installed: pip install 'chatrelay[test]'"
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Start the site and its relay."""
    with Site("quickstart", tmp_path) as site:
        (tmp_path / "relay-port").write_text(str(site.relay.port))
        (tmp_path / "ops-port").write_text(str(site.relay.ops_port))
        yield site


@pytest.fixture
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """Return a browser context with its own cookies."""
    context = browser.new_context()
    context.set_default_timeout(15_000)
    yield context
    context.close()


def tab(context: BrowserContext, site: Site) -> Page:
    """Open the page with the chat in a new tab, connected."""
    page = context.new_page()
    page.goto(f"{site.origin}/page")
    page.get_by_text("(connected)").wait_for()
    return page


def submit(context: BrowserContext, site: Site, page: str, **form: str) -> None:
    """Send a form of the site with the browser's cookies, and keep the cookies of the answer."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = context.request.post(
        f"{site.origin}/{page}", data=urllib.parse.urlencode(form), headers=headers, max_redirects=0
    )
    assert answer.status in (200, 302), answer.text()


def test_quickstart_carries_messages_and_its_logout_ends_the_chat(site: Site, visitor: BrowserContext) -> None:
    submit(visitor, site, "login", uid="1")
    page, other = tab(visitor, site), tab(visitor, site)
    page.get_by_placeholder("to (uID)").fill("1")
    page.get_by_placeholder("message").fill("Hej")
    page.get_by_role("button", name="Send").click()
    other.get_by_text("1: Hej", exact=True).wait_for()
    page.get_by_text("to 1: Hej (delivered)").wait_for()

    submit(visitor, site, "logout")
    for each in (page, other):
        each.get_by_text("(logged-out)").wait_for()
