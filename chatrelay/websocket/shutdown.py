"""Whose turn it is to be told that the relay stops.

Pure: the time and the chance are handed in. Who is closed comes back after
about the same wait as everybody else, so ten thousand that are closed at once
come back at once. Each gets a turn instead, spread over part of the time that
stopping may take; but where few are connected nobody waits for their sake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key")

SHARE = 0.8
"""Of the time that stopping may take, what the turns may take. The rest is for closing handshakes."""

AT_ONCE = 20
"""Connections that have the first turn."""

LEAST_RATE = 200.0
"""Turns a second at the least, and where there is no limit to the time that stopping may take."""


class Farewells(Generic[Key]):
    """The turns of those who are there when a relay stops, in random order.

    Whoever leaves without having been told has taken a turn all the same, so
    that connections end at one rate, whoever ends them.

    :param there: who is there.
    :param limit: seconds that stopping may take; 0 for no limit.
    :param now: the present moment, in seconds.
    :param chance: a random number from 0 to 1.
    """

    def __init__(self, there: Iterable[Key], limit: float, now: float, chance: Callable[[], float]) -> None:
        self._waiting = dict.fromkeys(sorted(there, key=lambda _: chance()))
        self._count = len(self._waiting)
        self._begun = now
        in_time = (self._count - AT_ONCE) / max(limit * SHARE, 0.001) if limit else 0.0
        self._rate = max(LEAST_RATE, in_time)

    def due(self, now: float) -> list[Key]:
        """Take out and return those whose turn has come.

        :param now: the present moment, in seconds; set back, it brings no turn.
        """
        told = self._count - len(self._waiting)
        turns = AT_ONCE + int(self._rate * (now - self._begun)) - told
        return [self._waiting.popitem()[0] for _ in range(min(turns, len(self._waiting)))]

    def left(self, key: Key) -> None:
        """Somebody has gone by themselves; may be unknown, or told already."""
        self._waiting.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        """Whether a turn is still to come."""
        return key in self._waiting

    def __len__(self) -> int:
        """How many turns are still to come."""
        return len(self._waiting)
