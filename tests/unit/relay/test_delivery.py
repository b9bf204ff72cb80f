"""Submit, log, deliver, answer: the order, the batches, and failures in between."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import Dialect
from chatrelay.model import LogUnavailable, Message
from chatrelay.relay import delivery as relay_module
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.testing import HeldMessageLog, RecordedConnection
from chatrelay.wire import codes, v1
from tests.support.submitters import Answer, RecordedSubmitter


class RelayTests(SynchronousTestCase):
    """A relay over a message log that commits when the test says so."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000.25)
        self.directory = Directory()
        self.log = HeldMessageLog()
        self.relay = Relay(self.directory, self.log, self.clock.seconds, lambda call: self.clock.callLater(0, call))
        self.alice, self.bo = RecordedConnection(), RecordedConnection()
        self.answers = RecordedSubmitter()
        self.directory.add("1", self.alice)
        self.directory.add("2", self.bo)

    def send(self, content: str = "hej", to: str | int = 2, id: str | int = 1, turn: bool = True) -> None:
        """Send a message from Alice, and by default end the reactor's turn."""
        self.relay.submit(Message(1, to, id, 9, content, self.relay.now()), self.answers)
        if turn:
            self.clock.advance(0)

    def outcomes(self) -> list[Answer]:
        """Return Alice's answers since the last call: (id, value, reason)."""
        return self.answers.take()

    def contents(self, connection: RecordedConnection) -> list[str]:
        """Return the messages delivered to a connection since the last call."""
        return [frame["message"]["content"] for frame in connection.take()]

    def test_message_is_delivered_and_answered_after_the_commit(self) -> None:
        self.send()
        self.assertEqual((self.alice.sent, self.bo.sent), ([], []))
        self.log.commit()
        self.assertEqual(self.contents(self.bo), ["hej"])
        self.assertEqual(self.outcomes(), [(1, True, None)])
        (row,) = self.log.rows
        self.assertEqual(row.message, Message(1, 2, 1, 9, "hej", 1_700_000_000.25, from_place=1, to_place=1))

    def test_log_that_raises_refuses_only_its_batch(self) -> None:
        whole, self.log.append = self.log.append, {}.__getitem__  # type: ignore[method-assign, assignment]
        self.send()
        self.assertEqual(self.outcomes(), [(1, False, "log-unavailable")])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.log.append = whole  # type: ignore[method-assign]
        self.send(id=2)
        self.log.commit()
        self.assertEqual(self.outcomes(), [(2, True, None)])

    def test_answer_follows_the_delivery(self) -> None:
        order: list[str] = []
        self.patch(self.bo, "send", lambda payload: order.append("delivery") or True)
        self.patch(self.answers, "accepted", lambda message: order.append("answer"))
        self.send()
        self.log.commit()
        self.assertEqual(order, ["delivery", "answer"])

    def test_messages_of_one_turn_are_one_batch_and_the_next_forms_during_its_commit(self) -> None:
        for number in range(3):
            self.send(str(number), turn=False)
        self.clock.advance(0)
        self.send("3")
        self.send("4")
        self.assertEqual([len(batch) for batch, _ in self.log.batches], [3])
        self.log.commit()
        self.clock.advance(0)
        self.assertEqual([len(batch) for batch, _ in self.log.batches], [2])
        self.log.commit()
        self.assertEqual(self.contents(self.bo), ["0", "1", "2", "3", "4"])
        self.assertEqual(len(self.outcomes()), 5)

    def test_message_to_an_absent_recipient_is_refused_at_once_and_not_logged(self) -> None:
        self.send(to="nobody", id="x")
        self.assertEqual(self.outcomes(), [("x", False, "receiving-user-not-connected")])
        self.assertEqual(self.log.batches, [])

    def test_message_to_a_recipient_who_closed_during_the_commit_is_marked_and_refused(self) -> None:
        for number, is_gone in enumerate((False, True)):
            self.send(id=number)
            self.bo.close(codes.ENDED)
            if is_gone:  # a connection stays in the directory while it closes
                self.directory.remove("2", self.bo)
            self.log.commit()
            self.assertEqual(self.outcomes(), [(number, False, "receiving-user-not-connected")])
            self.assertFalse(self.log.rows[number].delivered)

    def test_one_open_connection_of_several_is_enough(self) -> None:
        self.bo.close(codes.ENDED)
        for dialect in (v1, SimpleNamespace(delivery=v1.delivery)):
            second = RecordedConnection()
            second.dialect = cast(Dialect, dialect)
            self.directory.add("2", second)
            self.send()
            self.log.commit()
            self.assertEqual(self.contents(second), ["hej"])
            self.assertEqual(self.outcomes(), [(1, True, None)])
            self.assertTrue(self.log.rows[-1].delivered)
            self.directory.remove("2", second)

    def test_failed_commit_delivers_nothing_and_refuses_the_whole_batch(self) -> None:
        self.send("a", id="a", turn=False)
        self.send("b", id="b")
        self.log.fail()
        self.assertEqual(self.outcomes(), [("a", False, "log-unavailable"), ("b", False, "log-unavailable")])
        self.assertEqual(self.bo.sent, [])
        self.send("c", id="c")
        self.log.commit()
        self.assertEqual(self.outcomes(), [("c", True, None)])

    def test_unexpected_error_of_the_log_is_logged_and_the_next_batch_is_committed(self) -> None:
        self.send(id="a")
        self.log.batches.pop()[1].errback(ZeroDivisionError())
        self.assertEqual(self.outcomes(), [("a", False, "log-unavailable")])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.send(id="b")
        self.log.commit()
        self.assertEqual(self.outcomes(), [("b", True, None)])

    def test_failed_mark_does_not_delay_the_answer(self) -> None:
        for number, error in enumerate((LogUnavailable("gone"), ZeroDivisionError())):
            self.patch(self.log, "mark_undelivered", lambda numbers, error=error: fail(error))
            self.directory.add("3", self.bo)
            self.send(to=3, id=number)
            self.directory.remove("3", self.bo)
            self.log.commit()
            self.assertEqual(self.outcomes(), [(number, False, "receiving-user-not-connected")])
            self.assertEqual(self.successResultOf(self.relay.drain()), None)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_message_beyond_max_waiting_is_busy(self) -> None:
        self.patch(relay_module, "MAX_WAITING", 5)
        for number in range(3):
            self.send(id=number)  # the first commits, two form
        for number in range(3, 7):
            self.send(id=number)
        self.assertEqual(self.outcomes(), [(5, False, "busy"), (6, False, "busy")])
        self.log.commit()
        self.send(id=7)
        self.log.commit()
        self.assertEqual([(id, value) for id, value, _ in self.outcomes()], [(id, True) for id in (0, 1, 2, 3, 4, 7)])

    def test_ten_thousand_messages_may_wait(self) -> None:
        for number in range(10_001):
            self.send(id=number)
        self.assertEqual(self.outcomes(), [(10_000, False, "busy")])

    def test_drain_waits_for_messages_accepted_before(self) -> None:
        self.assertEqual(self.successResultOf(self.relay.drain()), None)
        self.send(id=1)
        self.send(id=2)
        drained = self.relay.drain()
        self.log.commit()
        self.assertNoResult(drained)
        self.clock.advance(0)
        self.log.commit()
        self.successResultOf(drained)
        self.assertEqual(len(self.outcomes()), 2)

    def test_drain_does_not_wait_for_messages_accepted_later(self) -> None:
        self.send(id=1)
        early = self.relay.drain()
        self.send(id=2)
        late = self.relay.drain()
        self.log.commit()
        self.successResultOf(early)
        self.assertNoResult(late)
        self.clock.advance(0)
        self.send(id=3)  # there is always one more
        self.log.commit()
        self.successResultOf(late)
        self.assertEqual([id for id, _, _ in self.outcomes()], [1, 2])

    def test_drain_waits_for_marks_of_older_batches_only(self) -> None:
        marking: list[Deferred[None]] = []

        def mark(numbers: Sequence[int]) -> Deferred[None]:
            marking.append(Deferred())
            return marking[-1]

        self.patch(self.log, "mark_undelivered", mark)
        drained = []
        for number in range(3):
            self.directory.add("3", self.bo)
            self.send(to=3, id=number)
            drained.append(self.relay.drain())
            self.directory.remove("3", self.bo)
            self.log.commit()
        self.assertEqual(len(marking), 3)
        marking[1].callback(None)
        for waiting in drained:
            self.assertNoResult(waiting)
        self.assertEqual([id for id, _, _ in self.outcomes()], [1])
        marking[0].callback(None)
        self.successResultOf(drained[0])
        self.successResultOf(drained[1])
        self.assertNoResult(drained[2])
        marking[2].callback(None)
        self.successResultOf(drained[2])

    def test_submitter_without_a_connection_sends_and_is_answered(self) -> None:
        self.relay.submit(Message("shop", 2, "order 7", 9, "It has shipped.", self.relay.now()), self.answers)
        self.clock.advance(0)
        self.log.commit()
        expected = {"timeStamp": 9, "fromuID": "shop", "touID": 2, "content": "It has shipped."}
        self.assertEqual(self.bo.take(), [{"type": "message", "message": expected}])
        self.assertEqual(self.outcomes(), [("order 7", True, None)])
        self.assertEqual([row.message.from_uid for row in self.log.rows], ["shop"])

    def test_message_is_encoded_once_for_each_dialect(self) -> None:
        encoded: list[str] = []
        received: list[tuple[str, bytes]] = []

        class Other(ModuleType):
            """A dialect that writes the content only."""

            def delivery(self, message: Message) -> bytes:
                encoded.append(self.__name__)
                return f"{self.__name__}: {message.content}".encode()

        first, second = Other("first"), Other("second")
        for dialect in (first, second, first, second):
            connection = RecordedConnection()
            connection.dialect = cast(Dialect, dialect)
            self.patch(
                connection, "send", lambda payload, name=dialect.__name__: received.append((name, payload)) or True
            )
            self.directory.add("9", connection)
        self.send(to=9)
        self.log.commit()
        self.assertEqual(encoded, ["first", "second"])
        self.assertEqual(sorted(received), [("first", b"first: hej")] * 2 + [("second", b"second: hej")] * 2)
        self.assertEqual(self.outcomes(), [(1, True, None)])

    def test_connection_that_disconnects_during_delivery_does_not_affect_others(self) -> None:
        third = RecordedConnection()
        self.directory.add("2", third)
        self.patch(self.bo, "send", lambda payload: self.directory.remove("2", self.bo) or False)
        self.send()
        self.log.commit()
        self.assertEqual(self.contents(third), ["hej"])
        self.assertEqual(self.outcomes(), [(1, True, None)])
