"""Django and Flask sites with examples/django and examples/flask: the code that docs/webserver.rst shows."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.ports import free_port
from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.framework_sites import SERVED
from tests.support.programs import RelayProcess
from tests.support.v1 import ADMITTED

DJANGO = """
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    LOGIN_REDIRECT_URL="/whoami",
    LOGOUT_REDIRECT_URL="/whoami",
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="x" * 50,
)
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from site_app import chat, end_chat

call_command("migrate", verbosity=0)
for name in ("1", "2"):
    User.objects.create_user(name, password=name)
urlpatterns = [
    path("session", chat.session),
    path("whoami", chat.whoami),
    path("login", chat.Login.as_view()),
    path("logout", chat.Logout.as_view()),
]
application = get_wsgi_application()
"""

FLASK = """
from flask import Flask, redirect, request, session
from flask_wtf.csrf import CSRFProtect
from site_app import chat, end_chat

application = Flask(__name__)
application.secret_key = "x" * 50
csrf = CSRFProtect(application)
application.register_blueprint(chat.chat)
csrf.exempt(chat.whose_session)

@application.post("/login")
@csrf.exempt
def login():
    before = session.get("uid")
    session["uid"] = int(request.form["username"])
    if before not in (None, session["uid"]):
        end_chat.end_chat(before)
    return redirect("/whoami")

@application.post("/logout")
@csrf.exempt
def logout():
    uid = session.pop("uid", None)
    if uid is not None:
        end_chat.end_chat(uid)
    return redirect("/whoami")
"""

SET_UP = """
chat.SECRET_FILE, end_chat.TOKEN_FILE = "secret", "token"
end_chat.OPS = ("127.0.0.1", int(open("ops-port").read()))
"""


CSRF_TOKEN = "x" * 32
"""The value that Django accepts in a form if its cookie has the same."""


class FrameworkSite:
    """A site and its relay as processes.

    :ivar cookie_name: of its session cookie.
    :ivar secret: what the two have in common.
    """

    def __init__(self, kind: str, folder: Path, running: ExitStack) -> None:
        self.cookie_name = "sessionid" if kind == "django" else "session"
        self.secret = secrets.token_hex(16)
        ops = free_port()
        for name, value in (("secret", self.secret), ("token", secrets.token_hex(16)), ("ops-port", str(ops))):
            (folder / name).write_text(value)
            (folder / name).chmod(0o600)
        app = folder / "site_app"
        app.mkdir()
        (app / "__init__.py").touch()
        shutil.copy(ROOT / "examples" / kind / "chat.py", app)
        shutil.copy(ROOT / "examples" / "end_chat.py", app)
        program = (DJANGO if kind == "django" else FLASK) + SET_UP + SERVED
        process = running.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(folder)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        running.callback(process.kill)
        assert process.stdout is not None
        found = re.fullmatch(r"listening on (\d+)\n", process.stdout.readline())
        assert found, "the site has not started: see its traceback"
        self.origin = f"http://127.0.0.1:{found[1]}"
        self.relay = running.enter_context(
            RelayProcess(
                folder,
                *("--auth-url", f"{self.origin}/session", "--auth-secret-file", str(folder / "secret")),
                *("--session-cookie", self.cookie_name, "--origin", self.origin, "--message-log", "memory:"),
                *("--ops-listen", f"tcp:{ops}:interface=127.0.0.1", "--ops-token-file", str(folder / "token")),
            )
        )

    def submit(self, page: str, cookie: str = "", **form: str) -> str:
        """Send a form of the site; return the session cookie afterwards."""
        form["csrfmiddlewaretoken"] = CSRF_TOKEN
        request = urllib.request.Request(f"{self.origin}/{page}", urllib.parse.urlencode(form).encode())
        request.add_header("Cookie", f"{self.cookie_name}={cookie}; csrftoken={CSRF_TOKEN}")
        try:
            urllib.request.build_opener(NoRedirect).open(request, timeout=PATIENCE)
        except urllib.error.HTTPError as answer:
            with answer:
                assert answer.code == 302, answer.read()
                found = re.search(rf"{self.cookie_name}=([^;]+);", str(answer.headers))
                return found[1] if found else ""
        raise AssertionError("there was no redirect")

    def whoami(self, cookie: str) -> tuple[object, str | None]:
        """Return what the site tells a page about the logged-in user, and the cookie that comes with it."""
        request = urllib.request.Request(f"{self.origin}/whoami", headers={"Cookie": f"{self.cookie_name}={cookie}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read()), answer.headers["Set-Cookie"]

    def page(self, cookie: str) -> Client:
        """Open the chat connection of a page."""
        return self.relay.client(origin=self.origin, additional_headers={"Cookie": f"{self.cookie_name}={cookie}"})

    def ask(self, secret: str, **form: str) -> tuple[int, bytes]:
        """Ask the session page directly."""
        request = urllib.request.Request(f"{self.origin}/session", urllib.parse.urlencode(form).encode())
        request.add_header("Authorization", f"Bearer {secret}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Passes a redirect on to the caller."""

    def redirect_request(self, *_: object) -> None:
        """Do not follow the redirect."""


@pytest.fixture(params=["django", "flask"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FrameworkSite]:
    """Start the site and its relay."""
    for package in ("django", "flask_wtf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'chatrelay[test]'")
    with ExitStack() as running:
        yield FrameworkSite(request.param, tmp_path, running)


def test_users_exchange_messages_until_they_log_out(site: FrameworkSite) -> None:
    anna, bo = (site.submit("login", username=name, password=name) for name in ("1", "2"))
    assert site.whoami(anna) == ({"loggedin": True, "uID": 1}, None)
    with site.page(anna) as of_anna, site.page(bo) as of_bo:
        assert of_anna.log_in(None) == of_bo.log_in(None) == ADMITTED
        of_anna.send(2, "Hej")
        assert of_bo.hear()["message"]["fromuID"] == 1
        assert of_anna.hear()["response"] == {"id": "1", "value": True}
        site.submit("logout", anna, x="1")
        assert of_anna.closed()[0] == 4505
        site.submit("login", bo, username="1", password="1")  # another user in the same browser
        assert of_bo.closed()[0] == 4505
    assert not [line for line in site.relay.output if "startup check" in line]


def test_whoami_sets_and_deletes_no_cookie(site: FrameworkSite) -> None:
    anna = site.submit("login", username="1", password="1")
    for cookie in (anna, "unknown", ""):
        assert site.whoami(cookie)[1] is None


def test_session_page_answers_only_the_relay_and_denies_unknown_session_ids(site: FrameworkSite) -> None:
    anna = site.submit("login", username="1", password="1")
    assert json.loads(site.ask(site.secret, SESSID=anna)[1]) == {"loggedin": True, "uID": 1}
    for secret in ("", "wrong", site.secret + "1"):
        assert site.ask(secret, SESSID=anna)[0] == 400
    assert site.ask(site.secret, x="1")[0] == 400
    for sessid in ("", "x", anna[:-1], anna + "x", "\0", "åäö", "x" * 4096):
        status, answer = site.ask(site.secret, SESSID=sessid)
        assert (status, json.loads(answer)) == (200, {"loggedin": False}), sessid
