"""Pings: the connections that are due for one, and those that showed no activity after one.

Pure: the time and the random numbers are passed in. This module must not know how a ping is sent, nor how a connection
is closed: `chatrelay.websocket.timeouts` does both.

Pings find a client whose network is gone. Otherwise it would count as connected until the operating system notices,
which can take hours.

A connection is active if the value of `Alive.activity` changes. The value is read only when a ping is sent, and when
the time for its answer is over. So messages and pongs cause no work here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from chatrelay.limits.deadlines import Deadlines

MIN_SLOT_SECONDS = 0.25
"""The length of a slot of the schedule, in seconds; longer if there would be more than `MAX_SLOTS`."""

MAX_SLOTS = 1000
"""The most slots into which an interval is divided."""

Key = TypeVar("Key", bound=Hashable)


class PingSchedule(Generic[Key]):
    """A schedule in which each key is due once in an interval, in a slot that is chosen at random.

    :param interval: seconds; 0 means that no key is ever due.
    :param chance: returns a random number from 0 to 1.
    """

    def __init__(self, interval: float, chance: Callable[[], float]) -> None:
        count = min(MAX_SLOTS, max(1, round(interval / MIN_SLOT_SECONDS))) if interval else 0
        self._slots: list[dict[Key, None]] = [{} for _ in range(count)]
        self._slot_seconds = interval / count if count else math.inf
        self._slot_of: dict[Key, int] = {}
        self._chance = chance
        self._at: int | None = None

    def add(self, key: Key) -> None:
        """Give `key` a slot; it is due for the first time within one interval."""
        if self._slots:
            self.remove(key)
            slot = self._slot_of[key] = int(self._chance() * len(self._slots)) % len(self._slots)
            self._slots[slot][key] = None

    def remove(self, key: Key) -> None:
        """Remove `key`. If it is unknown, do nothing."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            del self._slots[slot][key]

    def due(self, now: float) -> list[Key]:
        """Return the keys that have become due since the last call, each once."""
        count = len(self._slots)
        at = int(now / self._slot_seconds)
        before, self._at = self._at, at
        if before is None or at < before:  # the first call, or the clock was set back
            return []
        return [key for slot in range(max(before, at - count) + 1, at + 1) for key in self._slots[slot % count]]

    def __len__(self) -> int:
        return len(self._slot_of)


class Alive(Hashable, Protocol):
    """A connection, as far as its activity is concerned."""

    def activity(self) -> object:
        """Return a value that is different after each received message, ping or pong."""


Pinged = TypeVar("Pinged", bound=Alive)


class Pings(Generic[Pinged]):
    """Finds the connections that are due for a ping, and those that did not answer one.

    :param interval: seconds between the pings of a connection; 0 for no pings.
    :param timeout: seconds after a ping within which there must be activity; 0 for no limit.
    :param chance: returns a random number from 0 to 1.
    """

    def __init__(self, interval: float, timeout: float, chance: Callable[[], float]) -> None:
        self._schedule: PingSchedule[Pinged] = PingSchedule(interval, chance)
        self._deadlines: Deadlines[Pinged] = Deadlines(timeout)
        self._activity: dict[Pinged, object] = {}  # the value at the last ping, until it has changed

    def opened(self, connection: Pinged) -> None:
        """Ping a connection from now on: it is open."""
        self._schedule.add(connection)

    def closing(self, connection: Pinged) -> None:
        """Stop pinging a connection: it is closing. If it is unknown, do nothing."""
        self._schedule.remove(connection)
        self._deadlines.stop(connection)
        self._activity.pop(connection, None)

    def due(self, now: float) -> list[Pinged]:
        """Return the connections to ping now. One that still has time to answer its last ping is left out."""
        due = self._schedule.due(now)
        silent = set(self._still_silent(due))
        return [connection for connection in due if connection not in silent]

    def sent(self, connection: Pinged, now: float) -> None:
        """Begin the timeout of a ping that was sent."""
        if self._deadlines.seconds:
            self._activity[connection] = connection.activity()
            self._deadlines.start(connection, now)

    def unanswered(self, now: float) -> list[Pinged]:
        """Return the connections that showed no activity in time.

        :param now: active seconds (`chatrelay.limits.active_time`), so that everything that came before the deadline
            has been read.
        """
        return self._still_silent(self._deadlines.expired(now))

    def _still_silent(self, connections: list[Pinged]) -> list[Pinged]:
        """Return those of `connections` that showed no activity since their last ping; forget the others' pings."""
        silent = []
        for connection in connections:
            if connection in self._activity:
                if self._activity[connection] == connection.activity():
                    silent.append(connection)
                else:
                    del self._activity[connection]
                    self._deadlines.stop(connection)
        return silent

    def __len__(self) -> int:
        """Return how many connections are pinged."""
        return len(self._schedule)
