"""One connection's login state, and what each of its messages does.

Pure: bytes of whole messages come in, calls on the neighbours go out; the
clock is handed in. It must not know about sockets or Deferreds.
`docs/protocol.rst` states the rules; the states are named here::

    VISITOR --auth-request--> ASKING --LoggedIn--> MEMBER --auth-request--> ASKING_AGAIN
       ^                        |                    ^                          |
       +------- any other ------+                    +------- any answer -------+

and from every one of them `ended` leads to ENDED, where nothing happens.
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
    """Where a connection's login stands."""

    VISITOR = enum.auto()
    ASKING = enum.auto()
    MEMBER = enum.auto()
    ASKING_AGAIN = enum.auto()
    ENDED = enum.auto()


_MEMBER: Final = State.MEMBER
_ASKING_AGAIN: Final = State.ASKING_AGAIN
_ENDED: Final = State.ENDED
# Looked up for every message; as attributes of an enumeration they cost more than all that is done with them.

MAX_DENIALS = 3
"""Denials of login over a connection's life; the third closes it."""

MAX_QUESTIONS = 10
"""Auth-requests of a connection that is logged in about which the webserver is asked: at once, and a minute."""

MAX_UNUSABLE_FRAMES = 10
"""Answers `error` and `invalid-message` over a connection's life; the tenth closes it."""

MAX_REFUSALS = 60
"""Messages in a row beyond what may be sent; one more closes the connection."""

BACKED_OFF = 0.5
"""Seconds between two such messages after which they are in a row no more."""


def _nobody_asks(sessid: str, is_cookie: bool) -> None:
    """What an ended session calls to ask: never."""


def _nobody_counts(because: str | None) -> None:
    """Do nothing of a login without a cookie: nobody counts them."""


def _charge_nobody(size: int) -> None:
    """What counts large messages where nobody wants to know."""


