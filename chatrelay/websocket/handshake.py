"""The opening handshake as text: its origin, its session cookie, and the response that refuses it.

Here, a handshake is the bytes of its request, as they came. This module must not know connections, frames, sessions or
messages. `chatrelay.websocket.opening` takes a handshake from a connection, and `chatrelay.websocket.peer` finds the
client's address.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterable
from http import HTTPStatus

from autobahn.websocket.types import ConnectionDeny
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.auth.diagnosis import MissingCookie, two_names
from chatrelay.config.checks import ConfigError, normal_origin
from chatrelay.config.options import Config
from chatrelay.limits.admission import RETRY_AFTER
from chatrelay.limits.buckets import MINUTE
from chatrelay.limits.origins import RefusedOrigins
from chatrelay.model import MAX_SESSID
from chatrelay.websocket.closing import LogLimiter, printable
from chatrelay.wire.request_head import (
    END_OF_HEADERS,
    header_value,
    header_values,
)

log = Logger("chatrelay.websocket")

NO_HANDSHAKE = ("HTTP ", "Bad HTTP", "Unsupported HTTP", "Error during parsing", "WebSocket connection denied - Hixie")
"""The beginnings of Autobahn's reasons if a request is not a WebSocket handshake."""

NEEDS_WEBSOCKET = ("Unsupported HTTP version", "HTTP Upgrade", "HTTP Connection", "HTTP method", "Bad HTTP request")
"""The beginnings of Autobahn's reasons if a client does not speak WebSocket, or a proxy has removed its headers."""

FOR_PROXIES = (
    "WebSocket begins with a GET over HTTP/1.1 and the headers Upgrade: websocket and Connection: Upgrade. If there\n"
    "is a proxy, have it use HTTP/1.1 to the relay and pass on both headers. For nginx that is:\n"
    "    proxy_http_version 1.1;\n"
    "    proxy_set_header Upgrade $http_upgrade;\n"
    '    proxy_set_header Connection "upgrade";\n'
)
"""The text after the reason in the response to a request without the headers of WebSocket."""

NO_COOKIE_IS_READ = "SESSID is missing (this relay does not read it from a cookie: session-cookie is not set)"
NO_ORIGIN = "SESSID is missing (the session cookie is read only from handshakes that name their Origin)"
REMEDIES = {
    NO_COOKIE_IS_READ: "name the site's session cookie with --session-cookie, or have the page send SESSID",
    NO_ORIGIN: "the handshake had no Origin, which every browser sends: have the proxy in front pass it on; a program "
    "must send SESSID",
}
"""The reason, for the client, why a handshake's cookie is not used -> the remedy, for the operator."""


MAX_REASON = 300
"""The most characters of the reason for refusing a handshake. Some of it may be the client's own words."""

DEFECT = "the relay has an internal error"
"""The reason for refusing a handshake because of a defect."""

UNREADABLE = "the opening handshake, or an extension that it offers, can't be read"
"""The reason for refusing a handshake if Autobahn's own reason is only the text of an exception."""


