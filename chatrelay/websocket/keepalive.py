"""Pings: which clients are asked for a sign of life, when, and who gave none.

Pure: the time and the chance are handed in, and who asks sends the pings and
closes. A user whose network went away is found so, and does not count as
connected until the operating system notices, which can take hours.

What counts as a sign of life is a number that changes (`Alive`): it is looked
at when a ping is sent and when its time is over, so that nothing is done for
each message or pong that comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from chatrelay.limits.deadlines import Deadlines

SLOT = 0.25
"""Seconds between the pings of those whose turns follow each other; longer where there would be too many slots."""

MAX_SLOTS = 1000
"""Into how many parts an interval is divided at most."""

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """Keys, each of which has its turn once in an interval; all turns are spread over it by chance.

    :param interval: seconds; 0 means that no turn ever comes.
    :param chance: a random number from 0 to 1.
    """

    def __init__(self, interval: float, chance: Callable[[], float]) -> None:
        count = min(MAX_SLOTS, max(1, round(interval / SLOT))) if interval else 0
        self._slots: list[dict[Key, None]] = [{} for _ in range(count)]
        self._slot_seconds = interval / count if count else math.inf
        self._slot_of: dict[Key, int] = {}
        self._chance = chance
        self._at: int | None = None

    def add(self, key: Key) -> None:
        """Give `key` a turn, the first within an interval."""
        if self._slots:
            self.remove(key)
            slot = self._slot_of[key] = int(self._chance() * len(self._slots)) % len(self._slots)
            self._slots[slot][key] = None

    def remove(self, key: Key) -> None:
        """Take `key` out; nothing happens where it is not known."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            del self._slots[slot][key]

    def come(self, now: float) -> list[Key]:
        """The keys whose turn has come since the last call, each once."""
        count = len(self._slots)
        at = int(now / self._slot_seconds)
        before, self._at = self._at, at
        if before is None or at < before:  # the first call, or the clock was set back
            return []
        return [key for slot in range(max(before, at - count) + 1, at + 1) for key in self._slots[slot % count]]

    def __len__(self) -> int:
        return len(self._slot_of)


class Alive(Hashable, Protocol):
    """A connection, as far as its life is concerned."""

    def signs_of_life(self) -> object:
        """Something that compares unequal after each message, ping or pong that came."""


Pinged = TypeVar("Pinged", bound=Alive)


class Pings(Generic[Pinged]):
    """Who is to be pinged, and who did not answer.

    :param interval: seconds between the pings of a connection; 0 for no pings.
    :param timeout: seconds in which a sign of life must come after one; 0 for no limit.
    :param chance: a random number from 0 to 1.
    """

    def __init__(self, interval: float, timeout: float, chance: Callable[[], float]) -> None:
        self._turns: Turns[Pinged] = Turns(interval, chance)
        self._deadlines: Deadlines[Pinged] = Deadlines(timeout)
        self._signs: dict[Pinged, object] = {}

    def opened(self, connection: Pinged) -> None:
        """A connection is open: it has its turns from now on."""
        self._turns.add(connection)

    def left(self, connection: Pinged) -> None:
        """A connection is closing; nothing happens where it was not known."""
        self._turns.remove(connection)
        self._deadlines.stop(connection)
        self._signs.pop(connection, None)

    def due(self, now: float) -> list[Pinged]:
        """Who is to be pinged now. Who has been, has not answered and still has time is not asked again."""
        come = self._turns.come(now)
        silent = set(self._still_silent(come))
        return [connection for connection in come if connection not in silent]

    def sent(self, connection: Pinged, now: float) -> None:
        """A ping was sent: the time for a sign of life begins."""
        if self._deadlines.seconds:
            self._signs[connection] = connection.signs_of_life()
            self._deadlines.start(connection, now)

    def unanswered(self, now: float) -> list[Pinged]:
        """Return who has given no sign of life in time.

        :param now: active seconds (`chatrelay.limits.active_time`), so that what came before the deadline has been
            read.
        """
        return self._still_silent(self._deadlines.expired(now))

    def _still_silent(self, connections: list[Pinged]) -> list[Pinged]:
        """Those who were pinged and have not answered; who has is noted."""
        silent = []
        for connection in connections:
            if connection in self._signs:
                if self._signs[connection] == connection.signs_of_life():
                    silent.append(connection)
                else:
                    del self._signs[connection]
                    self._deadlines.stop(connection)
        return silent

    def __len__(self) -> int:
        """How many connections have their turns."""
        return len(self._turns)
