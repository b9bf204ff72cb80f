"""The values that all parts of the relay share: messages, uIDs, and verdicts on sessions.

Pure: values, their bounds, and checks of them. This module must not know what is done with a value.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import attrs
from msgspec import Struct

MAX_INTEGER = 2**53
"""The largest absolute value of an integer on the wire. JavaScript's numbers are exact up to it (RFC 8259, 6)."""

MAX_SESSID = 4096
"""The most characters in a SESSID."""

MAX_TOKEN = 64
"""The most characters in a uID, and in a client's ``id`` or ``timeStamp`` that is a string."""

MAX_CONTENT = 16 * 1024
"""The most bytes in a message's ``content``, encoded as UTF-8."""


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

    It is a Struct because one is made for every message, and making an attrs object takes three times as long.

    :ivar from_uid: the uID of the sender, as the site gave it.
    :ivar to_uid: the uID of the recipient, as the sender wrote it.
    :ivar client_id: the ``id`` of the sender's request.
    :ivar time_stamp: the sender's ``timeStamp``.
    :ivar received_at: when the relay received it, in seconds since 1970 UTC.
    :ivar has_unique_id: whether `client_id` is unique among the sender's messages, because the sender speaks v2.
    :ivar from_place: its place in the sender's inbox. The message log sets it when it commits the message. It is 0
        before, and stays 0 if the log is not an `chatrelay.interfaces.InboxLog`.
    :ivar to_place: its place in the recipient's inbox; the same as `from_place` for a message to oneself.
    :ivar is_to_stranger: whether the sender may not know the recipient. Then what the message log does to number the
        message must not depend on whether the recipient was written to lately, or exists.
    """

    from_uid: str | int
    to_uid: str | int
    client_id: str | int
    time_stamp: str | int
    content: str
    received_at: float
    has_unique_id: bool = False
    from_place: int = 0
    to_place: int = 0
    is_to_stranger: bool = False


def is_expiry(value: object) -> bool:
    """Return whether a value is a valid ``expires_in``: a number of seconds > 0 and < 2^31."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


@attrs.frozen
class LoggedMessage:
    """A message as it is read from the message log.

    :ivar number: the number of the message in the log, from 1.
    :ivar received_at: microseconds since 1970, UTC.
    :ivar delivered: False if the log knows that it reached nobody.
    :ivar from_place: its place in the sender's inbox; 0 if the log does not number inboxes.
    :ivar to_place: its place in the recipient's inbox.
    :ivar unique_id: the id that names it among the sender's messages; None if the sender spoke v1.
    """

    number: int
    from_uid: str
    to_uid: str
    time_stamp: str | int
    content: str
    received_at: int
    delivered: bool
    from_place: int = 0
    to_place: int = 0
    unique_id: str | None = None


@attrs.frozen
class Selection:
    """A selection of the messages of a log: those for which everything given here holds.

    :ivar user: the key of the user who sent or received them.
    :ivar peer: the key of the other user of the conversation. It is used with `user` only.
    :ivar since: the earliest time at which the relay received them, in microseconds since 1970 UTC.
    :ivar until: the first time that is too late.
    """

    user: str | None = None
    peer: str | None = None
    since: int | None = None
    until: int | None = None

    def has(self, message: LoggedMessage) -> bool:
        """Return whether a message is wanted."""
        users = (message.from_uid, message.to_uid)
        if self.user is not None and self.user not in users:
            return False
        if self.user is not None and self.peer is not None and (self.user, self.peer) not in (users, users[::-1]):
            return False
        if self.since is not None and message.received_at < self.since:
            return False
        return self.until is None or message.received_at < self.until


@attrs.frozen
class InboxEntry:
    """The entry at one place of a user's inbox. If it has neither a message nor an erasure, the place is void.

    :ivar place: the place, from 1.
    :ivar message: the message at this place, if it stands: it was delivered or stored, and was neither erased nor
        trimmed.
    :ivar erased: if this place says that messages were erased: the ranges of places that they had, each as its first
        and its last place.
    """

    place: int
    message: LoggedMessage | None = None
    erased: tuple[tuple[int, int], ...] = ()


@attrs.frozen
class Page:
    """Some entries of a user's inbox, in the order that was asked for.

    :ivar more: whether there are further entries that way.
    """

    entries: Sequence[InboxEntry]
    more: bool


@attrs.frozen
class Conversation:
    """A conversation of a user, and what is known about it before the log is read.

    :ivar peer: the key of the other user.
    :ivar last: the last message of the conversation that stands, if it was read. This saves reads.
    :ivar is_known: whether the other user has written to the user. If not, only `read_by_me` is wanted.
    :ivar read_by_me: how far the user has read, in places of the user's inbox, as far as that is not saved yet.
    :ivar received: how far the other user has received messages, in places of the other inbox; also not saved yet.
    :ivar read: how far the other user has read the conversation; as `received`.
    """

    peer: str
    last: LoggedMessage | None = None
    is_known: bool = True
    read_by_me: int = 0
    received: int = 0
    read: int = 0