class Session:
    """What one connection may do.

    :param connection: where answers go.
    :param dialect: how requests and answers are written.
    :param relay: where messages go.
    :param directory: where a logged-in connection is entered.
    :param limits: how much may be sent.
    :param seconds: the clock by which `limits` are kept.
    :param ask: called with a SESSID, and whether it is `cookie`, to have the session page asked; the verdict comes
        back by `answered`.
    :param cookie: the SESSID of the handshake's session cookie, or None.
    :param no_cookie_because: where there is no cookie to use: None when the
        visitor simply has none (a denial), else why an auth-request must
        carry a SESSID on this connection.
    :param charge: called with the bytes that a message counts as in addition to its own; see
        `chatrelay.limits.inflow.weight`.
    :param without_cookie: called with `no_cookie_because` when somebody wants to log in by a cookie that is not there.
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
        "_questions",
        "_quota",
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
        self.state = State.VISITOR
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
        self._questions: TokenBucket | None = None  # made when somebody asks again, as most do not
        self._unusable_frames = 0

    @property
    def logged_in(self) -> bool:
        """Whether this connection belongs to a user."""
        return self.state is _MEMBER or self.state is _ASKING_AGAIN

    @property
    def _cookie_text(self) -> str | None:
        return self._cookie.decode("utf-8", "surrogateescape") if isinstance(self._cookie, bytes) else self._cookie

    @property
    def uid(self) -> str | int | None:
        """Whose connection this is, or was when it ended; None before the login."""
        return None if self._uid == "" else self._uid

    @property
    def messages_mark(self) -> float:
        """A number that is another one after each message that came within the limits."""
        return self._messages.level

    def received(self, payload: bytes) -> bool:
        """One text message came.

        :param payload: the whole message, UTF-8.
        :returns: whether another may follow: False once the connection is closing.
        """
        state = self.state
        if state is _ENDED:
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
            return self._goes_on(now)
        try:
            request = self._dialect.decode(payload)
        except UnusableFrame as problem:
            self._unusable(problem)
            return self.state is not _ENDED
        if not isinstance(request, SendRequest):
            self._auth_requested(request, now)
        elif state is _MEMBER or state is _ASKING_AGAIN:
            outgoing = request.message
            if not self._quota.may_send(outgoing.to_uid, now):
                self._connection.send(self._dialect.refused(request.id, Reason.RATE_LIMITED))
                return self._goes_on(now)
            relay = self._relay
            message = Message(
                self._uid, outgoing.to_uid, request.id, outgoing.time_stamp, outgoing.content, relay.now()
            )
            relay.submit(message, self)
        # Else nobody who is not logged in learns anything, not even that: no oracle.
        return self.state is not _ENDED

    def received_too_late(self) -> bool:
        """A message came of which nothing is done, as the connection is closing.

        :returns: whether another may follow: False once the client keeps on past the limits all the same.
        """
        now = self._seconds()
        return self._messages.take(now) or not self._keeps_on(now)

    def answered(self, verdict: Verdict) -> bool:
        """Take the verdict on the SESSID last asked about.

        :returns: whether the connection is now logged in as the user of this verdict.
        """
        if self.state is State.ASKING:
            self.state = State.VISITOR
            if isinstance(verdict, LoggedIn):
                self.state = State.MEMBER
                self._uid = verdict.uid
                self._quota = self._limits.connected(verdict.user)
                self._messages.full_at = 0.0  # full again: what a visitor has sent is not held against the user
                # Entered first: should the answer find the client's budget used
                # up, the connection closes, and `ended` must find it to take it out.
                self._directory.add(verdict.user, self._connection)
                self._connection.send(self._dialect.auth_response(True))
                return self.state is _MEMBER
        elif self.state is State.ASKING_AGAIN:
            self.state = State.MEMBER
            if isinstance(verdict, LoggedIn):
                if verdict.user == user_key(self._uid):
                    self._connection.send(self._dialect.auth_response(True))
                    return self.state is _MEMBER
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
        """The time to log in is over; the question that is still out, if any, is answered first."""
        if self.state is State.ASKING:
            self.answered(Unavailable("the login timeout passed while the webserver was asked"))
        if self.state is State.VISITOR:
            self._connection.close(codes.LOGIN_TIMEOUT)

    def ended(self) -> None:
        """The connection is closing or gone: leave the directory, take nothing more."""
        if self.logged_in:
            user = user_key(self._uid)
            self._directory.remove(user, self._connection)
            self._limits.disconnected(user, self._seconds())
        self.state = State.ENDED
        # The connection's own; it would keep the connection, which keeps this, until garbage is collected.
        self._ask = _nobody_asks

    def _goes_on(self, now: float) -> bool:
        """Count a message that is beyond what may be sent, and close the connection for one too many.

        :returns: as `received` does.
        """
        if self._keeps_on(now):
            self._connection.close(codes.RATE_LIMIT)
        return self.state is not _ENDED

    def _keeps_on(self, now: float) -> bool:
        """Count a message that is beyond what may be sent; whether it is one too many."""
        if now - self._refused_at > BACKED_OFF:
            self._refusals = 0
        self._refused_at = now
        self._refusals += 1
        return self._refusals > MAX_REFUSALS

    def _refuse(self, payload: bytes) -> None:
        """Answer a message beyond what this connection may send, having read no more of it than the answer needs."""
        try:
            header = self._dialect.read_header(payload)
        except UnusableFrame as problem:
            self._unusable(problem)
            return
        if header.kind is Kind.AUTH_REQUEST:
            is_pending = self.state in (State.ASKING, State.ASKING_AGAIN)
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
        elif self.state in (State.ASKING, State.ASKING_AGAIN):
            self._connection.send(self._dialect.auth_response(False, Reason.LOGIN_PENDING))
        elif sessid is None:
            # A visitor whose browser has no session cookie is not logged in
            # at the site; there is nothing to ask it.
            self._without_cookie(None)
            self._denied()
        elif self.logged_in and not self._may_ask_again(now):
            self._connection.send(self._dialect.auth_response(False, Reason.RATE_LIMITED))
            self._goes_on(now)
        else:
            self.state = State.ASKING_AGAIN if self.logged_in else State.ASKING
            self._ask(sessid, sessid == self._cookie_text)

    def _may_ask_again(self, now: float) -> bool:
        """Count a question about who is logged in already; whether the webserver may be asked."""
        if self._questions is None:
            self._questions = TokenBucket(MAX_QUESTIONS / MINUTE, MAX_QUESTIONS)
        return self._questions.take(now)

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
