"""The contract of every connection, as the relay and a session use it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import Connection, InboxConnection
from chatrelay.model import Message
from chatrelay.testing import RecordedConnection
from chatrelay.wire import codes, v1
from chatrelay.wire.codes import Close
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase
from tests.support.v1 import encoded
from tests.support.v2 import OFFER

CLOSES = [close for close in vars(codes).values() if isinstance(close, Close)]


class ConnectionContract:
    """The contract of every connection."""

    assertEqual: Any
    assertIs: Any

    def make(self) -> Connection:
        """Return the connection of one client, which is open."""
        raise NotImplementedError

    def messages(self) -> list[Any]:
        """Return the messages that this client was sent since the last call, as JSON values."""
        raise NotImplementedError

    def closes(self) -> list[tuple[int, str]]:
        """Return the closes that this client was sent: codes and reasons."""
        raise NotImplementedError

    def test_messages_arrive_unchanged_and_in_order(self) -> None:
        connection = self.make()
        sent = [1, "", {"content": "å € 😀"}, {"content": "x" * 16384}, [None, True], "last"]
        for value in sent:
            self.assertIs(connection.send(encoded(value)), True)
        self.assertEqual(self.messages(), sent)
        self.assertEqual(self.closes(), [])

    def test_delivery_in_the_dialect_of_the_connection_arrives(self) -> None:
        connection = self.make()
        self.assertIs(connection.dialect, v1)
        self.assertIs(connection.send(connection.dialect.delivery(Message(1, 2, "id", 3, "hej", 0.0))), True)
        inside = {"timeStamp": 3, "fromuID": 1, "touID": 2, "content": "hej"}
        self.assertEqual(self.messages(), [{"type": "message", "message": inside}])

    def test_closed_connection_appends_nothing(self) -> None:
        connection = self.make()
        self.assertIs(connection.send(encoded("before")), True)
        connection.close(codes.ENDED)
        for _ in range(3):
            self.assertIs(connection.send(encoded("after")), False)
        self.assertEqual(self.messages(), ["before"])

    def test_first_of_several_closes_counts(self) -> None:
        connection = self.make()
        connection.close(codes.UNREAD)
        connection.close(codes.ENDED)
        self.assertEqual(self.closes(), [codes.UNREAD])

    def test_each_close_is_sent_with_its_code_and_reason(self) -> None:
        for close in CLOSES:
            self.make().close(close)
            self.assertEqual(self.closes(), [close])


class InboxConnectionContract:
    """The contract of every connection that a cursor sends on."""

    assertEqual: Any
    assertIs: Any

    def make_inbox_connection(self) -> InboxConnection:
        """Return the connection of one client, which is open."""
        raise NotImplementedError

    def end_turn(self) -> None:
        """End the turn of the reactor; the client reads everything."""
        raise NotImplementedError

    def test_nothing_is_unsent_when_a_turn_has_ended(self) -> None:
        connection = self.make_inbox_connection()
        self.assertIs(connection.send(encoded("x")), True)
        self.end_turn()
        self.assertEqual((connection.unsent, connection.is_behind), (0, False))

    def test_call_comes_once_and_in_a_later_turn(self) -> None:
        connection = self.make_inbox_connection()
        calls: list[int] = []
        connection.call_when_drained(lambda: calls.append(1))
        self.assertEqual(calls, [])
        for _ in range(3):
            self.end_turn()
        self.assertEqual(calls, [1])

    def test_call_may_ask_for_another_one(self) -> None:
        connection = self.make_inbox_connection()
        calls: list[int] = []

        def ask_again() -> None:
            calls.append(1)
            if len(calls) < 3:
                connection.call_when_drained(ask_again)

        connection.call_when_drained(ask_again)
        for _ in range(4):
            self.end_turn()
        self.assertEqual(calls, [1, 1, 1])

    def test_closed_connection_sends_nothing_for_ever(self) -> None:
        connection = self.make_inbox_connection()
        connection.close(codes.LOG_LOST)
        for _ in range(3):
            self.assertIs(connection.send(encoded("x")), False)
            self.end_turn()


class Recorded(ConnectionContract, InboxConnectionContract, SynchronousTestCase):
    """The stand-in of `chatrelay.testing`."""

    def make_inbox_connection(self) -> InboxConnection:
        return self.make()

    def end_turn(self) -> None:
        self.connection.drain()

    def make(self) -> RecordedConnection:
        self.connection = RecordedConnection()
        return self.connection

    def messages(self) -> list[Any]:
        return self.connection.take()

    def closes(self) -> list[tuple[int, str]]:
        return [] if self.connection.closed is None else [self.connection.closed]


class OutboxWithTheFastPath(ConnectionContract, InboxConnectionContract, WebSocketTestCase):
    """The outbox of a client of the relay, which makes the frames itself."""

    fast_path = True

    def make_inbox_connection(self) -> InboxConnection:
        self.client_side = MemoryClient(self.make_factory(fast_path=self.fast_path)).open(OFFER)
        outbox: InboxConnection = self.client_side.protocol.outgoing
        return outbox

    def end_turn(self) -> None:
        self.clock.advance(0)
        self.client_side.read()

    def make(self) -> Connection:
        self.client_side = MemoryClient(self.make_factory(fast_path=self.fast_path)).open()
        self.heard: list[Any] = []
        outbox: Connection = self.client_side.protocol.outgoing
        return outbox

    def messages(self) -> list[Any]:
        self.heard += self.client_side.hear()
        taken = [value for value in self.heard if not isinstance(value, tuple)]
        self.heard = [value for value in self.heard if isinstance(value, tuple)]
        return taken

    def closes(self) -> list[tuple[int, str]]:
        self.heard += self.client_side.hear()
        return [value for value in self.heard if isinstance(value, tuple)]

    def test_messages_arrive_before_a_later_close(self) -> None:
        connection = self.make()
        connection.send(encoded("before"))
        connection.close(codes.ENDED)
        self.assertEqual(self.client_side.hear(), ["before", codes.ENDED])

    def test_lost_connection_appends_nothing_and_raises_nothing(self) -> None:
        connection = self.make()
        self.client_side.lost()
        self.assertIs(connection.send(encoded("after")), False)
        connection.close(codes.ENDED)
        self.assertEqual(self.client_side.hear(), [])


class OutboxWithoutTheFastPath(OutboxWithTheFastPath):
    """The outbox that leaves the frames to Autobahn."""

    fast_path = False
