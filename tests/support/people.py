"""People who speak v2, and what they are told of each other: the parts of the relay that do that, in simulated time.

Messages are committed at once, and their frames are not of interest here: only the places that each connection was sent
are. So a test can look at every frame that is not a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import Message
from chatrelay.relay.acquaintance import Acquaintances
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.directory import Directory
from chatrelay.relay.inbox import Cursor, Inboxes
from chatrelay.relay.presence import Watcher
from chatrelay.testing import HeldMessageLog
from tests.support.inboxes import InboxClient, PlainDialect

STEP = 1 / 16
"""Seconds of a step of simulated time, short enough that the process does not look held up."""


class WordDialect(PlainDialect):
    """Encodes as words: ``receipt bo 3 2``, ``read bo 3``, ``typing bo``, ``presence bo off 123000``."""

    def receipt(self, peer: str, received: int | None, read: int | None, /) -> bytes:
        """Encode the numbers; a minus for one that is missing."""
        return f"receipt {peer} {received or '-'} {read or '-'}".encode()

    def read_mark(self, peer: str, place: int, /) -> bytes:
        """Encode the place."""
        return f"read {peer} {place}".encode()

    def typing(self, user: str, /) -> bytes:
        """Encode the user."""
        return f"typing {user}".encode()

    def presence(self, user: str, online: bool, last_seen: int | None = None, /) -> bytes:
        """Encode the state, and the time if there is one."""
        return f"presence {user} {'on' if online else f'off {last_seen}'}".encode()


class Device(InboxClient):
    """A connection that is logged in.

    :ivar user: the key of the user.
    :ivar cursor: its cursor.
    :ivar watcher: its watches.
    """

    def __init__(self, user: str) -> None:
        super().__init__()
        self.user = user
        self.cursor: Cursor
        self.watcher = Watcher(user, self)

    def told(self) -> list[str]:
        """Return the frames since the last call that are not messages."""
        return [frame for frame in self.take() if " message " not in frame]


class People:
    """Some people, their connections, and the parts of the relay that tell them of each other.

    :ivar log: the message log.
    :ivar clock: the time.
    :ivar awareness: what is tested.
    """

    def __init__(
        self,
        log: MemoryMessageLog | None = None,
        receipts: bool = True,
        presence: str = "known",
        clock: Clock | None = None,
    ) -> None:
        self.log = HeldMessageLog() if log is None else log
        self.clock = Clock() if clock is None else clock
        self._turns: list[Callable[[], None]] = []
        self.directory = Directory()
        dialect = WordDialect()
        self.inboxes = Inboxes(dialect, self.log, self.clock)
        self.asking = Acquaintances(self.log.reader)
        self.awareness = Awareness(
            dialect,
            self.log,
            self.directory,
            self.inboxes,
            self.asking,
            self.clock.seconds,
            self.clock,
            self._turns.append,
            receipts,
            presence,
        )

    def turn(self) -> None:
        """Begin the next turns of the reactor, until nothing is left to do."""
        while self._turns:
            turns, self._turns[:] = list(self._turns), []
            for call in turns:
                call()

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / STEP)):
            self.turn()
            self.clock.advance(STEP)
        self.turn()

    def log_in(self, user: str) -> Device:
        """Log a device in, at the end of its inbox."""
        device = Device(user)
        state: Any = self.log.inbox(user).result  # type: ignore[attr-defined]
        self.directory.add(user, device)  # type: ignore[arg-type]
        device.cursor = self.inboxes.enter(user, device, state.last)
        self.awareness.receipts.entered(user, state.received)
        device.cursor.start()
        return device

    def log_out(self, device: Device) -> None:
        """Disconnect a device."""
        device.is_open = False
        self.inboxes.leave(device.user, device.cursor)
        self.awareness.receipts.left(device.user)
        self.awareness.closed(device.watcher)
        self.directory.remove(device.user, device)  # type: ignore[arg-type]

    def send(self, sender: str, recipient: str, content: str = "hej") -> Message:
        """Commit a message, and deliver it to all devices of both users."""
        message = Message(sender, recipient, "12345678", 1, content, self.clock.seconds(), True)
        self.log._keep(message)
        for user, place in {(recipient, message.to_place), (sender, message.from_place)}:
            inbox = self.inboxes.get(user)
            if inbox is not None:
                inbox.deliver(message, place)
        self.asking.wrote(sender, recipient)
        self.awareness.committed(message, (sender, recipient))
        return message

    def received(self, device: Device, place: int) -> None:
        """Set the mark that a device has received everything up to a place."""
        self.awareness.receipts.acknowledge(device.user, device.cursor, place)

    def read(self, device: Device, peer: str, place: int) -> None:
        """Set the mark that a person has read a conversation up to a place."""
        self.awareness.receipts.read(device.user, device.cursor, peer, place)