def http_error(code: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return the response to a refused handshake, with the reason in a body that a browser shows."""
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


def log_defect(log_limiter: LogLimiter, failure: Failure) -> None:
    """Log an exception that was raised during a handshake."""
    if log_limiter.allow("handshakes that raised an exception"):
        # The exception's own text is not logged, because it may contain the session cookie.
        log.critical(
            "a handshake raised {kind}, which is a bug; please report it. It was raised in:\n{frames}",
            kind=failure.value.__class__.__name__,
            frames="".join(traceback.format_tb(failure.getTracebackObject())),
        )


def is_about_origin(reason: str) -> bool:
    """Return whether Autobahn has refused a handshake because its origin is empty, or because it has several."""
    return reason.startswith("HTTP Origin header")


def is_no_handshake(reason: str) -> bool:
    """Return whether Autobahn has refused a request that is not a handshake: mostly a health check or a scanner."""
    return reason.startswith(NO_HANDSHAKE) and not is_about_origin(reason)


def without_request(reason: str) -> str:
    """Return Autobahn's reason without its quotes from the request, which may contain a cookie."""
    error = sys.exception()
    if error is not None:  # Autobahn could not read something, and quotes the exception
        reason = reason.removesuffix(str(error)) or UNREADABLE
    return reason.partition('"')[0].rstrip(" :")[:MAX_REASON]


class Handshakes:
    """Checks handshakes, reads their session cookies, and logs what an operator can fix.

    :param config: the origins and the session cookie.
    :param seconds: the time.
    :ivar missing_cookie: counts the logins in a row without the session cookie.
    """

    def __init__(self, config: Config, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._session_cookie = config.session_cookie
        # The pattern matches no cookie without a value: a header may have thousands, and each match takes a call.
        name = re.escape((config.session_cookie or "").encode("ascii"))
        self._session_cookies = re.compile(rb"(?:\A|;)[ \t]*" + name + rb"=([^;]*[^; \t])")
        # A form can contain any bytes. JSON can't, and an embedding program's authenticator may not accept them.
        self._posts_any_bytes = config.auth_url is not None and config.auth_format == "form"
        self._origins = frozenset(normal_origin(origin) for origin in config.origin)
        self._refused_origins = RefusedOrigins()
        self.missing_cookie = MissingCookie()
        self._logged_reasons: set[str] = set()

    def check_origin(self, request: bytes) -> None:
        """Check that a page's origin is allowed. Programs other than browsers send none, and may connect.

        :raises ConnectionDeny: if it is not.
        """
        origin = header_value(request, "origin")
        if not self._origins or origin is None:
            return
        try:
            if normal_origin(origin) in self._origins:
                return
        except ConfigError:  # such as null
            pass
        self.log_refused_origin(origin, header_value(request, "host") or "")
        raise ConnectionDeny(ConnectionDeny.FORBIDDEN, "pages of this origin may not connect")

    def log_refused_origin(self, origin: str, host: str = "") -> None:
        """Log a refused origin, once. If there are very many, only their number is logged.

        :param host: the ``Host`` of the handshake.
        """
        try:
            normal_origin(origin)
            remedy = f"if it is yours, allow it with --origin {origin}"
            names = two_names(origin, host) if self._session_cookie else ""
            if names:
                remedy += f". That alone does not log anybody in: {names}"
        except ConfigError:  # null, empty, or two in one
            remedy = "this origin can't be allowed: serve the page from an origin that is listed"
        if self._refused_origins.refused(origin, self._seconds()):
            log.warn(
                "a page from origin {origin} was refused; {remedy} (logged once for each origin)",
                origin=printable(origin[:200]) or "(empty)",
                remedy=printable(remedy[:500]),
            )

    def log_more_refused_origins(self, at_least: float = MINUTE) -> None:
        """Log how many more handshakes were refused without their origins being logged.

        :param at_least: the fewest seconds for which they are counted before that is logged.
        """
        unlogged = self._refused_origins.take_unlogged(self._seconds(), at_least)
        if unlogged:
            log.warn(
                "too many refused origins at once: {count} more handshakes from pages were refused",
                count=unlogged,
            )

    def session_cookie_of(self, request: bytes) -> tuple[str | None, str | None]:
        """Return the SESSID in the handshake's session cookie, and why there is none to use.

        Both are None if the visitor simply has no such cookie.
        """
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
        """Return the SESSID in a cookie's value, or None if its bytes can't be posted.

        Bytes that are not UTF-8 become lone surrogates, and are posted as they came. A SESSID in a message has no lone
        surrogates.
        """
        try:
            return value.decode("utf-8", "surrogateescape" if self._posts_any_bytes else "strict")
        except UnicodeDecodeError:
            return None

    # Logins by the session cookie -----------------------------------------------

    def opened_without_cookie(self, request: bytes) -> None:
        """Note an accepted handshake without the session cookie, on a relay that would use one."""
        host, origin = header_value(request, "host"), header_value(request, "origin")
        cookies = ";".join(header_values(request, "cookie"))
        self.missing_cookie.handshake_without_cookie(cookies, (host or "")[:200], (origin or "")[:200])

    def login_without_cookie(self, because: str | None) -> None:
        """Log that a client tried to log in by a session cookie that it has not sent, if the operator can fix that.

        :param because: why no cookie is used; None if the client simply has none, which is a denial.
        """
        if because is not None:
            if because not in self._logged_reasons:
                self._logged_reasons.add(because)
                log.warn(
                    "a visitor can't be logged in, as the page sends no SESSID and no cookie is used: {remedy} (logged "
                    "once)",
                    remedy=REMEDIES[because],
                )
            return
        missing = self.missing_cookie
        if missing.login_without_cookie():
            log.warn(
                "{logins} logins in a row came without the session cookie {cookie}, and were denied. {cause}. Nothing "
                "is wrong if these visitors were not logged in at the site",
                logins=missing.logins,
                cookie=self._session_cookie,
                cause=printable(missing.probable_cause(self._session_cookie or "")),
            )
