"""Sites that keep the session in a signed cookie, so that a logout ends nothing on the server."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.support import eventually
from tests.support.client import Client
from tests.support.framework_visitors import Browser, Site

MODULES = {"flask": "flask", "starlette": "starlette", "django": "django", "jwt": "jwt"}


@pytest.fixture(scope="module", params=MODULES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a site and its relay."""
    module = MODULES[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'chatrelay[test]'")
    with Site(request.param, tmp_path_factory.mktemp(request.param)) as site:
        yield site


def delivered(sender: Client, recipient: Client, uid: int) -> bool:
    """Whether a message to a user is acknowledged as delivered, and arrives."""
    sender.send(uid, "Are you there?")
    response = sender.hear()["response"]
    return bool(response["value"]) and recipient.hear()["message"]["content"] == "Are you there?"


def test_signed_cookie_stays_valid_after_logout_and_its_connection_stays(site: Site) -> None:
    browser = Browser(site)
    cookie = browser.log_in(1)
    with site.page(cookie) as alice, site.page(Browser(site).log_in(2)) as bo:
        browser.log_out()
        assert site.whose(cookie) == {"loggedin": True, "uID": 1}
        before = site.times_asked()
        eventually(lambda: site.times_asked() >= before + 4)  # two re-checks of each
        assert delivered(bo, alice, 1)
        site.page(cookie).close()


def test_logout_that_revokes_by_uid_ends_all_connections_of_the_user(site: Site) -> None:
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


def test_site_that_records_logouts_ends_only_that_login(site: Site) -> None:
    """Use a short ``expires_in``, and no ops endpoint."""
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


def test_unreachable_relay_does_not_prevent_the_logout(site: Site) -> None:
    browser = Browser(site)
    browser.log_in(1)
    with site.file("ops-port", 1):
        browser.log_out()
