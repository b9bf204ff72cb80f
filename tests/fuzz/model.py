"""A second implementation of what the relay must do: the promise and the protocol page as a small state machine.

`Model` is notified of each event at the relay's seams, in order: a connection's bytes were read, the site's verdict
came, a batch was committed. From these it computes each frame that each client must have got, in order, and each
connection that must have been closed, with its code, and compares. It shares no code with the relay. It knows nothing
of batches except that they consist of the accepted messages, in order.

One thing it can't compute: the moment at which a slow reader's budget is used up depends on how bytes lie in buffers.
There it only checks whether the relay was allowed to close the connection.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.network import Stream, exactly
from tests.support.promise import UID, Account, Request, Row, Trial

# The limits in a scenario. They are small, so that a few dozen events reach them, and all sums with them are exact in
# binary, so that rounding can't make the model and the relay differ.
MESSAGES_PER_SECOND = 2
MESSAGE_BURST = 8
USER_MESSAGES_PER_SECOND = 4
NEW_RECIPIENTS_PER_MINUTE = 15
UNREAD_SIZE = 2000
LOGIN_TIMEOUT = 10
MESSAGE_TIMEOUT = 10
HANDSHAKE_TIMEOUT = 5
RECHECK_INTERVAL = 300
RECHECK_GRACE = 1800
CONTROL_FRAMES_PER_SECOND = 10
CONTROL_FRAME_BURST = 20
CLOSING_TIMEOUT = 2
SWEEP_SECONDS = 0.25  # from one check of the deadlines to the next
MAX_WAITING = 12
MAX_RECHECKS_AT_ONCE = 8  # a quarter of webserver-checks
DRAIN_TIME = 10
TURNS_AT_ONCE = 2
MIN_TURNS_PER_SECOND = 0.5
CONNECTIONS_PER_USER = 3
LOGINS_PER_MINUTE = 4
REAUTHENTICATIONS_PER_MINUTE = 2
MINUTE = 16  # seconds, for denials and auth-requests; with 60 no scenario would reach the end of it
DENIAL_MEMORY = 5
PING_INTERVAL = 20
PING_TIMEOUT = 10
UNREAD_TIME = 10

DENIALS, UNUSABLE, REFUSALS, BACK_OFF_SECONDS = 3, 10, 60, 0.5


# Frames of clients ------------------------------------------------------------


@dataclass
class Auth:
    """An auth-request."""

    sessid: str


@dataclass
class Send:
    """A message-send-request."""

    request: Request


@dataclass
class Unusable:
    """Text that is not a request; `id` and `send` say what it was meant to be."""

    reason: str
    send: bool = False
    id: str | int | None = None


@dataclass
class Ping:
    """A ping."""

    payload: bytes


@dataclass
class Pong:
    """The answer to a ping."""


@dataclass
class Close:
    """A close frame."""

    code: int


@dataclass
class Bad:
    """A frame that RFC 6455 or the relay does not allow, with the code that closes the connection."""

    code: int


Sent = Auth | Send | Unusable | Ping | Pong | Close | Bad


# Verdicts of the site ----------------------------------------------------------


@dataclass
class Verdict:
    """The site's verdict on a session: its user, or None for nobody. With `available` False there is no verdict."""

    uid: UID | None
    available: bool = True
    expires_in: float | None = None


@dataclass
class SiteRequest:
    """A request to the site: a re-check, or the login of `connection`, once that is known."""

    sessid: str
    is_recheck: bool
    connection: Connection | None = None
    verdict: Verdict | None = None


# The state -----------------------------------------------------------------------


class State(enum.Enum):
    CONNECTING = enum.auto()
    ANONYMOUS = enum.auto()
    AUTHENTICATING = enum.auto()
    AUTHENTICATED = enum.auto()
    REAUTHENTICATING = enum.auto()
    CLOSED = enum.auto()


