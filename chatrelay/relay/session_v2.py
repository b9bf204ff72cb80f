"""The session of one connection in the dialect v2: do what each message of the client asks for.

Pure: it is called with whole messages, and calls the objects that are passed in. This module must not know how bytes
travel, how requests are encoded, or in which order places are sent. `docs/protocol.rst` states the rules;
`chatrelay.relay.base_session` has those of logins, and `chatrelay.relay.inbox` that of the cursor.

`_METHODS` has what each kind of request does once the client is logged in. A kind that is not in it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

from msgspec import UNSET, UnsetType
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.limits.inflow import LARGE_MESSAGE, weight
from chatrelay.limits.latest import Latest
from chatrelay.model import (
    InboxState,
    LogBusy,
    LoggedIn,
    LogUnavailable,
    Message,
    Verdict,
    user_key,
)
from chatrelay.relay.base_session import BaseSession, State
from chatrelay.relay.history import answer_conversations, answer_history, answer_presence
from chatrelay.relay.inbox import Cursor, can_replay
from chatrelay.relay.reads import Reads
from chatrelay.relay.session_marks import SessionMarks, key_of, place_of
from chatrelay.relay.v2_parts import SessionDialect, V2Connection, V2Parts
from chatrelay.wire import codes
from chatrelay.wire.codes import Close, Reason
from chatrelay.wire.structs import UnusableFrame
from chatrelay.wire.structs_v2 import (
    ANSWERED,
    MARKS,
    After,
    ConversationsRequest,
    HistoryRequest,
    Kind,
    LoginRequest,
    Ping,
    PresenceRequest,
    Read,
    Received,
    Request,
    SendRequest,
    Typing,
    UnusableRequest,
)

log = Logger("chatrelay.relay")

EXCESS_MARK = 512
"""Bytes that a mark beyond its limit counts as, besides its own: so a flood of them is read slowly."""

EXCESS_SECONDS = 0.25
"""Seconds until the relay looks whether there is room for the marks that exceeded the limit."""

_ANSWERED_FROM_LOG = ANSWERED - {Kind.SEND_REQUEST}
_ANSWERED_WITHOUT_LOGIN = {None, Kind.AUTH_REQUEST, Kind.SEND_REQUEST, Kind.PING}
"""The kinds of unusable frame that `BaseSession` answers, or ignores, for a client that is not logged in."""

Answer = Callable[[str, int], Coroutine[Deferred[Any], Any, bytes]]

_KINDS: Mapping[type[Any], Kind] = {
    LoginRequest: Kind.AUTH_REQUEST,
    SendRequest: Kind.SEND_REQUEST,
    HistoryRequest: Kind.HISTORY_REQUEST,
    ConversationsRequest: Kind.CONVERSATIONS_REQUEST,
    PresenceRequest: Kind.PRESENCE_REQUEST,
    Received: Kind.RECEIVED,
    Read: Kind.READ,
    Typing: Kind.TYPING,
    Ping: Kind.PING,
}

_AUTHENTICATED: Final = State.AUTHENTICATED
_REAUTHENTICATING: Final = State.REAUTHENTICATING
_CLOSED: Final = State.CLOSED
# These are variables of the module, as in `chatrelay.relay.session`.


def _resume_nothing(token: str, cookie: str | None) -> None:
    """Do nothing: the connection is closed, so its login does not matter any more."""


class SessionV2(BaseSession[SessionDialect, V2Connection]):
    """A connection that speaks v2. It is a `chatrelay.interfaces.StoreSubmitter`.

    :param shared: what it shares with others.
    :param resume: called to log in by a resume token, with the token and the SESSID of the handshake's session cookie,
        or None. Then `answered` or `resume_failed` must be called.
    :param arguments: those of `BaseSession`.
    :ivar cursor: the last place that the client was sent; None before the login.
    """

    __slots__ = (
        "_after",
        "_excess",
        "_is_loading",
        "_loaded",
        "_marks",
        "_reads",
        "_request",
        "_resume",
        "_session_marks",
        "_shared",
        "cursor",
    )

    def __init__(self, shared: V2Parts, resume: Callable[[str, str | None], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shared = shared
        self._resume = resume
        self._request: LoginRequest | None = None  # the pending auth-request, if it has a resume token
        self._marks = self._limits.messages()
        self._excess: Latest[Request] | None = None  # marks that exceed their limit; made when needed
        self._session_marks: SessionMarks  # from the login on
        self._reads: Reads | None = None  # made when needed
        self._after: After | None = None  # the place that the client has, as its pending auth-request says
        self._loaded: InboxState | None = None  # the inbox, once it is loaded for that
        self._is_loading = False
        self.cursor: Cursor | None = None

    @property
    def connection(self) -> V2Connection | None:
        """The connection whose answers take places; see `chatrelay.interfaces.StoreSubmitter`."""
        return None if self.cursor is None else self._connection

    @property
    def messages_level(self) -> float:
        """A number that changes with each message or mark within the limits."""
        return self._messages.level + self._marks.level

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
        try:
            request = self._dialect.decode(payload)
        except UnusableFrame as problem:
            return self._received_unusable(problem, now)
        if type(request) is not SendRequest:
            return self._received_other(request, now)
        # This is `TokenBucket.take`, inlined: the call would take as long again for every message.
        messages = self._messages
        at = now * messages.rate
        full_at = messages.full_at
        if full_at < at:
            messages.full_at = at + 1.0
        elif full_at - at <= messages.room:
            messages.full_at = full_at + 1.0
        else:
            messages.refuse(at)
            return self._exceeds(Kind.SEND_REQUEST, request.id, now)
        if state is _AUTHENTICATED or state is _REAUTHENTICATING:
            self._send(request, now)
        # A message of a client that is not logged in gets no answer, so that it reveals nothing.
        return self.state is not _CLOSED

    def _received_other(self, request: Request, now: float) -> bool:
        """Act on a request other than to send a message; return as `received` does."""
        kind = _KINDS.get(type(request))
        if kind in MARKS:
            if self._excess or not self._marks.take(now):
                self._keep_mark(request)
            elif self.logged_in or kind is Kind.PING:
                self._do(request, now)
        elif not self._messages.take(now):
            return self._exceeds(kind, getattr(request, "id", UNSET), now)
        elif isinstance(request, LoginRequest):
            self._login_requested(request, now)
        elif self.logged_in:
            self._do(request, now)
        return self.state is not _CLOSED

    def _do(self, request: Request, now: float) -> None:
        method = _METHODS.get(type(request))
        # In another epoch, the places of this request and of its answer would mean something else.
        if method is not None and self._shared.inboxes.check_epoch():
            method(self, request, now)

    # Frames that are refused -------------------------------------------------

    def _received_unusable(self, problem: UnusableFrame, now: float) -> bool:
        """Act on a text message that can't be used; return as `received` does."""
        kind = problem.kind if isinstance(problem, UnusableRequest) else None
        if kind in MARKS:
            if not self._marks.take(now):
                self._exceeds_marks(kind, problem.request_id)
                return True
        elif not self._messages.take(now):
            if kind is None:
                self._unusable(problem)
            return self._exceeds(kind, problem.request_id, now)
        if kind in _ANSWERED_WITHOUT_LOGIN or self.logged_in:
            if kind in _ANSWERED_FROM_LOG and not isinstance(problem.request_id, UnsetType):
                # It is answered like any other request, so it is not one of the unusable frames.
                self._connection.send(self._dialect.refused(problem.request_id, problem.reason, kind))
            else:
                self._unusable(problem)
        return self.state is not _CLOSED

    def _exceeds(self, kind: Kind | None, request_id: str | int | UnsetType, now: float) -> bool:
        """Refuse a request that exceeds the limits, whatever else is wrong with it; return as `received` does."""
        if kind is Kind.AUTH_REQUEST:
            is_pending = self.state in (State.AUTHENTICATING, State.REAUTHENTICATING)
            reason = Reason.LOGIN_PENDING if is_pending else Reason.RATE_LIMITED
            self._connection.send(self._dialect.auth_response(False, reason))
        elif kind is not None and self.logged_in:
            if isinstance(request_id, UnsetType):
                reason = Reason.INVALID_MESSAGE if kind is Kind.SEND_REQUEST else Reason.INVALID_REQUEST
                self._unusable(UnusableFrame(reason, "the id is missing or can't be used"))
            else:
                self._connection.send(self._dialect.refused(request_id, Reason.RATE_LIMITED, kind))
        return self._exceeded(now)

    # Marks beyond their limit --------------------------------------------------

    def _exceeds_marks(self, kind: Kind | None, request_id: str | int | UnsetType) -> None:
        """Act on an unusable mark that exceeds the limits: nobody is closed for that."""
        self._charge(EXCESS_MARK)  # a flood of marks is read slowly
        if kind is Kind.PRESENCE_REQUEST and self.logged_in and not isinstance(request_id, UnsetType):
            self._connection.send(self._dialect.refused(request_id, Reason.RATE_LIMITED, kind))

    def _keep_mark(self, request: Request) -> None:
        """Keep the latest of the marks that exceed the limits, until there is room for it."""
        self._charge(EXCESS_MARK)
        key = key_of(request)
        if key is None or not self.logged_in:
            return
        if self._excess is None:
            self._excess = Latest()
        if not self._excess:
            self._shared.excess.start(self)
        displaced = self._excess.keep(key, request)
        if isinstance(displaced, PresenceRequest):
            self._connection.send(self._dialect.refused(displaced.id, Reason.RATE_LIMITED, Kind.PRESENCE_REQUEST))
        elif place_of(displaced) > place_of(request) and displaced is not None and key_of(displaced) == key:
            self._excess.keep(key, displaced)  # marks only go forward

    def catch_up(self) -> None:
        """Act on marks that exceeded the limits, as far as there is room now."""
        now = self._seconds()
        while self._excess and self.logged_in and self._marks.take(now):
            self._do(self._excess.take(), now)
        if self._excess and self.logged_in:
            self._shared.excess.start(self)

    # Logging in --------------------------------------------------------------

    def _login_requested(self, request: LoginRequest, now: float) -> None:
        if self.state is State.ANONYMOUS:
            self._after = None if isinstance(request.after, UnsetType) else request.after
            if not isinstance(request.resume, UnsetType):
                self.state = State.AUTHENTICATING
                self._request = request
                self._is_loading = True  # revocations may be in the message log
                self._resume(request.resume, self._cookie_text)
                return
        self._auth_requested(request, now)

    @property
    def takes_tokens(self) -> bool:
        """Whether the dialect has resume tokens."""
        return True

    def send_token(self, token: str) -> None:
        """Send the client a new resume token, which replaces the one it has."""
        self._connection.send(self._dialect.resume(token))

    def resume_failed(self) -> None:
        """Log in by the SESSID or the cookie of the pending auth-request, whose resume token can't be used."""
        request, self._request = self._request, None
        if request is None or self.state is not State.AUTHENTICATING:
            return
        self.state = State.ANONYMOUS
        self._is_loading = False
        self._loaded = None
        if isinstance(request.sessid, UnsetType) and self._cookie_text is None:
            self._connection.send(self._dialect.auth_response(False, Reason.RESUME_EXPIRED))
        else:
            self._auth_requested(request, self._seconds())

    def prepare(self, verdict: Verdict) -> Deferred[None] | None:
        """Load the inbox of a user who logs in; see `BaseSession.prepare`.

        Its Deferred fires in the callback of `InboxLog.inbox`, and the login is finished in that call. So no message is
        committed between the state of the inbox and the entry in the directory.
        """
        if self.state is not State.AUTHENTICATING or not isinstance(verdict, LoggedIn):
            return None
        self._is_loading = True
        loading = maybeDeferred(self._shared.log.inbox, verdict.user)
        return loading.addCallbacks(self._inbox_loaded, self._inbox_not_loaded)

    def _inbox_loaded(self, inbox: InboxState) -> None:
        self._loaded = inbox

    def _inbox_not_loaded(self, failure: Failure) -> None:
        # The message log has reported a `LogUnavailable` itself. A login that is given up is cancelled.
        if not failure.check(LogUnavailable, LogBusy, CancelledError):
            log.failure("loading an inbox failed; please report it", failure=failure)

    def answered(self, verdict: Verdict) -> bool:
        """Act on the verdict on the SESSID with which `ask` was last called.

        :returns: whether the connection is now logged in as the user of this verdict.
        """
        self._request = None
        is_loading, self._is_loading = self._is_loading, False
        if is_loading and self._loaded is None and self.state is State.AUTHENTICATING:
            self.state = State.ANONYMOUS
            self._connection.send(self._dialect.auth_response(False, Reason.LOG_UNAVAILABLE))
            return False
        return super().answered(verdict)

    def _enter(self, user: str) -> None:
        """Add the connection to the directory and to the inbox, and answer that the client is logged in."""
        shared, inbox, after = self._shared, self._loaded, self._after
        assert inbox is not None
        self._loaded = self._after = None
        shared.inboxes.check_epoch()  # what is unsettled in another epoch means nothing here
        epoch, last = shared.log.epoch, shared.inboxes.settled(user, inbox.last)
        recovered: bool | None = None
        if after is not None:
            recovered = after.epoch == epoch and can_replay(after.n, inbox.first, last, shared.replay_messages)
        self._directory.add(user, self._connection)
        begin = after.n if after is not None and recovered else None
        cursor = self.cursor = shared.inboxes.enter(user, self._connection, inbox.last, begin)
        answer = self._dialect.logged_in(
            self._uid,
            epoch,
            last,
            inbox.first,
            recovered,
            self._relay.now(),
            shared.features,
            shared.limits,
            shared.token(self._connection),
        )
        self._session_marks = SessionMarks(shared.awareness, user, cursor, inbox.received)
        # If the answer exceeds the client's budget, the connection closes, and `closed` removes it again.
        self._connection.send(answer)
        cursor.start()

    def login_timed_out(self) -> None:
        """Close the connection if it has not logged in in time. Answer a pending auth-request first."""
        if self._is_loading and self.state is State.AUTHENTICATING:
            self.state = State.ANONYMOUS
            self._connection.send(self._dialect.auth_response(False, Reason.LOG_UNAVAILABLE))
        super().login_timed_out()

    def closed(self) -> None:
        """Remove a connection that is closing or gone, and ignore everything from now on."""
        if self.cursor is not None:
            self._shared.inboxes.leave(user_key(self._uid), self.cursor)
            self._session_marks.closed()
        if self._excess:
            self._excess.clear()
            self._shared.excess.stop(self)
        if self._reads is not None:
            self._reads.clear()
        super().closed()
        self._request = None
        self._resume = _resume_nothing  # it refers to the connection, as `ask` does

    def announce_close(self, close: Close, retry_after: float) -> None:
        """Tell the client that its connection is about to be closed, and when to come back."""
        if self.state is not _CLOSED:
            token = self._shared.token(self._connection) if self.logged_in else None
            self._connection.send(self._dialect.closing(close, retry_after, token))

    # Sending a message -------------------------------------------------------

    def _send(self, request: SendRequest, now: float) -> None:
        outgoing = request.message
        if not self._quota.take(outgoing.to_uid, now):
            self._connection.send(self._dialect.refused(request.id, Reason.RATE_LIMITED))
            self._exceeded(now)
            return
        relay = self._relay
        message = Message(
            self._uid, outgoing.to_uid, request.id, outgoing.time_stamp, outgoing.content, relay.now(), True
        )
        if request.again is UNSET and request.offline is UNSET:  # as mostly
            relay.store(message, self, False, None)
        else:
            reject = None if isinstance(request.offline, UnsetType) else request.offline == "reject"
            relay.store(message, self, request.comes_again, reject)

    def stored(self, message: Message, place: int, at: int, delivered: bool) -> None:
        """Answer that a message of this client is logged; see `chatrelay.interfaces.StoreSubmitter`."""
        if self.cursor is not None:
            self.cursor.answer(place, self._dialect.accepted(message.client_id, place, at, delivered))

    def refused(self, message: Message, reason: Reason) -> None:
        """Answer that a message of this client is not logged."""
        self._connection.send(self._dialect.refused(message.client_id, reason))

    def unknown(self, message: Message) -> None:
        """Close the connection: it is not known in time whether a message of this client is logged."""
        self._connection.close(codes.LOG_LOST)

    # Requests that are answered from the message log --------------------------

    def _pinged(self, request: Ping, now: float) -> None:
        self._connection.send(self._dialect.pong(request.id, self._settled if self.logged_in else None))

    @property
    def _settled(self) -> int:
        """The last settled place of the user."""
        inbox = self._shared.inboxes.get(user_key(self._uid))
        return 0 if inbox is None else inbox.settled

    def _presence_requested(self, request: PresenceRequest, now: float) -> None:
        if self._session_marks.has_presence:
            marks = self._session_marks
            answer: Answer = lambda user, settled: answer_presence(marks, self._dialect, request)  # noqa: E731
            self._read(Kind.PRESENCE_REQUEST, request.id, answer, now)
        else:
            self._connection.send(self._dialect.refused(request.id, Reason.INVALID_REQUEST, Kind.PRESENCE_REQUEST))

    def _history_requested(self, request: HistoryRequest, now: float) -> None:
        self._read(Kind.HISTORY_REQUEST, request.id, partial(answer_history, self._shared, self._dialect, request), now)

    def _conversations_requested(self, request: ConversationsRequest, now: float) -> None:
        answer = partial(answer_conversations, self._shared, self._dialect, request)
        self._read(Kind.CONVERSATIONS_REQUEST, request.id, answer, now)

    def _read(self, kind: Kind, request_id: str | int, answer: Answer, now: float) -> None:
        """Answer a request from the message log when its turn comes, or refuse it.

        :param answer: called with the key of the user and the last settled place; returns the answer, encoded.
        """
        if not self._quota.take_read(now):
            self._connection.send(self._dialect.refused(request_id, Reason.RATE_LIMITED, kind))
            if kind not in MARKS:
                self._exceeded(now)
            return
        if self._reads is None:
            self._reads = Reads()
        if not self._reads.add(partial(self._begin_read, kind, request_id, answer)):
            self._connection.send(self._dialect.refused(request_id, Reason.BUSY, kind))

    def _begin_read(self, kind: Kind, request_id: str | int, answer: Answer) -> Deferred[None]:
        def refuse(failure: Failure) -> bytes:
            if failure.check(LogBusy):
                return self._dialect.refused(request_id, Reason.BUSY, kind)
            if not failure.check(LogUnavailable):
                log.failure("answering a request from the message log failed; please report it", failure=failure)
            return self._dialect.refused(request_id, Reason.LOG_UNAVAILABLE, kind)

        answering: Deferred[bytes] = Deferred.fromCoroutine(answer(user_key(self._uid), self._settled))
        answering.addErrback(refuse)
        return answering.addCallback(self._send_answer)

    def _send_answer(self, answer: bytes) -> None:
        if self._shared.inboxes.check_epoch():
            self._connection.send(answer)

    # Marks ---------------------------------------------------------------------

    def _acknowledged(self, request: Received, now: float) -> None:
        self._session_marks.acknowledge(request.received)

    def _has_read(self, request: Read, now: float) -> None:
        self._session_marks.read(request.peer, request.read)

    def _typed(self, request: Typing, now: float) -> None:
        self._session_marks.typed(request.to_uid)


_METHODS: Mapping[type[Any], Callable[[SessionV2, Any, float], None]] = {
    Received: SessionV2._acknowledged,
    Read: SessionV2._has_read,
    Typing: SessionV2._typed,
    PresenceRequest: SessionV2._presence_requested,
    HistoryRequest: SessionV2._history_requested,
    ConversationsRequest: SessionV2._conversations_requested,
    Ping: SessionV2._pinged,
}
