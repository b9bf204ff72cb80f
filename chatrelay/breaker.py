"""The circuit breaker: whether a webserver that keeps failing is asked at all.

Pure: the time is handed in. Whoever asks the webserver asks the breaker
first, and tells it what came of each question::

    CLOSED --failures in a row--> OPEN --its wait is over, and a question comes--> PROBING
                                   ^                                               |
                                   +----------------- the probe failed ------------+

and from every one of them any answer leads to CLOSED.

One question at a time is the probe; with each that fails the wait doubles, up
to its limit. An answer is one whatever it says: a denial is no failure.
"""

from __future__ import annotations

import enum
import math
from typing import Generic

from chatrelay.limits import Key


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
        self._probe = None
        return closed

    def failed(self, question: Key, now: float) -> bool:
        """A question was not answered. What was out already when the breaker opened says nothing new.

        :returns: whether that opened the breaker.
        """
        if self.state is State.CLOSED:
            self._failures += 1
            if self._failures != self._limit:
                return False
            self._open(now)
            return True
        if self.state is State.PROBING and question == self._probe:
            self._wait = min(2 * self._wait, self._longest_wait)
            self._open(now)
        return False

    def given_up(self, question: Key) -> None:
        """A question came to nothing, through no fault of the webserver's. If it was the probe, the next one is."""
        if self.state is State.PROBING and question == self._probe:
            self.state = State.OPEN
            self._probe = None

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._probe_at = now + self._wait
        self._probe = None
