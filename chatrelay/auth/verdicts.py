"""Return the verdict of the session page's response: logged in as a user, or denied; else the response is invalid.

Pure: a response is a status, its Location headers and the bytes of its body. This module must not know how a response
arrives (`chatrelay.auth.client`), nor what a verdict means to a connection (`chatrelay.auth.login`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from chatrelay.auth.diagnosis import words_of
from chatrelay.model import MAX_SESSID, MAX_TOKEN, Denied, LoggedIn, Verdict, is_expiry, is_sessid, is_uid

DENIAL_STATUSES = (401, 403)
"""The statuses that mean that nobody is logged in to this session."""

NO_WORDS = "''"
"""The quotation of a body without words."""


class InvalidAnswer(ValueError):
    """A response, or the lack of one, that gives no verdict.

    :param why: our own words, which say what is wrong.
    :param quoted: the site's words that follow them, which may contain the session id.
    :param after: our own words after the site's.
    :param status: the status of the response; None if there was no response.
    :param location: the target of a redirect; else empty.
    """

    def __init__(
        self, why: str, quoted: str = "", after: str = "", status: int | None = None, location: str = ""
    ) -> None:
        super().__init__(why + quoted + after)
        self.why = why
        self.quoted = quoted
        self.after = after
        self.status = status
        self.location = location


class SuspectDenial(InvalidAnswer):
    """A denial by the status alone, which the page may send for every session."""


class ConnectFailed(InvalidAnswer):
    """No connection to the site was made, which can't be due to the session id."""


def judge_status(status: int, locations: Iterable[bytes]) -> Verdict | None:
    """Return the verdict of a status; None if it is 200, and the body decides.

    :param locations: the values of the Location headers.
    :raises InvalidAnswer: if the status gives no verdict.
    """
    if status in DENIAL_STATUSES:
        return Denied(status)
    if 300 <= status < 400:
        target = ", ".join(location.partition(b"?")[0].decode("latin-1") for location in locations)
        why, after = f"it answered with status {status}, a redirect to ", ", which is not followed"
        raise InvalidAnswer(why, ascii(target), after, status, target)
    if status != 200:
        raise InvalidAnswer(f"it answered with status {status}", status=status)
    return None


def judge_startup_check(status: int, locations: Iterable[bytes], body: bytes) -> Verdict:
    """Return the verdict of a response with a status other than 200, to a request about a session id that nobody has.

    :param body: the part of the body that was read.
    :raises SuspectDenial: if the status alone is a denial.
    :raises InvalidAnswer: if there is no verdict. Both errors quote the first words of the body.
    """
    quoted = ascii(words_of(body))
    try:
        verdict = judge_status(status, locations)
    except InvalidAnswer as error:
        if error.location or quoted == NO_WORDS:
            raise
        raise InvalidAnswer(f"{error.why}: ", quoted, status=status) from None
    if verdict is None:
        return judge_body(body)
    with suppress(InvalidAnswer):
        if isinstance(judge_body(body), Denied):
            return verdict  # the body denies the session, too, so the page does not send this to everybody
    raise SuspectDenial("", quoted, status=status)


def judge_body(body: bytes) -> Verdict:
    """Return the verdict of the body of a response with status 200.

    :raises InvalidAnswer: if it gives none; the error quotes the body.
    """
    try:
        answer = msgspec.json.decode(body.decode("utf-8"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidAnswer("its response is not JSON: ", _quoted(body), status=200) from None
    loggedin = answer.get("loggedin") if isinstance(answer, dict) else None
    if loggedin is False:
        return Denied()
    if loggedin is not True:
        raise InvalidAnswer('its response has no "loggedin" that is true or false: ', _quoted(body))
    uid = answer.get("uID")
    if not is_uid(uid):
        raise InvalidAnswer(
            f'its response has no "uID" that is a string of 1 to {MAX_TOKEN} printable characters '
            "or an integer within ±2^53: ",
            _quoted(body),
        )
    expires_in = answer.get("expires_in")
    if expires_in is not None and not is_expiry(expires_in):
        raise InvalidAnswer('its response has an "expires_in" that is not a number of seconds > 0: ', _quoted(body))
    session = answer.get("session")
    if session is not None and not is_sessid(session):
        raise InvalidAnswer(f'its response has a "session" that is not a string of 1 to {MAX_SESSID} characters')
    return LoggedIn(uid, expires_in, session)


_SESSION = re.compile(r'("session"\s*:\s*")(?:[^"\\]|\\.)*')
"""The key "session" of a response, and its value, which is as secret as a SESSID."""


def _quoted(body: bytes) -> str:
    """Return a body in a form that is safe to print; `chatrelay.auth.redaction` shortens it."""
    # UTF-16 has zero bytes between its letters. Without them, people can read it, and a session id in it is found.
    return ascii(_SESSION.sub(r"\1<hidden>", body.replace(b"\0", b"").decode("utf-8", "replace")))
