"""What the webserver's answer means, and what of it the operator may be told.

Pure: an answer is a status, the Location headers, and the bytes of a body.
How it came is not known here (`chatrelay.auth.client` knows), nor what a verdict
means to a connection (`chatrelay.relay.session` does).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote, quote_plus

import msgspec

from chatrelay.auth.diagnosis import words_of
from chatrelay.model import MAX_SESSID, MAX_TOKEN, Denied, LoggedIn, Verdict, is_expiry, is_sessid, is_uid

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


EMPTY = "''"
"""How a body without words is told."""


class NoVerdict(ValueError):
    """The webserver's answer, or the lack of one, decides nothing.

    :param why: our own words, which say what is the matter.
    :param said: what of the webserver's words follows them, which may contain the session id.
    :param after: our own words again.
    :param status: of the answer; None where there was none.
    :param location: where it leads, if it is a redirect.
    """

    def __init__(
        self, why: str, said: str = "", after: str = "", status: int | None = None, location: str = ""
    ) -> None:
        super().__init__(why + said + after)
        self.why = why
        self.said = said
        self.after = after
        self.status = status
        self.location = location


class Suspect(NoVerdict):
    """A denial by its status alone, which the page may answer everybody with."""


class NotReached(NoVerdict):
    """There was not even a connection to the webserver, which can't be the fault of what was asked."""


def of_status(status: int, locations: Iterable[bytes]) -> Verdict | None:
    """What the status of an answer means; None where it is 200, and the body decides.

    :param locations: its Location headers.
    :raises NoVerdict: where it means nothing; the text says what came.
    """
    if status in DENIALS:
        return Denied(status)
    if 300 <= status < 400:
        where = ", ".join(location.partition(b"?")[0].decode("latin-1") for location in locations)
        why, after = f"it answered {status}, a redirect to ", ", which is not followed"
        raise NoVerdict(why, ascii(where), after, status, where)
    if status != 200:
        raise NoVerdict(f"it answered with status {status}", status=status)
    return None


def of_first_look(status: int, locations: Iterable[bytes], body: bytes) -> Verdict:
    """Judge an answer other than 200 to the question about a session that nobody has.

    :param body: as much of it as is looked at.
    :raises Suspect: where it denies that by its status alone.
    :raises NoVerdict: where it means nothing. Both say what came, the first words of the body included.
    """
    said = ascii(words_of(body))
    try:
        verdict = of_status(status, locations)
    except NoVerdict as error:
        if error.location or said == EMPTY:
            raise
        raise NoVerdict(f"{error.why}: ", said, status=status) from None
    if verdict is None:
        return of_body(body)
    with suppress(NoVerdict):
        if isinstance(of_body(body), Denied):
            return verdict  # the body says so, too, as it would to a session that it knows to be over
    raise Suspect("", said, status=status)


def of_body(body: bytes) -> Verdict:
    """What the webserver's answer, status 200, means.

    :raises NoVerdict: where it means nothing; the text says what came.
    """
    try:
        answer = msgspec.json.decode(body.decode("utf-8"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NoVerdict("its answer is not JSON: ", _start(body), status=200) from None
    loggedin = answer.get("loggedin") if isinstance(answer, dict) else None
    if loggedin is False:
        return Denied()
    if loggedin is not True:
        raise NoVerdict('its answer has no "loggedin" that is true or false: ', _start(body))
    uid = answer.get("uID")
    if not is_uid(uid):
        raise NoVerdict(
            f'its answer has no "uID" that is a string of 1 to {MAX_TOKEN} printable characters '
            "or an integer within ±2^53: ",
            _start(body),
        )
    expires_in = answer.get("expires_in")
    if expires_in is not None and not is_expiry(expires_in):
        raise NoVerdict('its answer has an "expires_in" that is no number of seconds above 0: ', _start(body))
    session = answer.get("session")
    if session is not None and not is_sessid(session):
        raise NoVerdict(f'its answer has a "session" that is no string of 1 to {MAX_SESSID} characters')
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
        said = without(sessid, said) if len(sessid.encode("utf-8", "surrogateescape")) <= MAX_SOUGHT else NOT_TOLD
        said = said if len(said) <= MAX_TOLD else said[:MAX_TOLD] + "…"
    return error.why + said + error.after


def without(sessid: str, text: str) -> str:
    """A text with the session id taken out, in every form it may have come back in, and every longer piece of it."""
    raw = sessid.encode("utf-8", "surrogateescape")
    mangled = raw.decode("latin-1")  # as headers are read
    forms = {sessid, quote(raw), quote(raw, safe=""), quote_plus(raw), mangled, repr(raw)[2:-1]}
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
