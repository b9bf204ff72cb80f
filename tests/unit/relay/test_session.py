"""A connection's login state, and what each message does in each state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.sending import SendLimits
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import Denied, LoggedIn, Unavailable
from chatrelay.relay.base_session import State
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.relay.session import Session
from chatrelay.testing import RecordedConnection
from chatrelay.wire import v1

YES = {"type": "auth-response", "response": True}
NO = {"type": "auth-response", "response": False}
RATE_LIMITED = {**NO, "reason": "rate-limited"}
NOT_CONNECTED = "receiving-user-not-connected"


def not_sent(id: object, reason: str) -> object:
    """Return the answer to a message that was not sent."""
    return {"type": "send-request-response", "response": {"id": id, "value": False, "reason": reason}}


class SessionTestCase(SynchronousTestCase):
    """One session, its neighbours, and methods for what its client does."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Directory()
        self.log = MemoryMessageLog()
        self.relay = Relay(self.directory, self.log, self.clock.seconds, lambda call: self.clock.callLater(0, call))
        self.limits = SendLimits(10, 30, 20, 30)
        self.asked: list[str] = []
        self.connection = RecordedConnection()
        self.session = self.session_of(self.connection)

    def session_of(
        self, connection: RecordedConnection, cookie: str | None = None, because: str | None = "no cookie"
    ) -> Session:
        """Return a session whose requests to the session page are kept in `asked`."""
        return Session(
            connection,
            v1,
            self.relay,
            self.directory,
            self.limits,
            self.clock.seconds,
            lambda sessid, is_cookie: self.asked.append(sessid),
            cookie,
            because,
        )

    def say(self, **frame: object) -> list[object]:
        """Send a frame; return what was sent back."""
        self.session.received(json.dumps(frame).encode())
        self.clock.advance(0)
        return self.connection.take()

    def log_in(self, uid: str | int = 1) -> None:
        """Log in the usual way."""
        self.assertEqual(self.say(type="auth-request", SESSID="good"), [])
        self.session.answered(LoggedIn(uid))
        self.assertEqual(self.connection.take(), [YES])

    def send(self, to: object = 1, content: object = "hej", id: object = "i") -> list[object]:
        """Send a message."""
        return self.say(type="message-send-request", id=id, message={"timeStamp": 1, "touID": to, "content": content})


