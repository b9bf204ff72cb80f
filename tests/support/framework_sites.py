"""Websites built with frameworks, each with the framework's own sessions.

The whole session is in a signed cookie with Flask, Starlette, Django's ``signed_cookies`` and a JSON Web Token; Django has
it in its database, too. ``python -m tests.support.framework_sites KIND`` serves one of them on 127.0.0.1 and prints its
port. They have these pages:

- ``POST /login`` with ``uid``, ``POST /logout``;
- ``GET /page``, any page of the site; the framework signs the session again there;
- ``POST /session``, the session page; ``GET /asked`` says how often the relay has asked about a session;

and these files in the working directory:

- ``ops-port``, when there: the logout ends the user's chat by ``examples/end_chat.py``;
- ``ended-logins``, when there: the logout notes its login in it, the session page denies those that are noted, and has the
  relay ask again after a third of a second.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, make_server

from examples import end_chat

ROOT = Path(__file__).parents[2]
KEY = "a key that only this site knows and nobody guesses"
COOKIE = "session"
ENDED = Path("ended-logins")

asked = 0


def log_out(session: dict[str, Any]) -> None:
    """Do for the chat what the logout of each site does."""
    if ENDED.exists():
        ENDED.write_text(f"{ENDED.read_text()}{session['login']}\n")
    port = Path("ops-port")
    if port.exists():
        end_chat.OPS, end_chat.TOKEN_FILE = ("127.0.0.1", int(port.read_text())), "ops-token"
        end_chat.end_chat(session["uid"])


def answer(session: dict[str, Any] | None) -> dict[str, Any]:
    """Return the answer of each session page; None: the cookie is not valid."""
    global asked
    if session is None or "uid" not in session:
        return {"loggedin": False}
    asked += 1
    if not ENDED.exists():
        return {"loggedin": True, "uID": session["uid"]}
    if session["login"] in ENDED.read_text().splitlines():
        return {"loggedin": False}
    return {"loggedin": True, "uID": session["uid"], "expires_in": 1 / 3}


def new_session(uid: str) -> dict[str, Any]:
    """Return what a login puts into the cookie."""
    return {"uid": int(uid), "login": secrets.token_hex(8)}


def flask_site() -> Any:
    """Flask; its sessions are signed cookies. A permanent one is signed again with each page."""
    from flask import Flask, request, session
    from itsdangerous import BadSignature

    app = Flask(__name__)
    app.secret_key = KEY

    @app.post("/login")
    def login() -> str:
        session.permanent = True
        session.update(new_session(request.form["uid"]))
        return "in"

    @app.get("/page")
    def page() -> str:
        return f"{session.get('uid')}"

    @app.post("/logout")
    def logout() -> str:
        log_out(session)
        session.clear()
        return "out"

    @app.post("/session")
    def session_page() -> dict[str, Any]:
        serializer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
        try:
            found = serializer.loads(request.form["SESSID"], max_age=app.permanent_session_lifetime.total_seconds())
        except BadSignature:
            found = None
        return answer(found)

    @app.get("/asked")
    def how_often() -> str:
        return str(asked)

    return app


def quickstart_site() -> Any:
    """The code of docs/quickstart.rst in a Flask site; the relay's port is in the file ``relay-port``."""
    import flask
    from itsdangerous import BadSignature

    page = (ROOT / "docs" / "quickstart.rst").read_text("utf-8")
    of_python = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", page)
    ((html,),) = [re.findall(r"\.\. code-block:: html\n\n((?:   .*\n|\n)+)", page)]
    app = flask.Flask(__name__)
    app.secret_key = KEY

    class User:
        def __init__(self, uid: int) -> None:
            self.id = uid

    def user_of_session(sessid: str) -> User | None:
        serializer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
        try:
            return User(serializer.loads(sessid)["uid"])
        except BadSignature:
            return None

    def current_user() -> User | None:
        return User(flask.session["uid"]) if "uid" in flask.session else None

    @app.post("/login")
    def login() -> str:
        flask.session["uid"] = int(flask.request.form["uid"])
        return "in"

    @app.get("/page")
    def chat() -> str:
        return (
            textwrap.dedent(html)
            .replace("wss://example.com/chat", f"ws://127.0.0.1:{Path('relay-port').read_text()}/")
            .replace("user: 293482", f"user: {flask.session['uid']}")
        )

    @app.get("/chatrelay.js")
    def client() -> Any:
        return flask.send_file(ROOT / "chatrelay" / "static" / "chatrelay.js", "text/javascript")

    def end(uid: int) -> None:
        end_chat.OPS, end_chat.TOKEN_FILE = ("127.0.0.1", int(Path("ops-port").read_text())), "ops-token"
        end_chat.end_chat(uid)
        time.sleep(0.5)  # for so long the browser still has the cookie, which is good

    names = {
        **{"app": app, "request": flask.request, "session": flask.session, "redirect": flask.redirect},
        **{"user_of_session": user_of_session, "current_user": current_user, "end_chat": end},
    }
    exec("\n".join(map(textwrap.dedent, of_python)), names)
    return app


