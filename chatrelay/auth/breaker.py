"""The circuit breaker: whether a session page that keeps failing is sent a request at all.

Pure: the time is handed in. Requests are keys; this module must not know what they are. The caller asks the breaker
before each request, and reports what became of it::

    CLOSED --failures in a row--> OPEN --its wait is over, and a request comes--> PROBING
                                   ^                                              |
                                   +---------------- the probe failed ------------+

and from every one of them any answer leads to CLOSED.

One request at a time is the probe. The wait doubles with each probe that fails, up to its limit. An answer counts as
one whatever it says: a denial is not a failure.

A site may fail for one session id only, and whoever logs in chooses the session id. So an invalid answer alone neither
opens the breaker nor keeps it open: the relay first sends a request of its own about a session id that nobody has, and
the result of that request counts.
"""

from __future__ import annotations

import enum
import math
from typing import Generic

from chatrelay.limits.deadlines import Key


class BreakerState(enum.Enum):
    """The states of a breaker: all requests may be sent, none, or the probe only."""

    CLOSED = enum.auto()
    OPEN = enum.auto()
    PROBING = enum.auto()


class Breaker(Generic[Key]):
    """Stops requests to a session page that failed several times in a row.

    :param failures: how many in a row open the breaker; 0 for no breaker.
    :param wait: seconds from opening to the first probe; 0 for none, so that each request is a probe while none is
        pending.
    :param longest_wait: seconds from a probe that failed to the next, at most; 0 for no limit.
    :ivar state: where it stands.
    """

    def __init__(self, failures: int, wait: float, longest_wait: float) -> None:
        self.state = BreakerState.CLOSED
        self._limit = failures
        self._failures = 0
        self._first_wait = wait
        self._longest_wait = longest_wait or math.inf
        self._wait = wait
        self._probe_at = 0.0
        self._probe: Key | None = None
        self._confirming: Key | None = None

    def admit(self, request: Key, now: float) -> bool:
        """Return whether a request may be sent. The first one after the wait may, and becomes the probe."""
        if self.state is BreakerState.OPEN and now >= self._probe_at:
            self.state = BreakerState.PROBING
            self._probe = request
            return True
        return self.state is BreakerState.CLOSED

    def answered(self) -> bool:
        """Note that a request was answered.

        :returns: whether that closed the breaker.
        """
        has_closed = self.state is not BreakerState.CLOSED
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._wait = self._first_wait
        self._probe = self._confirming = None
        return has_closed

    def failed(self, request: Key, now: float) -> bool:
        """Note that a request failed. One that was pending already when the breaker opened says nothing new.

        :returns: whether that opened the breaker.
        """
        if self.state is BreakerState.CLOSED:
            self._failures += 1
            if request == self._confirming:
                self._confirming = None
            if self._failures != self._limit:
                return False
            self._open(now)
            return True
        if self.state is BreakerState.PROBING and request == self._probe:
            self._wait = min(2 * self._wait, self._longest_wait)
            self._open(now)
        return False

    def suspect(self, request: Key, own: Key) -> bool:
        """Note an invalid answer, which may be due to the session id. It is a failure, but never the one that opens.

        :param own: a request of the relay's own, about a session id that nobody has.
        :returns: whether to send `own` now. Its result is reported like any other.
        """
        if self.state is BreakerState.CLOSED:
            if not self._limit:
                return False
            self._failures = min(self._failures + 1, self._limit - 1)
            if self._failures < self._limit - 1 or self._confirming is not None:
                return False
            self._confirming = own
            return True
        if self.state is BreakerState.PROBING and request == self._probe:
            self._probe = own
            return True
        return False

    def given_up(self, request: Key) -> None:
        """Note that a request ended without a result, through no fault of the site's. The next one may be the probe."""
        if request == self._confirming:
            self._confirming = None
        if self.state is BreakerState.PROBING and request == self._probe:
            self.state = BreakerState.OPEN
            self._probe = None

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self._probe_at = now + self._wait
        self._probe = self._confirming = None
