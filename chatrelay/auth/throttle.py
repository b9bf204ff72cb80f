"""The login throttle: how many logins of one address may be denied, and which denials are remembered for some seconds.

Pure, apart from Deferreds and log messages: the time is passed in, and so is the function that gives verdicts. This
module must not know what a verdict means to a connection (`chatrelay.auth.login`). Re-checks of users who are logged in
are not throttled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatrelay.auth.session_index import digest
from chatrelay.limits.buckets import MINUTE, TokenBucket
from chatrelay.limits.deadlines import Deadlines
from chatrelay.model import Denied, Unavailable, Verdict

log = Logger("chatrelay.auth")

MAX_ADDRESSES = 10_000
"""The most addresses without a pending login whose denials are counted; one more displaces the oldest."""

MAX_DENIED_SESSIONS = 10_000
"""The most sessions that are remembered as denied; one more displaces the oldest."""


def log_too_many_denials(may_log: Callable[[str], bool], address: str) -> None:
    """Log that an address has used up its denials.

    :param may_log: called with the kind of log message; returns whether one more may be logged now.
    """
    if may_log("addresses with too many denied logins"):
        log.info(
            "too many logins from {address} were denied: for now, more of them are denied without a request to the "
            "session page (logins-per-minute)",
            address=address,
        )


class DenialCache:
    """The sessions that were denied within the last seconds, by a keyed hash of each.

    :param key: the key of the hashes, at most 64 random bytes.
    :param seconds: how long a denial is remembered; 0 if none is.
    """

    def __init__(self, key: bytes, seconds: float) -> None:
        self._key = key
        self._seconds = seconds
        self._denied_at: dict[bytes, float] = {}

    def add(self, sessid: str, now: float) -> None:
        """Remember that a session was denied."""
        if not self._seconds:
            return
        denied = digest(sessid, self._key)
        self._denied_at.pop(denied, None)
        if len(self._denied_at) >= MAX_DENIED_SESSIONS:
            del self._denied_at[next(iter(self._denied_at))]
        self._denied_at[denied] = now

    def has(self, sessid: str, now: float) -> bool:
        """Return whether a denial of this session is remembered."""
        if not self._denied_at:
            return False
        return self._is_recent(self._denied_at.get(digest(sessid, self._key)), now)

    def forget(self, now: float) -> None:
        """Forget the denials that are too old."""
        old = []
        for denied, at in self._denied_at.items():
            if self._is_recent(at, now):
                break
            old.append(denied)
        for denied in old:
            del self._denied_at[denied]

    def __len__(self) -> int:
        """Return how many denials are remembered."""
        return len(self._denied_at)

    def _is_recent(self, at: float | None, now: float) -> bool:
        return at is not None and 0 <= now - at < self._seconds  # a clock that was set back makes `at` a future time


class _Address:
    """The logins of one address.

    :ivar denials: a token for each denial that the address may still have; None before its first denial.
    :ivar pending: how many of its requests are pending. Each may end in a denial.
    :ivar waiting: the attempts that wait for the pending ones.
    :ivar is_starting: whether `LoginThrottle._start_waiting` is running for it.
    :ivar is_logged: whether it was logged that the address has used up its denials.
    """

    __slots__ = ("denials", "is_logged", "is_starting", "name", "pending", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.denials: TokenBucket | None = None
        self.pending = 0
        self.waiting: dict[_Attempt, None] = {}
        self.is_starting = False
        self.is_logged = False


class _Attempt:
    """One connection's login.

    :ivar is_ticket: whether the SESSID is valid for one request, so that a denial of it is not remembered.
    :ivar asking: the request; None until it starts.
    :ivar verdict: the result that the connection waits for.
    """

    __slots__ = ("address", "asking", "is_ticket", "sessid", "verdict")

    def __init__(self, address: _Address, sessid: str, is_ticket: bool) -> None:
        self.address = address
        self.sessid = sessid
        self.is_ticket = is_ticket
        self.asking: Deferred[None] | None = None
        self.verdict: Deferred[Verdict]


def _ignore(sessid: str) -> None:
    """Do nothing about a session that was denied."""


class LoginThrottle:
    """Asks for verdicts, as long as the client's address may still have denials.

    An address never has more pending requests than remaining denials, so that many logins at once get no more denials
    than the same logins one after the other. Further logins wait. If no denial remains when their turn comes, they are
    denied without a request. An address whose logins are not denied has no other limit.

    A remembered denial uses up none of the address's denials, because it tells the client nothing new, and needs no
    request to the site.

    :param per_minute: denials that an address may have in a minute, and at once; 0 for no limit.
    :param ask: called with a SESSID, and whether it is a ticket; its Deferred always fires with a verdict.
    :param seconds: the time.
    :param recent: the remembered denials; None if none are remembered.
    :param exhausted: called with an address that has used up its denials, once until it has all of them again.
    :param give_up: called with a pending request when nobody waits for its verdict any more. The request counts as
        pending until the verdict comes.
    :param denied: called with each SESSID that the site denies, except for tickets.
    """

    def __init__(
        self,
        per_minute: int,
        ask: Callable[[str, bool], Deferred[Verdict]],
        seconds: Callable[[], float],
        recent: DenialCache | None,
        exhausted: Callable[[str], None],
        give_up: Callable[[Deferred[Any]], None] = Deferred.cancel,
        denied: Callable[[str], None] = _ignore,
    ) -> None:
        self._per_minute = per_minute
        self._ask = ask
        self._seconds = seconds
        self._recent = recent
        self._exhausted = exhausted
        self._give_up = give_up
        self._notify_denied = denied
        self._addresses: dict[str, _Address] = {}
        self._idle: Deadlines[str] = Deadlines(self._denials().seconds_to_fill)
        self._unlimited = _Address("")
        self._unlimited.denials = TokenBucket(0, 0)

    def ask(self, address: str | None, sessid: str, is_ticket: bool) -> Deferred[Verdict]:
        """Ask whose session it is. Cancelling gives the login up; the Deferred then still fires with a verdict.

        :param address: the address under which limits count the client; None if it has none, and so no limit.
        :param is_ticket: whether `sessid` is valid for one request, so that its denial is not remembered.
        """
        attempt = _Attempt(self._address(address), sessid, is_ticket)
        attempt.verdict = Deferred(lambda _: self._cancel(attempt))
        if self._is_denied(attempt):
            attempt.verdict.callback(Denied())
        else:
            attempt.address.waiting[attempt] = None
        self._start_waiting(attempt.address)
        return attempt.verdict

    def sweep(self) -> None:
        """Forget the addresses and the denials that need not be remembered any more."""
        now = self._seconds()
        for name in self._idle.expired(now):
            del self._addresses[name]
        if self._recent is not None:
            self._recent.forget(now)

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._addresses)

    def _address(self, name: str | None) -> _Address:
        if name is None or not self._per_minute:
            return self._unlimited
        address = self._addresses.get(name)
        if address is None:
            address = self._addresses[name] = _Address(name)
        else:
            self._idle.stop(name)
        return address

    def _denials(self) -> TokenBucket:
        return TokenBucket(self._per_minute / MINUTE, self._per_minute)

    def _start_waiting(self, address: _Address) -> None:
        """Start the waiting attempts of an address, as far as its denials allow."""
        # A verdict that comes at once calls this again. A thousand attempts must not become a thousand nested calls.
        if address.is_starting:
            return
        address.is_starting = True
        while address.waiting:
            remaining = self._per_minute if address.denials is None else address.denials.remaining(self._seconds())
            if address.pending and address.pending >= remaining:
                break
            attempt = next(iter(address.waiting))
            del address.waiting[attempt]
            if self._is_denied(attempt):
                attempt.verdict.callback(Denied())
            elif remaining:
                address.pending += 1
                asking = self._ask(attempt.sessid, attempt.is_ticket)
                attempt.asking = asking.addCallback(self._answered, attempt)
            else:
                if not address.is_logged:
                    address.is_logged = True
                    self._exhausted(address.name)
                attempt.verdict.callback(Denied())
        address.is_starting = False
        if not address.pending and not address.waiting:
            self._forget_soon(address)

    def _answered(self, verdict: Verdict, attempt: _Attempt) -> None:
        address = attempt.address
        address.pending -= 1
        # Several logins may share one request. Its denial counts once: for the others, the cache has it already.
        if isinstance(verdict, Denied) and not self._is_denied(attempt):
            now = self._seconds()
            if address.denials is None:
                address.denials = self._denials()
            address.denials.take(now)
            if self._recent is not None and not attempt.is_ticket:
                self._recent.add(attempt.sessid, now)
            if not attempt.is_ticket:
                self._notify_denied(attempt.sessid)
        if not attempt.verdict.called:  # else it was cancelled
            attempt.verdict.callback(verdict)
        self._start_waiting(address)

    def _cancel(self, attempt: _Attempt) -> None:
        if attempt.asking is not None:
            self._give_up(attempt.asking)
            if not attempt.verdict.called:
                attempt.verdict.callback(Unavailable("the login was given up"))
            return
        attempt.address.waiting.pop(attempt, None)
        attempt.verdict.callback(Unavailable("the login was given up"))
        self._start_waiting(attempt.address)

    def _is_denied(self, attempt: _Attempt) -> bool:
        recent = self._recent
        return recent is not None and not attempt.is_ticket and recent.has(attempt.sessid, self._seconds())

    def _forget_soon(self, address: _Address) -> None:
        """Forget an address without pending logins: now if it has all its denials, else when it has them again."""
        name, now = address.name, self._seconds()
        if self._addresses.get(name) is not address:
            return
        if address.denials is None or address.denials.is_full(now):
            del self._addresses[name]
            return
        self._idle.start(name, now)
        if len(self._idle) > MAX_ADDRESSES:
            oldest = self._idle.first()
            self._idle.stop(oldest)
            del self._addresses[oldest]
