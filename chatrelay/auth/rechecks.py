"""Asking again: whether those who are logged in still are, at the site.

Pure, but for the Deferreds of the questions: the time, the chance and who is
asked are handed in. One question serves all connections of a session of the
site's, and `sweep` asks what is due: there is no timer for each. A session
that the site denies ends (4501); while the site can't be asked, people stay,
up to the grace.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatrelay.interfaces import Connection
from chatrelay.model import LoggedIn, Unavailable, Verdict
from chatrelay.wire import codes
from chatrelay.wire.codes import Close

log = Logger("chatrelay.auth")


@attrs.frozen
class _Name:
    """A session of the site's, as long as it belongs to this user."""

    sessid: str = attrs.field(repr=False)  # a session id is never logged, anywhere
    user: str


@attrs.frozen
class Behind:
    """How late sessions are asked about, and for how many there is time.

    :ivar late: seconds that the session which is next was due ago.
    :ivar waiting: how many are due.
    :ivar sessions: how many there are.
    :ivar at_once: how many are asked about at once.
    :ivar answer_seconds: how long an answer takes of late, with the wait for its turn.
    :ivar interval: seconds from one answer to the next question, as things are: what the site says counts.
    """

    late: float
    waiting: int
    sessions: int
    at_once: int
    answer_seconds: float
    interval: float

    @property
    def capacity(self) -> float:
        """How many sessions can be asked about in time."""
        return self.at_once * self.interval / max(self.answer_seconds, LEAST_ANSWER_SECONDS)


LATE = 0.2
"""Of the interval: a session that is asked about later than that is late."""

LEAST_LATE = 2.0
"""Seconds that are never a delay: due times are whole seconds, and a sweep looks at them four times a second."""

LEAST_ANSWER_SECONDS = 0.001

WEIGHT = 1 / 16
"""Of the newest answer in how long answers take, and in how long they hold."""


class RecheckLines:
    """What the operator is told of re-checks that are late."""

    def behind(self, behind: Behind) -> None:
        """Log that sessions are asked about too late, and for how many there is time."""
        log.warn(
            "re-checks are behind: {waiting} sessions are due, the first of them for {late:.0f} s. {at_once} are asked "
            "about at once, and an answer takes {answer_seconds:.2g} s: that is enough for {capacity:.0f} sessions "
            "every {interval:.3g} s, and there are {sessions}. Sessions that end at the site go on here for as much "
            "longer. Make the session page faster, or raise --recheck-interval, or --webserver-checks, a quarter of "
            "which is for this",
            waiting=behind.waiting,
            late=behind.late,
            at_once=behind.at_once,
            answer_seconds=behind.answer_seconds,
            capacity=behind.capacity,
            interval=behind.interval,
            sessions=behind.sessions,
        )

    def on_time(self) -> None:
        """Log that no session is asked about too late any more."""
        log.warn("re-checks are on time again")


def _nobody(_: object = None) -> None:
    """Tell nobody."""


class _Check:
    """One session that is asked about from time to time.

    :ivar name: which.
    :ivar connections: who is logged in by it.
    :ivar slot: the second in which it is due.
    :ivar due_since: active seconds, when it was found to be due.
    :ivar asking: the question that is out, or None.
    :ivar unreachable_since: active seconds, when it first could not be asked about, since it last could; or None.
    """

    __slots__ = ("asking", "connections", "due_since", "name", "slot", "unreachable_since")

    def __init__(self, name: _Name) -> None:
        self.name = name
        self.connections: dict[Connection, None] = {}
        self.slot = 0
        self.due_since = 0.0
        self.asking: Deferred[Verdict] | None = None
        self.unreachable_since: float | None = None


