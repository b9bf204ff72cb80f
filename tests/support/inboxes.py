"""Stand-ins for what surrounds a cursor: a dialect that is easy to read, and a connection that reads when it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatrelay.model import LoggedMessage, Message
from chatrelay.wire.codes import Close


class PlainDialect:
    """Encodes each frame as words: ``7 message hej``, ``3-17 void``, ``61 erased 3-17 40-40``."""

    def delivery(self, message: Message | LoggedMessage, place: int, /) -> bytes:
        """Encode the place and the content."""
        return f"{place} message {message.content}".encode()

    def void(self, first: int, last: int, /) -> bytes:
        """Encode the first and the last place."""
        return f"{first}-{last} void".encode()

    def erased(self, place: int, ranges: Sequence[tuple[int, int]], /) -> bytes:
        """Encode the place and the ranges."""
        return f"{place} erased {' '.join(f'{first}-{last}' for first, last in ranges)}".encode()


class InboxClient:
    """An `chatrelay.interfaces.InboxConnection` whose client reads when the test says so.

    :ivar frames: the frames that were sent, as text.
    :ivar unsent: bytes that wait. Each frame adds its length, if `is_slow`.
    :ivar is_slow: whether the client reads only when `drain` is called.
    :ivar is_open: whether frames are still taken.
    :ivar closed: how the connection was closed, if it was.
    """

    def __init__(self, is_slow: bool = False) -> None:
        self.frames: list[str] = []
        self.unsent = 0
        self.is_slow = is_slow
        self.is_open = True
        self.closed: Close | None = None
        self._calls: list[Callable[[], None]] = []

    @property
    def is_behind(self) -> bool:
        """Whether bytes wait."""
        return self.unsent > 0

    def send(self, payload: bytes) -> bool:
        """Record a frame, if the connection is open."""
        if self.is_open:
            self.frames.append(payload.decode())
            self.unsent += len(payload) if self.is_slow else 0
        return self.is_open

    def call_when_drained(self, call: Callable[[], None]) -> None:
        """Keep the call until `drain`."""
        assert not self._calls, "only one call may wait"
        self._calls.append(call)

    def drain(self) -> None:
        """Read everything."""
        self.unsent = 0
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def close(self, close: Close) -> None:
        """Close the connection."""
        assert self.closed is None, "a connection is closed once"
        self.is_open = False
        self.closed = close

    def take(self) -> list[str]:
        """Return the frames since the last call."""
        frames, self.frames = self.frames, []
        return frames
