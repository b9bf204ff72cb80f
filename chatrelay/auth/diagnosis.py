"""Diagnose a wrong setup: name the symptom, the probable cause, and the option that helps.

Pure: it returns texts, and the caller logs them. Several mistakes have the same symptom: visitors can't log in, and the
relay can't tell a wrong denial from a right one. The site's responses and a browser's cookies are not trusted. So the
caller hides the session id in them, and makes them fields of a log event.
"""

from __future__ import annotations

import html
import re
from urllib.parse import SplitResult, urlsplit

from chatrelay.auth.session_index import digest

FIRST_LOGINS = 3
"""The number of failed logins after which a warning is logged, if nobody has logged in yet."""

DENIED_SESSIONS = 10
"""The number of denied sessions after which the warning is logged again, if nobody has logged in yet."""

LOGINS_WITHOUT_COOKIE = 10
"""The logins in a row without the session cookie that cause a warning. The next warning needs ten times as many."""

MAX_COOKIES = 100
"""The most cookies of a handshake whose names are read."""

MAX_NAMES = 20
"""The most names of cookies that are shown."""

MAX_NAME_CHARACTERS = 64
"""The most characters of each of these names that are shown."""

EXEMPT = (
    "exempt the session page from it, as the relay's POST has no token (Django: csrf_exempt, Flask-WTF: "
    "csrf.exempt, Laravel: validateCsrfTokens(except:)), and let nobody but the relay use the page (--auth-secret-file)"
)
"""The remedy for CSRF protection."""

_PARSERS = {"form": "express.urlencoded()", "json": "express.json()"}
"""The parser by which an Express site reads each format."""

_EXPRESS_PREFIX = "s%3A"
"""The first characters of every cookie of express-session."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""A machine's names for itself. To a browser, each is a different site."""

_CSRF = re.compile(r"csrf|xsrf|cross.site request forgery|authenticity.?token|forgery", re.IGNORECASE)
_HOST = re.compile(r"DisallowedHost|ALLOWED_HOSTS|blocked hosts?\b|invalid host header", re.IGNORECASE)
_SLASH = re.compile(r"APPEND_SLASH|doesn't end in a slash")
_NO_SESSID = re.compile(r"\bSESSID\b")
_BEGINNING_CHARACTERS = 300
"""How many characters of a response are searched for a cause. After them, a debug page lists all settings."""

_UNSEEN = re.compile(r"<(style|script|title)\b[^>]*>.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")

MAX_BODY_BYTES = 8192
"""The most bytes of a response that are read to find its first words."""


def words_of(body: bytes) -> str:
    """Return the first words of a body on one line. If it is HTML, these are the title and the visible text.

    :param body: bytes after the first `MAX_BODY_BYTES` are ignored.
    """
    # UTF-16 has zero bytes between its letters.
    text = body[:MAX_BODY_BYTES].replace(b"\0", b"").decode("utf-8", "replace")
    if "<" in text:
        title = _TITLE.search(text)
        seen = html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
        text = " ".join(seen.split())
        titled = " ".join(html.unescape(title[1]).split()) if title else ""
        return text if text.startswith(titled) else f"{titled}: {text}"
    return " ".join(text.split())


def _named_cause(words: str) -> str:
    """Return the remedy for the cause that a response names; empty if it names none."""
    beginning = words[:_BEGINNING_CHARACTERS]
    if _HOST.search(beginning):
        return (
            "The site does not know the host name in the request: set the one that visitors use with --auth-host "
            "(Django: one of ALLOWED_HOSTS)"
        )
    return f"The cause is probably the site's CSRF protection: {EXEMPT}" if _CSRF.search(beginning) else ""


def probable_cause(status: int, words: str) -> str:
    """Return the probable cause if a page denies everybody with this status, and the remedy."""
    named = _named_cause(words)
    if named:
        return named
    other = "a login in front of the whole site" if status == 401 else "a firewall, rules on who may use the page,"
    return (
        f"The usual cause is the site's CSRF protection: {EXEMPT}. Other causes are {other} and a secret that is "
        "missing or differs from the page's (--auth-secret-file)"
    )


