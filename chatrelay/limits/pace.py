"""Slow readers: the pace that a client must keep while it is behind, and which clients are behind.

Pure: the time and the counts of bytes are passed in. This module must not know where bytes wait, nor how a connection
is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from chatrelay.limits.deadlines import Deadlines

MIN_PROGRESS = 64 * 1024
"""The bytes that a client must take in each `unread-time`, unless it takes everything. This is the minimum pace."""

MAX_AHEAD = 16 * MIN_PROGRESS
"""The most bytes by which a client may be ahead of the minimum pace.

A kernel acknowledges in jumps once its buffer is full: jumps of 110 KB were seen on loopback, and of 590 KB when the
buffer had grown to 6 MB. Between two jumps, a client that reads all the time seems to take nothing.
"""

MAX_DEBT = MIN_PROGRESS // 2
"""The most bytes by which a client may be behind the minimum pace after an unread-time.

A link may carry nothing for part of that time: after a loss, or while the sender's congestion control measures the
delay of the empty link.
"""


def ahead_of_pace(ahead: float, taken: int, due: float) -> float:
    """Return the bytes by which a client may be ahead of the minimum pace, after a time in which it was not checked.

    :param ahead: the bytes by which it was ahead before.
    :param taken: bytes that it has taken since. It is not known when, so it may have taken all of them just now.
    :param due: bytes that it must have taken in that time at the minimum pace.
    """
    return min(max(0.0, ahead - due) + taken, MAX_AHEAD)


def ahead_after_unread_time(ahead: float, taken: int) -> float:
    """Return the bytes by which a client is ahead of the minimum pace after an unread-time.

    Below -`MAX_DEBT`, it took too little.

    :param ahead: the bytes by which it was ahead before.
    :param taken: bytes that it has taken in that time.
    """
    return min(ahead + taken, MAX_AHEAD) - MIN_PROGRESS


class SlowReader(Hashable, Protocol):
    """The buffer of a client, as far as its pace is concerned."""

    def unread_time_passed(self) -> None:
        """Check what the client has taken: its unread-time is over."""


class SlowReaders:
    """The buffers of clients that are behind: Twisted has asked for a pause, because too much waits.

    Each client gets an unread-time, and then another one, as long as it takes enough in each.

    :param unread_time: seconds; 0 for no limit.
    :param seconds: the time.
    :ivar unread_time: as given.
    :ivar seconds: as given.
    :ivar pace: the minimum pace, in bytes a second; 0 for no limit.
    """

    def __init__(self, unread_time: float, seconds: Callable[[], float]) -> None:
        self._deadlines: Deadlines[SlowReader] = Deadlines(unread_time)
        self.unread_time = unread_time
        self.seconds = seconds
        self.pace = MIN_PROGRESS / unread_time if unread_time else 0.0

    @property
    def are_limited(self) -> bool:
        """Whether there is an unread-time."""
        return self._deadlines.seconds > 0

    def fell_behind(self, outgoing: SlowReader) -> None:
        """Begin an unread-time for this buffer."""
        self._deadlines.start(outgoing, self.seconds())

    def caught_up(self, outgoing: SlowReader) -> None:
        """Stop the unread-time of this buffer: its client has taken everything, or is gone."""
        self._deadlines.stop(outgoing)

    def expired(self, now: float) -> list[SlowReader]:
        """Remove and return the buffers whose unread-time is over."""
        return self._deadlines.expired(now)

    def __len__(self) -> int:
        return len(self._deadlines)
