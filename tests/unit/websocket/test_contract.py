"""The contract of every connection, as the relay and a session use it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import Connection
from chatrelay.model import Message
from chatrelay.testing import RecordedConnection
from chatrelay.wire import codes, v1
from chatrelay.wire.codes import Close
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase
from tests.support.v1 import encoded

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


class Recorded(ConnectionContract, SynchronousTestCase):
    """The stand-in of `chatrelay.testing`."""

    def make(self) -> RecordedConnection:
        self.connection = RecordedConnection()
        return self.connection

    def messages(self) -> list[Any]:
        return self.connection.take()

    def closes(self) -> list[tuple[int, str]]:
        return [] if self.connection.closed is None else [self.connection.closed]


class OutboxWithTheFastPath(ConnectionContract, WebSocketTestCase):
    """The outbox of a client of the relay, which makes the frames itself."""

    fast_path = True

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
