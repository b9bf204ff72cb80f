"""The opening handshake: what its headers say, who may make it, and how one that is refused is answered.

A handshake is here the bytes of its request, as they came. Whom it is from and
what becomes of the connection afterwards are not known here, nor are frames,
sessions or messages: `chatrelay.websocket.protocol` asks, and does what is answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus

from autobahn.websocket.types import ConnectionDeny
from twisted.logger import Logger

from chatrelay.auth.diagnosis import MissingCookie, two_names
from chatrelay.config.checks import ConfigError, normal_origin
from chatrelay.config.options import Config
from chatrelay.limits.admission import RETRY_AFTER
from chatrelay.limits.buckets import MINUTE
from chatrelay.limits.origins import RefusedOrigins
from chatrelay.model import MAX_SESSID
from chatrelay.wire.request_head import END_OF_HEADERS, header_value, header_values

log = Logger("chatrelay.websocket")

NO_HANDSHAKE = ("HTTP ", "Bad HTTP", "Unsupported HTTP", "Error during parsing", "WebSocket connection denied - Hixie")
"""How Autobahn's reasons begin where a request is no WebSocket handshake."""

NEEDS_WEBSOCKET = ("Unsupported HTTP version", "HTTP Upgrade", "HTTP Connection", "HTTP method", "Bad HTTP request")
"""How Autobahn's reasons begin where a client speaks no WebSocket, or a proxy has taken it out of the request."""

FOR_PROXIES = (
    "WebSocket begins with a GET over HTTP/1.1 and the headers Upgrade: websocket and Connection: Upgrade. If a proxy\n"
    "is between, have it speak HTTP/1.1 to the relay and pass on both headers. For nginx that is:\n"
    "    proxy_http_version 1.1;\n"
    "    proxy_set_header Upgrade $http_upgrade;\n"
    '    proxy_set_header Connection "upgrade";\n'
)
"""The answer to such a request, beside the reason."""

NO_COOKIE_IS_READ = "SESSID is missing (this relay does not read it from a cookie: session-cookie is not set)"
NO_ORIGIN = "SESSID is missing (the session cookie is read only from handshakes that name their Origin)"
REMEDIES = {
    NO_COOKIE_IS_READ: "name the site's session cookie with --session-cookie, or have the page send SESSID",
    NO_ORIGIN: "the handshake named no Origin, as every browser does: have a proxy in front pass it on; a program has "
    "to send SESSID",
}
"""Why the cookie of a handshake is not used, as its client is told -> what the operator can do about it."""