class SessionTests(SessionTestCase):
    """Everything that a visitor can do, step by step."""

    def test_login_sends_one_auth_request_and_answers_true(self) -> None:
        self.log_in("chen")
        self.assertEqual(self.asked, ["good"])
        self.assertEqual(self.directory.connections_of("chen"), (self.connection,))

    def test_answer_to_a_login_comes_before_any_message(self) -> None:
        sender = RecordedConnection()
        other = self.session_of(sender)
        other.received(b'{"type":"auth-request","SESSID":"a"}')
        other.answered(LoggedIn("s"))
        self.say(type="auth-request", SESSID="good")
        self.session.answered(LoggedIn(1))
        other.received(b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":1,"content":""}}')
        self.clock.advance(0)
        self.assertEqual([frame["type"] for frame in self.connection.take()], ["auth-response", "message"])

    def test_login_whose_answer_closes_the_connection_leaves_nothing_in_the_directory(self) -> None:
        def over_budget(payload: bytes) -> bool:
            self.session.closed()
            return False

        self.patch(self.connection, "send", over_budget)
        self.say(type="auth-request", SESSID="good")
        self.session.answered(LoggedIn(1))
        self.assertEqual(len(self.directory), 0)

    def test_third_denial_closes_with_4500(self) -> None:
        for number in range(1, 4):
            self.assertIsNone(self.connection.closed, number)
            self.say(type="auth-request", SESSID="bad")
            self.session.answered(Denied())
            self.assertEqual(self.connection.take(), [NO])
        self.assertEqual(self.connection.closed, (4500, "login refused three times"))
        self.assertEqual(len(self.directory), 0)

    def test_unavailable_session_page_is_not_a_denial(self) -> None:
        for _ in range(5):
            self.say(type="auth-request", SESSID="good")
            self.session.answered(Unavailable("down"))
            self.assertEqual(self.connection.take(), [{**NO, "reason": "webserver-unavailable"}])
        self.assertIsNone(self.connection.closed)
        self.log_in()

    def test_auth_request_while_one_is_pending_is_login_pending(self) -> None:
        self.say(type="auth-request", SESSID="good")
        self.assertEqual(self.say(type="auth-request", SESSID="other"), [{**NO, "reason": "login-pending"}])
        self.assertEqual(self.asked, ["good"])
        self.session.answered(LoggedIn(1))
        self.assertEqual(self.connection.take(), [YES])

    def test_second_login_keeps_the_user_whatever_the_verdict(self) -> None:
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

    def test_message_before_the_login_gets_no_answer(self) -> None:
        self.directory.add("1", RecordedConnection())
        for _ in range(5):
            self.assertEqual(self.send(), [])
            self.assertEqual(self.send(to=None), [])
            self.assertEqual(self.send(to="nobody"), [])
            self.assertEqual(self.send(content="half an emoji \ud83d"), [])
            self.assertEqual(self.say(type="message-send-request"), [])
        self.assertIsNone(self.connection.closed)
        self.assertEqual(self.log.rows, [])

    def test_message_while_the_login_is_pending_gets_no_answer(self) -> None:
        self.say(type="auth-request", SESSID="good")
        self.assertEqual(self.send(), [])
        self.assertEqual(self.send(to=None), [])
        self.session.answered(LoggedIn(1))
        self.assertEqual(self.connection.take(), [YES])
        self.clock.advance(1)
        self.assertEqual((self.connection.take(), self.log.rows), ([], []))

    def test_invalid_message_is_refused_under_its_id(self) -> None:
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

    def test_tenth_unusable_frame_closes_with_4502(self) -> None:
        self.log_in()
        for number in range(10):
            self.assertIsNone(self.connection.closed, number)
            if number % 2:
                self.session.received(b"nonsense")
                self.assertEqual(len(self.connection.take()), 1)
            else:
                self.assertEqual(len(self.send(content=1)), 1)
        self.assertEqual(self.connection.closed, (4502, "ten frames could not be used"))

    def test_session_cookie_is_used_without_a_sessid(self) -> None:
        self.session = self.session_of(self.connection, cookie="from-cookie", because=None)
        self.say(type="auth-request")
        self.assertEqual(self.asked, ["from-cookie"])
        self.session.answered(Denied())
        self.say(type="auth-request", SESSID="given")
        self.assertEqual(self.asked, ["from-cookie", "given"])

    def test_client_without_the_cookie_is_denied_without_a_request(self) -> None:
        self.session = self.session_of(self.connection, cookie=None, because=None)
        self.assertEqual(self.say(type="auth-request"), [NO])
        self.assertEqual(self.asked, [])
        self.say(type="auth-request")
        self.say(type="auth-request")
        assert self.connection.closed is not None
        self.assertEqual(self.connection.closed[0], 4500)

    def test_auth_request_without_sessid_is_invalid_if_no_cookie_is_read(self) -> None:
        (error,) = self.say(type="auth-request")
        self.assertEqual(error, {"type": "error", "reason": "invalid-auth-request", "detail": "no cookie"})

    def test_closed_connection_leaves_nothing_behind(self) -> None:
        self.log_in()
        self.session.closed()
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.say(type="auth-request", SESSID="x"), [])
        self.assertEqual(self.asked, ["good"])
        self.assertIs(self.session.state, State.CLOSED)

    def test_verdict_after_the_close_enters_nothing_in_the_directory(self) -> None:
        self.say(type="auth-request", SESSID="good")
        self.session.closed()
        self.session.answered(LoggedIn(1))
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.connection.take(), [])

    def test_close_during_a_second_login_leaves_nothing_in_the_directory(self) -> None:
        self.log_in()
        self.say(type="auth-request", SESSID="again")
        self.session.closed()
        self.session.answered(LoggedIn(1))
        self.assertEqual(len(self.directory), 0)

    def test_login_timeout_closes_with_4001(self) -> None:
        self.session.login_timed_out()
        self.assertEqual(self.connection.closed, (4001, "not logged in in time"))

    def test_login_timeout_answers_a_pending_login_first(self) -> None:
        self.say(type="auth-request", SESSID="slow")
        self.session.login_timed_out()
        self.assertEqual(self.connection.take(), [{**NO, "reason": "webserver-unavailable"}])
        assert self.connection.closed is not None
        self.assertEqual(self.connection.closed[0], 4001)

    def test_login_timeout_leaves_logged_in_connections_open(self) -> None:
        self.log_in()
        self.session.login_timed_out()
        self.say(type="auth-request", SESSID="again")
        self.session.login_timed_out()
        self.assertIsNone(self.connection.closed)


