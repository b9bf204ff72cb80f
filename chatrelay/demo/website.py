"""The demo website: a few pages with ``twisted.web``.

It has what chatrelay needs of any site: accounts, sessions in an HttpOnly cookie, and a session page. It knows the
relay's port, so that its page may connect only there, and notifies the relay of each session that ends. This module
must not know how messages are delivered.

=====================  ==========================================================================
``GET /``              the chat page, or the login page if nobody is logged in
``POST /login``        form field ``name``: opens a session, and ends the previous one
``POST /logout``       ends the session
``GET /whoami``        JSON for the chat page: the person who is logged in, and everybody else
``POST /session``      form field ``SESSID``: the session page, for the relay (a real site keeps it internal)
``GET /static/…``      the page's scripts, style and icon
=====================  ==========================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from importlib.resources import files
from string import Template

import attrs
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from chatrelay.demo.sessions import PEOPLE, Person, Sessions, person_called

SESSION_COOKIE = "demo_session"

HOSTS = ("127.0.0.1", "localhost")
"""The host names of the website. To a browser they are two sites, each with its own cookie."""

_STATIC_TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


@attrs.frozen
class Website:
    """The settings and the sessions that all pages of the website share.

    :ivar port: the TCP port of the website.
    :ivar relay_port: the TCP port of the relay, on the host name from which the chat page was loaded.
    :ivar end_chat: called with the token of a session that has ended, to close the relay's connections of that session.
    :ivar sessions: the open sessions.
    """

    port: int
    relay_port: int
    end_chat: Callable[[str], None]
    sessions: Sessions = attrs.field(factory=Sessions)

    @property
    def origins(self) -> tuple[str, ...]:
        """The website's origins as browsers send them (RFC 6454), for the relay's ``origin``."""
        return tuple(f"http://{host}:{self.port}" for host in HOSTS)

    @property
    def content_security_policy(self) -> str:
        """The Content-Security-Policy: pages may use the site's own files and connect to the relay.

        It is a second defence against the text of strangers' messages, which the script writes with ``textContent``
        only.
        """
        relay = " ".join(f"ws://{host}:{self.relay_port}" for host in HOSTS)
        return (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            f"connect-src 'self' {relay}; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )

    def end_session(self, token: str) -> None:
        """Log out the person of a session, here and in the chat. An unknown token ends nothing."""
        if self.sessions.close(token):
            # After the session has ended here. Otherwise the page could log in by it again.
            self.end_chat(token)

    def site(self) -> Site:
        """Return the website as a factory for an endpoint."""
        site = Site(_Front(self))
        # Visitors must not see tracebacks.
        site.displayTracebacks = False
        return site


def _token(request: Request) -> str:
    cookie = request.getCookie(SESSION_COOKIE.encode("ascii"))
    return "" if cookie is None else cookie.decode("ascii", "replace")


def _form_field(request: Request, name: str) -> str:
    values: list[bytes] = request.args.get(name.encode("ascii"), [b""])
    return values[0].decode("utf-8", "replace")


def _json(request: Request, answer: object) -> bytes:
    request.setHeader("Content-Type", "application/json")
    return json.dumps(answer).encode("utf-8")


def _notice(request: Request, status: HTTPStatus, heading: str, text: str, address: str = "/") -> bytes:
    """Answer a request that has no page with a short text and a link."""
    request.setResponseCode(status, status.phrase.encode("ascii"))
    request.setHeader("Content-Type", "text/html; charset=utf-8")
    if request.method == b"HEAD":
        return b""
    page = Template(_static("notice.html").decode("utf-8"))
    return page.substitute(heading=escape(heading), text=escape(text), address=escape(address)).encode("utf-8")


def _static(name: str) -> bytes:
    return files("chatrelay").joinpath("static", name).read_bytes()


def _card(person: Person) -> dict[str, int | str]:
    return {"uID": person.uid, "name": person.name, "tone": _tone(person)}


def _tone(person: Person) -> int:
    """Return the number of the person's colour in chat.css, the same on every page."""
    return PEOPLE.index(person)


class _Page(Resource):
    """One address of the website. Each subclass renders its response.

    Only the site's own pages may ``POST``. The cookie is ``SameSite=Lax`` already, but a login needs no cookie, and no
    other site's page should be able to log a visitor in as somebody else.

    :ivar methods: the HTTP methods that it accepts.
    :ivar no_page_text: the text for a browser that opens an address without ``GET``.
    """

    methods: tuple[str, ...] = ("GET", "HEAD")
    no_page_text = "Nothing can be sent to this address."

    def __init__(self, website: Website) -> None:
        super().__init__()
        self.website = website

    def render(self, request: Request) -> bytes | int:
        if request.method.decode("latin-1") in self.methods:
            answer: bytes | int = super().render(request)
            return answer
        request.setHeader("Allow", ", ".join(self.methods))
        return _notice(request, HTTPStatus.METHOD_NOT_ALLOWED, "This address has no page", self.no_page_text)

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Nothing(self.website)

    def from_here(self, request: Request) -> bool:
        """Return whether one of the site's own pages sent this request, or a program, which sends no ``Origin``."""
        origin = request.getHeader("origin")
        return origin is None or origin in self.website.origins


