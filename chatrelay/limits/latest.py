"""The requests of a connection that exceed the limit of its marks: the latest of each kind is kept.

Pure. This module must not know what a request means, nor when there is room for it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

MAX_KEPT = 100
"""The most requests that are kept for a connection. One more displaces the oldest."""

Request = TypeVar("Request")


class Latest(Generic[Request]):
    """The latest requests, by what they are about. A later one replaces an earlier one and keeps its turn."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Hashable, Request] = {}

    def keep(self, key: Hashable, request: Request) -> Request | None:
        """Keep a request.

        :param key: what it is about.
        :returns: a request that will never be acted on because of it; None if there is none.
        """
        displaced = self._kept.get(key)
        if displaced is None and len(self._kept) >= MAX_KEPT:
            displaced = self._kept.pop(next(iter(self._kept)))
        self._kept[key] = request
        return displaced

    def take(self) -> Request:
        """Remove and return the request that has waited for longest; there must be one."""
        return self._kept.pop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget all requests."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)