class Rechecks:
    """When each session is asked about again, and what the answer means.

    :param interval: seconds from one answer to the next question, unless the site says how long its answer holds; 0
        for none at all.
    :param spread: per cent, up to 100, by which that is made longer or shorter, at random, so that those who came at
        once are not asked about at once.
    :param grace: seconds that people stay while the site can't be asked; 0 for no limit.
    :param at_once: how many questions may be out.
    :param ask: asks the site; a verdict always comes of it.
    :param seconds: the time.
    :param chance: a random number from 0 to 1.
    :param active: the time by which `grace` is counted, which a hold-up of the process does not move.
    :param give_up: called with a question that is out when nobody is there any more whom it was about. Until the
        verdict comes all the same, the question counts as one that is out.
    :param tell_behind: called when sessions are asked about too late, once until they have not been for an interval.
    :param tell_on_time: called then.
    """

    def __init__(
        self,
        interval: float,
        spread: float,
        grace: float,
        at_once: int,
        ask: Callable[[str], Deferred[Verdict]],
        seconds: Callable[[], float],
        chance: Callable[[], float],
        active: Callable[[], float],
        give_up: Callable[[Deferred[Verdict]], None] = Deferred.cancel,
        tell_behind: Callable[[Behind], None] = _nobody,
        tell_on_time: Callable[[], None] = _nobody,
    ) -> None:
        self._interval = interval
        self._shortest = interval * (1 - spread / 100)
        self._longest = interval * (1 + spread / 100)
        self._grace = grace
        self._at_once = at_once
        self._ask = ask
        self._seconds = seconds
        self._chance = chance
        self._active = active
        self._give_up = give_up
        self._tell_behind = tell_behind
        self._tell_on_time = tell_on_time
        self._late_at: float | None = None  # active seconds, when sessions were last late; None: they are on time
        self._answer_seconds: float | None = None
        self._wait = interval  # how long an answer holds of late
        self._is_asking = False
        self._checks: dict[_Name, _Check] = {}
        self._check_of: dict[Connection, _Check] = {}
        # What is due in each second that something is due in; and those seconds as a heap, with some now empty.
        self._slots: dict[int, dict[_Check, None]] = {}
        self._times: list[int] = []
        self._due: dict[_Check, None] = {}
        self._out = 0

    def entered(self, connection: Connection, sessid: str | None, verdict: LoggedIn) -> None:
        """`connection` is logged in, whatever it came in by before: the site has just said so.

        :param sessid: what to ask by; None where there is nothing, and so no asking.
        """
        if connection in self._check_of:
            self.left(connection)
        if sessid is None or not self._longest:
            return
        name = _Name(sessid, verdict.user)
        check = self._checks.get(name)
        if check is None:
            check = self._checks[name] = _Check(name)
        check.connections[connection] = None
        self._check_of[connection] = check
        if check.asking is None:
            self._confirmed(check, verdict)

    def left(self, connection: Connection) -> None:
        """`connection` is closing; nothing happens where it was not known."""
        check = self._check_of.pop(connection, None)
        if check is None:
            return
        del check.connections[connection]
        if not check.connections:
            del self._checks[check.name]
            self._unschedule(check)
            if check.asking is not None:
                self._give_up(check.asking)

    def sweep(self) -> None:
        """Ask about what is due, no more at once than may be."""
        now, active = self._seconds(), self._active()
        while self._times and self._times[0] <= now:
            due = self._slots.pop(heapq.heappop(self._times), {})
            for check in due:
                check.due_since = active
            self._due.update(due)
        self._ask_next()
        self._see_how_late(active)

    def __len__(self) -> int:
        """How many sessions are asked about."""
        return len(self._checks)

    def _ask_next(self) -> None:
        """Ask about those who have been due for longest, no more at once than may be."""
        # An answer that comes at once calls this again: a thousand of them must not be a thousand calls deep.
        if self._is_asking:
            return
        self._is_asking = True
        while self._due and self._out < self._at_once:
            check = next(iter(self._due))
            del self._due[check]
            self._out += 1
            asked_at = self._active()
            asking = check.asking = self._ask(check.name.sessid)
            # An answer that comes at once is the breaker's, and says nothing of the site.
            asking.addCallback(self._answered, check, None if asking.called else asked_at)
        self._is_asking = False

    def _see_how_late(self, active: float) -> None:
        late = active - next(iter(self._due)).due_since if self._due else 0.0
        took, wait = self._answer_seconds or 0.0, self._wait
        behind = Behind(late, len(self._due), len(self._checks), self._at_once, took, wait)
        # After many logins at once the last sessions are late for a round or two, then they are spread and on time.
        is_too_many = behind.sessions > behind.capacity or late > wait
        limit = max(wait * LATE, LEAST_LATE)
        # A session that is late by about the limit is told of once, not again and again.
        if late > (limit if self._late_at is None else limit / 2) and is_too_many:
            was_on_time, self._late_at = self._late_at is None, active
            if was_on_time:
                self._tell_behind(behind)
        elif self._late_at is not None and active - self._late_at > max(wait, LEAST_LATE):
            self._late_at = None
            self._tell_on_time()

    def _answered(self, verdict: Verdict, check: _Check, asked_at: float | None) -> None:
        check.asking = None
        self._out -= 1
        if asked_at is not None:
            took = self._active() - asked_at
            before = took if self._answer_seconds is None else self._answer_seconds
            self._answer_seconds = before + (took - before) * WEIGHT
        if check.connections:  # else all have left, and so gave the question up
            self._decide(check, verdict)
        # A site that answers sooner than the next sweep comes need not wait for it.
        self._ask_next()

    def _decide(self, check: _Check, verdict: Verdict) -> None:
        if isinstance(verdict, LoggedIn) and verdict.user == check.name.user:
            self._confirmed(check, verdict)
        elif isinstance(verdict, Unavailable):
            self._unreachable(check)
        else:
            _end(check, codes.SESSION_ENDED)

    def _confirmed(self, check: _Check, verdict: LoggedIn) -> None:
        check.unreachable_since = None
        said = verdict.expires_in
        self._wait += ((self._interval if said is None else said) - self._wait) * WEIGHT
        wait = self._some_time() if said is None else said
        self._schedule(check, self._seconds() + wait)

    def _unreachable(self, check: _Check) -> None:
        active = self._active()
        if check.unreachable_since is None:
            check.unreachable_since = active
        left = check.unreachable_since + self._grace - active if self._grace else math.inf
        if left > 0:
            self._schedule(check, self._seconds() + min(self._some_time(), left))
        else:
            _end(check, codes.SESSION_UNCONFIRMED)

    def _some_time(self) -> float:
        """The interval, give or take."""
        return self._shortest + (self._longest - self._shortest) * self._chance()

    def _schedule(self, check: _Check, due: float) -> None:
        self._unschedule(check)
        check.slot = math.ceil(due)
        if check.slot not in self._slots:
            self._slots[check.slot] = {}
            heapq.heappush(self._times, check.slot)
        self._slots[check.slot][check] = None

    def _unschedule(self, check: _Check) -> None:
        self._due.pop(check, None)
        slot = self._slots.get(check.slot)
        if slot is not None:
            slot.pop(check, None)
            if not slot:
                del self._slots[check.slot]
        # Seconds far ahead must not pile up where people come and go; half of them are gone, so it is paid for.
        if len(self._times) > 2 * len(self._slots):
            self._times = list(self._slots)
            heapq.heapify(self._times)


def _end(check: _Check, close: Close) -> None:
    for connection in tuple(check.connections):  # closing one takes it out of there
        connection.close(close)