class _Home(_Page):
    def render_GET(self, request: Request) -> bytes:
        request.setHeader("Content-Type", "text/html; charset=utf-8")
        if self.website.sessions.person(_token(request)) is not None:
            return _static("chat.html")
        choices = "\n".join(
            f'<li><button name="name" value="{escape(person.name)}">'
            f'<span class="avatar tone-{_tone(person)}" aria-hidden="true">{escape(person.name[0])}</span>'
            f"{escape(person.name)}</button></li>"
            for person in PEOPLE
        )
        here = f"http://{request.getHeader('host')}"
        page = Template(_static("login.html").decode("utf-8"))
        return page.substitute(
            people=choices,
            other_origin=next(origin for origin in self.website.origins if origin != here),
        ).encode("utf-8")


class _Login(_Page):
    methods = ("POST",)
    no_page_text = "To log in, choose a person on the login page."

    def render_POST(self, request: Request) -> bytes:
        person = person_called(_form_field(request, "name"))
        if person is None or not self.from_here(request):
            return _notice(
                request, HTTPStatus.FORBIDDEN, "You were not logged in", "Choose a person on the login page."
            )
        # Other pages in this browser must not go on as the previous person.
        self.website.end_session(_token(request))
        return _to_home(request, self.website.sessions.open(person))


class _Logout(_Page):
    methods = ("POST",)
    no_page_text = "To log out, press the button on the chat page."

    def render_POST(self, request: Request) -> bytes:
        if not self.from_here(request):
            return _notice(request, HTTPStatus.FORBIDDEN, "You were not logged out", "Another site sent the request.")
        self.website.end_session(_token(request))
        return _to_home(request, None)


def _to_home(request: Request, token: str | None) -> bytes:
    # Without Secure, because the demo uses plain http on this machine only. A site with https adds it.
    request.addCookie(
        SESSION_COOKIE,
        token or "",
        path="/",
        max_age=None if token else "0",
        httpOnly=True,
        sameSite="lax",
    )
    request.setResponseCode(HTTPStatus.SEE_OTHER)
    request.setHeader("Location", "/")
    return b""


class _WhoAmI(_Page):
    def render_GET(self, request: Request) -> bytes:
        person = self.website.sessions.person(_token(request))
        if person is None:
            return _json(request, {"loggedin": False, "me": None})
        return _json(
            request,
            {
                "loggedin": True,
                "uID": person.uid,
                "me": _card(person),
                "people": [_card(someone) for someone in PEOPLE],
                "relayPort": self.website.relay_port,
            },
        )


class _SessionEndpoint(_Page):
    """The session page, which the relay asks whose session a SESSID is."""

    methods = ("POST",)
    no_page_text = "The relay asks here whose session a SESSID is. It sends a POST with the form field SESSID."

    def render_POST(self, request: Request) -> bytes:
        person = self.website.sessions.person(_form_field(request, "SESSID"))
        if person is None:
            return _json(request, {"loggedin": False})
        return _json(request, {"loggedin": True, "uID": person.uid})


class _StaticFile(_Page):
    def __init__(self, website: Website, name: str) -> None:
        super().__init__(website)
        self.name = name

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("Content-Type", _STATIC_TYPES[self.name.rpartition(".")[2]])
        return _static(self.name)


class _Nothing(_Page):
    def render(self, request: IRequest) -> bytes:
        assert isinstance(request, Request)
        return _notice(request, HTTPStatus.NOT_FOUND, "There is no such page", "The address may have been mistyped.")


class _WrongHost(_Page):
    def render(self, request: IRequest) -> bytes:
        assert isinstance(request, Request)
        where = self.website.origins[0]
        return _notice(
            request,
            HTTPStatus.MISDIRECTED_REQUEST,
            "The demo has another address",
            f"Its address is {where}.",
            where,
        )


_PAGES: dict[bytes, Callable[[Website], Resource]] = {
    b"": _Home,
    b"login": _Login,
    b"logout": _Logout,
    b"whoami": _WhoAmI,
    b"session": _SessionEndpoint,
}


class _Front(Resource):
    """The root of the website. It checks the host name and sets the headers for all pages."""

    def __init__(self, website: Website) -> None:
        super().__init__()
        self._website = website
        self._hosts = {f"{host}:{website.port}" for host in HOSTS}
        for path, page in _PAGES.items():
            self.putChild(path, page(website))
        static = _Nothing(website)
        for file in files("chatrelay").joinpath("static").iterdir():
            if file.name.rpartition(".")[2] in _STATIC_TYPES:
                static.putChild(file.name.encode("utf-8"), _StaticFile(website, file.name))
        self.putChild(b"static", static)

    def getChildWithDefault(self, path: bytes, request: Request) -> Resource:
        headers = {
            "Content-Security-Policy": self._website.content_security_policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            request.setHeader(name, value)
        # Another site's DNS may point one of its names at 127.0.0.1. That name is not this site.
        if request.getHeader("host") not in self._hosts:
            return _WrongHost(self._website)
        child: Resource = super().getChildWithDefault(path, request)
        return child

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Nothing(self._website)
