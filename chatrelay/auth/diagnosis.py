"""Tell the operator of a site that is set up wrongly what was seen, what is likely wrong and which option helps.

Pure. Several mistakes look alike: visitors can't log in, and to the relay a
denial is an answer like any other. The site's answers and a browser's cookies
are strangers' text: the caller hides the session id in them, and makes them
fields of a log event.
"""

from __future__ import annotations

import html
import re
from urllib.parse import SplitResult, urlsplit

from chatrelay.auth.session_index import digest

EARLY = 3
"""Logins that went wrong after which the operator is told, as long as nobody has been let in."""

MAX_DENIED = 10
"""Different sessions, all of them denied since the start, after which the operator is told again."""

MAX_MISSING = 10
"""Logins in a row without the session cookie after which the operator is told; next after ten times as many."""

MAX_COOKIES = 100
"""Cookies of a handshake whose names are looked at."""

MAX_NAMES = 20
"""Names of cookies that are told."""

MAX_NAME = 64
"""Characters of each."""

EXEMPT = (
    "exempt the session page from it, as the relay's POST can't bring a token (Django: csrf_exempt, Flask-WTF: "
    "csrf.exempt, Laravel: validateCsrfTokens(except:)), and let only the relay ask it (--auth-secret-file)"
)
"""The remedy for protection against forged requests."""

_PARSERS = {"form": "express.urlencoded()", "json": "express.json()"}
"""The parser by which an Express site reads the question."""

_EXPRESS = "s%3A"
"""How each cookie of express-session begins."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""The names that a machine has for itself, each of which is another site to a browser."""

_CSRF = re.compile(r"csrf|xsrf|cross.site request forgery|authenticity.?token|forgery", re.IGNORECASE)
_HOST = re.compile(r"DisallowedHost|ALLOWED_HOSTS|blocked hosts?\b|invalid host header", re.IGNORECASE)
_SLASH = re.compile(r"APPEND_SLASH|doesn't end in a slash")
_NO_SESSID = re.compile(r"\bSESSID\b")
_BEGINNING = 300
"""Characters of an answer's words that name the cause; a page for developers goes on with all settings of the site."""

_UNSEEN = re.compile(r"<(style|script|title)\b[^>]*>.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")

MAX_BODY = 8192
"""Bytes of an answer in which words are looked for."""


def words_of(body: bytes) -> str:
    """Return the text that a person would read in the start of an answer, on one line; of HTML the title and the text.

    :param body: as much as there is; no more than `MAX_BODY` bytes are looked at.
    """
    # Without what UTF-16 has between letters.
    text = body[:MAX_BODY].replace(b"\0", b"").decode("utf-8", "replace")
    if "<" in text:
        title = _TITLE.search(text)
        seen = html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
        text = " ".join(seen.split())
        titled = " ".join(html.unescape(title[1]).split()) if title else ""
        return text if text.startswith(titled) else f"{titled}: {text}"
    return " ".join(text.split())


def _named_cause(words: str) -> str:
    """Say what to do about the cause that a refusal names; nothing where it names none."""
    beginning = words[:_BEGINNING]
    if _HOST.search(beginning):
        return (
            "The site does not know the name that it was asked by: give the one that visitors use with --auth-host "
            "(Django: one of ALLOWED_HOSTS)"
        )
    return f"The cause is likely the site's CSRF protection: {EXEMPT}" if _CSRF.search(beginning) else ""


def likely_cause(status: int, words: str) -> str:
    """Say why a page might deny everybody with this status, and what to do about it."""
    named = _named_cause(words)
    if named:
        return named
    other = "a login in front of the site" if status == 401 else "a firewall, or rules on who may ask,"
    return (
        f"The usual cause is the site's CSRF protection: {EXEMPT}. Others are {other} and a secret that is "
        "missing or not that of the page (--auth-secret-file)"
    )


