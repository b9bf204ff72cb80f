"""The seams: what the relay asks of its neighbours, and the values that cross.

Nothing here does anything. An `Authenticator` knows whose session it is, a
`MessageLog` keeps messages, a `Connection` carries bytes to one client. Each
may be replaced by the program that embeds chatrelay; each has one contract
test that every implementation of ours runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from chatrelay.wire.v1 import Message as Message  # a value that crosses, made where Structs are
from chatrelay.wire.v1 import is_sessid, is_uid


def is_expiry(value: object) -> bool:
    """Whether a webserver may say so how many seconds a session lasts: a number above 0 and below 2^31."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


@attrs.frozen
class LoggedIn:
    """The webserver knows this session: it belongs to the user `uid`.

    :ivar expires_in: seconds until it should be asked about again; None: the relay's own ``recheck_interval``.
    :ivar session: what to ask by then in place of the SESSID, and as secret; None: the SESSID, unless it is a ticket.
    :raises ValueError: where `uid` is none (`chatrelay.wire.v1.is_uid`), `expires_in` no time (`is_expiry`), or
        `session` could be no SESSID (`chatrelay.wire.v1.is_sessid`).
    """

    uid: str | int = attrs.field()
    expires_in: float | None = attrs.field(default=None)
    session: str | None = attrs.field(default=None, repr=False)

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


class Authenticator(Protocol):
    """Answers whose session it is."""

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Ask once.

        :param sessid: 1 to 4096 characters, opaque, never to be logged.
        :returns: a Deferred that fires with the verdict. Cancelling it gives
            up the question. It does not fail otherwise: trouble is a verdict.
        """


class Connection(Protocol):
    """One client's open WebSocket, as the relay sees it."""

    def send(self, payload: bytes) -> bool:
        """Hand over one text message.

        :param payload: the message, encoded.
        :returns: whether it was appended to the outgoing buffer of an open
            connection within its budget (the promise's C2). Never raises.
        """

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; nothing is received from here on.

        :param code: the close code (RFC 6455, section 7.4).
        :param reason: at most 123 bytes of UTF-8, for the developer.
        """


class LogUnavailable(Exception):
    """The message log could not be written. Nothing of the batch may be delivered."""


class MessageLog(Protocol):
    """The durable record of messages. All methods are called in the reactor's thread."""

    @property
    def is_open(self) -> bool:
        """Whether it can be written, as far as is known."""

    @property
    def is_alive(self) -> bool:
        """Whether it can ever be written again: False where something it can't do without has ended, such as a thread.

        ``twistd chatrelay`` then tells systemd no more that the relay is alive, and is started again. Nobody else asks.
        """

    def start(self) -> None:
        """Open the log; blocks until it can be written.

        :raises LogUnavailable: with a sentence that names the log and the remedy.
        """

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch: all of it or none, synced, numbered in the order given.

        :returns: the message numbers, in order; fails with `LogUnavailable`.
        """

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Note that these messages reached nobody. Fails with `LogUnavailable`; it is then made good on recovery."""

    def stop(self) -> Deferred[None]:
        """Close the log, when all that was asked of it has been done."""
