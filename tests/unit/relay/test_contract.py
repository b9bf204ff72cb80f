"""The contract of every submitter of messages."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import Submitter
from chatrelay.limits.sending import SendLimits
from chatrelay.model import LoggedIn, Message
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.relay.session import Session
from chatrelay.testing import HeldMessageLog, RecordedConnection
from chatrelay.wire import codes, v1
from chatrelay.wire.codes import Reason
from tests.support.submitters import Answer, RecordedSubmitter

IDS: tuple[str | int, ...] = ("7", 7, "", 0, -(2**53), "å € 😀")


class SubmitterContract:
    """The contract of every submitter."""

    assertEqual: Any

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Directory()
        self.log = HeldMessageLog()
        self.relay = Relay(self.directory, self.log, self.clock.seconds, lambda call: self.clock.callLater(0, call))
        self.recipient = RecordedConnection()
        self.directory.add("bo", self.recipient)
        self.submitter = self.make()

    def make(self) -> Submitter:
        """Return a submitter whose user is Alice."""
        raise NotImplementedError

    def answers(self) -> list[Answer]:
        """Return the answers since the last call, as the submitter's user sees them."""
        raise NotImplementedError

    def leave(self) -> None:
        """Disconnect the submitter's user."""

    def submit(self, id: str | int, to: str = "bo") -> None:
        """Submit a message, and end the turn of the reactor."""
        self.relay.submit(Message("alice", to, id, 1, "hej", 0.0), self.submitter)
        self.clock.advance(0)

    def test_accepted_message_is_answered_once_under_its_id(self) -> None:
        for id in IDS:
            self.submit(id)
            self.assertEqual(self.answers(), [])
            self.log.commit()
            (answer,) = self.answers()
            self.assertEqual((answer, type(answer[0])), ((id, True, None), type(id)))

    def test_refused_message_is_answered_once_under_its_id_with_the_reason(self) -> None:
        for id in IDS:
            self.submit(id, to="nobody")
            (answer,) = self.answers()
            self.assertEqual((answer, type(answer[0])), ((id, False, "receiving-user-not-connected"), type(id)))
        self.submit("lost")
        self.log.fail()
        self.assertEqual(self.answers(), [("lost", False, "log-unavailable")])

    def test_each_reason_is_answered(self) -> None:
        for reason in Reason:
            self.submitter.refused(Message("alice", "bo", "id", 1, "hej", 0.0), reason)
            self.assertEqual(self.answers(), [("id", False, reason)])

    def test_answers_arrive_in_order(self) -> None:
        self.submit(1)
        self.submit(2, to="nobody")
        self.submit(3)
        self.log.commit()
        self.clock.advance(0)
        self.log.commit()
        self.assertEqual([id for id, _, _ in self.answers()], [2, 1, 3])

    def test_answer_to_a_disconnected_user_raises_nothing(self) -> None:
        self.submit(1)
        self.submit(2)
        self.leave()
        self.log.commit()
        self.clock.advance(0)
        self.log.fail()
        self.submitter.refused(Message("alice", "bo", 3, 1, "hej", 0.0), Reason.BUSY)
        self.assertEqual(len(self.recipient.take()), 1)


class Recorded(SubmitterContract, SynchronousTestCase):
    """The submitter of the tests."""

    submitter: RecordedSubmitter

    def make(self) -> RecordedSubmitter:
        return RecordedSubmitter()

    def answers(self) -> list[Answer]:
        return self.submitter.take()


class OfASocket(SubmitterContract, SynchronousTestCase):
    """The session of a client, which forwards the answers."""

    submitter: Session

    def make(self) -> Session:
        self.connection = RecordedConnection()
        limits, seconds = SendLimits(0, 0, 0, 0), self.clock.seconds
        session = Session(
            self.connection, v1, self.relay, self.directory, limits, seconds, lambda sessid, is_cookie: None
        )
        session.received(json.dumps({"type": "auth-request", "SESSID": "alice"}).encode())
        session.answered(LoggedIn("alice"))
        self.connection.take()
        return session

    def answers(self) -> list[Answer]:
        responses = [frame["response"] for frame in self.connection.take()]
        return [(response["id"], response["value"], response.get("reason")) for response in responses]

    def leave(self) -> None:
        self.connection.close(codes.ENDED)
        self.submitter.closed()