def remedy(url: str, format: str, status: int | None, location: str, words: str) -> str:
    """Return the remedy after a startup check without a valid response.

    :param url: the URL of the session page.
    :param format: ``form`` or ``json``.
    :param status: the status of the response; None if there was no response.
    :param location: the target of a redirect; else empty.
    :param words: the words of the response.
    """
    other_format = "form" if format == "json" else "json"
    if status is None:
        return "Check that --auth-url is right and that the site is up"
    if 300 <= status < 400:
        return _redirect_remedy(url, location)
    named = _named_cause("CSRF" if status == 419 else words) if status in (400, 419, 421, 422) else ""
    if named:
        return named
    if status in (400, 500):
        if _SLASH.search(words[:_BEGINNING_CHARACTERS]):
            return "Add a slash to the end of --auth-url"
        if _NO_SESSID.search(words[:_BEGINNING_CHARACTERS]):
            return f"The page does not find SESSID: {_format_remedy(format, other_format)}"
    if status in (400, 421):
        host = (
            "the site may not know the host name in the request: set the one that visitors use with --auth-host "
            "(Django: one of ALLOWED_HOSTS)"
        )
        other = f"the page may expect another format: try --auth-format {other_format}"
        likely, less_likely = (host, other) if format == "form" else (other, host)
        unlikely = "--auth-secret-file may be missing, or its secret may differ from the page's"
        return f"{likely[0].upper()}{likely[1:]}. Or {less_likely}. Or {unlikely}"
    if status == 404:
        return "Check the path of --auth-url. If the server has several sites, name this one with --auth-host"
    if status == 405:
        return "The page at --auth-url does not accept POST: make it accept POST"
    if status in (415, 422):
        return f"The page expects another format: try --auth-format {other_format}"
    if status == 500:
        return (
            "Check what the site's own log says about this request. A page that expects another format may fail like "
            f"this, too: {_format_remedy(format, other_format)}"
        )
    if status == 200:
        return "The page at --auth-url is one for people, perhaps a login page: set --auth-url to the session page"
    return "Check that --auth-url is right, and what the site's own log says about this request"


def _format_remedy(format: str, other_format: str) -> str:
    posted = "a form" if format == "form" else "JSON"
    return f"try --auth-format {other_format}, or make the page read {posted} (Express: {_PARSERS[format]})"


def _redirect_remedy(url: str, location: str) -> str:
    asked, leads = urlsplit(url), _split(location)
    if leads is not None and asked.scheme == "http" and leads.scheme == "https" and leads.path == asked.path:
        return (
            "The site forces https. If the relay reaches it behind the proxy that does TLS, add --auth-header "
            "'X-Forwarded-Proto: https' (Django: SECURE_PROXY_SSL_HEADER); else use an https --auth-url"
        )
    if leads is not None and leads.path == f"{asked.path}/":
        return "Add a slash to the end of --auth-url"
    return (
        "If the redirect leads to a login page, exempt the session page from the site's login. If it leads to the "
        "session page, set --auth-url to that address. If it differs only in the name of the site, set --auth-host to "
        "that name"
    )


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # such as an incomplete IPv6 address
        return None


def two_names(origin: str, host: str) -> str:
    """Return the remedy if a page and the relay were opened under two names of one machine; else empty.

    :param origin: the origin of the page.
    :param host: the ``Host`` of the handshake.
    """
    page, relay = _split(origin), _split(f"//{host}")
    if page is None or relay is None or page.scheme not in ("http", "https"):
        return ""
    if page.hostname == relay.hostname or not {page.hostname, relay.hostname} <= _LOOPBACK:
        return ""
    at_page, at_relay = _authority(relay, page), _authority(page, relay)
    if at_page is None or at_relay is None:
        return ""
    scheme = "wss" if page.scheme == "https" else "ws"
    return (
        f"open the page at {page.scheme}://{at_page}, or connect to {scheme}://{at_relay}: to a browser these two "
        "names of one machine are different sites, and it does not send the cookies of one to the other"
    )


def _authority(name: SplitResult, port: SplitResult) -> str | None:
    """Return the host of one URL with the port of another; None if that port is invalid."""
    host = f"[{name.hostname}]" if ":" in (name.hostname or "") else name.hostname
    try:
        return host if port.port is None else f"{host}:{port.port}"
    except ValueError:
        return None


