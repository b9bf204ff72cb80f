"""Deadlines that are all set the same time ahead, kept without a timer for each.

Pure: the time is passed in. This module must not know what a deadline is for, nor what follows when it has passed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """Deadlines that are all set the same time ahead, kept without a timer for each.

    They expire in the order in which they were set. So a check begins with the oldest, and stops at the first that has
    not expired.

    :param seconds: how far ahead each deadline is set; 0 for no deadlines.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[Key, float] = {}

    def start(self, key: Key, now: float) -> None:
        """Set the deadline of `key`; it replaces an earlier one."""
        if self.seconds:
            self._due.pop(key, None)
            self._due[key] = now + self.seconds

    def stop(self, key: Key) -> None:
        """Remove the deadline of `key`, if it has one."""
        self._due.pop(key, None)

    def clear(self) -> None:
        """Remove all deadlines."""
        self._due.clear()

    def expired(self, now: float) -> list[Key]:
        """Remove and return the keys whose deadline has passed, oldest first."""
        over = []
        for key, due in self._due.items():
            if due > now:
                break
            over.append(key)
        for key in over:
            del self._due[key]
        return over

    def earliest(self) -> float:
        """Return the earliest deadline; there must be one."""
        return next(iter(self._due.values()))

    def first(self) -> Key:
        """Return the key with the earliest deadline; there must be one."""
        return next(iter(self._due))

    def __len__(self) -> int:
        return len(self._due)