class Limited(SessionTestCase):
    """How much a session may send, just below and just above each limit."""

    def outcomes(self, count: int, to: object = 1) -> list[str]:
        """Send this many messages at once; return "sent" or the reason of the refusal for each."""
        return [outcome for _ in range(count) for outcome in outcomes_in(self.send(to))]

    def member(self, uid: str | int) -> Member:
        """Return another connection that is logged in."""
        connection = RecordedConnection()
        session = self.session_of(connection)
        session.received(b'{"type":"auth-request","SESSID":"a"}')
        session.answered(LoggedIn(uid))
        connection.take()
        return Member(self, session, connection)

    def test_of_31_messages_at_once_the_last_is_rate_limited_and_ten_more_pass_after_a_second(self) -> None:
        self.log_in()
        self.assertEqual(self.outcomes(31), ["sent"] * 30 + ["rate-limited"])
        self.assertEqual(len(self.log.rows), 30)
        self.clock.advance(1)
        self.assertEqual(self.outcomes(11), ["sent"] * 10 + ["rate-limited"])

    def test_after_three_seconds_a_whole_burst_passes_and_no_more(self) -> None:
        self.log_in()
        for seconds in (3, 1000):
            self.outcomes(40)
            self.clock.advance(seconds)
            self.assertEqual(self.outcomes(31), ["sent"] * 30 + ["rate-limited"])

    def test_rate_limit_of_one_connection_leaves_others_alone(self) -> None:
        bo = self.member("bo")
        self.log_in()
        self.outcomes(60)
        self.assertEqual(bo.outcomes(30), ["sent"] * 30)

    def test_limits_of_zero_do_not_limit(self) -> None:
        for limits in (SendLimits(0, 30, 0, 0), SendLimits(10, 0, 0, 0)):
            self.limits = limits
            self.session, self.connection = self.session_of(connection := RecordedConnection()), connection
            self.log_in()
            self.assertEqual(self.outcomes(500), ["sent"] * 500)
            self.session.closed()

    # Keeping on

    def test_sixty_first_refusal_in_a_row_closes_with_4503(self) -> None:
        self.log_in()
        self.assertEqual(self.outcomes(90), ["sent"] * 30 + ["rate-limited"] * 60)
        self.assertIsNone(self.connection.closed)
        self.assertEqual(self.outcomes(1), ["rate-limited"])
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_twice_the_rate_closes_with_4503(self) -> None:
        self.log_in()
        while not self.connection.closed:
            self.outcomes(1)
            self.clock.advance(1 / 20)
        # Three seconds for the burst, six for the refusals.
        self.assertEqual(round(self.clock.seconds()), 9)
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_client_slightly_above_its_rate_is_never_closed(self) -> None:
        self.log_in()
        told = []
        for _ in range(11 * 100):
            told += self.outcomes(1)
            self.clock.advance(1 / 11)
        self.assertGreater(told.count("rate-limited"), 60)
        self.assertIsNone(self.connection.closed)

    def test_refusals_half_a_second_apart_are_in_a_row_and_those_further_apart_are_not(self) -> None:
        for seconds, closed in ((0.5, (4503, "kept on past the rate limit")), (0.625, None)):
            self.limits = SendLimits(0.001, 1, 0, 0)
            self.session, self.connection = self.session_of(connection := RecordedConnection()), connection
            self.log_in()
            self.outcomes(1)
            for _ in range(61):
                self.clock.advance(seconds)
                self.assertEqual(self.outcomes(1), ["rate-limited"])
            self.assertEqual(self.connection.closed, closed)

    def test_clock_set_back_gives_no_message_and_takes_none(self) -> None:
        self.limits = SendLimits(10, 30, 0, 0)
        self.clock.advance(5000)
        self.session = self.session_of(self.connection)
        self.log_in()
        self.outcomes(30)
        self.clock.rightNow -= 3600
        self.assertEqual(self.outcomes(1), ["rate-limited"])
        self.clock.advance(1)
        self.assertEqual(self.outcomes(11), ["sent"] * 10 + ["rate-limited"])

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40), st.booleans()), max_size=40))
    def test_client_that_backs_off_for_a_second_is_never_closed(self, rounds: list[tuple[int, int, bool]]) -> None:
        """Check that one second of silence is always enough, whatever was pending at the first refusal."""
        self.setUp()
        self.log_in()
        for count, tenths, to_new_recipients in rounds:
            told = [outcome for n in range(count) for outcome in self.outcomes(1, n if to_new_recipients else 1)]
            self.clock.advance(1 if "rate-limited" in told else tenths / 10)
        self.assertIsNone(self.connection.closed)

    # Other frames that count

    def test_unusable_frames_count_towards_the_rate_limit(self) -> None:
        self.log_in()
        for _ in range(5):
            self.send(content=1)
        self.session.received(b"nonsense")
        self.connection.take()
        self.assertEqual(self.outcomes(25), ["sent"] * 24 + ["rate-limited"])

    def test_message_beyond_the_limit_is_not_decoded(self) -> None:
        self.log_in()
        self.outcomes(30)
        self.patch(v1, "decode", lambda payload: self.fail("decoded"))
        self.assertEqual(self.send(id=1), [not_sent(1, "rate-limited")])
        self.assertEqual(self.say(type="auth-request", SESSID="again"), [RATE_LIMITED])
        self.assertEqual(self.asked, ["good"])

    def test_invalid_message_beyond_the_limit_is_rate_limited(self) -> None:
        self.log_in()
        self.outcomes(30)
        limited = [not_sent("i", "rate-limited")]
        for _ in range(10):
            self.assertEqual(self.send(content=1), limited)
            self.assertEqual(self.send(content="half an emoji \ud83d"), limited)
            self.assertEqual(self.say(type="auth-request", SESSID=5), [RATE_LIMITED])
        self.assertIsNone(self.connection.closed)

    def test_frame_beyond_the_limit_that_is_not_a_request_is_unusable(self) -> None:
        self.log_in()
        self.outcomes(30)
        frames = (b"nonsense", b'{"type":"wave"}', b'{"type":"message-send-request","id":[]}')
        for number, frame in enumerate([*frames, *frames, *frames]):
            self.session.received(frame)
            (error,) = self.connection.take()
            reason = ("invalid-json", "unknown-type", "invalid-message")[number % 3]
            self.assertEqual((error["type"], error["reason"]), ("error", reason))
        self.session.received(b"nonsense")
        self.assertEqual(self.connection.closed, (4502, "ten frames could not be used"))

    def test_message_beyond_the_limit_before_the_login_gets_no_answer(self) -> None:
        for _ in range(31):
            self.send()
        self.assertEqual(self.send() + self.send(id=[]) + self.send(content=1), [])
        self.assertEqual(self.say(type="auth-request", SESSID="good"), [RATE_LIMITED])
        self.assertEqual(self.asked, [])

    def test_client_that_floods_before_the_login_is_closed_without_an_answer(self) -> None:
        for _ in range(90):
            self.assertEqual(self.send(), [])
        self.assertIsNone(self.connection.closed)
        self.assertEqual(self.send(to=None), [])
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_login_resets_the_rate_limit(self) -> None:
        for _ in range(29):
            self.send()
        self.log_in()
        self.assertEqual(self.outcomes(31), ["sent"] * 30 + ["rate-limited"])

    def test_auth_requests_while_one_is_pending_count_towards_the_rate_limit(self) -> None:
        pending = {**NO, "reason": "login-pending"}
        self.say(type="auth-request", SESSID="good")
        for _ in range(89):
            self.assertEqual(self.say(type="auth-request", SESSID="good"), [pending])
        self.assertIsNone(self.connection.closed)
        self.assertEqual(self.say(type="auth-request", SESSID="good"), [pending])
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))
        self.assertEqual(self.asked, ["good"])

    def ask_again(self) -> object:
        """Log in once more as the same user, and return the outcome."""
        before = len(self.asked)
        got = self.say(type="auth-request", SESSID="again")
        if len(self.asked) > before:
            self.session.answered(LoggedIn(1))
            got = self.connection.take()
        return got

    def test_session_page_is_asked_ten_times_a_minute_for_a_logged_in_connection(self) -> None:
        self.log_in()
        for _ in range(10):
            self.assertEqual(self.ask_again(), [YES])
        for _ in range(10):
            self.assertEqual(self.ask_again(), [RATE_LIMITED])
        self.assertEqual(self.asked, ["good", *["again"] * 10])
        self.assertTrue(self.session.logged_in)
        self.assertEqual(self.outcomes(1), ["sent"])
        self.clock.advance(5.9)
        self.assertEqual(self.ask_again(), [RATE_LIMITED])
        self.clock.advance(0.2)
        self.assertEqual(self.ask_again(), [YES])
        self.assertEqual(self.ask_again(), [RATE_LIMITED])

    def test_auth_requests_are_limited_per_connection(self) -> None:
        self.log_in()
        for _ in range(11):
            self.ask_again()
        connection = RecordedConnection()
        other = self.session_of(connection)
        other.received(b'{"type":"auth-request","SESSID":"good"}')
        other.answered(LoggedIn(1))
        other.received(b'{"type":"auth-request","SESSID":"good"}')
        other.answered(LoggedIn(1))
        self.assertEqual(connection.take(), [YES, YES])

    def test_auth_requests_beyond_the_limit_close_with_4503(self) -> None:
        self.log_in()
        for _ in range(10):
            self.ask_again()
        for _ in range(60):
            self.clock.advance(0.2)  # within the limit on messages
            self.ask_again()
        self.assertIsNone(self.connection.closed)
        for _ in range(6):
            self.clock.advance(0.2)
            self.ask_again()
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_auth_request_that_is_login_pending_does_not_count_as_reauthentication(self) -> None:
        self.log_in()
        self.say(type="auth-request", SESSID="again")
        for _ in range(12):
            self.assertEqual(self.say(type="auth-request", SESSID="again"), [{**NO, "reason": "login-pending"}])
        self.session.answered(LoggedIn(1))
        self.connection.take()
        for _ in range(9):
            self.assertEqual(self.ask_again(), [YES])

    def test_auth_requests_before_the_login_are_not_limited(self) -> None:
        for _ in range(20):
            self.assertEqual(self.say(type="auth-request", SESSID="good"), [])
            self.session.answered(Unavailable("it is away"))
            self.connection.take()
        self.assertEqual(self.asked, ["good"] * 20)

    def test_messages_after_the_close_count_towards_the_rate_limit(self) -> None:
        self.log_in()
        self.session.closed()
        self.assertEqual([self.session.received_while_closing() for _ in range(91)], [True] * 90 + [False])

    # A user

    def test_connections_of_a_user_share_the_user_limit(self) -> None:
        first, second = self.member(1), self.member(1)
        self.assertEqual(first.outcomes(20) + second.outcomes(10), ["sent"] * 30)
        self.assertEqual(second.outcomes(1), ["rate-limited"])
        self.clock.advance(1)
        told = first.outcomes(10) + second.outcomes(11)
        self.assertEqual(told, ["sent"] * 20 + ["rate-limited"])

    def test_new_connection_does_not_renew_the_user_limit(self) -> None:
        for sent in (30, 0, 0):
            member = self.member(1)
            self.assertEqual(member.outcomes(31), ["sent"] * sent + ["rate-limited"] * (31 - sent))
            member.session.closed()
        self.clock.advance(1)
        self.assertEqual(self.member("1").outcomes(21), ["sent"] * 20 + ["rate-limited"])

    # New recipients

    def test_of_31_new_recipients_the_last_is_rate_limited_connected_or_not(self) -> None:
        self.log_in()
        there = [self.member(f"there-{number}") for number in range(20)]
        for number in range(30):
            present = number % 2
            (told,) = self.outcomes(1, f"{'there' if present else 'nobody'}-{number // 2}")
            self.assertEqual(told, "sent" if present else "receiving-user-not-connected")
        self.clock.advance(1)  # so that it is not the bucket of the connection
        self.assertEqual(self.outcomes(1, "there-15"), ["rate-limited"])
        self.assertEqual(self.outcomes(1, "nobody-15"), ["rate-limited"])
        self.assertEqual(self.outcomes(1, "there-14") + self.outcomes(1, "nobody-14"), ["sent", NOT_CONNECTED])
        self.assertEqual(there[15].connection.sent, [])
        self.clock.advance(1)
        self.assertEqual(self.outcomes(2, "there-15"), ["sent"] * 2)
        self.assertEqual(self.outcomes(1, "there-16"), ["rate-limited"])

    def test_new_connection_does_not_renew_the_limit_of_new_recipients(self) -> None:
        for round in range(3):
            member = self.member(1)
            told = [outcome for number in range(15) for outcome in member.outcomes(1, f"{round}-{number}")]
            self.assertEqual(set(told), {"rate-limited" if round == 2 else NOT_CONNECTED})
            member.session.closed()
            self.clock.advance(0.625)

    def test_uid_written_as_string_or_integer_is_one_recipient(self) -> None:
        self.limits = SendLimits(10, 30, 20, 1)
        member = self.member(1)
        self.assertEqual(member.outcomes(1, 7) + member.outcomes(1, "7"), [NOT_CONNECTED] * 2)
        self.assertEqual(member.outcomes(1, "07"), ["rate-limited"])


class Member:
    """A connection that is logged in."""

    def __init__(self, case: Limited, session: Session, connection: RecordedConnection) -> None:
        self.session = session
        self.connection = connection
        self._case = case

    def outcomes(self, count: int, to: object = 1) -> list[str]:
        """Send this many messages at once; return "sent" or the reason of the refusal for each."""
        request = {"type": "message-send-request", "id": 1, "message": {"timeStamp": 1, "touID": to, "content": ""}}
        for _ in range(count):
            self.session.received(json.dumps(request).encode())
            self._case.clock.advance(0)
        return outcomes_in(self.connection.take())


def outcomes_in(frames: Sequence[Any]) -> list[str]:
    """Return the answers among some frames, each as "sent" or the reason of the refusal."""
    answers = [frame["response"] for frame in frames if frame["type"] == "send-request-response"]
    return [answer.get("reason", "sent") for answer in answers]
