"""A connection's login state, and what each message does in it."""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.directory import Directory
from chatrelay.interfaces import Denied, LoggedIn, Unavailable
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.relay import Relay
from chatrelay.session import Session, State
from chatrelay.testing import RecordedConnection

YES = {"type": "auth-response", "response": True}
NO = {"type": "auth-response", "response": False}


class SessionTests(SynchronousTestCase):
    """Everything a visitor can do, step by step."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Directory()
        self.log = MemoryMessageLog()
        self.relay = Relay(self.directory, self.log, self.clock.seconds, lambda call: self.clock.callLater(0, call))
        self.asked: list[str] = []
        self.connection = RecordedConnection()
        self.session = self.session_of(self.connection)

    def session_of(
        self, connection: RecordedConnection, cookie: str | None = None, because: str | None = "no cookie"
    ) -> Session:
        """A session whose questions to the webserver land in `asked`."""
        return Session(connection, self.relay, self.directory, self.asked.append, cookie, because)

    def say(self, **frame: object) -> list[object]:
        """Send a frame; return what was sent back."""
        self.session.received(json.dumps(frame).encode())
        self.clock.advance(0)
        return self.connection.take()

    def log_in(self, uid: str | int = 1) -> None:
        """Log in, by the way everybody does."""
        self.assertEqual(self.say(type="auth-request", SESSID="good"), [])
        self.session.answered(LoggedIn(uid))
        self.assertEqual(self.connection.take(), [YES])

    def send(self, to: object = 1, content: object = "hej", id: object = "i") -> list[object]:
        """Send a message."""
        return self.say(type="message-send-request", id=id, message={"timeStamp": 1, "touID": to, "content": content})

    def test_logging_in(self) -> None:
        self.log_in("chen")
        self.assertEqual(self.asked, ["good"])
        self.assertEqual(self.directory.connections_of("chen"), (self.connection,))

    def test_the_answer_to_a_login_comes_before_any_message(self) -> None:
        sender = RecordedConnection()
        other = self.session_of(sender)
        other.received(b'{"type":"auth-request","SESSID":"a"}')
        other.answered(LoggedIn("s"))
        self.say(type="auth-request", SESSID="good")
        self.session.answered(LoggedIn(1))
        other.received(b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":1,"content":""}}')
        self.clock.advance(0)
        self.assertEqual([frame["type"] for frame in self.connection.take()], ["auth-response", "message"])

    def test_a_login_whose_answer_closes_the_connection_leaves_no_ghost(self) -> None:
        def over_budget(payload: bytes) -> bool:
            self.session.ended()
            return False

        self.patch(self.connection, "send", over_budget)
        self.say(type="auth-request", SESSID="good")
        self.session.answered(LoggedIn(1))
        self.assertEqual(len(self.directory), 0)

    def test_a_denial(self) -> None:
        self.say(type="auth-request", SESSID="bad")
        self.session.answered(Denied())
        self.assertEqual(self.connection.take(), [NO])
        self.assertEqual(len(self.directory), 0)

    def test_the_third_denial_closes(self) -> None:
        for number in range(1, 4):
            self.assertIsNone(self.connection.closed, number)
            self.say(type="auth-request", SESSID="bad")
            self.session.answered(Denied())
            self.assertEqual(self.connection.take(), [NO])
        self.assertEqual(self.connection.closed, (4500, "login refused three times"))

    def test_trouble_with_the_webserver_is_no_denial(self) -> None:
        for _ in range(5):
            self.say(type="auth-request", SESSID="good")
            self.session.answered(Unavailable("down"))
            self.assertEqual(self.connection.take(), [{**NO, "reason": "webserver-unavailable"}])
        self.assertIsNone(self.connection.closed)
        self.log_in()

    def test_a_login_while_one_is_pending(self) -> None:
        self.say(type="auth-request", SESSID="good")
        self.assertEqual(self.say(type="auth-request", SESSID="other"), [{**NO, "reason": "login-pending"}])
        self.assertEqual(self.asked, ["good"])
        self.session.answered(LoggedIn(1))
        self.assertEqual(self.connection.take(), [YES])

    def test_logging_in_again(self) -> None:
        self.log_in(7)
        answers = [
            (LoggedIn("7"), YES),  # "7" and 7 are the same user
            (LoggedIn(8), {**NO, "reason": "already-logged-in"}),
            (Unavailable("down"), {**NO, "reason": "webserver-unavailable"}),
            (Denied(), NO),
        ]
        for verdict, answer in answers:
            self.say(type="auth-request", SESSID="again")
            self.assertEqual(self.say(type="auth-request", SESSID="twice"), [{**NO, "reason": "login-pending"}])
            self.assertEqual(self.send(to="nobody")[0]["response"]["reason"], "receiving-user-not-connected")  # type: ignore[index,call-overload]
            self.session.answered(verdict)
            self.assertEqual(self.connection.take(), [answer])
            self.assertEqual(self.directory.connections_of("7"), (self.connection,))
        self.assertIsNone(self.connection.closed)

    def test_messages_of_visitors_get_nothing(self) -> None:
        self.directory.add("1", RecordedConnection())
        for _ in range(20):
            self.assertEqual(self.send(), [])
            self.assertEqual(self.send(to=None), [])
            self.assertEqual(self.send(to="nobody"), [])
            self.assertEqual(self.send(content="half an emoji \ud83d"), [])
            self.assertEqual(self.say(type="message-send-request"), [])
        self.assertIsNone(self.connection.closed)
        self.assertEqual(self.log.rows, [])

    def test_messages_while_the_login_is_pending_get_nothing(self) -> None:
        self.say(type="auth-request", SESSID="good")
        self.assertEqual(self.send(), [])
        self.assertEqual(self.send(to=None), [])
        self.session.answered(LoggedIn(1))
        self.assertEqual(self.connection.take(), [YES])
        self.clock.advance(1)
        self.assertEqual((self.connection.take(), self.log.rows), ([], []))

    def test_an_invalid_message_is_refused_under_its_id(self) -> None:
        self.log_in()
        refusal = {
            "type": "send-request-response",
            "response": {"id": "i", "value": False, "reason": "invalid-message"},
        }
        self.assertEqual(self.send(content=1), [refusal])
        self.assertEqual(self.send(content="half an emoji \ud83d"), [refusal])
        (error,) = self.send(id=[])
        self.assertEqual((error["type"], error["reason"]), ("error", "invalid-message"))  # type: ignore[index]
        self.assertEqual(sorted(error), ["detail", "reason", "type"])  # type: ignore[call-overload]

    def test_the_tenth_unusable_frame_closes(self) -> None:
        self.log_in()
        for number in range(10):
            self.assertIsNone(self.connection.closed, number)
            if number % 2:
                self.session.received(b"nonsense")
                self.assertEqual(len(self.connection.take()), 1)
            else:
                self.assertEqual(len(self.send(content=1)), 1)
        self.assertEqual(self.connection.closed, (4502, "ten frames could not be used"))

    def test_the_session_cookie_is_used_where_there_is_no_sessid(self) -> None:
        self.session = self.session_of(self.connection, cookie="from-cookie", because=None)
        self.say(type="auth-request")
        self.assertEqual(self.asked, ["from-cookie"])
        self.session.answered(Denied())
        self.say(type="auth-request", SESSID="given")
        self.assertEqual(self.asked, ["from-cookie", "given"])

    def test_a_visitor_without_the_cookie_is_denied_without_asking(self) -> None:
        self.session = self.session_of(self.connection, cookie=None, because=None)
        self.assertEqual(self.say(type="auth-request"), [NO])
        self.assertEqual(self.asked, [])
        self.say(type="auth-request")
        self.say(type="auth-request")
        assert self.connection.closed is not None
        self.assertEqual(self.connection.closed[0], 4500)

    def test_where_no_cookie_is_read_a_sessid_is_needed(self) -> None:
        (error,) = self.say(type="auth-request")
        self.assertEqual(error, {"type": "error", "reason": "invalid-auth-request", "detail": "no cookie"})

    def test_a_connection_that_ends_leaves_nothing_behind(self) -> None:
        self.log_in()
        self.session.ended()
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.say(type="auth-request", SESSID="x"), [])
        self.assertEqual(self.asked, ["good"])
        self.assertIs(self.session.state, State.ENDED)

    def test_a_verdict_that_comes_after_the_end_makes_no_ghost(self) -> None:
        self.say(type="auth-request", SESSID="good")
        self.session.ended()
        self.session.answered(LoggedIn(1))
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.connection.take(), [])

    def test_the_end_while_asking_again_makes_no_ghost(self) -> None:
        self.log_in()
        self.say(type="auth-request", SESSID="again")
        self.session.ended()
        self.session.answered(LoggedIn(1))
        self.assertEqual(len(self.directory), 0)

    def test_the_login_timeout_closes_a_visitor(self) -> None:
        self.session.login_timed_out()
        self.assertEqual(self.connection.closed, (4001, "not logged in in time"))

    def test_the_login_timeout_answers_what_is_pending_first(self) -> None:
        self.say(type="auth-request", SESSID="slow")
        self.session.login_timed_out()
        self.assertEqual(self.connection.take(), [{**NO, "reason": "webserver-unavailable"}])
        assert self.connection.closed is not None
        self.assertEqual(self.connection.closed[0], 4001)

    def test_the_login_timeout_leaves_members_alone(self) -> None:
        self.log_in()
        self.session.login_timed_out()
        self.say(type="auth-request", SESSID="again")
        self.session.login_timed_out()
        self.assertIsNone(self.connection.closed)
