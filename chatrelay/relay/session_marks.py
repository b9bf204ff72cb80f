"""Do what the marks, the typing and the watches of one logged-in connection ask for.

Pure. This module must not know how often a client may do something, nor how an answer is encoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from chatrelay.model import user_key
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.inbox import Cursor
from chatrelay.relay.presence import Watcher
from chatrelay.wire.structs_v2 import Read, Received, Request, Typing


class SessionMarks:
    """One connection, as it is told of others and others are told of its user.

    :param awareness: tells people of each other.
    :param user: the key of the user.
    :param cursor: the last place that the client was sent.
    :param received: the ``received`` mark that the log has kept.
    """

    __slots__ = ("_awareness", "_cursor", "_user", "_watcher")

    def __init__(self, awareness: Awareness, user: str, cursor: Cursor, received: int) -> None:
        self._awareness = awareness
        self._user = user
        self._cursor = cursor
        self._watcher: Watcher | None = None  # made when needed
        awareness.receipts.entered(user, received)

    @property
    def has_presence(self) -> bool:
        """Whether this relay tells of anybody that they are online."""
        return self._awareness.presence is not None

    def acknowledge(self, place: int) -> None:
        """Take the mark that the client has received everything up to a place."""
        self._awareness.receipts.acknowledge(self._user, self._cursor, place)

    def read(self, peer: str | int, place: int) -> None:
        """Take the mark that the person has read a conversation up to a place."""
        self._awareness.receipts.read(self._user, self._cursor, user_key(peer), place)

    def typed(self, peer: str | int) -> None:
        """Tell another user that this one is typing, if they may know."""
        self._awareness.typing.typed(self._user, user_key(peer), self._cursor.connection)

    async def watch(self, of: Sequence[str | int]) -> tuple[Sequence[str], Mapping[str, int | None]]:
        """Replace whom the client watches; return who is online and who is not, as `Awareness.watch` does."""
        if self._watcher is None:
            self._watcher = Watcher(self._user, self._cursor.connection)
        return await self._awareness.watch(self._watcher, list(dict.fromkeys(map(user_key, of))))

    def closed(self) -> None:
        """Note that the connection is closing or gone, and that its cursor has left the inbox."""
        self._awareness.receipts.left(self._user)
        if self._watcher is not None:
            self._awareness.closed(self._watcher)


def key_of(request: Request) -> Hashable:
    """Return what a mark is about: of those about the same, the latest is kept. None if it is not kept."""
    if isinstance(request, Typing):
        return None
    return ("read", user_key(request.peer)) if isinstance(request, Read) else type(request)


def place_of(request: Request | None) -> int:
    """Return the place that a mark names; 0 if it names none."""
    if isinstance(request, Received):
        return request.received
    return request.read if isinstance(request, Read) else 0
