"""The pace at which connections are closed while the relay stops.

Pure: the time and the random numbers are passed in. This module must not know how a connection is closed.

All clients reconnect after about the same wait, so ten thousand that are closed at once would come back at once. So the
connections are closed one after the other, over part of the time that stopping may take. A few are closed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key")

TURNS_SHARE = 0.8
"""The share of the time for stopping in which every connection has its turn. The rest is for closing handshakes."""

FIRST_TURNS = 20
"""How many connections have their turn at once."""

MIN_TURNS_PER_SECOND = 200.0
"""The lowest rate of turns, and the rate if the time for stopping has no limit."""


class ShutdownPacer(Generic[Key]):
    """The turns, in random order, of the connections that are open when the relay begins to stop.

    A connection that ends before its turn uses up a turn, so that the rate at which clients reconnect stays the same.

    :param connections: all of them.
    :param limit: seconds that stopping may take; 0 for no limit.
    :param now: seconds of any clock.
    :param chance: returns a random number from 0 to 1.
    """

    def __init__(self, connections: Iterable[Key], limit: float, now: float, chance: Callable[[], float]) -> None:
        self._waiting = dict.fromkeys(sorted(connections, key=lambda _: chance()))
        self._count = len(self._waiting)
        self._begun = now
        in_time = (self._count - FIRST_TURNS) / max(limit * TURNS_SHARE, 0.001) if limit else 0.0
        self._rate = max(MIN_TURNS_PER_SECOND, in_time)

    @property
    def duration(self) -> float:
        """Seconds from the first turn to the last one."""
        return max(0, self._count - FIRST_TURNS) / self._rate

    def due(self, now: float) -> list[Key]:
        """Remove and return the connections whose turn has come.

        :param now: seconds of the same clock. If it is set back, no turn comes.
        """
        done = self._count - len(self._waiting)
        turns = FIRST_TURNS + int(self._rate * (now - self._begun)) - done
        return [self._waiting.popitem()[0] for _ in range(min(turns, len(self._waiting)))]

    def disconnected(self, key: Key) -> None:
        """Remove a connection that is gone. One that had its turn, or is unknown, is ignored."""
        self._waiting.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        """Return whether a connection still waits for its turn."""
        return key in self._waiting

    def __len__(self) -> int:
        """Return how many connections wait for their turns."""
        return len(self._waiting)
