"""What the webserver's answer means, and what of it the operator may be told.

Pure: an answer is a status, the Location headers, and the bytes of a body.
How it came is not known here (`chatrelay.webserver` knows), nor what a verdict
means to a connection (`chatrelay.session` does).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

import msgspec

from chatrelay import wire
from chatrelay.interfaces import Denied, LoggedIn, Verdict, is_expiry

DENIALS = (401, 403)
"""Statuses that mean: this session is not logged in."""

HIDDEN = "<SESSID>"
"""What stands for a session id in what the operator is told."""

PIECE = 8
"""Characters of a session id that are told nowhere; fewer are of no use to anybody, and are in many a word."""

MAX_TOLD = 200
"""Characters of what came from the webserver that the operator is told, at most."""

MAX_SOUGHT = 128
"""Bytes of a session id that is looked for in what the operator is told; with a longer one nothing of an answer is.

A stranger chooses it, and the search takes as long as it is.
"""

NOT_TOLD = "<not told, as it may contain the session id, which is too long to look for>"


class NoVerdict(ValueError):
    """The webserver's answer, or the lack of one, decides nothing.

    :param why: our own words, which say what is the matter.
    :param said: what of the webserver's words follows them, which may contain the session id.
    :param after: our own words again.
    """

    def __init__(self, why: str, said: str = "", after: str = "") -> None:
        super().__init__(why + said + after)
        self.why = why
        self.said = said
        self.after = after


class NotReached(NoVerdict):
    """There was not even a connection to the webserver, which can't be the fault of what was asked."""


def of_status(status: int, locations: Iterable[bytes]) -> Verdict | None:
    """What the status of an answer means; None where it is 200, and the body decides.

    :param locations: its Location headers.
    :raises NoVerdict: where it means nothing; the text says what came.
    """
    if status in DENIALS:
        return Denied()
    if 300 <= status < 400:
        where = ", ".join(location.partition(b"?")[0].decode("latin-1") for location in locations)
        raise NoVerdict(f"it answered {status}, a redirect to ", ascii(where), ", which is not followed")
    if status != 200:
        raise NoVerdict(f"it answered with status {status}")
    return None


def of_body(body: bytes) -> Verdict:
    """What the webserver's answer, status 200, means.

    :raises NoVerdict: where it means nothing; the text says what came.
    """
    try:
        answer = msgspec.json.decode(body.decode("utf-8"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NoVerdict("its answer is not JSON: ", _start(body)) from None
    loggedin = answer.get("loggedin") if isinstance(answer, dict) else None
    if loggedin is False:
        return Denied()
    if loggedin is not True:
        raise NoVerdict('its answer has no "loggedin" that is true or false: ', _start(body))
    uid = answer.get("uID")
    if not wire.is_uid(uid):
        raise NoVerdict(
            f'its answer has no "uID" that is a string of 1 to {wire.MAX_TOKEN} printable characters '
            "or an integer within ±2^53: ",
            _start(body),
        )
    expires_in = answer.get("expires_in")
    if expires_in is not None and not is_expiry(expires_in):
        raise NoVerdict('its answer has an "expires_in" that is no number of seconds above 0: ', _start(body))
    session = answer.get("session")
    if session is not None and not wire.is_sessid(session):
        raise NoVerdict(f'its answer has a "session" that is no string of 1 to {wire.MAX_SESSID} characters')
    return LoggedIn(uid, expires_in, session)


_SESSION = re.compile(r'("session"\s*:\s*")(?:[^"\\]|\\.)*')
"""The start of an answer's "session", and what is as secret as a SESSID."""


def _start(body: bytes) -> str:
    """An answer in a form that is safe to print; who prints it shortens it."""
    # Without what UTF-16 has between letters, so that they can be read, and a session id among them be found.
    return ascii(_SESSION.sub(r"\1<hidden>", body.replace(b"\0", b"").decode("utf-8", "replace")))


def told(error: NoVerdict, sessid: str) -> str:
    """What the operator is told of it: the webserver's words without the session id, and not too many of them."""
    said = error.said[: 3 * MAX_TOLD]  # looked through in a moment, however large the answer
    if said:
        said = without(sessid, said) if len(sessid.encode("utf-8")) <= MAX_SOUGHT else NOT_TOLD
        said = said if len(said) <= MAX_TOLD else said[:MAX_TOLD] + "…"
    return error.why + said + error.after


def without(sessid: str, text: str) -> str:
    """A text with the session id taken out, in every form it may have come back in, and every longer piece of it."""
    raw = sessid.encode("utf-8")
    mangled = raw.decode("latin-1")  # as headers are read
    forms = {sessid, quote(sessid), quote(sessid, safe=""), quote_plus(sessid), mangled, repr(raw)[2:-1]}
    forms |= {json.dumps(sessid)[1:-1], html.escape(sessid)}
    forms |= {ascii(form)[1:-1] for form in forms}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    # It may have been cut off, or encoded in a way that leaves most of it as it was.
    pieces = {form[start : start + PIECE] for form in forms for start in range(len(form) - PIECE + 1)}
    kept, since, end = [], 0, 0  # what is hidden ends at `end`, and what is not hidden begins at `since`
    for start in range(len(text) - PIECE + 1):
        if text[start : start + PIECE] in pieces:
            if start >= end:
                kept += [text[since:start], HIDDEN]
            since = end = start + PIECE
    return "".join([*kept, text[since:]])
