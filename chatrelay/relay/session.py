"""One connection's login state, and what each of its messages does.

Pure: bytes of whole messages come in, calls on the objects that are handed in go out, and the clock is handed in, too.
This module must not know how bytes travel, nor how requests are written. `docs/protocol.rst` states the rules; the
states are named here::

    ANONYMOUS --auth-request--> AUTHENTICATING --LoggedIn--> AUTHENTICATED --auth-request--> REAUTHENTICATING
        ^                             |                            ^                                |
        +--------- any other ---------+                            +---------- any verdict ---------+

From each of them `closed` leads to CLOSED, where nothing happens.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from msgspec import UnsetType

from chatrelay.interfaces import Connection, Dialect
from chatrelay.limits.buckets import MINUTE, TokenBucket
from chatrelay.limits.inflow import LARGE_MESSAGE, weight
from chatrelay.limits.sending import SendLimits, UserQuota
from chatrelay.model import LoggedIn, Message, Unavailable, Verdict, user_key
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.wire import codes
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import AuthRequest, Kind, SendRequest, UnusableFrame


class State(enum.Enum):
    """The states of a connection's login."""

    ANONYMOUS = enum.auto()
    AUTHENTICATING = enum.auto()
    AUTHENTICATED = enum.auto()
    REAUTHENTICATING = enum.auto()
    CLOSED = enum.auto()


_AUTHENTICATED: Final = State.AUTHENTICATED
_REAUTHENTICATING: Final = State.REAUTHENTICATING
_CLOSED: Final = State.CLOSED
# Looked up for every message. As attributes of an enumeration they would cost more than all that is done with them.

MAX_DENIALS = 3
"""Denials of login over a connection's life; the third closes it."""

REAUTHENTICATIONS_PER_MINUTE = 10
"""Auth-requests of a logged-in connection that are passed on to the session page: at once, and a minute."""

MAX_UNUSABLE_FRAMES = 10
"""Answers `error` and `invalid-message` over a connection's life; the tenth closes it."""

MAX_REFUSALS_IN_A_ROW = 60
"""Messages in a row beyond the limits; one more closes the connection."""

BACK_OFF_SECONDS = 0.5
"""Seconds without such a message after which the count begins again."""


def _nobody_asks(sessid: str, is_cookie: bool) -> None:
    """Ask nobody: the connection is closed."""


def _nobody_counts(because: str | None) -> None:
    """Count no login without a cookie."""


def _charge_nobody(size: int) -> None:
    """Count no large message."""