@attrs.frozen
class Progress:
    """How far a conversation of a user was received and read, in places of the user's inbox; 0 for not at all.

    :ivar read_by_me: how far the user has read it.
    :ivar received: the last message of the user that the other user has received; 0 if `is_known` was False.
    :ivar read: the last message of the user that the other user has read; 0 if `is_known` was False.
    :ivar unread: the messages of the other user beyond `read_by_me`. There are none in the conversation with oneself.
    """

    read_by_me: int
    received: int
    read: int
    unread: int


@attrs.frozen
class InboxState:
    """A user's inbox at one instant, and the marks that are kept with it.

    :ivar first: the first place that is kept; `last` + 1 if none is.
    :ivar last: the last place; 0 if there is none.
    :ivar received: the last place that a device of the user has acknowledged; 0 if none has.
    :ivar left_at: the last place at the moment when the user's last connection closed; None if that is not known, or
        if the user has come back since.
    :ivar last_seen: that moment, in milliseconds since 1970 UTC; None as for `left_at`.
    """

    first: int
    last: int
    received: int = 0
    left_at: int | None = None
    last_seen: int | None = None

    @classmethod
    def with_marks(cls, first: int, last: int, marks: Mapping[int, int]) -> InboxState:
        """Return the state of an inbox with what its marks tell.

        :param marks: the values by the number of their kind, of those in `INBOX_KINDS`.
        """
        received = marks.get(MarkKind.RECEIVED.value, 0)
        if is_here(marks.get(MarkKind.STAYS.value, 0)):
            return cls(first, last, received)
        return cls(first, last, received, marks.get(MarkKind.LEFT_AT.value), marks.get(MarkKind.LAST_SEEN.value))


class MarkKind(enum.Enum):
    """The kinds of `Mark`. The values are kept in message logs."""

    RECEIVED = 1
    READ = 2
    LEFT_AT = 3
    LAST_SEEN = 4
    REVOKED = 5
    STAYS = 6

    # That of the base class is written in Python, and a request to watch 100 users needs a thousand.
    __hash__ = object.__hash__


PLACE_KINDS = frozenset({MarkKind.RECEIVED, MarkKind.READ, MarkKind.LEFT_AT})
"""The kinds of marks whose values are places, which mean nothing in another epoch of the log."""

INBOX_KINDS = (MarkKind.RECEIVED.value, MarkKind.LEFT_AT.value, MarkKind.LAST_SEEN.value, MarkKind.STAYS.value)
"""The kinds of marks that `InboxState` needs."""

MarkKey = tuple[str, MarkKind, str]
"""What names a mark: the first three fields of `Mark`."""


class Mark(NamedTuple):
    """A number that only grows, and is kept in the message log's store.

    :ivar user: the key of the user whose mark it is; empty for `MarkKind.REVOKED`.
    :ivar kind: what the number means.
    :ivar peer: for `MarkKind.READ`: the key of the other user of the conversation; for `MarkKind.REVOKED`, the digest
        of what was revoked, or empty for everything; else empty.
    :ivar value: a place in the user's inbox; for `MarkKind.LAST_SEEN`, milliseconds since 1970 UTC; for
        `MarkKind.REVOKED`, the second since 1970 UTC from which a log may drop the mark; for `MarkKind.STAYS`, a number
        that `is_here` understands.
    """

    user: str
    kind: MarkKind
    peer: str
    value: int


def is_here(stays: int) -> bool:
    """Return whether a user has a connection, or had one when the relay crashed.

    :param stays: the value of the mark `MarkKind.STAYS`, which grows when the user's first connection opens, and when
        the last one has closed and the marks that tell of it are kept. It is odd in between.
    """
    return stays % 2 == 1


@attrs.frozen
class LoggedIn:
    """The session belongs to the user `uid`.

    :ivar uid: the uID of the user: 1 to 64 printable characters, or an integer within ±2^53.
    :ivar expires_in: seconds until the session is to be checked again; None for the relay's own ``recheck_interval``.
    :ivar session: the SESSID to check then, which is a secret; None for the SESSID of the login. After a login by a
        ticket, None means that the session is not checked again.
    :ivar asked_at: when the site was asked, in seconds since 1970 UTC. The relay sets it, whatever the authenticator
        gave. 0.0 until then, so that the verdict counts as older than everything.
    :ivar user: the key of the user, made from `uid`: ``7`` and ``"7"`` are the same user.
    :raises ValueError: if `uid` is not a uID, `expires_in` is not a number of seconds > 0, or `session` is not a string
        of 1 to 4096 characters.
    """

    uid: str | int = attrs.field()
    expires_in: float | None = attrs.field(default=None)
    session: str | None = attrs.field(default=None, repr=False)
    asked_at: float = attrs.field(default=0.0, kw_only=True, repr=False, eq=False)
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


class LogNotIndexed(LogUnavailable):
    """The message log can't be read by user until its index is made, which takes some minutes at most."""


class LogBusy(Exception):
    """Too many reads of the message log wait. Ask again later."""
