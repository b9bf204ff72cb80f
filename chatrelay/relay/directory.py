"""The live connections of each logged-in user on this node.

Pure. A user is a key here. This module must not know what a user is, nor what a connection does.
"""

from __future__ import annotations

from collections.abc import Callable

from chatrelay.interfaces import Connection


class _Connections(dict[str, tuple[Connection, ...]]):
    def __missing__(self, user: str) -> tuple[Connection, ...]:
        return ()


class Directory:
    """The connections of users, in the order in which they logged in.

    The tuples are replaced, never changed. So a loop over one is not disturbed when a connection is removed meanwhile.

    :ivar connections_of: called with the key of a user; returns the live connections of that user, oldest first, or an
        empty tuple. It is the dictionary's own method, which is fast, because it is called twice for each message.
    """

    def __init__(self) -> None:
        self._connections = _Connections()
        self._watchers: tuple[tuple[Callable[[str], object], Callable[[str], object]], ...] = ()
        self.connections_of: Callable[[str], tuple[Connection, ...]] = self._connections.__getitem__

    def watch(self, arrived: Callable[[str], object], left: Callable[[str], object]) -> None:
        """Be told who arrives and leaves.

        :param arrived: called with the key of a user whose first connection was added.
        :param left: called with the key of a user whose last connection was removed.
        """
        self._watchers = (*self._watchers, (arrived, left))

    def add(self, user: str, connection: Connection) -> None:
        """Add a connection of `user`."""
        others = self._connections.get(user, ())
        self._connections[user] = (*others, connection)
        if not others:
            for arrived, _ in self._watchers:
                arrived(user)

    def remove(self, user: str, connection: Connection) -> None:
        """Remove a connection of `user`. An unknown connection is ignored."""
        rest = tuple(other for other in self._connections.get(user, ()) if other is not connection)
        if rest:
            self._connections[user] = rest
        elif self._connections.pop(user, ()):
            for _, left in self._watchers:
                left(user)

    def oldest_beyond(self, user: str, limit: int) -> tuple[Connection, ...]:
        """Return the oldest connections of a user, as many as exceed `limit`; 0 means no limit."""
        return self.connections_of(user)[:-limit] if limit else ()

    def __len__(self) -> int:
        """Return how many users have a connection."""
        return len(self._connections)
