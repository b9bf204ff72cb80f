"""
The chat pages of examples/, in a real browser.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.people import Line
from tests.support.example_programs import SiteExample
from tests.support.php_site import EXAMPLE, PHP, PhpSite
from tests.support.programs import RelayProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def php(ports: dict[str, int], line: Line, tmp_path: Path) -> Iterator[PhpSite]:
    """Start the example, with a relay where its pages expect it."""
    with PhpSite(tmp_path, EXAMPLE, CHATRELAY_URL=f"ws://127.0.0.1:{ports['relay']}/") as php:
        options = ("--session-cookie", "PHPSESSID", "--origin", php.origin, "--message-log", "none")
        with RelayProcess(tmp_path, "--auth-url", f"{php.origin}/session.php", *options) as relay:
            line.target = relay.ready().port
            yield php


def log_in(page: Page, php: PhpSite, name: str) -> None:
    """Log in with the form."""
    page.goto(f"{php.origin}/login.php")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(name)
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("Connected.", exact=True).wait_for()


def write(page: Page, to: str, text: str) -> None:
    """Send a message."""
    page.get_by_label("To").select_option(to)
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


@pytest.mark.skipif(PHP is None, reason="php is missing (on Debian: apt install php-cli)")
def test_page_of_the_php_example_stays_connected_as_its_user(browser: Browser, php: PhpSite, line: Line) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    for context in contexts:
        context.set_default_timeout(15_000)
    alice, bo = (context.new_page() for context in contexts)
    log_in(alice, php, "alice")
    log_in(bo, php, "bo")
    write(alice, "bo", "Hej")
    alice.get_by_text("to bo: Hej ✓").wait_for()
    bo.get_by_text("alice: Hej", exact=True).wait_for()

    line.cut()
    for page in (alice, bo):
        page.get_by_text("No connection.").wait_for()
    line.repair()
    for page in (alice, bo):
        page.get_by_text("Connected.", exact=True).wait_for()
    write(bo, "alice", "Hej hej")
    alice.get_by_text("bo: Hej hej", exact=True).wait_for()

    # In another tab of alice's browser somebody else logs in.
    log_in(contexts[0].new_page(), php, "bo")
    line.cut()
    line.repair()
    alice.get_by_text("You are no longer logged in here.").wait_for()
    for context in contexts:
        context.close()


def test_page_of_the_twisted_web_site_follows_a_login_as_another_user(browser: Browser) -> None:
    context = browser.new_context()
    context.set_default_timeout(15_000)
    alice, other = context.new_page(), context.new_page()
    with SiteExample("twisted_web_site.py") as site:
        alice.goto(site.origin)
        alice.get_by_role("button", name="I am alice").click()
        other.goto(site.origin)
        for page in (alice, other):
            page.get_by_text("connected", exact=True).wait_for()
        alice.get_by_placeholder("To: alice or bo").fill("alice")
        alice.get_by_placeholder("Message").fill("Hej")
        alice.get_by_role("button", name="Send").click()
        alice.get_by_text("to alice: Hej (delivered)").wait_for()
        other.get_by_text("alice: Hej", exact=True).wait_for()
        assert context.request.post(f"{site.origin}/login", form={"name": "bo"}).ok
        for page in (alice, other):
            page.get_by_text("logged-out", exact=True).wait_for()
    context.close()
