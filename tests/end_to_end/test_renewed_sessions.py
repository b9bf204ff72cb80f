"""Sessions that a site renews, and what counts as using one: Django with sessions in its database."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.framework_visitors import Browser, Site

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("django") is None, reason="django is not installed: pip install 'chatrelay[test]'"
)


def test_changed_password_closes_the_old_cookie_with_4501_and_the_new_cookie_logs_in(tmp_path: Path) -> None:
    with Site("django-database", tmp_path) as site:
        browser, other = Browser(site), Browser(site)
        old = browser.log_in(1)
        with site.page(old) as alice, site.page(other.log_in(1)) as elsewhere:
            assert browser.post("password") == "changed"
            assert browser.cookie != old
            # In the other browser the session is still there, and only get_user() refuses it.
            assert alice.closed()[0] == elsewhere.closed()[0] == 4501
            site.page(browser.cookie).close()
            assert site.whose(other.cookie) == {"loggedin": False, "uID": None}


@pytest.mark.parametrize("setting", [{}, {"SAVE_EVERY_REQUEST": "1"}])
def test_recheck_counts_as_activity_only_where_the_site_says_so(tmp_path: Path, setting: dict[str, str]) -> None:
    def expiry() -> str:
        with closing(sqlite3.connect(tmp_path / "site.sqlite3")) as database:
            ((date,),) = database.execute("SELECT expire_date FROM django_session")
            return str(date)

    with Site("django-database", tmp_path, **setting) as site:
        cookie = Browser(site).log_in(1)
        before = expiry()
        assert site.whose(cookie) == {"loggedin": True, "uID": 1}
        assert (expiry() != before) is bool(setting)
