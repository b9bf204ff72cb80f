"""Re-checks: ask the site regularly whether the session of each user who is logged in here still lasts.

Pure, apart from Deferreds and log messages: the time, the random numbers, and the function that gives verdicts are
passed in. This module must not know how the site is asked.

One request serves all connections of a session. `Rechecks.sweep` starts the re-checks that are due, so that no session
needs a timer. The connections of a session that the site denies are closed (4501). While the site can't be asked, users
stay logged in until the grace is over.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatrelay.interfaces import Connection
from chatrelay.model import LoggedIn, Unavailable, Verdict
from chatrelay.wire import codes
from chatrelay.wire.codes import Close

log = Logger("chatrelay.auth")

LATE_FRACTION = 0.2
"""The share of the interval after which a re-check counts as late."""

MIN_LATE_SECONDS = 2.0
"""A shorter delay never counts as late, because due times are whole seconds that a sweep checks four times a second."""

MIN_ANSWER_SECONDS = 0.001
"""The shortest response time that the calculation of the capacity uses."""

NEWEST_WEIGHT = 1 / 16
"""The weight of the newest value in two averages: how long a response takes, and how long its verdict is valid."""


@attrs.frozen
class _SiteSession:
    """A session at the site, as long as it belongs to this user."""

    sessid: str = attrs.field(repr=False)  # a session id is never logged, anywhere
    user: str


@attrs.frozen
class RecheckBacklog:
    """The backlog of re-checks: how late they are, and how many sessions can be re-checked in time.

    :ivar late: seconds for which the next session has been due.
    :ivar waiting: how many sessions are due.
    :ivar sessions: how many sessions there are.
    :ivar at_once: how many requests may be pending at once.
    :ivar answer_seconds: how long a response has taken recently, with the wait for its turn.
    :ivar interval: the average seconds from one verdict to the next request. The site may set its own for a session.
    """

    late: float
    waiting: int
    sessions: int
    at_once: int
    answer_seconds: float
    interval: float

    @property
    def capacity(self) -> float:
        """How many sessions can be re-checked in time."""
        return self.at_once * self.interval / max(self.answer_seconds, MIN_ANSWER_SECONDS)


def log_behind(backlog: RecheckBacklog) -> None:
    """Log that re-checks are late, and how many sessions can be re-checked in time."""
    log.warn(
        "re-checks are behind: {waiting} sessions are due, the first of them for {late:.0f} s. {at_once} requests "
        "are sent at once, and a response takes {answer_seconds:.2g} s: that is enough for {capacity:.0f} sessions "
        "every {interval:.3g} s, but there are {sessions}. A session that ends at the site lasts here for that "
        "much longer. Make the session page faster, or raise --recheck-interval, or --webserver-checks (re-checks "
        "use a quarter of it)",
        waiting=backlog.waiting,
        late=backlog.late,
        at_once=backlog.at_once,
        answer_seconds=backlog.answer_seconds,
        capacity=backlog.capacity,
        interval=backlog.interval,
        sessions=backlog.sessions,
    )


def log_on_time() -> None:
    """Log that no re-check is late any more."""
    log.warn("re-checks are on time again")


def _ignore(*_: object) -> None:
    """Do nothing."""


class _Recheck:
    """The re-checks of one session.

    :ivar session: the session.
    :ivar connections: the connections that are logged in by it.
    :ivar slot: the second in which it is due.
    :ivar due_since: when it was found to be due, in active seconds.
    :ivar asking: the pending request, or None.
    :ivar unreachable_since: when the site first gave no verdict on it, in active seconds; None once it has given one
        again.
    """

    __slots__ = ("asking", "connections", "due_since", "session", "slot", "unreachable_since")

    def __init__(self, session: _SiteSession) -> None:
        self.session = session
        self.connections: dict[Connection, None] = {}
        self.slot = 0
        self.due_since = 0.0
        self.asking: Deferred[Verdict] | None = None
        self.unreachable_since: float | None = None


class Rechecks:
    """Checks each session again when it is due, and closes its connections if it has ended.

    :param interval: seconds from one verdict to the next request, unless the site says how long its verdict is valid; 0
        for no re-checks.
    :param spread: per cent, up to 100, by which the interval is made longer or shorter at random. So users who came at
        the same time are not re-checked at the same time.
    :param grace: seconds for which users stay logged in while the site gives no verdict; 0 for no limit.
    :param at_once: how many requests may be pending.
    :param ask: called with a SESSID; its Deferred always fires with a verdict.
    :param seconds: the time.
    :param chance: returns a random number from 0 to 1.
    :param active: the clock of `grace`, which stands still while the process is held up.
    :param give_up: called with a pending request when all connections of its session are gone. The request counts as
        pending until the verdict comes.
    :param fell_behind: called when re-checks become late, once until `caught_up` is called.
    :param caught_up: called when re-checks have not been late for an interval.
    :param confirmed: called after a re-check that confirmed a session, with its connections, the seconds until the next
        re-check, and when the site was asked (`LoggedIn.asked_at`).
    :param put_off: called like that after a login by a session, with its other connections: their re-check is put off.
    :param denied: called with the SESSID of a session that the site has denied, before its connections are closed.
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
        fell_behind: Callable[[RecheckBacklog], None] = _ignore,
        caught_up: Callable[[], None] = _ignore,
        confirmed: Callable[[Sequence[Connection], float, float], None] = _ignore,
        put_off: Callable[[Sequence[Connection], float, float], None] = _ignore,
        denied: Callable[[str], None] = _ignore,
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
        self._fell_behind = fell_behind
        self._caught_up = caught_up
        self._notify_confirmed = confirmed
        self._notify_put_off = put_off
        self._notify_denied = denied
        self._late_at: float | None = None  # active seconds, when re-checks were last late; None while they are on time
        self._answer_seconds: float | None = None
        self._wait = interval  # average seconds for which a verdict is valid
        self._is_starting = False
        self._rechecks: dict[_SiteSession, _Recheck] = {}
        self._recheck_of: dict[Connection, _Recheck] = {}
        # The re-checks that are due in each second. `_times` is a heap of these seconds, and may have empty ones.
        self._slots: dict[int, dict[_Recheck, None]] = {}
        self._times: list[int] = []
        self._due: dict[_Recheck, None] = {}
        self._pending = 0

    @property
    def are_on(self) -> bool:
        """Whether sessions are re-checked at all."""
        return self._longest > 0

    def wait_after(self, sessid: str | None, verdict: LoggedIn) -> float | None:
        """Return the seconds from a verdict to the next re-check, chosen at random; None if there is none.

        :param sessid: the SESSID to ask about; None if there is none.
        """
        return self._wait_after(verdict) if sessid is not None and self.are_on else None

    def entered(self, connection: Connection, sessid: str | None, verdict: LoggedIn, wait: float | None = None) -> None:
        """Re-check the session by which `connection` has just logged in; it replaces the session of an earlier login.

        :param sessid: the SESSID to ask about; None if there is none, and so no re-check.
        :param wait: what `wait_after` has returned for this verdict, if it was called.
        """
        if connection in self._recheck_of:
            self.disconnected(connection)
        if sessid is None or not self.are_on:
            return
        recheck = self._add(connection, _SiteSession(sessid, verdict.user))
        if recheck.asking is None:
            wait = self._confirmed(recheck, verdict, wait)
            others = [other for other in recheck.connections if other is not connection]
            if others:
                self._notify_put_off(others, wait, verdict.asked_at)

    def resumed(self, connection: Connection, sessid: str, user: str, wait: float) -> None:
        """Re-check the session that `connection` has resumed without a verdict. Call it only if re-checks `are_on`.

        :param sessid: the SESSID to ask about.
        :param wait: seconds until the session is due, unless it is re-checked here already.
        """
        recheck = self._add(connection, _SiteSession(sessid, user))
        if len(recheck.connections) == 1:
            self._schedule(recheck, self._seconds() + wait)

    def _add(self, connection: Connection, session: _SiteSession) -> _Recheck:
        """Add a connection to the re-checks of its session."""
        recheck = self._rechecks.get(session)
        if recheck is None:
            recheck = self._rechecks[session] = _Recheck(session)
        recheck.connections[connection] = None
        self._recheck_of[connection] = recheck
        return recheck

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection that is closing. Unknown connections are ignored."""
        recheck = self._recheck_of.pop(connection, None)
        if recheck is None:
            return
        del recheck.connections[connection]
        if not recheck.connections:
            del self._rechecks[recheck.session]
            self._unschedule(recheck)
            if recheck.asking is not None:
                self._give_up(recheck.asking)

    def sweep(self) -> None:
        """Start the re-checks that are due, as many as may be pending at once."""
        now, active = self._seconds(), self._active()
        while self._times and self._times[0] <= now:
            due = self._slots.pop(heapq.heappop(self._times), {})
            for recheck in due:
                recheck.due_since = active
            self._due.update(due)
        self._start_due()
        self._note_lateness(active)

    def __len__(self) -> int:
        """Return how many sessions are re-checked."""
        return len(self._rechecks)

    def _start_due(self) -> None:
        """Start the re-checks that have been due for longest, as many as may be pending at once."""
        # A verdict that comes at once calls this again. A thousand verdicts must not become a thousand nested calls.
        if self._is_starting:
            return
        self._is_starting = True
        while self._due and self._pending < self._at_once:
            recheck = next(iter(self._due))
            del self._due[recheck]
            self._pending += 1
            asked_at = self._active()
            asking = recheck.asking = self._ask(recheck.session.sessid)
            # A verdict that comes at once is the breaker's, so its time does not count as the site's.
            asking.addCallback(self._answered, recheck, None if asking.called else asked_at)
        self._is_starting = False

    def _note_lateness(self, active: float) -> None:
        late = active - next(iter(self._due)).due_since if self._due else 0.0
        took, wait = self._answer_seconds or 0.0, self._wait
        backlog = RecheckBacklog(late, len(self._due), len(self._rechecks), self._at_once, took, wait)
        # After many logins at once, re-checks may be late for a round or two. After that they are spread, and on time.
        is_too_many = backlog.sessions > backlog.capacity or late > wait
        limit = max(wait * LATE_FRACTION, MIN_LATE_SECONDS)
        # While re-checks are late, half the limit counts as late. So a delay that varies around the limit is logged
        # once.
        if late > (limit if self._late_at is None else limit / 2) and is_too_many:
            was_on_time, self._late_at = self._late_at is None, active
            if was_on_time:
                self._fell_behind(backlog)
        elif self._late_at is not None and active - self._late_at > max(wait, MIN_LATE_SECONDS):
            self._late_at = None
            self._caught_up()

    def _answered(self, verdict: Verdict, recheck: _Recheck, asked_at: float | None) -> None:
        recheck.asking = None
        self._pending -= 1
        if asked_at is not None:
            took = self._active() - asked_at
            before = took if self._answer_seconds is None else self._answer_seconds
            self._answer_seconds = before + (took - before) * NEWEST_WEIGHT
        if recheck.connections:  # else all are gone, and the request was given up
            self._decide(recheck, verdict)
        # Start the next re-check now: with a fast site, waiting for the next sweep would waste time.
        self._start_due()

    def _decide(self, recheck: _Recheck, verdict: Verdict) -> None:
        if isinstance(verdict, LoggedIn) and verdict.user == recheck.session.user:
            wait = self._confirmed(recheck, verdict)
            self._notify_confirmed(tuple(recheck.connections), wait, verdict.asked_at)
        elif isinstance(verdict, Unavailable):
            self._unreachable(recheck)
        else:
            self._notify_denied(recheck.session.sessid)
            _close_all(recheck, codes.SESSION_ENDED)

    def _confirmed(self, recheck: _Recheck, verdict: LoggedIn, wait: float | None = None) -> float:
        """Schedule the next re-check of a session that the site has confirmed; return the seconds until then.

        :param wait: the seconds, if they are chosen already.
        """
        recheck.unreachable_since = None
        expires_in = verdict.expires_in
        self._wait += ((self._interval if expires_in is None else expires_in) - self._wait) * NEWEST_WEIGHT
        if wait is None:
            wait = self._wait_after(verdict)
        self._schedule(recheck, self._seconds() + wait)
        return wait

    def _unreachable(self, recheck: _Recheck) -> None:
        active = self._active()
        if recheck.unreachable_since is None:
            recheck.unreachable_since = active
        remaining = recheck.unreachable_since + self._grace - active if self._grace else math.inf
        if remaining > 0:
            self._schedule(recheck, self._seconds() + min(self._random_interval(), remaining))
        else:
            _close_all(recheck, codes.SESSION_UNCONFIRMED)

    def _wait_after(self, verdict: LoggedIn) -> float:
        return self._random_interval() if verdict.expires_in is None else verdict.expires_in

    def _random_interval(self) -> float:
        """Return the interval, made longer or shorter at random."""
        return self._shortest + (self._longest - self._shortest) * self._chance()

    def _schedule(self, recheck: _Recheck, due: float) -> None:
        self._unschedule(recheck)
        recheck.slot = math.ceil(due)
        if recheck.slot not in self._slots:
            self._slots[recheck.slot] = {}
            heapq.heappush(self._times, recheck.slot)
        self._slots[recheck.slot][recheck] = None

    def _unschedule(self, recheck: _Recheck) -> None:
        self._due.pop(recheck, None)
        slot = self._slots.get(recheck.slot)
        if slot is not None:
            slot.pop(recheck, None)
            if not slot:
                del self._slots[recheck.slot]
        # Empty seconds must not pile up when users come and go. This is rare, as more than half must be empty.
        if len(self._times) > 2 * len(self._slots):
            self._times = list(self._slots)
            heapq.heapify(self._times)


def _close_all(recheck: _Recheck, close: Close) -> None:
    for connection in tuple(recheck.connections):  # a copy, because closing a connection removes it
        connection.close(close)