class Session:
    """The login state of one connection, and the rules for its messages.

    :param connection: where answers go.
    :param dialect: how requests and answers are written.
    :param relay: where messages go.
    :param directory: where a logged-in connection is entered.
    :param limits: how much may be sent.
    :param seconds: the clock by which `limits` are kept.
    :param ask: called with a SESSID, and whether it is `cookie`, to have the session page asked; the verdict comes
        back by `answered`.
    :param cookie: the SESSID of the handshake's session cookie, or None.
    :param no_cookie_because: where there is no cookie to use: None if the client simply has none (a denial), else why
        an auth-request must carry a SESSID on this connection.
    :param charge: called with the bytes that a message counts as in addition to its own; see
        `chatrelay.limits.inflow.weight`.
    :param without_cookie: called with `no_cookie_because` when a client wants to log in by a cookie that is not there.
    """

    __slots__ = (
        "_ask",
        "_charge",
        "_connection",
        "_cookie",
        "_denials",
        "_dialect",
        "_directory",
        "_limits",
        "_messages",
        "_no_cookie_because",
        "_quota",
        "_reauthentications",
        "_refusals",
        "_refused_at",
        "_relay",
        "_seconds",
        "_uid",
        "_unusable_frames",
        "_without_cookie",
        "state",
    )

    def __init__(
        self,
        connection: Connection,
        dialect: Dialect,
        relay: Relay,
        directory: Directory,
        limits: SendLimits,
        seconds: Callable[[], float],
        ask: Callable[[str, bool], None],
        cookie: str | None = None,
        no_cookie_because: str | None = None,
        charge: Callable[[int], None] = _charge_nobody,
        without_cookie: Callable[[str | None], None] = _nobody_counts,
    ) -> None:
        self.state = State.ANONYMOUS
        self._connection = connection
        self._dialect = dialect
        self._relay = relay
        self._directory = directory
        self._limits = limits
        self._messages = limits.messages()
        self._refusals = 0
        self._refused_at = 0.0
        self._quota: UserQuota
        self._seconds = seconds
        self._ask = ask
        self._charge = charge
        self._without_cookie = without_cookie
        # One character beyond ASCII makes a string of Python's up to four times as large, for as long as this lasts.
        self._cookie = cookie if cookie is None or cookie.isascii() else cookie.encode("utf-8", "surrogateescape")
        self._no_cookie_because = no_cookie_because
        self._uid: str | int = ""
        self._denials = 0
        self._reauthentications: TokenBucket | None = None  # made for the first one, as most clients make none
        self._unusable_frames = 0

    @property
    def logged_in(self) -> bool:
        """Whether this connection belongs to a user."""
        return self.state is _AUTHENTICATED or self.state is _REAUTHENTICATING

    @property
    def _cookie_text(self) -> str | None:
        return self._cookie.decode("utf-8", "surrogateescape") if isinstance(self._cookie, bytes) else self._cookie

    @property
    def uid(self) -> str | int | None:
        """Whose connection this is, or was when it was closed; None before the login."""
        return None if self._uid == "" else self._uid

    @property
    def messages_level(self) -> float:
        """A number that changes with each message that comes within the limits."""
        return self._messages.level

    def received(self, payload: bytes) -> bool:
        """Act on one text message.

        :param payload: the whole message, UTF-8.
        :returns: whether another may follow: False once the connection is closing.
        """
        state = self.state
        if state is _CLOSED:
            return False
        now = self._seconds()
        if len(payload) > LARGE_MESSAGE:
            self._charge(weight(payload, now))
        # `TokenBucket.take`, without the call, which would cost as much again for every message.
        messages = self._messages
        at = now * messages.rate
        full_at = messages.full_at
        if full_at < at:
            messages.full_at = at + 1.0
        elif full_at - at <= messages.room:
            messages.full_at = full_at + 1.0
        else:
            messages.refuse(at)
            self._refuse(payload)
            return self._exceeded(now)
        try:
            request = self._dialect.decode(payload)
        except UnusableFrame as problem:
            self._unusable(problem)
            return self.state is not _CLOSED
        if not isinstance(request, SendRequest):
            self._auth_requested(request, now)
        elif state is _AUTHENTICATED or state is _REAUTHENTICATING:
            outgoing = request.message
            if not self._quota.may_send(outgoing.to_uid, now):
                self._connection.send(self._dialect.refused(request.id, Reason.RATE_LIMITED))
                return self._exceeded(now)
            relay = self._relay
            message = Message(
                self._uid, outgoing.to_uid, request.id, outgoing.time_stamp, outgoing.content, relay.now()
            )
            relay.submit(message, self)
        # A client that is not logged in learns nothing, not even that it is not: the relay is no oracle.
        return self.state is not _CLOSED

    def received_while_closing(self) -> bool:
        """Count a message, and do nothing else with it, because the connection is closing.

        :returns: whether another may follow: False once the client floods the relay all the same.
        """
        now = self._seconds()
        if self._messages.take(now):
            return True
        self._count_refusal(now)
        return not self._is_flooding

    def answered(self, verdict: Verdict) -> bool:
        """Take the verdict on the SESSID last asked about.

        :returns: whether the connection is now logged in as the user of this verdict.
        """
        if self.state is State.AUTHENTICATING:
            self.state = State.ANONYMOUS
            if isinstance(verdict, LoggedIn):
                self.state = State.AUTHENTICATED
                self._uid = verdict.uid
                self._quota = self._limits.connected(verdict.user)
                self._messages.full_at = 0.0  # full again: what was sent before the login does not count
                # Entered first: if the answer exceeds the client's budget, the connection closes, and `closed` takes it
                # out of the directory.
                self._directory.add(verdict.user, self._connection)
                self._connection.send(self._dialect.auth_response(True))
                return self.state is _AUTHENTICATED
        elif self.state is State.REAUTHENTICATING:
            self.state = State.AUTHENTICATED
            if isinstance(verdict, LoggedIn):
                if verdict.user == user_key(self._uid):
                    self._connection.send(self._dialect.auth_response(True))
                    return self.state is _AUTHENTICATED
                self._connection.send(self._dialect.auth_response(False, Reason.ALREADY_LOGGED_IN))
                return False
        else:
            return False
        if isinstance(verdict, Unavailable):
            self._connection.send(self._dialect.auth_response(False, Reason.WEBSERVER_UNAVAILABLE))
        else:
            self._denied()
        return False

    def accepted(self, message: Message) -> None:
        """Answer that a message of this client's was handed over; see `chatrelay.interfaces.Submitter`."""
        self._connection.send(self._dialect.accepted(message))

    def refused(self, message: Message, reason: Reason) -> None:
        """Answer that a message of this client's was not delivered."""
        self._connection.send(self._dialect.refused(message.client_id, reason))

    def login_timed_out(self) -> None:
        """Close a connection that is not logged in in time; a pending auth-request is answered first."""
        if self.state is State.AUTHENTICATING:
            self.answered(Unavailable("the login timeout passed while the session page was asked"))
        if self.state is State.ANONYMOUS:
            self._connection.close(codes.LOGIN_TIMEOUT)

    def closed(self) -> None:
        """Leave the directory and take nothing more: the connection is closing or gone."""
        if self.logged_in:
            user = user_key(self._uid)
            self._directory.remove(user, self._connection)
            self._limits.disconnected(user, self._seconds())
        self.state = State.CLOSED
        # `ask` is the connection's own. It would keep the connection, which keeps this, until garbage is collected.
        self._ask = _nobody_asks

    def _exceeded(self, now: float) -> bool:
        """Count a message beyond the limits, and close the connection of a client that floods the relay.

        :returns: as `received` does.
        """
        self._count_refusal(now)
        if self._is_flooding:
            self._connection.close(codes.RATE_LIMIT)
        return self.state is not _CLOSED

    def _count_refusal(self, now: float) -> None:
        """Count a message beyond the limits; after a back-off the count begins again."""
        if now - self._refused_at > BACK_OFF_SECONDS:
            self._refusals = 0
        self._refused_at = now
        self._refusals += 1

    @property
    def _is_flooding(self) -> bool:
        """Whether more messages in a row were beyond the limits than are let off."""
        return self._refusals > MAX_REFUSALS_IN_A_ROW

    def _refuse(self, payload: bytes) -> None:
        """Answer a message beyond the limits. No more of it is read than the answer needs."""
        try:
            header = self._dialect.read_header(payload)
        except UnusableFrame as problem:
            self._unusable(problem)
            return
        if header.kind is Kind.AUTH_REQUEST:
            is_pending = self.state in (State.AUTHENTICATING, State.REAUTHENTICATING)
            reason = Reason.LOGIN_PENDING if is_pending else Reason.RATE_LIMITED
            self._connection.send(self._dialect.auth_response(False, reason))
        elif isinstance(header.request_id, UnsetType):
            self._unusable(UnusableFrame(Reason.INVALID_MESSAGE, "the id is missing or can't be used", send=True))
        elif self.logged_in:
            self._connection.send(self._dialect.refused(header.request_id, Reason.RATE_LIMITED))

    def _auth_requested(self, request: AuthRequest, now: float) -> None:
        sessid = self._cookie_text if isinstance(request.sessid, UnsetType) else request.sessid
        if sessid is None and self._no_cookie_because is not None:
            self._without_cookie(self._no_cookie_because)
            self._unusable(UnusableFrame(Reason.INVALID_AUTH_REQUEST, self._no_cookie_because))
        elif self.state in (State.AUTHENTICATING, State.REAUTHENTICATING):
            self._connection.send(self._dialect.auth_response(False, Reason.LOGIN_PENDING))
        elif sessid is None:
            # A browser without a session cookie is not logged in at the site, so there is nothing to ask.
            self._without_cookie(None)
            self._denied()
        elif self.logged_in and not self._take_reauthentication(now):
            self._connection.send(self._dialect.auth_response(False, Reason.RATE_LIMITED))
            self._exceeded(now)
        else:
            self.state = State.REAUTHENTICATING if self.logged_in else State.AUTHENTICATING
            self._ask(sessid, sessid == self._cookie_text)

    def _take_reauthentication(self, now: float) -> bool:
        """Take one of the auth-requests that a logged-in connection may make, and return whether there was one."""
        if self._reauthentications is None:
            self._reauthentications = TokenBucket(REAUTHENTICATIONS_PER_MINUTE / MINUTE, REAUTHENTICATIONS_PER_MINUTE)
        return self._reauthentications.take(now)

    def _denied(self) -> None:
        self._connection.send(self._dialect.auth_response(False))
        self._denials += 1
        if self._denials >= MAX_DENIALS:
            self._connection.close(codes.LOGIN_REFUSED)

    def _unusable(self, problem: UnusableFrame) -> None:
        if problem.send and not self.logged_in:
            return
        if isinstance(problem.request_id, UnsetType):
            self._connection.send(self._dialect.error(problem.reason, problem.detail))
        else:
            self._connection.send(self._dialect.refused(problem.request_id, problem.reason))
        self._unusable_frames += 1
        if self._unusable_frames >= MAX_UNUSABLE_FRAMES:
            self._connection.close(codes.UNUSABLE_FRAMES)
