"""The circuit breaker: decide whether to send a request to a session page that keeps failing.

Pure: the time is passed in. Requests are keys; this module must not know what they are. The caller asks the breaker
before each request, and reports the result::

    CLOSED --failures in a row--> OPEN --its wait is over, and a request comes--> PROBING
                                   ^                                              |
                                   +---------------- the probe failed ------------+

and any verdict leads from each of them to CLOSED.

One request at a time is the probe. The wait doubles with each probe that fails, up to its limit. Every verdict counts
as a success: a denial is not a failure.

A site may fail for one session id only, and the client chooses the session id. So an invalid response alone neither
opens the breaker nor keeps it open. First the relay sends its own request about a session id that nobody has, and
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
    :param wait: seconds from opening to the first probe; 0 for no wait, so that each request is a probe unless one is
        pending.
    :param longest_wait: the most seconds from a failed probe to the next one; 0 for no limit.
    :ivar state: its state.
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
        """Decide whether a request may be sent. The first one after the wait becomes the probe."""
        if self.state is BreakerState.OPEN and now >= self._probe_at:
            self.state = BreakerState.PROBING
            self._probe = request
            return True
        return self.state is BreakerState.CLOSED

    def answered(self) -> bool:
        """Note that a request got a verdict, and close the breaker.

        :returns: whether it was not closed before.
        """
        has_closed = self.state is not BreakerState.CLOSED
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._wait = self._first_wait
        self._probe = self._confirming = None
        return has_closed

    def failed(self, request: Key, now: float) -> bool:
        """Note that a request failed. One that was already pending when the breaker opened changes nothing.

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
        """Note an invalid response, of which the session id may be the cause. It counts, but does not open the breaker.

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
        """Note that a request was given up, so it has no result. The next one may become the probe."""
        if request == self._confirming:
            self._confirming = None
        if self.state is BreakerState.PROBING and request == self._probe:
            self.state = BreakerState.OPEN
            self._probe = None

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self._probe_at = now + self._wait
        self._probe = self._confirming = None
