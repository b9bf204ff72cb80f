"""The circuit breaker: whether a webserver that keeps failing is asked at all.

Pure: the time is handed in. Whoever asks the webserver asks the breaker
first, and tells it what came of each question::

    CLOSED --failures in a row--> OPEN --its wait is over, and a question comes--> PROBING
                                   ^                                               |
                                   +----------------- the probe failed ------------+

and from every one of them any answer leads to CLOSED.

One question at a time is the probe; with each that fails the wait doubles, up
to its limit. An answer is one whatever it says: a denial is no failure.

A site may fail over one session id and be well with all others, and who logs
in chooses the session id. So where a question was answered with nonsense, the
breaker neither opens nor stays open for it: a question of the relay's own is
put first, about a session that nobody has, and what comes of that counts.
"""

from __future__ import annotations

import enum
import math
from typing import Generic

from chatrelay.limits.deadlines import Key


class State(enum.Enum):
    """Whether questions may go out."""

    CLOSED = enum.auto()
    OPEN = enum.auto()
    PROBING = enum.auto()


class Breaker(Generic[Key]):
    """Stops questions to a webserver that failed to answer several in a row.

    :param failures: how many in a row open it; 0 for no breaker.
    :param wait: seconds from opening to the first probe; 0 for none, so that each question is a probe when none is out.
    :param longest_wait: seconds from one probe that failed to the next, at most; 0 for no limit.
    :ivar state: where it stands.
    """

    def __init__(self, failures: int, wait: float, longest_wait: float) -> None:
        self.state = State.CLOSED
        self._limit = failures
        self._failures = 0
        self._first_wait = wait
        self._longest_wait = longest_wait or math.inf
        self._wait = wait
        self._probe_at = 0.0
        self._probe: Key | None = None
        self._confirming: Key | None = None

    def admits(self, question: Key, now: float) -> bool:
        """Whether this question may go out. Where the wait is over, it may, and is the probe."""
        if self.state is State.OPEN and now >= self._probe_at:
            self.state = State.PROBING
            self._probe = question
            return True
        return self.state is State.CLOSED

    def answered(self) -> bool:
        """A question was answered.

        :returns: whether that closed the breaker.
        """
        closed = self.state is not State.CLOSED
        self.state = State.CLOSED
        self._failures = 0
        self._wait = self._first_wait
        self._probe = self._confirming = None
        return closed

    def failed(self, question: Key, now: float) -> bool:
        """A question was not answered. What was out already when the breaker opened says nothing new.

        :returns: whether that opened the breaker.
        """
        if self.state is State.CLOSED:
            self._failures += 1
            if question == self._confirming:
                self._confirming = None
            if self._failures != self._limit:
                return False
            self._open(now)
            return True
        if self.state is State.PROBING and question == self._probe:
            self._wait = min(2 * self._wait, self._longest_wait)
            self._open(now)
        return False

    def doubted(self, question: Key, own: Key) -> bool:
        """A question was answered with nonsense, which may be the fault of what was asked.

        It is a failure, but not the one that opens the breaker.

        :param own: a question of the relay's own.
        :returns: whether `own` is to be asked now; what comes of it is told as of any other.
        """
        if self.state is State.CLOSED:
            if not self._limit:
                return False
            self._failures = min(self._failures + 1, self._limit - 1)
            if self._failures < self._limit - 1 or self._confirming is not None:
                return False
            self._confirming = own
            return True
        if self.state is State.PROBING and question == self._probe:
            self._probe = own
            return True
        return False

    def given_up(self, question: Key) -> None:
        """A question came to nothing, through no fault of the webserver's. If it was the probe, the next one is."""
        if question == self._confirming:
            self._confirming = None
        if self.state is State.PROBING and question == self._probe:
            self.state = State.OPEN
            self._probe = None

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._probe_at = now + self._wait
        self._probe = self._confirming = None
