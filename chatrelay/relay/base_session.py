"""The login state of one connection, and the limits on its messages, in all dialects.

Pure: it calls the objects that are passed in, and the clock is passed in, too. This module must not know how bytes
travel, nor which requests a dialect has besides an auth-request. `docs/protocol.rst` states the rules. These are the
states::

    ANONYMOUS --auth-request--> AUTHENTICATING --LoggedIn--> AUTHENTICATED --auth-request--> REAUTHENTICATING
        ^                             |                            ^                                |
        +--------- any other ---------+                            +---------- any verdict ---------+

`closed` leads from each of them to CLOSED, in which everything is ignored.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from msgspec import UnsetType
from twisted.internet.defer import Deferred

from chatrelay.interfaces import Connection, LoginDialect
from chatrelay.limits.buckets import MINUTE, TokenBucket
from chatrelay.limits.sending import SendLimits, UserQuota
from chatrelay.model import LoggedIn, Unavailable, Verdict, user_key
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.wire import codes
from chatrelay.wire.codes import Close, Reason
from chatrelay.wire.structs import AuthRequest, UnusableFrame


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
# These are variables of the module because they are read for every message. Reading an attribute of the enumeration
# would take longer.

MAX_DENIALS = 3
"""The most denied logins over a connection's life; the last one closes it."""

REAUTHENTICATIONS_PER_MINUTE = 10
"""The most auth-requests of a logged-in connection for which the session page is asked, at once and per minute."""

MAX_UNUSABLE_FRAMES = 10
"""The most answers `error` and `invalid-message` over a connection's life; the last one closes it."""

MAX_REFUSALS_IN_A_ROW = 60
"""The most messages in a row that may exceed the limits; one more closes the connection."""

BACK_OFF_SECONDS = 0.5
"""After this many seconds without a message that exceeds the limits, the count of such messages restarts."""


def _ask_nobody(sessid: str, is_cookie: bool) -> None:
    """Do nothing: the connection is closed, so its login does not matter any more."""


def ignore_login(because: str | None) -> None:
    """Do nothing about a login without a cookie."""


def charge_nobody(size: int) -> None:
    """Do nothing about a large message."""


DialectT = TypeVar("DialectT", bound=LoginDialect)
ConnectionT = TypeVar("ConnectionT", bound=Connection)


