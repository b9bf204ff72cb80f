"""The values that every part of the relay speaks of: messages, users, and what is known about a session.

Pure. Nothing here does anything: there are values, their bounds, and checks of them.
"""

from __future__ import annotations

import attrs
from msgspec import Struct

MAX_INTEGER = 2**53
"""Integers on the wire lie within ± this, inclusive: up to here JavaScript's numbers are exact (RFC 8259, 6)."""

MAX_SESSID = 4096
"""Characters of a SESSID."""

MAX_TOKEN = 64
"""Characters of a client's ``id`` or ``timeStamp``, where they are strings, and of a uID."""

MAX_CONTENT = 16 * 1024
"""Bytes of a message's ``content``, encoded as UTF-8."""


def _is_integer(value: object) -> bool:
    # To Python, True is an integer; to JSON it is none.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def user_key(uid: str | int) -> str:
    """The one name of a user, however the uID was written: ``7`` and ``"7"`` are the same."""
    return uid if type(uid) is str else str(uid)


def is_uid(value: object) -> bool:
    """Whether a webserver may name a user so: 1 to 64 printable characters, or an integer within ±2^53."""
    if isinstance(value, str):
        return 1 <= len(value) <= MAX_TOKEN and value.isprintable()
    return _is_integer(value)


def is_sessid(value: object) -> bool:
    """Whether this could be a SESSID: 1 to 4096 characters, no lone surrogates among them."""
    return (
        isinstance(value, str) and 1 <= len(value) <= MAX_SESSID and not any("\ud800" <= c <= "\udfff" for c in value)
    )


class Message(Struct, gc=False):
    """One message on its way, as it is logged and delivered. Nobody changes it.

    A Struct, though it crosses no wire: one is made for every message, and
    attrs takes three times as long.

    :ivar from_uid: the sender, as the webserver answered.
    :ivar to_uid: the recipient, as the sender wrote it.
    :ivar client_id: the sender's id for the request.
    :ivar time_stamp: the sender's timeStamp.
    :ivar received_at: when the relay got it, in seconds since 1970 UTC.
    """

    from_uid: str | int
    to_uid: str | int
    client_id: str | int
    time_stamp: str | int
    content: str
    received_at: float


def is_expiry(value: object) -> bool:
    """Whether a webserver may say so how many seconds a session lasts: a number above 0 and below 2^31."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


@attrs.frozen
class LoggedMessage:
    """A message as it is read from the message log.

    :ivar number: counts the messages of the log, from 1.
    :ivar received_at: microseconds since 1970, UTC.
    :ivar delivered: whether it was handed to anybody, as far as the log knows.
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
    """The webserver knows this session: it belongs to the user `uid`.

    :ivar expires_in: seconds until it should be asked about again; None: the relay's own ``recheck_interval``.
    :ivar session: what to ask by then in place of the SESSID, and as secret; None: the SESSID, unless it is a ticket.
    :ivar user: the user's `user_key`, made of `uid`.
    :raises ValueError: where `uid` is none (`is_uid`), `expires_in` no time (`is_expiry`), or `session` could be no
        SESSID (`is_sessid`).
    """

    uid: str | int = attrs.field()
    expires_in: float | None = attrs.field(default=None)
    session: str | None = attrs.field(default=None, repr=False)
    user: str = attrs.field(init=False, repr=False, eq=False)

    @uid.validator
    def _check(self, _: object, uid: object) -> None:
        if not is_uid(uid):
            raise ValueError(f"{uid!r} is no uID: it takes 1 to 64 printable characters, or an integer within ±2^53")

    @expires_in.validator
    def _check_expires_in(self, _: object, expires_in: object) -> None:
        if expires_in is not None and not is_expiry(expires_in):
            raise ValueError(
                f"{expires_in!r} is no time for which a session lasts: it takes a number of seconds above 0"
            )

    @session.validator
    def _check_session(self, _: object, session: object) -> None:
        if session is not None and not is_sessid(session):
            raise ValueError("what to ask by next is no string of 1 to 4096 characters")  # which must not be told

    @user.default
    def _user(self) -> str:
        return user_key(self.uid)


@attrs.frozen
class Denied:
    """The webserver does not know this session, or nobody is logged in to it.

    :ivar status: the status of the answer that says so (RFC 9110, section 15); no part of what it means.
    """

    status: int = attrs.field(default=200, eq=False)


@attrs.frozen
class Unavailable:
    """The webserver could not be asked, or its answer was none.

    :ivar why: one sentence for the operator.
    """

    why: str


Verdict = LoggedIn | Denied | Unavailable


class LogUnavailable(Exception):
    """The message log could not be written. Nothing of the batch may be delivered."""