def printable(text: str) -> str:
    """Return a stranger's text as a terminal may safely show it."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def http_error(code: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """An answer to a handshake that is refused, with the reason in a body that a browser shows."""
    status = HTTPStatus(code)
    text = f"chatrelay speaks WebSocket here, and refused this request: {reason}\n"
    body = (text + FOR_PROXIES if reason.startswith(NEEDS_WEBSOCKET) else text).encode()
    fields = [
        *headers,
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
    ]
    if status is HTTPStatus.UPGRADE_REQUIRED:
        fields.append(("Upgrade", "websocket"))
    elif status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        fields.append(("Retry-After", str(RETRY_AFTER)))
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(lines).encode("latin-1") + END_OF_HEADERS + body


class Handshakes:
    """What every handshake is held to, and what the operator has been told of them.

    :param config: the origins and the session cookie.
    :param seconds: the time.
    :ivar missing_cookie: the logins in a row without the session cookie.
    """

    def __init__(self, config: Config, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._session_cookie = config.session_cookie
        # Those that have a value. A header may have thousands of others, which are passed over without a call for each.
        name = re.escape((config.session_cookie or "").encode("ascii"))
        self._session_cookies = re.compile(rb"(?:\A|;)[ \t]*" + name + rb"=([^;]*[^; \t])")
        # A form carries any bytes. JSON does not, and what an embedding program's own authenticator makes of them is
        # not known.
        self._posts_any_bytes = config.auth_url is not None and config.auth_format == "form"
        self._origins = frozenset(normal_origin(origin) for origin in config.origin)
        self._refused_origins = RefusedOrigins()
        self.missing_cookie = MissingCookie()
        self._told_of_logins: set[str] = set()

    def check_origin(self, request: bytes) -> None:
        """Refuse a page's origin that is not listed. Programs other than browsers send none, and may connect.

        :raises ConnectionDeny: with the reason.
        """
        origin = header_value(request, "origin")
        if not self._origins or origin is None:
            return
        try:
            if normal_origin(origin) in self._origins:
                return
        except ConfigError:  # null, for one
            pass
        self.tell_of_origin(origin, header_value(request, "host") or "")
        raise ConnectionDeny(ConnectionDeny.FORBIDDEN, "pages of this origin may not connect")

    def tell_of_origin(self, origin: str, host: str = "") -> None:
        """Tell the operator of a refused origin, once, and of very many their number.

        :param host: the ``Host`` of the handshake.
        """
        try:
            normal_origin(origin)
            remedy = f"if it is yours, admit it with --origin {origin}"
            names = two_names(origin, host) if self._session_cookie else ""
            if names:
                remedy += f". That alone does not log anybody in: {names}"
        except ConfigError:  # null, empty, or two in one
            remedy = "that is no origin which could be admitted: serve the page from one that is listed"
        if self._refused_origins.refused(origin, self._seconds()):
            log.warn(
                "a page of origin {origin} was refused; {remedy} (told once for each origin)",
                origin=printable(origin[:200]) or "(empty)",
                remedy=printable(remedy[:500]),
            )

    def tell_how_many_origins(self, at_least: float = MINUTE) -> None:
        """Tell the operator of how many refused handshakes the origins were not told.

        :param at_least: seconds over which they are gathered; none is told of before.
        """
        untold = self._refused_origins.untold(self._seconds(), at_least)
        if untold:
            log.warn(
                "too many origins at once: {count} more handshakes of pages were refused, whose origins are not told",
                count=untold,
            )

    def session_cookie_of(self, request: bytes) -> tuple[str | None, str | None]:
        """The SESSID in the handshake's session cookie; or None and, unless the visitor simply has none, why."""
        name = self._session_cookie
        if name is None:
            return None, NO_COOKIE_IS_READ
        if header_value(request, "origin") is None:
            return None, NO_ORIGIN
        for header in header_values(request, "cookie"):
            for value in self._session_cookies.findall(header.encode("latin-1")):
                if len(value) <= MAX_SESSID:
                    return self._sessid_of(value), None
        return None, None

    def _sessid_of(self, value: bytes) -> str | None:
        """The SESSID that a cookie is; None where its bytes can't be posted.

        Bytes that are no UTF-8 become lone surrogates, which no message contains, and are posted as they came.
        """
        try:
            return value.decode("utf-8", "surrogateescape" if self._posts_any_bytes else "strict")
        except UnicodeDecodeError:
            return None

    # Logins by the session cookie -----------------------------------------------

    def came_without_cookie(self, request: bytes) -> None:
        """A handshake was accepted that has no session cookie, though it might have one."""
        host, origin = header_value(request, "host"), header_value(request, "origin")
        cookies = ";".join(header_values(request, "cookie"))
        self.missing_cookie.handshake(cookies, (host or "")[:200], (origin or "")[:200])

    def login_without_cookie(self, because: str | None) -> None:
        """Somebody wanted to log in by the session cookie, and had none.

        :param because: why none was looked for; None where the visitor simply has none, which is a denial.
        """
        if because is not None:
            if because not in self._told_of_logins:
                self._told_of_logins.add(because)
                log.warn(
                    "somebody cannot be logged in, as their page sends no SESSID and no cookie is used: {remedy} (told "
                    "once)",
                    remedy=REMEDIES[because],
                )
            return
        missing = self.missing_cookie
        if missing.login():
            log.warn(
                "{logins} logins in a row came without the session cookie {cookie}, and were denied. {cause}. Nothing "
                "is wrong if those visitors were not logged in at the site",
                logins=missing.logins,
                cookie=self._session_cookie,
                cause=printable(missing.probable_cause(self._session_cookie or "")),
            )