def remedy(url: str, format: str, status: int | None, location: str, words: str) -> str:
    """Say what to do after a first look that met no answer which decides anything.

    :param url: where it asked.
    :param format: ``form`` or ``json``.
    :param status: of the answer; None where there was none.
    :param location: where a redirect leads; else empty.
    :param words: what the answer says.
    """
    other_format = "form" if format == "json" else "json"
    if status is None:
        return "See that --auth-url is right and the site is up"
    if 300 <= status < 400:
        return _of_redirect(url, location)
    named = _named_cause("CSRF" if status == 419 else words) if status in (400, 419, 421, 422) else ""
    if named:
        return named
    if status in (400, 500):
        if _SLASH.search(words[:_BEGINNING]):
            return "--auth-url lacks the slash at its end"
        if _NO_SESSID.search(words[:_BEGINNING]):
            return f"The page does not find SESSID: {_read_otherwise(format, other_format)}"
    if status in (400, 421):
        host = (
            "the site may not know the name that it was asked by: give the one that visitors use with --auth-host "
            "(Django: one of ALLOWED_HOSTS)"
        )
        other = f"the page may read the question in another form: try --auth-format {other_format}"
        likely, less_likely = (host, other) if format == "form" else (other, host)
        unlikely = "--auth-secret-file is missing or not that of the page"
        return f"{likely[0].upper()}{likely[1:]}. Or {less_likely}. Or {unlikely}"
    if status == 404:
        return (
            "See that the path of --auth-url is right; where one server has several sites, name this one with "
            "--auth-host"
        )
    if status == 405:
        return "The page of --auth-url takes no POST: have it take one"
    if status in (415, 422):
        return f"The page reads the question in another form: try --auth-format {other_format}"
    if status == 500:
        return (
            "See what the site's own log says of this question. A page that reads the question in another form may "
            f"fail so, too: {_read_otherwise(format, other_format)}"
        )
    if status == 200:
        return (
            "The page of --auth-url is one for people, perhaps a page to log in: give the address of the session page"
        )
    return "See that --auth-url is right, and what the site's own log says of this question"


def _read_otherwise(format: str, other_format: str) -> str:
    posted = "a form" if format == "form" else "JSON"
    return f"try --auth-format {other_format}, or have the page read {posted} (Express: {_PARSERS[format]})"


def _of_redirect(url: str, location: str) -> str:
    asked, leads = urlsplit(url), _split(location)
    if leads is not None and asked.scheme == "http" and leads.scheme == "https" and leads.path == asked.path:
        return (
            "The site forces https. Where a proxy does TLS for it, and the relay asks it behind that, say so with "
            "--auth-header 'X-Forwarded-Proto: https' (Django: SECURE_PROXY_SSL_HEADER); else give an https --auth-url"
        )
    if leads is not None and leads.path == f"{asked.path}/":
        return "--auth-url lacks the slash at its end"
    return (
        "If that is a page to log in, exempt the session page from the login that the site wants; if the page is "
        "there, give that address as --auth-url; if it is only another name of the site, give that with --auth-host"
    )


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # half an IPv6 address
        return None