class DeniedLogins:
    """Counts the logins that the site has denied since the start, until somebody logs in.

    A warning is due at the third of them, even if all are of one session: a developer who tests the site has one
    session, and reloads the page. But these may be visitors who are not logged in at the site. So a last warning is due
    when ten different sessions were denied.

    :param key: the key of the hashes of the SESSIDs, at most 64 random bytes.
    :ivar logins: how many were denied.
    :ivar statuses: the HTTP statuses of the denials; 200 if the body denied.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sessions: set[bytes] = set()
        self._is_over = self._is_express = False
        self.logins = 0
        self.statuses: set[int] = set()

    @property
    def sessions(self) -> int:
        """How many different sessions were denied."""
        return len(self._sessions)

    def logged_in(self) -> None:
        """Note that somebody has logged in. So the setup works, and no warning is due any more."""
        self._is_over = True
        self._sessions.clear()

    def denied(self, sessid: str, status: int) -> bool:
        """Count a denied login.

        :returns: whether a warning is due now.
        """
        if self._is_over:
            return False
        self.logins += 1
        self._sessions.add(digest(sessid, self._key))
        self.statuses.add(status)
        self._is_express |= sessid.startswith(_EXPRESS_PREFIX)
        self._is_over = len(self._sessions) == DENIED_SESSIONS
        return self._is_over or self.logins == FIRST_LOGINS

    def how(self) -> str:
        """Return how the site denied the logins: by the body, or with which statuses."""
        if self.statuses == {200}:
            return 'by "loggedin": false'
        return f"with status {' and '.join(map(str, sorted(self.statuses)))}"

    def probable_cause(self, format: str) -> str:
        """Return the probable cause, and the remedy.

        :param format: ``form`` or ``json``.
        """
        if self.statuses != {200}:
            return probable_cause(max(self.statuses), "")
        express = (
            "A cookie that begins with s%3A is express-session's, and holds the session id signed and encoded: the "
            "page must undo both (decodeURIComponent, then unsign), or hand the cookie to express-session itself"
        )
        posted = "from a form, as a browser posts it" if format == "form" else "from a JSON object"
        other_format = "form" if format == "json" else "json"
        return (
            f"If they were logged in, the page does not find their sessions. Check that it reads SESSID {posted} "
            f"(else: --auth-format {other_format}), that --session-cookie names the cookie with the site's session id, "
            "that the page undoes what the site does to that cookie's value (sign it, encode it), and that visitors "
            f"log in at the site of --auth-url{'. ' + express if self._is_express else ''}"
        )


class MissingCookie:
    """Counts logins in a row without the session cookie, and keeps the names of the cookies that came instead.

    A visitor who is not logged in at the site may have no such cookie, so a few of these logins are normal. A warning
    is due at the tenth in a row, the hundredth, the thousandth and so on. If nobody has logged in yet, one is due at
    the third, too.

    :ivar logins: how many there were in a row.
    :ivar names: the names of the cookies that came, at most `MAX_NAMES`.
    :ivar host: the ``Host`` of the last of these handshakes.
    :ivar origin: its ``Origin``.
    """

    def __init__(self) -> None:
        self.logins = 0
        self.names: dict[str, None] = {}
        self.host = self.origin = ""
        self._next = FIRST_LOGINS

    def handshake_without_cookie(self, cookies: str, host: str, origin: str) -> None:
        """Note a handshake without the session cookie.

        :param cookies: the other cookies, as they were sent.
        """
        self.host, self.origin = host, origin
        for pair in cookies.split(";", MAX_COOKIES)[:MAX_COOKIES]:
            name, equals, _ = pair.partition("=")
            name = name.strip()
            # A cookie without an equals sign is only a value, and values are not shown.
            if equals and name and len(self.names) < MAX_NAMES:
                self.names[name if len(name) <= MAX_NAME_CHARACTERS else name[:MAX_NAME_CHARACTERS] + "…"] = None

    def login_without_cookie(self) -> bool:
        """Count a login by the session cookie of a client that has not sent it.

        :returns: whether a warning is due now.
        """
        self.logins += 1
        if self.logins < self._next:
            return False
        self._next = LOGINS_WITHOUT_COOKIE if self._next < LOGINS_WITHOUT_COOKIE else 10 * self._next
        return True

    def logged_in(self) -> None:
        """Note that somebody has logged in."""
        self._next = max(self._next, LOGINS_WITHOUT_COOKIE)

    def login_with_cookie(self) -> None:
        """Note a login by the session cookie, which ends the row of logins without it."""
        if self.logins:
            self.logins = 0
            self.names.clear()

    def probable_cause(self, name: str) -> str:
        """Return the probable cause, and the remedy. The text quotes names that clients have sent.

        :param name: the name of the session cookie.
        """
        where = f"browsers do not send the cookies of {self.origin} to {self.host}"
        under = two_names(self.origin, self.host) or (
            "serve the relay at a path of the site's own host, by its proxy, or set the cookie's Domain and Path so "
            "that it is sent to both"
        )
        if not self.names:
            return f"No cookie came at all, so probably {where}: {under}"
        names = ", ".join(self.names)
        if name in self.names:
            return f"A cookie of that name came, but its value is empty, too long or not UTF-8 ({names})"
        return (
            f"The cookies that came are named: {names}. If one of them holds the site's session id, set "
            f"--session-cookie to its name; else {where}: {under}"
        )
