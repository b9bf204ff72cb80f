"""Who is here: the live connections of each logged-in user on this node.

Pure. It knows keys of users and connections, and nothing of what either is.
"""

from __future__ import annotations

from collections.abc import Callable

from chatrelay.interfaces import Connection


class _Connections(dict[str, tuple[Connection, ...]]):
    def __missing__(self, user: str) -> tuple[Connection, ...]:
        return ()


class Directory:
    """A user's connections, in the order they logged in.

    The tuples are replaced, never changed: who walks one while delivering is
    not disturbed when a connection leaves on the way.

    :ivar connections_of: called with a user; the live connections of that one, oldest first; empty where there are
        none. Two are asked about for each message, so this is the dictionary's own method.
    """

    def __init__(self) -> None:
        self._connections = _Connections()
        self.connections_of: Callable[[str], tuple[Connection, ...]] = self._connections.__getitem__

    def add(self, user: str, connection: Connection) -> None:
        """Note that `connection` is now one of `user`'s."""
        self._connections[user] = (*self._connections.get(user, ()), connection)

    def remove(self, user: str, connection: Connection) -> None:
        """Forget `connection`; nothing happens where it was not known."""
        rest = tuple(other for other in self._connections.get(user, ()) if other is not connection)
        if rest:
            self._connections[user] = rest
        else:
            self._connections.pop(user, None)

    def oldest_beyond(self, user: str, most: int) -> tuple[Connection, ...]:
        """The oldest of a user's connections, as many as there are beyond `most`; 0 for no limit."""
        return self.connections_of(user)[:-most] if most else ()

    def __len__(self) -> int:
        """How many users are here."""
        return len(self._connections)