class BaseSession(Generic[DialectT, ConnectionT]):
    """The login state of one connection, and the rules for logins and limits.

    :param connection: the connection to which answers are sent.
    :param dialect: decodes requests and encodes answers.
    :param relay: takes the client's messages.
    :param directory: the connections by user, to which this one is added at its login.
    :param limits: how much may be sent.
    :param seconds: the clock of `limits`.
    :param ask: called to ask the session page, with a SESSID and whether it is the same as `cookie`. `answered` must
        then be called with the verdict.
    :param cookie: the SESSID of the handshake's session cookie, or None.
    :param no_cookie_because: if `cookie` is None: why an auth-request on this connection must contain a SESSID; None if
        the client simply has no cookie, which is a denial.
    :param charge: called for a large message with the bytes that it counts as in addition to its size; see
        `chatrelay.limits.inflow.weight`.
    :param without_cookie: called with `no_cookie_because` when a client tries to log in by a cookie that it has not
        sent.
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
        connection: ConnectionT,
        dialect: DialectT,
        relay: Relay,
        directory: Directory,
        limits: SendLimits,
        seconds: Callable[[], float],
        ask: Callable[[str, bool], None],
        cookie: str | None = None,
        no_cookie_because: str | None = None,
        charge: Callable[[int], None] = charge_nobody,
        without_cookie: Callable[[str | None], None] = ignore_login,
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
        # One character beyond ASCII makes a Python string up to four times as large. So such a cookie is kept as bytes.
        self._cookie = cookie if cookie is None or cookie.isascii() else cookie.encode("utf-8", "surrogateescape")
        self._no_cookie_because = no_cookie_because
        self._uid: str | int = ""
        self._denials = 0
        self._reauthentications: TokenBucket | None = None  # made when needed, because most clients never need it
        self._unusable_frames = 0

    @property
    def logged_in(self) -> bool:
        """Whether this connection belongs to a user."""
        return self.state is _AUTHENTICATED or self.state is _REAUTHENTICATING

    @property
    def takes_tokens(self) -> bool:
        """Whether the dialect has resume tokens."""
        return False

    def send_token(self, token: str) -> None:
        """Send the client a new resume token, if its dialect has them."""

    def resume_failed(self) -> None:
        """Log in without the resume token of the pending auth-request, if the dialect has them."""

    @property
    def _cookie_text(self) -> str | None:
        return self._cookie.decode("utf-8", "surrogateescape") if isinstance(self._cookie, bytes) else self._cookie

    @property
    def uid(self) -> str | int | None:
        """The uID of the user to whom this connection belongs, or belonged until it closed; None before the login."""
        return None if self._uid == "" else self._uid

    @property
    def messages_level(self) -> float:
        """A number that changes with each message within the limits."""
        return self._messages.level

    def received_while_closing(self) -> bool:
        """Count a message, and do nothing else with it, because the connection is closing.

        :returns: whether another may follow: False once the client floods the relay.
        """
        now = self._seconds()
        if self._messages.take(now):
            return True
        self._count_refusal(now)
        return not self._is_flooding

    def answered(self, verdict: Verdict) -> bool:
        """Act on the verdict on the SESSID with which `ask` was last called.

        :returns: whether the connection is now logged in as the user of this verdict.
        """
        if self.state is State.AUTHENTICATING:
            self.state = State.ANONYMOUS
            if isinstance(verdict, LoggedIn):
                self.state = State.AUTHENTICATED
                self._uid = verdict.uid
                self._quota = self._limits.connected(verdict.user)
                self._messages.full_at = 0.0  # the bucket is full again: messages before the login do not count
                self._enter(verdict.user)
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

    def prepare(self, verdict: Verdict) -> Deferred[None] | None:
        """Begin what must be done before `answered` is called with this verdict.

        :returns: a Deferred that fires when it is done, and never fails; None if there is nothing to do.
        """
        return None

    def _enter(self, user: str) -> None:
        """Add the connection to the directory, and answer that the client is logged in."""
        # Added before the answer is sent: if the answer exceeds the client's budget, the connection closes, and
        # `closed` removes it from the directory.
        self._directory.add(user, self._connection)
        self._connection.send(self._dialect.auth_response(True))

    def announce_close(self, close: Close, retry_after: float) -> None:
        """Tell the client that its connection is about to be closed, if its dialect has words for that.

        :param retry_after: after how many seconds the client should reconnect.
        """

    def login_timed_out(self) -> None:
        """Close the connection if it has not logged in in time. Answer a pending auth-request first."""
        if self.state is State.AUTHENTICATING:
            self.answered(Unavailable("the login timeout passed while the session page was asked"))
        if self.state is State.ANONYMOUS:
            self._connection.close(codes.LOGIN_TIMEOUT)

    def closed(self) -> None:
        """Remove a connection that is closing or gone from the directory, and ignore everything from now on."""
        if self.logged_in:
            user = user_key(self._uid)
            self._directory.remove(user, self._connection)
            self._limits.disconnected(user, self._seconds())
        self.state = State.CLOSED
        # `ask` refers to the connection, which refers to this session. This cycle would keep both until the next
        # garbage collection.
        self._ask = _ask_nobody

    def _exceeded(self, now: float) -> bool:
        """Count a message that exceeds the limits, and close the connection of a client that floods the relay.

        :returns: as `received` does.
        """
        self._count_refusal(now)
        if self._is_flooding:
            self._connection.close(codes.RATE_LIMIT)
        return self.state is not _CLOSED

    def _count_refusal(self, now: float) -> None:
        """Count a message that exceeds the limits. The count restarts after `BACK_OFF_SECONDS` without one."""
        if now - self._refused_at > BACK_OFF_SECONDS:
            self._refusals = 0
        self._refused_at = now
        self._refusals += 1

    @property
    def _is_flooding(self) -> bool:
        """Whether more than `MAX_REFUSALS_IN_A_ROW` messages in a row exceeded the limits."""
        return self._refusals > MAX_REFUSALS_IN_A_ROW

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
        """Count an auth-request of a logged-in connection; return whether it is within the limit."""
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