class Bucket:
    """A token bucket that counts single tokens."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, 0.0

    def level(self, now: float) -> float:
        """Return the number of tokens."""
        self.tokens = min(self.burst, self.tokens + self.rate * (now - self.at))
        self.at = now
        return self.tokens

    def take(self, now: float) -> bool:
        if self.level(now) < 1:
            return False
        self.tokens -= 1
        return True


class Address:
    """How many logins from one address may still cause a request, and those that wait, in order."""

    def __init__(self) -> None:
        self.denials = Bucket(LOGINS_PER_MINUTE / MINUTE, LOGINS_PER_MINUTE)
        self.pending = 0
        self.waiting: list[Connection] = []
        self.is_sending_logins = False


class User:
    """How much a user may still send."""

    def __init__(self) -> None:
        self.messages = Bucket(USER_MESSAGES_PER_SECOND, MESSAGE_BURST)
        self.recipients = Bucket(NEW_RECIPIENTS_PER_MINUTE / 60, NEW_RECIPIENTS_PER_MINUTE)
        self.known: set[str] = set()
        self.connections = 0
        self.forgotten_at: float | None = None

    def may_send(self, to: UID, now: float) -> bool:
        if not self.messages.take(now):
            return False
        if str(to) not in self.known:
            if not self.recipients.take(now):
                return False
            self.known.add(str(to))
        return True

    def is_as_new(self, now: float) -> bool:
        return self.messages.level(now) == MESSAGE_BURST and self.recipients.level(now) == NEW_RECIPIENTS_PER_MINUTE


@dataclass(eq=False)
class Connection:
    """The state of one connection.

    :ivar was_cut: set by the world: its client has ended the TCP connection.
    :ivar is_lost: set by the world: its transport is gone.
    :ivar unread_since: set by the world: bytes sent when its client had last read everything.
    :ivar login_sessid: the SESSID of the pending login; `is_login_sent` when the site has it.
    :ivar turn_at: when it was pinged, or needed no ping; `ping_due`: when an unanswered ping times out.
    :ivar activity: the number of its frames; `activity_at_ping`: that number when it was pinged.
    :ivar behind_since: since when more waits for it than the limit of its transport, or None.
    :ivar awaits_turn: whether the relay stops and has not closed this connection yet.
    :ivar accepts_messages: whether the relay accepts its messages: until its turn to be closed.
    """

    number: int
    stream: Stream
    address: str = ""
    state: State = State.CONNECTING
    uid: UID | None = None
    was_cut: bool = False
    is_lost: bool = False
    code: int | None = None
    cursor: int = 0
    bucket: Bucket = field(default_factory=lambda: Bucket(MESSAGES_PER_SECOND, MESSAGE_BURST))
    pings: Bucket = field(default_factory=lambda: Bucket(CONTROL_FRAMES_PER_SECOND, CONTROL_FRAME_BURST))
    reauthentications: Bucket = field(
        default_factory=lambda: Bucket(REAUTHENTICATIONS_PER_MINUTE / MINUTE, REAUTHENTICATIONS_PER_MINUTE)
    )
    refusals: int = 0
    refused_at: float = 0.0
    denials: int = 0
    unusable: int = 0
    handshake_due: float = 0.0
    login_due: float = 0.0
    message_due: float | None = None
    message_begun: int = 0
    login_sessid: str | None = None
    is_login_sent: bool = False
    requests: list[Request] = field(default_factory=list)
    logged_in_since: int | None = None
    unread_since: int = 0
    ended_at: float = 0.0
    turn_at: float = 0.0
    ping_due: float | None = None
    activity: int = 0
    activity_at_ping: int = 0
    behind_since: float | None = None
    awaits_turn: bool = False
    accepts_messages: bool = True

    def compare(self) -> None:
        """Check that it got no other frame."""
        extra = self.stream.frames[self.cursor :]
        assert not extra, f"connection {self.number} ({self.state.name}, {self.code}) also got {extra}"

    @property
    def is_logged_in(self) -> bool:
        return self.state in (State.AUTHENTICATED, State.REAUTHENTICATING)


class Model:
    """The connected users, the accepted messages, and what each client must receive."""

    def __init__(self, now: float, remembers: bool) -> None:
        self.now = now
        self.remembers = remembers  # denials
        self.denied_at: dict[str, float] = {}
        self.addresses: dict[str, Address] = {}
        self.site_requests: list[SiteRequest] = []  # sent, and not yet matched with a login
        self.stopping = False
        self.stopped_at = self.swept_at = now
        self.turns = 0  # connections to be closed when the relay stops
        self.turns_taken = 0  # those that were closed or disconnected
        self.to_close: list[
            tuple[int, Connection]
        ] = []  # number of a batch, and a connection to close once it is answered
        self.connections: list[Connection] = []
        self.directory: dict[str, list[Connection]] = {}
        self.users: dict[str, User] = {}
        self.waiting = 0
        self.forming: list[tuple[Connection, Request]] = []
        self.batch: list[tuple[Connection, Request]] = []
        self.batches = 0  # handed to the log
        self.unmarked: dict[tuple[int, ...], tuple[int, list[tuple[Connection, Request]]]] = {}
        self.failed_marks: set[tuple[int, ...]] = set()  # answered already; the relay repeats them
        self.pending: dict[
            str, tuple[dict[Connection, None], set[str]]
        ] = {}  # sessid -> connections that wait, users whose sessions ended meanwhile
        self.sessions: dict[str, dict[Connection, None]] = {}  # sessid -> connections that logged in with it
        self.unreachable: dict[str, float] = {}
        self.rechecks_pending: set[str] = set()  # sessids whose re-check is pending
        self.due: dict[str, float] = {}  # sessid -> the latest time of its next re-check
        self.first_sweep = math.inf
        self.dead: list[Connection] = []  # connections whose ping timed out at this check
        self.accepted = 0
        self.opened_so_far: list[Connection] = []
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # What happens at the seams ---------------------------------------------------

    def opened(self, c: Connection) -> None:
        """Record that a handshake was completed."""
        c.state = State.ANONYMOUS
        c.login_due = self.now + LOGIN_TIMEOUT
        c.turn_at = self.now
        self.opened_so_far.append(c)
        if self.stopping and not c.awaits_turn:
            self._close(c, 4000)

    def received(self, c: Connection, sent: Sent) -> None:
        """Record that the last byte of a frame was read."""
        if c.state is State.CLOSED:
            return
        if isinstance(sent, Close):
            self._close(c, sent.code)
        elif isinstance(sent, Ping):
            if self._control(c):
                self._emit(c, (10, sent.payload))
        elif isinstance(sent, Pong):
            self._control(c)
        elif isinstance(sent, Bad):
            if c.accepts_messages or sent.code != 1003:  # messages are ignored then, frames are not
                self._close(c, sent.code)
        elif c.accepts_messages:
            self._text(c, sent)

    def _control(self, c: Connection) -> bool:
        within = c.pings.take(self.now)
        c.activity += within
        if not within:
            self._close(c, 1002)
        return within

    def pinged(self, c: Connection, is_behind: bool) -> None:
        """Record that a ping of a connection is due. One that is behind gets none, since the ping would wait, too."""
        c.turn_at = self.now
        if c.state is State.CLOSED or is_behind:
            return
        if self._emit(c, (9, b"")):
            self.count("pings")
            c.ping_due, c.activity_at_ping = self.now + PING_TIMEOUT, c.activity

    def ping_timed_out(self, c: Connection, is_behind: bool) -> None:
        """Record that a ping has timed out."""
        assert c.state is State.CLOSED or c in self.dead, f"connection {c.number} answered its ping, or still had time"
        if c in self.dead:
            self.dead.remove(c)
        if not is_behind:
            self._close(c, 4004)
        elif c.state is not State.CLOSED:
            c.ping_due, c.activity_at_ping = self.now + PING_TIMEOUT, c.activity  # its ping may still wait

    def fell_behind(self, c: Connection) -> None:
        """Record that more waits for a connection than its transport's limit."""
        c.behind_since = self.now

    def caught_up(self, c: Connection) -> None:
        """Record that a connection has taken everything, or has ended."""
        c.behind_since = None

    def compare(self) -> None:
        """Check that the relay has noticed every connection whose ping timed out."""
        late = [c for c in self.dead if c.state is not State.CLOSED]
        assert not late, f"the relay did not notice that these do not answer: {late}"

    def released(self, c: Connection) -> None:
        """Record that the relay has released a connection."""
        assert c.state in (State.CLOSED, State.CONNECTING) or c.was_cut, (
            f"connection {c.number} was cut without a close frame"
        )
        self._end(c)

    def _check_pings(self) -> None:
        now = self.now
        self.first_sweep = min(self.first_sweep, now)
        over = [c for c in self.connections if c.ping_due is not None and c.ping_due <= now]
        for c in self.connections:
            if c.ping_due is not None and c.activity != c.activity_at_ping:
                c.ping_due = None
            elif c.ping_due is not None:
                c.turn_at = now
            if c.state not in (State.CONNECTING, State.CLOSED):
                # Turns count from the first check of the deadlines, which comes as soon as the relay starts.
                late = now - max(c.turn_at, self.first_sweep) > PING_INTERVAL + 2 * SWEEP_SECONDS
                assert not late, f"connection {c.number} was not pinged since {c.turn_at}"
        self.dead = [c for c in over if c.state is not State.CLOSED and c.activity == c.activity_at_ping]
        for c in over:
            c.ping_due = None

    def answered(self, site_request: SiteRequest, verdict: Verdict) -> None:
        """Record that the site has responded."""
        site_request.verdict = verdict
        if site_request.is_recheck:
            self._rechecked(site_request.sessid, verdict)
            return
        c = site_request.connection
        assert c is not None, f"a response about {site_request.sessid}, without a login"
        address = self.addresses[c.address]
        address.pending -= 1
        is_denied = verdict.uid is None and verdict.available
        if is_denied and not self._is_remembered(site_request.sessid):
            address.denials.take(self.now)
            self.denied_at[site_request.sessid] = self.now
        self._login_answered(c, verdict)
        self._send_logins(address)

    def _login_answered(self, c: Connection, verdict: Verdict) -> None:
        sessid, c.login_sessid, c.is_login_sent = c.login_sessid, None, False
        assert sessid is not None, f"connection {c.number} was answered without a pending login"
        assert c.state in (State.AUTHENTICATING, State.REAUTHENTICATING), (
            f"connection {c.number} got an answer without an auth-request"
        )
        waiting, ended = self.pending[sessid]
        waiting.pop(c, None)
        if not waiting:
            del self.pending[sessid]
        if verdict.uid is not None and str(verdict.uid) in ended:
            self.count("logins revoked while their request was pending")
            self._close(c, 4505)
            return
        again = c.state is State.REAUTHENTICATING
        c.state = State.AUTHENTICATED if again else State.ANONYMOUS
        if verdict.uid is not None and not again:
            self.count("logins")
            c.state, c.uid = State.AUTHENTICATED, verdict.uid
            c.logged_in_since = self.accepted
            user = self.users.setdefault(str(c.uid), User())
            user.connections += 1
            user.forgotten_at = None
            c.bucket = Bucket(MESSAGES_PER_SECOND, MESSAGE_BURST)
            c.activity += 1
            self.directory.setdefault(str(c.uid), []).append(c)
            self._auth(c, True)
        elif verdict.uid is not None:
            same = str(verdict.uid) == str(c.uid)
            self._auth(c, same, None if same else "already-logged-in")
        elif not verdict.available:
            self._auth(c, False, "webserver-unavailable")
        else:
            self._auth(c, False)
            c.denials += 1
            if c.denials >= DENIALS:
                self._close(c, 4500)
        if c.is_logged_in and verdict.uid is not None and str(verdict.uid) == str(c.uid):
            self._forget_session(c)
            self.sessions.setdefault(sessid, {})[c] = None
            if sessid not in self.rechecks_pending:
                self._confirmed(sessid, verdict)
            for oldest in self.directory[str(c.uid)][:-CONNECTIONS_PER_USER]:
                self._close(oldest, 4504)

    def _is_remembered(self, sessid: str) -> bool:
        return self.remembers and self.now - self.denied_at.get(sessid, -math.inf) < DENIAL_MEMORY

    def _log_in(self, c: Connection, sessid: str) -> None:
        c.login_sessid = sessid
        self.pending.setdefault(sessid, ({}, set()))[0][c] = None
        address = self.addresses.setdefault(c.address, Address())
        address.waiting.append(c)
        if self._is_remembered(sessid):
            address.waiting.remove(c)
            self.count("logins denied from memory")
            self._login_answered(c, Verdict(None))
        self._send_logins(address)

    def _send_logins(self, address: Address) -> None:
        """Send the requests of waiting logins, but no more at once than logins that may still be denied."""
        if address.is_sending_logins:
            return
        address.is_sending_logins = True
        while address.waiting:
            left = int(address.denials.level(self.now))
            if address.pending and address.pending >= left:
                self.count("logins that waited for others of their address")
                break
            c = address.waiting.pop(0)
            assert c.login_sessid is not None
            if self._is_remembered(c.login_sessid) or not left:
                self.count("logins denied from memory" if left else "logins denied without a request")
                self._login_answered(c, Verdict(None))
                continue
            assert self.site_requests, f"no request was sent about {c.login_sessid}"
            site_request = self.site_requests.pop(0)
            assert site_request.sessid == c.login_sessid, (
                f"a request about {site_request.sessid} instead of {c.login_sessid}"
            )
            address.pending += 1
            site_request.connection, c.is_login_sent = c, True
            if site_request.verdict is not None:
                self.answered(site_request, site_request.verdict)
        address.is_sending_logins = False

    def recheck_sent(self, sessid: str) -> None:
        """Record that the relay has sent a re-check."""
        assert sessid in self.sessions and sessid not in self.rechecks_pending, f"{sessid} was re-checked without need"
        self.rechecks_pending.add(sessid)

    def appended(self, contents: Sequence[tuple[Any, ...]]) -> None:
        """Record a batch that went to the log, and check that it has all messages accepted since the last, in order."""
        assert not self.batch, "two batches at once"
        self.batch, self.forming = self.forming, []
        self.batches += 1
        expected = [(c.uid, r.to, r.id, r.time_stamp, r.content) for c, r in self.batch]
        assert exactly(list(contents)) == exactly(expected), f"logged {contents}, accepted {expected}"

    def committed(self, numbers: Sequence[int] | None) -> None:
        """Record that the batch was committed under these numbers, or failed."""
        batch, self.batch = self.batch, []
        unreached: dict[int, tuple[Connection, Request]] = {}
        for place, (sender, request) in enumerate(batch):
            if numbers is None:
                self._outcome(sender, request, "log-unavailable")
                continue
            delivery = {
                "type": "message",
                "message": {
                    "timeStamp": request.time_stamp,
                    "fromuID": sender.uid,
                    "touID": request.to,
                    "content": request.content,
                },
            }
            reached = [self._emit(c, delivery) for c in tuple(self.directory.get(str(request.to), ()))]
            if any(reached):
                self._outcome(sender, request)
            else:
                unreached[numbers[place]] = (sender, request)
        if unreached:
            self.unmarked[tuple(unreached)] = self.batches, list(unreached.values())
        self.waiting -= len(batch)
        self._close_answered()

    def marked(self, numbers: Sequence[int], has_failed: bool) -> None:
        """Record that the log has marked these undelivered, or will."""
        key = tuple(numbers)
        is_repeated = key in self.failed_marks
        self.failed_marks.discard(key)
        if has_failed:
            self.failed_marks.add(key)
        if is_repeated:
            return
        unreached = self.unmarked.pop(key, None)
        assert unreached is not None, f"marked as undelivered, but delivered: {numbers}"
        for sender, request in unreached[1]:
            self.count("messages whose recipient vanished")
            self._outcome(sender, request, "receiving-user-not-connected")
        self._close_answered()

    def swept(self) -> None:
        """Record that the relay has checked its deadlines."""
        now = self.now
        late = min(self.turns, self._turns_by(self.swept_at)) - self.turns_taken
        assert late <= 0 or not self.stopping, f"{late} connections were not closed in their turns"
        self.swept_at = now
        for user, known in tuple(self.users.items()):
            if known.forgotten_at is not None and known.forgotten_at <= now:
                del self.users[user]
        for sessid, due in self.due.items():
            # Due times are whole seconds, and a due re-check is sent as soon as fewer than the limit are pending.
            late = (
                due + 1 + SWEEP_SECONDS < now
                and sessid not in self.rechecks_pending
                and len(self.rechecks_pending) < MAX_RECHECKS_AT_ONCE
            )
            assert not late, f"{sessid} was due at {due}, and was not re-checked at {now}"
        for c in self.connections:
            if c.state is State.CLOSED and not c.is_lost:
                # If the client closes as well, after the relay, its time begins again.
                assert c.ended_at + 2 * CLOSING_TIMEOUT > now, (
                    f"connection {c.number} was not cut after its time to leave"
                )
            if c.state is State.CONNECTING:
                assert c.handshake_due > now or c.is_lost, "a handshake was not cut after its time"
        # In the order in which they opened: when a login ends, the request of one that waits for it is sent first.
        for c in self.opened_so_far:
            if c.state in (State.ANONYMOUS, State.AUTHENTICATING) and c.login_due <= now:
                if c.state is State.AUTHENTICATING:
                    self._auth(c, False, "webserver-unavailable")
                self._close(c, 4001)
        for c in sorted(self.connections, key=lambda c: c.message_begun):
            if c.state not in (State.CONNECTING, State.CLOSED) and c.message_due is not None and c.message_due <= now:
                self._close(c, 1002)
        self._check_pings()
        for c in self.connections:
            if c.behind_since is not None and c.behind_since + UNREAD_TIME <= now and c.state is not State.CLOSED:
                if not c.stream.unacknowledged:
                    self.count("clients behind that had taken all the kernel had")
                    c.behind_since = now
                    continue
                self.count("slow readers closed by their time")
                self._close(c, 4002)

    def revoked_user(self, user: str) -> None:
        """Record that the site has ended all sessions of a user."""
        for _, ended in self.pending.values():
            ended.add(user)
        for c in tuple(self.directory.get(user, ())):
            self._close(c, 4505)

    def revoked_session(self, sessid: str) -> None:
        """Record that the site has ended one session."""
        waiting, _ = self.pending.get(sessid, ({}, set()))
        for c in (*self.sessions.get(sessid, {}), *waiting):
            self._close(c, 4505)

    def stopped(self, there: Sequence[Connection]) -> None:
        """Record that the relay has begun to stop: each connection has a turn to be closed, and works until then."""
        self.stopping = True
        self.stopped_at = self.swept_at = self.now
        self.turns = len(there)
        for c in there:
            c.awaits_turn = True

    def _turns_by(self, moment: float) -> int:
        """Return how many turns have come by that moment."""
        rate = max(MIN_TURNS_PER_SECOND, (self.turns - TURNS_AT_ONCE) / (0.8 * DRAIN_TIME))
        return TURNS_AT_ONCE + int(rate * (moment - self.stopped_at))

    def turn_came(self, c: Connection) -> None:
        """Record that a connection's turn has come: its messages are answered, then it is closed."""
        if c.awaits_turn:
            self._turn_taken(c)
            assert self.turns_taken <= self._turns_by(self.now), f"connection {c.number} was closed before its turn"
            self.count("connections closed in their turn while the relay stops")
        c.accepts_messages = False
        self.to_close.append((self.batches + bool(self.forming), c))
        self._close_answered()

    def lost(self, c: Connection) -> None:
        """Record that a connection has ended. This uses up its turn."""
        if c.awaits_turn:
            self._turn_taken(c)

    def _turn_taken(self, c: Connection) -> None:
        c.awaits_turn = False
        self.turns_taken += 1

    def _close_answered(self) -> None:
        unanswered = [number for number, _ in self.unmarked.values()] + [self.batches] * bool(self.batch)
        for place in tuple(self.to_close):
            until, c = place
            if until <= self.batches and all(number > until for number in unanswered):
                self.to_close.remove(place)
                if c.state is not State.CONNECTING:  # otherwise it is cut
                    self._close(c, 4000)

    def closed_all(self) -> None:
        """Record that the relay closes all open connections: when all is answered or the time to stop is over."""
        is_over = self.now - self.stopped_at >= 0.9 * DRAIN_TIME
        assert is_over or not (self.to_close or any(c.awaits_turn for c in self.connections)), "the relay did not wait"
        for c in self.connections:
            c.awaits_turn = c.accepts_messages = False
            if c.state not in (State.CONNECTING, State.CLOSED):
                self.count("connections that were closed when the time to stop was over")
                self._close(c, 4000)

    # What follows ---------------------------------------------------------------

    def _text(self, c: Connection, sent: Sent) -> None:
        within = c.bucket.take(self.now)
        c.activity += within
        if isinstance(sent, Unusable):
            if not within and sent.reason == "invalid-auth-request":
                # Beyond the limit, the relay reads only the values that the answer needs.
                self._auth(
                    c,
                    False,
                    "login-pending" if c.state in (State.AUTHENTICATING, State.REAUTHENTICATING) else "rate-limited",
                )
            elif not within and sent.id is not None:
                if c.is_logged_in:
                    self._emit(c, _outcome(sent.id, "rate-limited"))
            elif not sent.send or c.is_logged_in:
                self.count("unusable frames")
                if sent.id is None:
                    self._emit(c, {"type": "error", "reason": sent.reason, "detail": ...})
                else:
                    self._emit(c, _outcome(sent.id, sent.reason))
                c.unusable += 1
                if c.unusable >= UNUSABLE:
                    self._close(c, 4502)
        elif isinstance(sent, Send):
            if c.is_logged_in:
                c.requests.append(sent.request)
                within = within and self.users[str(c.uid)].may_send(sent.request.to, self.now)
                if within:
                    self._submitted(c, sent.request)
                else:
                    self._outcome(c, sent.request, "rate-limited")
            else:
                self.count("messages of visitors")
        elif isinstance(sent, Auth):
            if c.state in (State.AUTHENTICATING, State.REAUTHENTICATING):
                self._auth(c, False, "login-pending")
            elif not within:
                self._auth(c, False, "rate-limited")
            elif c.is_logged_in and not c.reauthentications.take(self.now):
                self.count("auth-requests of users beyond their limit")
                self._auth(c, False, "rate-limited")
                within = False
            else:
                c.state = State.REAUTHENTICATING if c.is_logged_in else State.AUTHENTICATING
                self._log_in(c, sent.sessid)
        if not within:
            if self.now - c.refused_at > BACK_OFF_SECONDS:
                c.refusals = 0
            c.refused_at = self.now
            c.refusals += 1
            if c.refusals > REFUSALS:
                self._close(c, 4503)

    def _submitted(self, c: Connection, request: Request) -> None:
        if not self.directory.get(str(request.to)):
            self._outcome(c, request, "receiving-user-not-connected")
        elif self.waiting >= MAX_WAITING:
            self._outcome(c, request, "busy")
        else:
            self.waiting += 1
            self.accepted += 1
            self.forming.append((c, request))

    def _rechecked(self, sessid: str, verdict: Verdict) -> None:
        self.rechecks_pending.discard(sessid)
        connections = self.sessions.get(sessid)
        assert connections, f"{sessid} was re-checked, and no connection uses it"
        self.count("sessions re-checked")
        user = next(iter(connections)).uid
        if verdict.uid is not None and str(verdict.uid) == str(user):
            self._confirmed(sessid, verdict)
            return
        if not verdict.available:
            since = self.unreachable.setdefault(sessid, self.now)
            if self.now - since < RECHECK_GRACE:
                self.due[sessid] = min(self.now + 1.2 * RECHECK_INTERVAL, since + RECHECK_GRACE)
                return
        for c in tuple(connections):
            self._close(c, 4501)

    def _confirmed(self, sessid: str, verdict: Verdict) -> None:
        self.unreachable.pop(sessid, None)
        self.due[sessid] = self.now + (1.2 * RECHECK_INTERVAL if verdict.expires_in is None else verdict.expires_in)

    def _auth(self, c: Connection, value: bool, reason: str | None = None) -> None:
        self._emit(c, {"type": "auth-response", "response": value} | ({} if reason is None else {"reason": reason}))

    def _outcome(self, c: Connection, request: Request, reason: str | None = None) -> None:
        self.count(f"answers {reason or 'true'}")
        self._emit(c, _outcome(request.id, reason))

    def _emit(self, c: Connection, expected: Any) -> bool:
        """Check that `c` got a frame, if it is open; return whether it is."""
        if c.state is State.CLOSED:
            return False
        came = c.stream.frames[c.cursor] if c.cursor < len(c.stream.frames) else None
        if came is None:
            # The connection broke in this turn. The frames in its buffer were sent, but can't be seen.
            assert c.is_lost, f"connection {c.number} did not get {expected}"
            return True
        c.cursor += 1
        if came == (4002,) and expected != (4002,):
            # The next frame counts, too.
            unread = c.stream.total - c.unread_since + len(json.dumps(expected, default=str, ensure_ascii=False))
            # Approximate: each pong counts with the longest header of a frame, each message without one.
            assert unread > 0.95 * UNREAD_SIZE, f"connection {c.number} was closed with 4002 at {unread} bytes unread"
            self.count("slow readers closed")
            c.code = 4002
            self._end(c)
            return False
        if isinstance(came, dict) and came.get("type") == "error" and isinstance(came.get("detail"), str):
            came = {**came, "detail": ...}
        assert exactly(came) == exactly(expected), f"connection {c.number} got {came}, not {expected}"
        return True

    def _close(self, c: Connection, code: int) -> None:
        if c.state is State.CLOSED:
            return
        if self._emit(c, (code,)):
            self.count(f"closed with {code}")
            c.code = code
            self._end(c)

    def _end(self, c: Connection) -> None:
        if c.is_logged_in:
            mine = self.directory[str(c.uid)]
            mine.remove(c)
            if not mine:
                del self.directory[str(c.uid)]
            user = self.users[str(c.uid)]
            user.connections -= 1
            if not user.connections:
                if user.is_as_new(self.now):
                    del self.users[str(c.uid)]
                else:
                    user.forgotten_at = self.now + 60  # the slower of the two buckets is full by then
        self._forget_session(c)
        for sessid, (waiting, _) in tuple(self.pending.items()):
            waiting.pop(c, None)
            if not waiting:
                del self.pending[sessid]
        c.state = State.CLOSED
        c.ended_at = self.now
        if c.login_sessid is not None:
            address = self.addresses[c.address]
            if c.is_login_sent:
                address.pending -= 1
            else:
                address.waiting.remove(c)
            c.login_sessid, c.is_login_sent = None, False
            self._send_logins(address)

    def _forget_session(self, c: Connection) -> None:
        for sessid, connections in tuple(self.sessions.items()):
            connections.pop(c, None)
            if not connections:
                del self.sessions[sessid]
                self.unreachable.pop(sessid, None)
                self.due.pop(sessid, None)
                self.rechecks_pending.discard(sessid)

    # In the end ----------------------------------------------------------------------

    def check_promise(self, log: Sequence[Row]) -> None:
        """Check every account and the log at the end, as the checks of real runs do."""
        accounts = []
        for c in self.connections:
            if c.uid is None:
                continue
            ids = {request.id for request in c.requests}
            heard = [
                f
                for f in c.stream.frames
                if isinstance(f, dict)
                and (f["type"] == "message" or (f["type"] == "send-request-response" and f["response"]["id"] in ids))
            ]
            stayed = c.is_logged_in and c.logged_in_since == 0
            accounts.append(Account(c.uid, c.requests, heard, c.code, stayed))
        trial = Trial()
        trial.add(accounts, settled=True)
        trial.check_log(log)


def _outcome(id: str | int, reason: str | None = None) -> dict[str, Any]:
    answer = {"id": id, "value": True} if reason is None else {"id": id, "value": False, "reason": reason}
    return {"type": "send-request-response", "response": answer}
