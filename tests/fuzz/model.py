"""What the relay must do, implemented a second time: the promise and the protocol page as a small state machine.

`Model` is notified of each event at the relay's seams, in order: a connection's bytes were read, the site's verdict
came, a batch was committed. From these it computes each frame that each client must have been handed, in order, and
each connection that must have been closed, with its code, and compares. It shares no code with the relay. It knows
nothing of batches except that they consist of the accepted messages, in order.

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

# The limits that a scenario runs under. Small, so that a few dozen events reach them; all sums with them are exact in
# binary, so that the model and the relay can't differ by a rounding.
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
LOOK = 0.25  # seconds from one look at the deadlines to the next
MAX_WAITING = 12
AT_ONCE = 8  # a quarter of webserver-checks
DRAIN_TIME = 10
TURNS_AT_ONCE = 2
LEAST_TURNS = 0.5  # a second
CONNECTIONS_PER_USER = 3
LOGINS_PER_MINUTE = 4
QUESTIONS_PER_MINUTE = 2
MINUTE = 16  # for denials and questions, or no scenario would meet their end
DENIAL_MEMORY = 5
PING_INTERVAL = 20
PING_TIMEOUT = 10
UNREAD_TIME = 10

DENIALS, UNUSABLE, REFUSALS, BACKED_OFF = 3, 10, 60, 0.5


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
    """Text that is not a request; `id` and `send` are what it was meant to be."""

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
    """A frame that RFC 6455 or the relay does not allow, and the code that closes the connection."""

    code: int


Sent = Auth | Send | Unusable | Ping | Pong | Close | Bad


# Verdicts of the site ----------------------------------------------------------


@dataclass
class Verdict:
    """The site's verdict on a session: its user; None: nobody; `available` False: no verdict."""

    uid: UID | None
    available: bool = True
    expires_in: float | None = None


@dataclass
class Ask:
    """A question to the site; `again` for a re-check, otherwise `by` is the connection that logs in, once it is
    known.
    """

    sessid: str
    again: bool
    by: Connection | None = None
    verdict: Verdict | None = None


# The state -----------------------------------------------------------------------


class State(enum.Enum):
    CONNECTING = enum.auto()
    VISITOR = enum.auto()
    ASKING = enum.auto()
    MEMBER = enum.auto()
    ASKING_AGAIN = enum.auto()
    ENDED = enum.auto()


class Bucket:
    """Tokens, counted one by one."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, 0.0

    def look(self, now: float) -> float:
        """Return the number of tokens."""
        self.tokens = min(self.burst, self.tokens + self.rate * (now - self.at))
        self.at = now
        return self.tokens

    def take(self, now: float) -> bool:
        if self.look(now) < 1:
            return False
        self.tokens -= 1
        return True


class Address:
    """How many logins from one address may still be asked about, and those that wait, in order."""

    def __init__(self) -> None:
        self.denials = Bucket(LOGINS_PER_MINUTE / MINUTE, LOGINS_PER_MINUTE)
        self.out = 0
        self.waiting: list[Connection] = []
        self.is_letting_in = False


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
        return self.messages.look(now) == MESSAGE_BURST and self.recipients.look(now) == NEW_RECIPIENTS_PER_MINUTE


@dataclass(eq=False)
class Connection:
    """What is known of one connection.

    :ivar was_cut: set by the world: its client has ended the TCP connection.
    :ivar is_lost: set by the world: its transport is gone.
    :ivar unread_since: set by the world: bytes handed over when its client had last read everything.
    :ivar wants_in_by: the SESSID of the login under way; `is_asked_about` when the site has it.
    :ivar turn_at: when it was pinged, or needed no ping; `ping_due`: when the time of an unanswered ping is over.
    :ivar signs: its signs of life; `signs_then`: their number when it was pinged.
    :ivar behind_since: when more waited for it than its transport likes, or None.
    :ivar awaits_turn: whether the relay stops, and has not closed this one yet.
    :ivar is_taken_from: whether its messages count, which ends when its turn comes.
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
    questions: Bucket = field(default_factory=lambda: Bucket(QUESTIONS_PER_MINUTE / MINUTE, QUESTIONS_PER_MINUTE))
    refusals: int = 0
    refused_at: float = 0.0
    denials: int = 0
    unusable: int = 0
    handshake_due: float = 0.0
    login_due: float = 0.0
    message_due: float | None = None
    message_begun: int = 0
    wants_in_by: str | None = None
    is_asked_about: bool = False
    requests: list[Request] = field(default_factory=list)
    member_since: int | None = None
    unread_since: int = 0
    ended_at: float = 0.0
    turn_at: float = 0.0
    ping_due: float | None = None
    signs: int = 0
    signs_then: int = 0
    behind_since: float | None = None
    awaits_turn: bool = False
    is_taken_from: bool = True

    def compare(self) -> None:
        """Check that it was handed nothing else."""
        extra = self.stream.frames[self.cursor :]
        assert not extra, f"connection {self.number} ({self.state.name}, {self.code}) was handed {extra} besides"

    @property
    def is_member(self) -> bool:
        return self.state in (State.MEMBER, State.ASKING_AGAIN)


