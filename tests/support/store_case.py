"""A relay over a message log that the test moves, with devices that speak v2 and connections that speak v1."""

from __future__ import annotations

from twisted.internet.task import Clock

from chatrelay.model import InboxState, Message
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.relay.inbox import Cursor, Inboxes
from chatrelay.relay.storing import StorePolicy, Storing
from chatrelay.testing import HeldMessageLog, RecordedConnection
from chatrelay.wire import codes
from chatrelay.wire.codes import Reason
from tests.support.inboxes import InboxClient, PlainDialect
from tests.support.submitters import RecordedSubmitter


class Device(InboxClient):
    """A connection of v2 as its session makes it: it has a cursor, and submits messages.

    Its answers are among its frames: ``3 answer ID delivered``, ``refused ID reason``.
    """

    def __init__(self, world: World, user: str, is_slow: bool = False) -> None:
        super().__init__(is_slow)
        self.user = user
        self.cursor: Cursor | None = None
        self.recovered: bool | None = None
        self._world = world

    @property
    def connection(self) -> InboxClient | None:
        """The connection that the answers go to."""
        return self if self.is_open and self.cursor is not None else None

    def stored(self, message: Message, place: int, at: int, delivered: bool) -> None:
        """Answer as a session does."""
        if self.cursor is not None:
            word = "delivered" if delivered else "stored"
            self.cursor.answer(place, f"{place} answer {message.client_id} {word}".encode())

    def refused(self, message: Message, reason: Reason) -> None:
        """Answer as a session does."""
        self.send(f"refused {message.client_id} {reason}".encode())

    def unknown(self, message: Message) -> None:
        """Close as a session does."""
        if self.is_open:
            self.close(codes.LOG_LOST)

    def close(self, close: codes.Close) -> None:
        """Close, and leave the directory, as a session does when closing begins."""
        super().close(close)
        self.leave()

    def leave(self) -> None:
        """Leave the directory and the inbox."""
        self.is_open = False
        if self.cursor is not None:
            self._world.directory.remove(self.user, self)  # type: ignore[arg-type]
            self._world.inboxes.leave(self.user, self.cursor)


class World:
    """The relay and what surrounds it.

    :ivar log: the message log, which commits when the test says so.
    """

    def __init__(self, policy: StorePolicy | None = None, log: HeldMessageLog | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000.25)
        self.directory = Directory()
        self.log = log or HeldMessageLog()
        self.inboxes = Inboxes(PlainDialect(), self.log, self.clock)  # type: ignore[arg-type]
        self.storing = Storing(
            self.directory, self.log, self.inboxes, policy or StorePolicy(), self.clock.seconds, self.clock
        )
        self.log.on_erased = self.storing.erased
        self.relay = Relay(
            self.directory,
            self.log,
            self.clock.seconds,
            lambda call: self.clock.callLater(0, call),
            self.storing,
            self.clock,
        )

    def device(self, user: str, after: int | None = None, is_slow: bool = False) -> Device:
        """Log a device of v2 in."""
        device = Device(self, user, is_slow)

        def enter(state: InboxState) -> None:
            device.cursor = self.inboxes.enter(user, device, state.last, after)
            self.directory.add(user, device)  # type: ignore[arg-type]
            device.cursor.start()

        self.log.inbox(user).addCallbacks(enter, lambda _: None)
        return device

    def old_client(self, user: str) -> RecordedConnection:
        """Log a client of v1 in."""
        connection = RecordedConnection()
        self.directory.add(user, connection)
        return connection

    def message(self, sender: str, to: str, id: str, content: str | None = None, is_v2: bool = True) -> Message:
        """Return a message whose content is its id unless it is given."""
        return Message(sender, to, id, 9, id if content is None else content, self.relay.now(), is_v2)

    def store(
        self,
        device: Device,
        to: str,
        id: str,
        content: str | None = None,
        again: bool = False,
        reject: bool | None = None,
    ) -> None:
        """Submit a message as a session of v2 does."""
        self.relay.store(self.message(device.user, to, id, content), device, again=again, reject=reject)

    def submit(self, sender: str, to: str, id: str) -> RecordedSubmitter:
        """Submit a message as a session of v1 does; return who is told what became of it."""
        submitter = RecordedSubmitter()
        self.relay.submit(self.message(sender, to, id, is_v2=False), submitter)
        return submitter

    def turn(self) -> None:
        """End the turn of the reactor."""
        self.clock.advance(0)

    def commit(self) -> None:
        """End the turn, and commit what is there until nothing waits."""
        self.turn()
        while self.log.batches:
            self.log.commit()
            self.turn()

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass, in steps of a quarter of a second."""
        self.clock.pump([0.25] * int(seconds * 4))
