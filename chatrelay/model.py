"""The values that all parts of the relay share: messages, uIDs, and verdicts on sessions.

Pure: values, their bounds, and checks of them. This module must not know what is done with a value.
"""

from __future__ import annotations

import attrs
from msgspec import Struct

MAX_INTEGER = 2**53
"""Integers on the wire lie within ± this, inclusive: up to here JavaScript's numbers are exact (RFC 8259, 6)."""

MAX_SESSID = 4096
"""Characters of a SESSID."""

MAX_TOKEN = 64
"""Characters of a client's ``id`` or ``timeStamp``, if they are strings, and of a uID."""

MAX_CONTENT = 16 * 1024
"""Bytes of a message's ``content``, encoded as UTF-8."""


def _is_integer(value: object) -> bool:
    # In Python True is an integer, and in JSON it is not.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def user_key(uid: str | int) -> str:
    """Return the key of a user, which is the same for the uIDs ``7`` and ``"7"``."""
    return uid if type(uid) is str else str(uid)


def is_uid(value: object) -> bool:
    """Return whether a value is a valid uID: 1 to 64 printable characters, or an integer within ±2^53."""
    if isinstance(value, str):
        return 1 <= len(value) <= MAX_TOKEN and value.isprintable()
    return _is_integer(value)


def is_sessid(value: object) -> bool:
    """Return whether a value can be a SESSID: 1 to 4096 characters without lone surrogates."""
    return (
        isinstance(value, str) and 1 <= len(value) <= MAX_SESSID and not any("\ud800" <= c <= "\udfff" for c in value)
    )


class Message(Struct, gc=False):
    """One message, as it is logged and delivered. Treat it as immutable.

    It is a Struct because one is made for every message, and an attrs class takes three times as long.

    :ivar from_uid: the uID of the sender, as the site gave it.
    :ivar to_uid: the uID of the recipient, as the sender wrote it.
    :ivar client_id: the ``id`` of the sender's request.
    :ivar time_stamp: the sender's ``timeStamp``.
    :ivar received_at: when the relay received it, in seconds since 1970 UTC.
    """

    from_uid: str | int
    to_uid: str | int
    client_id: str | int
    time_stamp: str | int
    content: str
    received_at: float


def is_expiry(value: object) -> bool:
    """Return whether a value is a valid ``expires_in``: a number of seconds > 0 and < 2^31."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


@attrs.frozen
class LoggedMessage:
    """A message as it is read from the message log.

    :ivar number: the number of the message in the log, from 1.
    :ivar received_at: microseconds since 1970, UTC.
    :ivar delivered: False if the log knows that it reached nobody.
    """

    number: int
    from_uid: str
    to_uid: str
    time_stamp: str | int
    content: str
    received_at: int
    delivered: bool


@attrs.frozen
class LoggedIn:
    """The session belongs to the user `uid`.

    :ivar uid: the uID of the user: 1 to 64 printable characters, or an integer within ±2^53.
    :ivar expires_in: seconds until the session is to be checked again; None for the relay's own ``recheck_interval``.
    :ivar session: the SESSID to check then, which is a secret; None for the SESSID of the login. After a login by a
        ticket, None means that the session is not checked again.
    :ivar user: the key of the user, made from `uid`: ``7`` and ``"7"`` are the same user.
    :raises ValueError: if `uid` is not a uID, `expires_in` is not a number of seconds > 0, or `session` is not a string
        of 1 to 4096 characters.
    """

    uid: str | int = attrs.field()
    expires_in: float | None = attrs.field(default=None)
    session: str | None = attrs.field(default=None, repr=False)
    user: str = attrs.field(init=False, repr=False, eq=False)

    @uid.validator
    def _check(self, _: object, uid: object) -> None:
        if not is_uid(uid):
            raise ValueError(f"{uid!r} is not a uID: give 1 to 64 printable characters, or an integer within ±2^53")

    @expires_in.validator
    def _check_expires_in(self, _: object, expires_in: object) -> None:
        if expires_in is not None and not is_expiry(expires_in):
            raise ValueError(f"{expires_in!r} is not a valid expires_in: give a number of seconds > 0")

    @session.validator
    def _check_session(self, _: object, session: object) -> None:
        if session is not None and not is_sessid(session):
            raise ValueError("session must be a string of 1 to 4096 characters")  # its value is a secret

    @user.default
    def _user(self) -> str:
        return user_key(self.uid)


@attrs.frozen
class Denied:
    """Nobody is logged in to this session, or there is no such session.

    :ivar status: the HTTP status of the response (RFC 9110, section 15). It is used in log messages only.
    """

    status: int = attrs.field(default=200, eq=False)


@attrs.frozen
class Unavailable:
    """There is no verdict: the site could not be asked, or its response was invalid.

    :ivar why: one sentence for the operator.
    """

    why: str


Verdict = LoggedIn | Denied | Unavailable


class LogUnavailable(Exception):
    """The message log could not be opened, written or read. No message of a failed batch may be delivered."""