class Model:
    """The connected users, the accepted messages, and what each client must receive."""

    def __init__(self, now: float, remembers: bool) -> None:
        self.now = now
        self.remembers = remembers  # denials
        self.denied_at: dict[str, float] = {}
        self.addresses: dict[str, Address] = {}
        self.questions: list[Ask] = []  # that were put to the site, and not yet accounted for
        self.stopping = False
        self.stopped_at = self.looked_at = now
        self.turns = 0  # connections that had to be closed, and of those the ones that were closed, or disconnected
        self.turns_taken = 0
        self.told: list[tuple[int, Connection]] = []  # connections to be closed once this many batches are answered
        self.connections: list[Connection] = []
        self.here: dict[str, list[Connection]] = {}
        self.users: dict[str, User] = {}
        self.waiting = 0
        self.forming: list[tuple[Connection, Request]] = []
        self.batch: list[tuple[Connection, Request]] = []
        self.batches = 0  # handed to the log
        self.unmarked: dict[tuple[int, ...], tuple[int, list[tuple[Connection, Request]]]] = {}
        self.pending: dict[
            str, tuple[dict[Connection, None], set[str]]
        ] = {}  # sessid -> who waits, users ended meanwhile
        self.sessions: dict[str, dict[Connection, None]] = {}  # sessid -> who is in by it
        self.unreachable: dict[str, float] = {}
        self.asked_about: set[str] = set()  # sessids that are being asked about again
        self.due: dict[str, float] = {}  # sessid -> when at the latest it is asked about again
        self.first_look = math.inf
        self.dead: list[Connection] = []  # connections whose time was over at this check
        self.accepted = 0
        self.opened_so_far: list[Connection] = []
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # What happens at the seams ---------------------------------------------------

    def opened(self, c: Connection) -> None:
        """Record that a handshake was completed."""
        c.state = State.VISITOR
        c.login_due = self.now + LOGIN_TIMEOUT
        c.turn_at = self.now
        self.opened_so_far.append(c)
        if self.stopping and not c.awaits_turn:
            self._close(c, 4000)

    def received(self, c: Connection, sent: Sent) -> None:
        """Record that the last byte of a frame was read."""
        if c.state is State.ENDED:
            return
        if isinstance(sent, Close):
            self._close(c, sent.code)
        elif isinstance(sent, Ping):
            if self._control(c):
                self._emit(c, (10, sent.payload))
        elif isinstance(sent, Pong):
            self._control(c)
        elif isinstance(sent, Bad):
            if c.is_taken_from or sent.code != 1003:  # messages are not looked at any more; frames are
                self._close(c, sent.code)
        elif c.is_taken_from:
            self._text(c, sent)

    def _control(self, c: Connection) -> bool:
        within = c.pings.take(self.now)
        c.signs += within
        if not within:
            self._close(c, 1002)
        return within

    def pinged(self, c: Connection, is_behind: bool) -> None:
        """Record that a connection's turn to be pinged has come. One that is behind gets no ping, which would wait,
        too.
        """
        c.turn_at = self.now
        if c.state is State.ENDED or is_behind:
            return
        if self._emit(c, (9, b"")):
            self.count("pings")
            c.ping_due, c.signs_then = self.now + PING_TIMEOUT, c.signs

    def gave_no_sign(self, c: Connection, is_behind: bool) -> None:
        """Record that the time to answer a ping is over."""
        assert c.state is State.ENDED or c in self.dead, f"connection {c.number} was alive, or had its time yet"
        if c in self.dead:
            self.dead.remove(c)
        if not is_behind:
            self._close(c, 4004)
        elif c.state is not State.ENDED:
            c.ping_due, c.signs_then = self.now + PING_TIMEOUT, c.signs  # its ping is still out

    def fell_behind(self, c: Connection) -> None:
        """Record that more waits for a connection than its transport's limit."""
        c.behind_since = self.now

    def caught_up(self, c: Connection) -> None:
        """Record that a connection has taken everything, or is gone."""
        c.behind_since = None

    def compare(self) -> None:
        """Check that every connection that must have been notified was."""
        late = [c for c in self.dead if c.state is not State.ENDED]
        assert not late, f"nobody noticed that these do not answer: {late}"

    def left(self, c: Connection) -> None:
        """Record that the relay has released a connection."""
        assert c.state in (State.ENDED, State.CONNECTING) or c.was_cut, f"connection {c.number} was cut without a word"
        self._end(c)

    def _look_at_pings(self) -> None:
        now = self.now
        self.first_look = min(self.first_look, now)
        over = [c for c in self.connections if c.ping_due is not None and c.ping_due <= now]
        for c in self.connections:
            if c.ping_due is not None and c.signs != c.signs_then:
                c.ping_due = None
            elif c.ping_due is not None:
                c.turn_at = now
            if c.state not in (State.CONNECTING, State.ENDED):
                # Turns count from the first look at the deadlines on, which a relay has at once when it starts.
                late = now - max(c.turn_at, self.first_look) > PING_INTERVAL + 2 * LOOK
                assert not late, f"connection {c.number} was not pinged since {c.turn_at}"
        self.dead = [c for c in over if c.state is not State.ENDED and c.signs == c.signs_then]
        for c in over:
            c.ping_due = None

    def answered(self, ask: Ask, verdict: Verdict) -> None:
        """Record that the site has answered."""
        ask.verdict = verdict
        if ask.again:
            self._rechecked(ask.sessid, verdict)
            return
        c = ask.by
        assert c is not None, f"an answer about {ask.sessid}, which was asked about for nobody"
        address = self.addresses[c.address]
        address.out -= 1
        is_denied = verdict.uid is None and verdict.available
        if is_denied and not self._is_remembered(ask.sessid):
            address.denials.take(self.now)
            self.denied_at[ask.sessid] = self.now
        self._login_answered(c, verdict)
        self._let_in(address)

    def _login_answered(self, c: Connection, verdict: Verdict) -> None:
        sessid, c.wants_in_by, c.is_asked_about = c.wants_in_by, None, False
        assert sessid is not None, f"connection {c.number} was answered, and had left or not asked"
        assert c.state in (State.ASKING, State.ASKING_AGAIN), f"connection {c.number} was told what it did not ask"
        waiting, ended = self.pending[sessid]
        waiting.pop(c, None)
        if not waiting:
            del self.pending[sessid]
        if verdict.uid is not None and str(verdict.uid) in ended:
            self.count("logins that were revoked while the site was asked")
            self._close(c, 4505)
            return
        again = c.state is State.ASKING_AGAIN
        c.state = State.MEMBER if again else State.VISITOR
        if verdict.uid is not None and not again:
            self.count("logins")
            c.state, c.uid = State.MEMBER, verdict.uid
            c.member_since = self.accepted
            user = self.users.setdefault(str(c.uid), User())
            user.connections += 1
            user.forgotten_at = None
            c.bucket = Bucket(MESSAGES_PER_SECOND, MESSAGE_BURST)
            c.signs += 1
            self.here.setdefault(str(c.uid), []).append(c)
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
        if c.is_member and verdict.uid is not None and str(verdict.uid) == str(c.uid):
            self._forget_session(c)
            self.sessions.setdefault(sessid, {})[c] = None
            if sessid not in self.asked_about:
                self._confirmed(sessid, verdict)
            for oldest in self.here[str(c.uid)][:-CONNECTIONS_PER_USER]:
                self._close(oldest, 4504)

    def _is_remembered(self, sessid: str) -> bool:
        return self.remembers and self.now - self.denied_at.get(sessid, -math.inf) < DENIAL_MEMORY

    def _wants_in(self, c: Connection, sessid: str) -> None:
        c.wants_in_by = sessid
        self.pending.setdefault(sessid, ({}, set()))[0][c] = None
        address = self.addresses.setdefault(c.address, Address())
        address.waiting.append(c)
        if self._is_remembered(sessid):
            address.waiting.remove(c)
            self.count("logins denied from memory")
            self._login_answered(c, Verdict(None))
        self._let_in(address)

    def _let_in(self, address: Address) -> None:
        """Let waiting logins be asked about, but no more at once than may be denied."""
        if address.is_letting_in:
            return
        address.is_letting_in = True
        while address.waiting:
            left = int(address.denials.look(self.now))
            if address.out and address.out >= left:
                self.count("logins that waited for others of their address")
                break
            c = address.waiting.pop(0)
            assert c.wants_in_by is not None
            if self._is_remembered(c.wants_in_by) or not left:
                self.count("logins denied from memory" if left else "logins denied without asking")
                self._login_answered(c, Verdict(None))
                continue
            assert self.questions, f"the site was not asked about {c.wants_in_by}"
            ask = self.questions.pop(0)
            assert ask.sessid == c.wants_in_by, f"asked about {ask.sessid} in place of {c.wants_in_by}"
            address.out += 1
            ask.by, c.is_asked_about = c, True
            if ask.verdict is not None:
                self.answered(ask, ask.verdict)
        address.is_letting_in = False

    def asked_again(self, sessid: str) -> None:
        """Record that the relay has asked the site again."""
        assert sessid in self.sessions and sessid not in self.asked_about, f"{sessid} was asked about without need"
        self.asked_about.add(sessid)

    def appended(self, contents: Sequence[tuple[Any, ...]]) -> None:
        """Record a batch that went to the log, and check that it is all that was accepted since the last one, in
        order.
        """
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
            reached = [self._emit(c, delivery) for c in tuple(self.here.get(str(request.to), ()))]
            if any(reached):
                self._outcome(sender, request)
            else:
                unreached[numbers[place]] = (sender, request)
        if unreached:
            self.unmarked[tuple(unreached)] = self.batches, list(unreached.values())
        self.waiting -= len(batch)
        self._close_told()

    def marked(self, numbers: Sequence[int]) -> None:
        """Record that the log has marked these undelivered, or will."""
        unreached = self.unmarked.pop(tuple(numbers), None)
        assert unreached is not None, f"marked undelivered, and were not: {numbers}"
        for sender, request in unreached[1]:
            self.count("messages whose recipient vanished")
            self._outcome(sender, request, "receiving-user-not-connected")
        self._close_told()

    def swept(self) -> None:
        """Record that the relay has checked its deadlines."""
        now = self.now
        late = min(self.turns, self._turns_by(self.looked_at)) - self.turns_taken
        assert late <= 0 or not self.stopping, f"{late} connections were not told in their turns that the relay stops"
        self.looked_at = now
        for user, known in tuple(self.users.items()):
            if known.forgotten_at is not None and known.forgotten_at <= now:
                del self.users[user]
        for sessid, due in self.due.items():
            # A slot is a whole second, and a due session is asked about as soon as fewer than the limit are.
            late = due + 1 + LOOK < now and sessid not in self.asked_about and len(self.asked_about) < AT_ONCE
            assert not late, f"{sessid} was due at {due}, and was not asked about at {now}"
        for c in self.connections:
            if c.state is State.ENDED and not c.is_lost:
                # If the client closes, too, after the relay has, its time begins again.
                assert c.ended_at + 2 * CLOSING_TIMEOUT > now, f"connection {c.number} may take its time to leave"
            if c.state is State.CONNECTING:
                assert c.handshake_due > now or c.is_lost, "a handshake may last"
        # In the order in which they began: a login that waits for one that ends is asked about before that one ends.
        for c in self.opened_so_far:
            if c.state in (State.VISITOR, State.ASKING) and c.login_due <= now:
                if c.state is State.ASKING:
                    self._auth(c, False, "webserver-unavailable")
                self._close(c, 4001)
        for c in sorted(self.connections, key=lambda c: c.message_begun):
            if c.state not in (State.CONNECTING, State.ENDED) and c.message_due is not None and c.message_due <= now:
                self._close(c, 1002)
        self._look_at_pings()
        for c in self.connections:
            if c.behind_since is not None and c.behind_since + UNREAD_TIME <= now and c.state is not State.ENDED:
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
        for c in tuple(self.here.get(user, ())):
            self._close(c, 4505)

    def revoked_session(self, sessid: str) -> None:
        """Record that the site has ended one session."""
        waiting, _ = self.pending.get(sessid, ({}, set()))
        for c in (*self.sessions.get(sessid, {}), *waiting):
            self._close(c, 4505)

    def stopped(self, there: Sequence[Connection]) -> None:
        """Record that the relay has begun to stop: each connection has a turn to be closed, and goes on until then."""
        self.stopping = True
        self.stopped_at = self.looked_at = self.now
        self.turns = len(there)
        for c in there:
            c.awaits_turn = True

    def _turns_by(self, moment: float) -> int:
        """Return how many turns have come by then."""
        rate = max(LEAST_TURNS, (self.turns - TURNS_AT_ONCE) / (0.8 * DRAIN_TIME))
        return TURNS_AT_ONCE + int(rate * (moment - self.stopped_at))

    def taken_no_more(self, c: Connection) -> None:
        """Record that a connection's turn has come: its messages are answered, then it is closed."""
        if c.awaits_turn:
            self._turn_taken(c)
            assert self.turns_taken <= self._turns_by(self.now), f"connection {c.number} was told before its turn"
            self.count("connections that were told by turns that the relay stops")
        c.is_taken_from = False
        self.told.append((self.batches + bool(self.forming), c))
        self._close_told()

    def lost(self, c: Connection) -> None:
        """Record that a connection is gone, and so is its turn."""
        if c.awaits_turn:
            self._turn_taken(c)

    def _turn_taken(self, c: Connection) -> None:
        c.awaits_turn = False
        self.turns_taken += 1

    def _close_told(self) -> None:
        unanswered = [number for number, _ in self.unmarked.values()] + [self.batches] * bool(self.batch)
        for place in tuple(self.told):
            until, c = place
            if until <= self.batches and all(number > until for number in unanswered):
                self.told.remove(place)
                if c.state is not State.CONNECTING:  # else it is cut
                    self._close(c, 4000)

    def closed_all(self) -> None:
        """Record that the relay closes all that is open: at the end, when all is answered or the time is over."""
        is_over = self.now - self.stopped_at >= 0.9 * DRAIN_TIME
        assert is_over or not (self.told or any(c.awaits_turn for c in self.connections)), "the relay did not wait"
        for c in self.connections:
            c.awaits_turn = c.is_taken_from = False
            if c.state not in (State.CONNECTING, State.ENDED):
                self.count("connections that were closed when the time to stop was over")
                self._close(c, 4000)

    # What comes of it ---------------------------------------------------------------

    def _text(self, c: Connection, sent: Sent) -> None:
        within = c.bucket.take(self.now)
        c.signs += within
        if isinstance(sent, Unusable):
            if not within and sent.reason == "invalid-auth-request":
                # Beyond the limit, only what the answer needs is read of a message.
                self._auth(
                    c, False, "login-pending" if c.state in (State.ASKING, State.ASKING_AGAIN) else "rate-limited"
                )
            elif not within and sent.id is not None:
                if c.is_member:
                    self._emit(c, _outcome(sent.id, "rate-limited"))
            elif not sent.send or c.is_member:
                self.count("unusable frames")
                if sent.id is None:
                    self._emit(c, {"type": "error", "reason": sent.reason, "detail": ...})
                else:
                    self._emit(c, _outcome(sent.id, sent.reason))
                c.unusable += 1
                if c.unusable >= UNUSABLE:
                    self._close(c, 4502)
        elif isinstance(sent, Send):
            if c.is_member:
                c.requests.append(sent.request)
                within = within and self.users[str(c.uid)].may_send(sent.request.to, self.now)
                if within:
                    self._submitted(c, sent.request)
                else:
                    self._outcome(c, sent.request, "rate-limited")
            else:
                self.count("messages of visitors")
        elif isinstance(sent, Auth):
            if c.state in (State.ASKING, State.ASKING_AGAIN):
                self._auth(c, False, "login-pending")
            elif not within:
                self._auth(c, False, "rate-limited")
            elif c.is_member and not c.questions.take(self.now):
                self.count("members who asked too often")
                self._auth(c, False, "rate-limited")
                within = False
            else:
                c.state = State.ASKING_AGAIN if c.is_member else State.ASKING
                self._wants_in(c, sent.sessid)
        if not within:
            if self.now - c.refused_at > BACKED_OFF:
                c.refusals = 0
            c.refused_at = self.now
            c.refusals += 1
            if c.refusals > REFUSALS:
                self._close(c, 4503)

    def _submitted(self, c: Connection, request: Request) -> None:
        if not self.here.get(str(request.to)):
            self._outcome(c, request, "receiving-user-not-connected")
        elif self.waiting >= MAX_WAITING:
            self._outcome(c, request, "busy")
        else:
            self.waiting += 1
            self.accepted += 1
            self.forming.append((c, request))

    def _rechecked(self, sessid: str, verdict: Verdict) -> None:
        self.asked_about.discard(sessid)
        connections = self.sessions.get(sessid)
        assert connections, f"{sessid} was asked about again, and nobody is in by it"
        self.count("sessions asked about again")
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
        """Check that a frame was handed to `c`, if it is open; return whether it is."""
        if c.state is State.ENDED:
            return False
        came = c.stream.frames[c.cursor] if c.cursor < len(c.stream.frames) else None
        if came is None:
            # Frames in the buffer of a connection that broke in this very turn were handed over, but can't be seen.
            assert c.is_lost, f"connection {c.number} was not handed {expected}"
            return True
        c.cursor += 1
        if came == (4002,) and expected != (4002,):
            # The next one counts, too.
            unread = c.stream.total - c.unread_since + len(json.dumps(expected, default=str, ensure_ascii=False))
            # Give or take: each pong counts with the longest head that a frame may have, each message without one.
            assert unread > 0.95 * UNREAD_SIZE, f"connection {c.number} was closed with 4002 at {unread} bytes unread"
            self.count("slow readers closed")
            c.code = 4002
            self._end(c)
            return False
        if isinstance(came, dict) and came.get("type") == "error" and isinstance(came.get("detail"), str):
            came = {**came, "detail": ...}
        assert exactly(came) == exactly(expected), f"connection {c.number} was handed {came}, not {expected}"
        return True

    def _close(self, c: Connection, code: int) -> None:
        if c.state is State.ENDED:
            return
        if self._emit(c, (code,)):
            self.count(f"closed with {code}")
            c.code = code
            self._end(c)

    def _end(self, c: Connection) -> None:
        if c.is_member:
            mine = self.here[str(c.uid)]
            mine.remove(c)
            if not mine:
                del self.here[str(c.uid)]
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
        c.state = State.ENDED
        c.ended_at = self.now
        if c.wants_in_by is not None:
            address = self.addresses[c.address]
            if c.is_asked_about:
                address.out -= 1
            else:
                address.waiting.remove(c)
            c.wants_in_by, c.is_asked_about = None, False
            self._let_in(address)

    def _forget_session(self, c: Connection) -> None:
        for sessid, connections in tuple(self.sessions.items()):
            connections.pop(c, None)
            if not connections:
                del self.sessions[sessid]
                self.unreachable.pop(sessid, None)
                self.due.pop(sessid, None)
                self.asked_about.discard(sessid)

    # In the end ----------------------------------------------------------------------

    def check_promise(self, log: Sequence[Row]) -> None:
        """Check every account and the log at the end, by the same check as real runs."""
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
            stayed = c.is_member and c.member_since == 0
            accounts.append(Account(c.uid, c.requests, heard, c.code, stayed))
        trial = Trial()
        trial.add(accounts, settled=True)
        trial.check_log(log)


def _outcome(id: str | int, reason: str | None = None) -> dict[str, Any]:
    answer = {"id": id, "value": True} if reason is None else {"id": id, "value": False, "reason": reason}
    return {"type": "send-request-response", "response": answer}