def django_site() -> Any:
    """Django with ``signed_cookies``. With ``SESSION_SAVE_EVERY_REQUEST`` the cookie is signed again with each page."""
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse, JsonResponse
    from django.urls import path

    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY=KEY,
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        SESSION_SAVE_EVERY_REQUEST=True,
    )
    from django.contrib.sessions.backends.signed_cookies import SessionStore
    from django.core.wsgi import get_wsgi_application

    def login(request: HttpRequest) -> HttpResponse:
        request.session.update(new_session(request.POST["uid"]))
        return HttpResponse("in")

    def page(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.session.get('uid')}")

    def logout(request: HttpRequest) -> HttpResponse:
        log_out(dict(request.session.items()))
        request.session.flush()
        return HttpResponse("out")

    def session_page(request: HttpRequest) -> HttpResponse:
        return JsonResponse(answer(dict(SessionStore(request.POST["SESSID"]).items())))

    def how_often(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(asked))

    pages = {"login": login, "page": page, "logout": logout, "session": session_page, "asked": how_often}
    globals()["urlpatterns"] = [path(name, view) for name, view in pages.items()]
    return get_wsgi_application()


def django_database_site() -> Any:
    """Django's own users, and sessions in its database. ``POST /password`` changes the user's password.

    With ``SAVE_EVERY_REQUEST`` in the environment, Django's setting of that name is on.
    """
    import django
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse, JsonResponse
    from django.urls import path

    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # as the others take their time
        ROOT_URLCONF=__name__,
        SECRET_KEY=KEY,
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_SAVE_EVERY_REQUEST="SAVE_EVERY_REQUEST" in os.environ,
        USE_TZ=True,
    )
    django.setup()
    from django.contrib.auth import get_user, login, update_session_auth_hash
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application

    call_command("migrate", verbosity=0)
    for name in ("alice", "bo"):
        User.objects.create_user(name, password=name)

    def log_in(request: HttpRequest) -> HttpResponse:
        login(request, User.objects.get(pk=request.POST["uid"]))
        return HttpResponse("in")

    def password(request: HttpRequest) -> HttpResponse:
        user = User.objects.get(pk=request.user.pk)
        user.set_password(secrets.token_hex())
        user.save()
        update_session_auth_hash(request, user)
        return HttpResponse("changed")

    def page(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.user.pk}")

    # As docs/webserver.rst has it.
    def session(request: HttpRequest) -> HttpResponse:
        request.session = SessionStore(request.POST["SESSID"])
        user = get_user(request)
        return JsonResponse({"loggedin": user.is_authenticated, "uID": user.pk})

    pages = {"login": log_in, "password": password, "page": page, "session": session}
    globals()["urlpatterns"] = [path(name, view) for name, view in pages.items()]
    return get_wsgi_application()


