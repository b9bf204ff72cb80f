"""Deadlines that all lie the same time ahead, kept without a timer each.

Pure: the time is handed in. This module must not know what a deadline is for, nor what follows when it has passed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """Deadlines that all lie the same time ahead, kept without a timer each.

    As every deadline is set `seconds` ahead of the moment it is set, the
    order of setting is the order of expiry: a sweep looks at the oldest and
    stops at the first that is still ahead.

    :param seconds: how far ahead; 0 means never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[Key, float] = {}

    def start(self, key: Key, now: float) -> None:
        """Set the deadline of `key`, anew where it had one."""
        if self.seconds:
            self._due.pop(key, None)
            self._due[key] = now + self.seconds

    def stop(self, key: Key) -> None:
        """Lift the deadline of `key`, if it has one."""
        self._due.pop(key, None)

    def expired(self, now: float) -> list[Key]:
        """Take out and return the keys whose deadline has come, oldest first."""
        over = []
        for key, due in self._due.items():
            if due > now:
                break
            over.append(key)
        for key in over:
            del self._due[key]
        return over

    def earliest(self) -> float:
        """The deadline that comes first; there must be one."""
        return next(iter(self._due.values()))

    def first(self) -> Key:
        """The key whose deadline comes first; there must be one."""
        return next(iter(self._due))

    def __len__(self) -> int:
        return len(self._due)