def two_names(origin: str, host: str) -> str:
    """Say what to do where a page and the relay were reached under two names of one machine; else nothing.

    :param origin: of the page.
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
        f"open the page under {page.scheme}://{at_page}, or connect to {scheme}://{at_relay}: to a browser these names "
        "of one machine are different sites, and the cookies of one are not sent to the other"
    )


def _authority(name: SplitResult, port: SplitResult) -> str | None:
    """The host of one address with the port of another; None where that is no port."""
    host = f"[{name.hostname}]" if ":" in (name.hostname or "") else name.hostname
    try:
        return host if port.port is None else f"{host}:{port.port}"
    except ValueError:
        return None


class DeniedSoFar:
    """The logins that the site has denied since the start, as long as it has let nobody in.

    The operator is told at the third of them, whosesoever they are: a
    developer who tries the site out has one session and reloads the page.
    Those may have been visitors who are not logged in; so the operator is told
    once more when ten different sessions were denied, and no more.

    :param key: of the hashes by which sessions are known, at most 64 random bytes.
    :ivar logins: how many were denied.
    :ivar statuses: those of the denials, 200 for what the body said.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sessions: set[bytes] = set()
        self._is_over = self._is_express = False
        self.logins = 0
        self.statuses: set[int] = set()

    @property
    def sessions(self) -> int:
        """How many different sessions these logins were of."""
        return len(self._sessions)

    def let_in(self) -> None:
        """The site has let somebody in: it can, so nothing is told any more."""
        self._is_over = True
        self._sessions.clear()

    def denied(self, sessid: str, status: int) -> bool:
        """The site has denied a login.

        :returns: whether the operator should be told now.
        """
        if self._is_over:
            return False
        self.logins += 1
        self._sessions.add(digest(sessid, self._key))
        self.statuses.add(status)
        self._is_express |= sessid.startswith(_EXPRESS)
        self._is_over = len(self._sessions) == MAX_DENIED
        return self._is_over or self.logins == EARLY

    def how(self) -> str:
        """Say in which way the site denied them."""
        if self.statuses == {200}:
            return 'by "loggedin": false'
        return f"with status {' and '.join(map(str, sorted(self.statuses)))}"

    def likely_cause(self, format: str) -> str:
        """Say why, and what to do about it.

        :param format: ``form`` or ``json``.
        """
        if self.statuses != {200}:
            return likely_cause(max(self.statuses), "")
        express = (
            "A cookie that begins with s%3A is express-session's, and holds the session's id encoded and signed: the "
            "page has to undo both (decodeURIComponent, then unsign), or to hand the cookie to express-session itself"
        )
        posted = "from a form, as a browser posts it" if format == "form" else "from a JSON object"
        other_format = "form" if format == "json" else "json"
        return (
            f"If they were logged in, the page does not find their sessions. See that it reads SESSID {posted} (else: "
            f"--auth-format {other_format}), that --session-cookie names the cookie with the site's session id, that "
            "the page undoes what the site does to that cookie's value (sign it, encode it), and that visitors log in "
            f"at the same site that --auth-url names{'. ' + express if self._is_express else ''}"
        )


class MissingCookie:
    """Logins in a row without the session cookie, and the names of the cookies that came instead.

    A visitor who is not logged in at the site may have no such cookie. So a
    few of them mean nothing, and of many in a row the operator is told at the
    tenth, the hundredth, the thousandth. As long as nobody has been let in, the
    third is told as well, once.

    :ivar logins: how many there were in a row.
    :ivar names: of the cookies that came, at most `MAX_NAMES`.
    :ivar host: the ``Host`` of the last of these handshakes.
    :ivar origin: its ``Origin``.
    """

    def __init__(self) -> None:
        self.logins = 0
        self.names: dict[str, None] = {}
        self.host = self.origin = ""
        self._next = EARLY

    def handshake(self, cookies: str, host: str, origin: str) -> None:
        """A handshake came without the cookie.

        :param cookies: those that it has, as they came.
        """
        self.host, self.origin = host, origin
        for pair in cookies.split(";", MAX_COOKIES)[:MAX_COOKIES]:
            name, equals, _ = pair.partition("=")
            name = name.strip()
            # Without an equals sign all of it is a value, which is not told.
            if equals and name and len(self.names) < MAX_NAMES:
                self.names[name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"] = None

    def login(self) -> bool:
        """Somebody wanted to log in by the cookie, and had none; whether the operator should be told now."""
        self.logins += 1
        if self.logins < self._next:
            return False
        self._next = MAX_MISSING if self._next < MAX_MISSING else 10 * self._next
        return True

    def let_in(self) -> None:
        """Somebody was let in: it can be done."""
        self._next = max(self._next, MAX_MISSING)

    def came(self) -> None:
        """Somebody logs in by the cookie."""
        if self.logins:
            self.logins = 0
            self.names.clear()

    def likely_cause(self, name: str) -> str:
        """Say why, and what to do about it, in words that quote strangers.

        :param name: of the session cookie.
        """
        where = f"cookies of {self.origin} are not sent to {self.host}"
        under = two_names(self.origin, self.host) or (
            "put the relay under the site's own host, as a path of it in its proxy, or have the site set the cookie's "
            "Domain and Path so that both have it"
        )
        if not self.names:
            return f"As no cookie came at all, {where}: {under}"
        names = ", ".join(self.names)
        if name in self.names:
            return f"A cookie of that name did come, but with a value that is empty, too long or not UTF-8 ({names})"
        return (
            f"The cookies that did come are named: {names}. If one of them holds the site's session id, give its name "
            f"as --session-cookie; else the {where}: {under}"
        )