def starlette_site() -> Any:
    """Starlette's SessionMiddleware. It signs the cookie again where a page has changed something in it."""
    from itsdangerous import BadSignature, TimestampSigner
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.sessions import SessionMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    lifetime = 14 * 24 * 3600

    async def form(request: Request, name: str) -> str:
        return parse_qs((await request.body()).decode())[name][0]

    async def login(request: Request) -> Response:
        request.session.update(new_session(await form(request, "uid")))
        return PlainTextResponse("in")

    async def page(request: Request) -> Response:
        request.session["seen"] = time.time()
        return PlainTextResponse(f"{request.session.get('uid')}")

    def logout(request: Request) -> Response:  # in a thread, as end_chat waits
        log_out(request.session)
        request.session.clear()
        return PlainTextResponse("out")

    async def session_page(request: Request) -> Response:
        try:
            data = TimestampSigner(KEY).unsign(await form(request, "SESSID"), max_age=lifetime)
        except BadSignature:
            return JSONResponse(answer(None))
        return JSONResponse(answer(json.loads(base64.b64decode(data))))

    async def how_often(request: Request) -> Response:
        return PlainTextResponse(str(asked))

    return Starlette(
        routes=[
            Route("/login", login, methods=["POST"]),
            Route("/page", page),
            Route("/logout", logout, methods=["POST"]),
            Route("/session", session_page, methods=["POST"]),
            Route("/asked", how_often),
        ],
        middleware=[Middleware(SessionMiddleware, secret_key=KEY, max_age=lifetime)],
    )


def jwt_site() -> Any:
    """A JSON Web Token, valid for an hour, in a cookie, renewed with each page; by Flask, without its sessions."""
    import jwt
    from flask import Flask, Response, request

    app = Flask(__name__)

    def decoded(token: str) -> dict[str, Any] | None:
        try:
            claims: dict[str, Any] = jwt.decode(token, KEY, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            return None
        return claims

    def with_token(text: str, session: dict[str, Any]) -> Response:
        now = int(time.time())
        response = Response(text)
        token = jwt.encode({**session, "iat": now, "exp": now + 3600}, KEY, algorithm="HS256")
        response.set_cookie(COOKIE, token, httponly=True)
        return response

    @app.post("/login")
    def login() -> Response:
        return with_token("in", new_session(request.form["uid"]))

    @app.get("/page")
    def page() -> Response:
        session = decoded(request.cookies.get(COOKIE, ""))
        return Response("None") if session is None else with_token(str(session["uid"]), session)

    @app.post("/logout")
    def logout() -> Response:
        session = decoded(request.cookies[COOKIE])
        assert session is not None
        log_out(session)
        response = Response("out")
        response.delete_cookie(COOKIE)
        return response

    @app.post("/session")
    def session_page() -> dict[str, Any]:
        return answer(decoded(request.form["SESSID"]))

    @app.get("/asked")
    def how_often() -> str:
        return str(asked)

    return app


SERVED = """
from wsgiref.simple_server import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    def log_message(self, format, *arguments):
        pass

server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
print("listening on", server.server_port, flush=True)
server.serve_forever()
"""
"""A program's last lines: they serve its WSGI `application`, and print the port."""


class QuietHandler(WSGIRequestHandler):
    """A handler without an access log, which nobody would read."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """http.server: a request was answered."""


def serve_wsgi(make: Callable[[], Any]) -> None:
    """Serve a WSGI application until the process is ended."""
    with make_server("127.0.0.1", 0, make(), handler_class=QuietHandler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def serve_asgi(make: Callable[[], Any]) -> None:
    """Serve an ASGI application until the process is ended."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(make(), log_level="warning")).run(sockets=[listener])


SITES: dict[str, Callable[[], None]] = {
    "flask": lambda: serve_wsgi(flask_site),
    "starlette": lambda: serve_asgi(starlette_site),
    "django": lambda: serve_wsgi(django_site),
    "django-database": lambda: serve_wsgi(django_database_site),
    "quickstart": lambda: serve_wsgi(quickstart_site),
    "jwt": lambda: serve_wsgi(jwt_site),
}

if __name__ == "__main__":
    SITES[sys.argv[1]]()
