"""Attempts to log in: how many of one address may fail, and denials that are remembered for a moment.

Pure, but for the Deferreds of the questions: the time and who is asked are
handed in. `LoginThrottle` stands between a connection that wants to log in and
whoever knows whose session it is; re-checks of those who are logged in do not
come by here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from chatrelay.auth.session_index import digest
from chatrelay.limits.buckets import MINUTE, TokenBucket
from chatrelay.limits.deadlines import Deadlines
from chatrelay.model import Denied, Unavailable, Verdict

MAX_ADDRESSES = 10_000
"""Addresses that are remembered for denials of late while nothing of theirs is out; one more displaces the oldest."""

MAX_DENIED = 10_000
"""Sessions that are remembered as denied; one more displaces the oldest."""


class DenialCache:
    """The sessions that the webserver has just denied, by a keyed hash of each.

    :param key: of the hashes, at most 64 random bytes.
    :param seconds: how long each is remembered; 0 for not at all.
    """

    def __init__(self, key: bytes, seconds: float) -> None:
        self._key = key
        self._seconds = seconds
        self._denied_at: dict[bytes, float] = {}

    def add(self, sessid: str, now: float) -> None:
        """The webserver has denied this session."""
        if not self._seconds:
            return
        denied = digest(sessid, self._key)
        self._denied_at.pop(denied, None)
        if len(self._denied_at) >= MAX_DENIED:
            del self._denied_at[next(iter(self._denied_at))]
        self._denied_at[denied] = now

    def has(self, sessid: str, now: float) -> bool:
        """Whether it has denied this session within the last moments."""
        if not self._denied_at:
            return False
        return self._is_recent(self._denied_at.get(digest(sessid, self._key)), now)

    def forget(self, now: float) -> None:
        """Forget what was longer ago."""
        over = []
        for denied, at in self._denied_at.items():
            if self._is_recent(at, now):
                break
            over.append(denied)
        for denied in over:
            del self._denied_at[denied]

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._denied_at)

    def _is_recent(self, at: float | None, now: float) -> bool:
        return at is not None and 0 <= now - at < self._seconds  # not what a clock that was set back puts ahead


class _Address:
    """What is known of an address.

    :ivar denials: a token for each denial that it may still have; None until it has had one.
    :ivar out: how many of its questions are out, each of which may come to a denial.
    :ivar waiting: its attempts that wait for those.
    :ivar is_letting_in: whether those who wait are being gone through.
    :ivar is_told: whether the operator knows that it may have no more denials.
    """

    __slots__ = ("denials", "is_letting_in", "is_told", "name", "out", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.denials: TokenBucket | None = None
        self.out = 0
        self.waiting: dict[_Attempt, None] = {}
        self.is_letting_in = False
        self.is_told = False


class _Attempt:
    """One connection's question.

    :ivar is_ticket: whether the SESSID is good for one question, so that no denial of it is remembered.
    :ivar asking: the question, when it is out.
    :ivar verdict: what the connection waits for.
    """

    __slots__ = ("address", "asking", "is_ticket", "sessid", "verdict")

    def __init__(self, address: _Address, sessid: str, is_ticket: bool) -> None:
        self.address = address
        self.sessid = sessid
        self.is_ticket = is_ticket
        self.asking: Deferred[None] | None = None
        self.verdict: Deferred[Verdict]


class LoginThrottle:
    """Has the webserver asked, as long as the client's address may have denials.

    An address never has more questions out than denials left, so that many
    at once have no more denials than one after the other. The others wait;
    those who come to wait where none is left are denied and not asked about.
    So an address at which nobody is denied is kept from nothing but asking
    more than that at once.

    A denial out of memory is no further denial to the address: nothing was
    found out by it, and the webserver did not notice.

    :param per_minute: denials of an address, in the long run and at once; 0 for no limit.
    :param ask: asks about a SESSID, and is told whether it is a ticket; a verdict always comes of it.
    :param seconds: the time.
    :param recent: the denials that are remembered; None where none is.
    :param tell: called with an address when it may have no more denials, once until it may have all of them again.
    :param give_up: called with a question that is out when nobody waits for its verdict any more. Until that comes all
        the same, the question counts as one that is out.
    """

    def __init__(
        self,
        per_minute: int,
        ask: Callable[[str, bool], Deferred[Verdict]],
        seconds: Callable[[], float],
        recent: DenialCache | None,
        tell: Callable[[str], None],
        give_up: Callable[[Deferred[Any]], None] = Deferred.cancel,
    ) -> None:
        self._per_minute = per_minute
        self._ask = ask
        self._seconds = seconds
        self._recent = recent
        self._tell = tell
        self._give_up = give_up
        self._addresses: dict[str, _Address] = {}
        self._resting: Deadlines[str] = Deadlines(self._denials().seconds_to_fill)
        self._no_address = _Address("")
        self._no_address.denials = TokenBucket(0, 0)

    def ask(self, address: str | None, sessid: str, is_ticket: bool) -> Deferred[Verdict]:
        """Whose session is it? Cancelling gives the question up; a verdict comes all the same.

        :param address: where the client is; None where it is nowhere, and so unlimited.
        :param is_ticket: whether `sessid` is good for one question, so that nothing is remembered of it.
        """
        attempt = _Attempt(self._arrived(address), sessid, is_ticket)
        attempt.verdict = Deferred(lambda _: self._given_up(attempt))
        if self._is_denied(attempt):
            attempt.verdict.callback(Denied())
        else:
            attempt.address.waiting[attempt] = None
        self._let_in(attempt.address)
        return attempt.verdict

    def sweep(self) -> None:
        """Forget what need not be remembered any more."""
        now = self._seconds()
        for name in self._resting.expired(now):
            del self._addresses[name]
        if self._recent is not None:
            self._recent.forget(now)

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._addresses)

    def _arrived(self, name: str | None) -> _Address:
        if name is None or not self._per_minute:
            return self._no_address
        address = self._addresses.get(name)
        if address is None:
            address = self._addresses[name] = _Address(name)
        else:
            self._resting.stop(name)
        return address

    def _denials(self) -> TokenBucket:
        return TokenBucket(self._per_minute / MINUTE, self._per_minute)

    def _let_in(self, address: _Address) -> None:
        """Ask about those who wait, as far as may be."""
        # What is answered at once comes by here again: a thousand of them must not be a thousand calls deep.
        if address.is_letting_in:
            return
        address.is_letting_in = True
        while address.waiting:
            left = self._per_minute if address.denials is None else address.denials.left(self._seconds())
            if address.out and address.out >= left:
                break
            attempt = next(iter(address.waiting))
            del address.waiting[attempt]
            if self._is_denied(attempt):
                attempt.verdict.callback(Denied())
            elif left:
                self._begin(attempt)
            else:
                if not address.is_told:
                    address.is_told = True
                    self._tell(address.name)
                attempt.verdict.callback(Denied())
        address.is_letting_in = False
        if not address.out and not address.waiting:
            self._rest(address)

    def _begin(self, attempt: _Attempt) -> None:
        attempt.address.out += 1
        asking = self._ask(attempt.sessid, attempt.is_ticket)
        attempt.asking = asking.addCallback(self._answered, attempt)

    def _answered(self, verdict: Verdict, attempt: _Attempt) -> None:
        address = attempt.address
        address.out -= 1
        # Who shares an answer with others is denied with them, which is one denial.
        if isinstance(verdict, Denied) and not self._is_denied(attempt):
            now = self._seconds()
            if address.denials is None:
                address.denials = self._denials()
            address.denials.take(now)
            if self._recent is not None and not attempt.is_ticket:
                self._recent.add(attempt.sessid, now)
        if not attempt.verdict.called:  # it may have been given up by what it was asked with
            attempt.verdict.callback(verdict)
        self._let_in(address)

    def _given_up(self, attempt: _Attempt) -> None:
        if attempt.asking is not None:
            self._give_up(attempt.asking)
            if not attempt.verdict.called:
                attempt.verdict.callback(Unavailable("the question was given up"))
            return
        attempt.address.waiting.pop(attempt, None)
        attempt.verdict.callback(Unavailable("the question was given up"))
        self._let_in(attempt.address)

    def _is_denied(self, attempt: _Attempt) -> bool:
        recent = self._recent
        return recent is not None and not attempt.is_ticket and recent.has(attempt.sessid, self._seconds())

    def _rest(self, address: _Address) -> None:
        """Nothing of this address is out, for now."""
        name, now = address.name, self._seconds()
        if self._addresses.get(name) is not address:
            return
        if address.denials is None or address.denials.is_full(now):
            del self._addresses[name]
            return
        self._resting.start(name, now)
        if len(self._resting) > MAX_ADDRESSES:
            oldest = self._resting.first()
            self._resting.stop(oldest)
            del self._addresses[oldest]
