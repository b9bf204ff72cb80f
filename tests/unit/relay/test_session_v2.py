"""What each message of a client of v2 does: logins with an inbox, requests that are answered from the log, limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.sending import READS_PER_SECOND, SendLimits
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import (
    Denied,
    InboxState,
    LogBusy,
    LoggedIn,
    LogUnavailable,
    Mark,
    MarkKind,
    Message,
    Unavailable,
    Verdict,
)
from chatrelay.relay.acquaintance import Acquaintances
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.directory import Directory
from chatrelay.relay.inbox import Inboxes
from chatrelay.relay.reads import MAX_WAITING_READS
from chatrelay.relay.session_v2 import EXCESS_MARK, EXCESS_SECONDS, SessionV2
from chatrelay.relay.v2_parts import V2Parts
from chatrelay.testing import HeldMessageLog, RecordedConnection
from chatrelay.wire import codes, v2
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs_v2 import Limits
from tests.support.v2 import conversations, history, login, message, ping

LIMITS = Limits(16384, 30, 10, 86400)
NO = {"type": "auth-response", "response": False}
ID = "0b9d-4711"


@attrs.define
class RecordedRelay:
    """A relay that keeps what is stored, for the test to answer.

    :ivar stored: the messages, each with its submitter, ``again`` and ``reject``.
    """

    now: Callable[[], float]
    stored: list[tuple[Message, SessionV2, bool, bool | None]] = attrs.field(factory=list)

    def store(self, message: Message, submitter: SessionV2, again: bool, reject: bool | None) -> None:
        """Keep a message."""
        self.stored.append((message, submitter, again, reject))


class SessionV2TestCase(SynchronousTestCase):
    """One session, its neighbours, and methods for what its client does.

    :cvar options: of `Awareness`: whether receipts are sent, and whom a client may watch.
    """

    options: tuple[Any, ...] = (True, "known")

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.log = HeldMessageLog()
        self.directory = Directory()
        self.relay = RecordedRelay(lambda: 1764271000.123)
        self.inboxes = Inboxes(v2, *self.for_inboxes(), self.clock)
        self.limits = SendLimits(10, 30, 20, 30)
        self.asked: list[str] = []
        self.resumed: list[tuple[str, str | None]] = []
        self.charged: list[int] = []
        self.acquaintances = Acquaintances(self.log.reader)
        self.shared = V2Parts(
            self.log,
            self.inboxes,
            LIMITS,
            Awareness(
                v2,
                self.log,
                self.directory,
                self.inboxes,
                self.acquaintances,
                lambda: 1764271000.123,
                self.clock,
                lambda call: self.clock.callLater(0, call),
                *self.options,
            ),
            DeadlineTimer(self.clock, EXCESS_SECONDS, SessionV2.catch_up),
            ("store",),
            5,
        )
        self.connection = RecordedConnection()
        self.session = self.session_of(self.connection)

    def for_inboxes(self) -> tuple[Any]:
        """Return what inboxes are read from."""
        return (self.log,)

    def session_of(
        self, connection: RecordedConnection, cookie: str | None = None, because: str | None = "no cookie"
    ) -> SessionV2:
        """Return a session whose questions to the session page are kept in `asked`."""
        return SessionV2(
            self.shared,
            lambda token, cookie: self.resumed.append((token, cookie)),
            connection,
            v2,
            self.relay,
            self.directory,
            self.limits,
            self.clock.seconds,
            lambda sessid, is_cookie: self.asked.append(sessid),
            cookie,
            because,
            self.charged.append,
        )

    def say(self, value: dict[str, Any], session: SessionV2 | None = None) -> list[Any]:
        """Send a frame; return what was sent back."""
        (session or self.session).received(json.dumps(value).encode())
        return self.connection.take()

    def decide(self, verdict: Verdict, session: SessionV2 | None = None) -> bool:
        """Give a session a verdict, as `chatrelay.auth.login.Logins` does, if it can be prepared at once."""
        session = session or self.session
        preparing = session.prepare(verdict)
        if preparing is not None:
            self.assertNoResult(preparing) if not preparing.called else self.successResultOf(preparing)
        return session.answered(verdict)

    def log_in(self, uid: str | int = 7, **more: Any) -> Any:
        """Log in; return the answer."""
        self.assertEqual(self.say(login("good", **more)), [])
        self.assertTrue(self.decide(LoggedIn(uid)))
        (answer, *_) = self.connection.take()
        return answer

    def keep(self, sender: str | int, recipient: str | int, count: int = 1, content: str = "hej") -> None:
        """Put messages into the log."""
        for number in range(count):
            self.log.append([Message(sender, recipient, f"id-{number:05}", 1, content, 1.0, True)])
            self.log.commit()


class Logins(SessionV2TestCase):
    """Logging in."""

    def test_login_is_answered_with_the_state_of_the_inbox(self) -> None:
        self.keep("8", 7, 3)
        self.assertEqual(
            self.log_in(),
            {
                "type": "auth-response",
                "response": True,
                "uID": "7",
                "epoch": self.log.epoch,
                "n": 3,
                "first": 1,
                "now": 1764271000123,
                "features": ["store"],
                "limits": {"content": 16384, "messageBurst": 30, "messagesPerSecond": 10, "again": 86400},
            },
        )
        self.assertEqual(self.directory.connections_of("7"), (self.connection,))
        assert self.session.cursor is not None
        self.assertEqual(self.session.cursor.place, 3)

    def test_login_waits_for_the_inbox(self) -> None:
        self.log.holds_inboxes = True
        self.say(login("good"))
        preparing = self.session.prepare(LoggedIn(7))
        assert preparing is not None
        self.assertNoResult(preparing)
        self.assertEqual((self.connection.take(), len(self.directory)), ([], 0))
        self.assertEqual(self.say(login("good")), [{**NO, "reason": "login-pending"}])
        self.log.answer_inbox()
        self.successResultOf(preparing)
        self.assertTrue(self.session.answered(LoggedIn(7)))
        self.assertEqual(self.connection.take()[0]["n"], 0)

    def test_log_that_cannot_be_read_refuses_the_login_without_a_denial(self) -> None:
        self.log.holds_inboxes = True
        for _ in range(4):
            self.say(login("good"))
            preparing = self.session.prepare(LoggedIn(7))
            assert preparing is not None
            self.log.fail_inbox()
            self.successResultOf(preparing)
            self.assertFalse(self.session.answered(LoggedIn(7)))
            self.assertEqual(self.connection.take(), [{**NO, "reason": "log-unavailable"}])
        self.assertEqual((len(self.directory), len(self.inboxes), self.connection.closed), (0, 0, None))
        self.log.holds_inboxes = False
        self.assertTrue(self.log_in()["response"])

    def test_defect_of_the_log_is_reported_and_refuses_the_login(self) -> None:
        def defect(user: str) -> Deferred[InboxState]:
            raise ZeroDivisionError

        self.patch(self.log, "inbox", defect)
        self.say(login("good"))
        self.assertFalse(self.decide(LoggedIn(7)))
        self.assertEqual(self.connection.take(), [{**NO, "reason": "log-unavailable"}])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_denial_and_unavailable_page_are_answered_as_in_v1(self) -> None:
        for verdict, reason in ((Unavailable("x"), {"reason": "webserver-unavailable"}), (Denied(), {})):
            self.say(login("bad"))
            self.assertIsNone(self.session.prepare(verdict))
            self.assertFalse(self.session.answered(verdict))
            self.assertEqual(self.connection.take(), [{**NO, **reason}])

    def test_second_login_is_that_of_v1(self) -> None:
        self.keep("8", 7, 3)
        self.log_in()
        self.say(login("good", {"epoch": self.log.epoch, "n": 0}, resume="r"))
        self.assertTrue(self.decide(LoggedIn("7")))
        self.assertEqual(self.connection.take(), [{"type": "auth-response", "response": True}])
        self.say(login("good"))
        self.assertFalse(self.decide(LoggedIn(8)))
        self.assertEqual(self.connection.take(), [{**NO, "reason": "already-logged-in"}])

    def test_login_that_times_out_while_the_inbox_is_loaded_names_the_log(self) -> None:
        self.log.holds_inboxes = True
        self.say(login("good"))
        self.session.prepare(LoggedIn(7))
        self.session.login_timed_out()
        self.assertEqual(self.connection.sent, [{**NO, "reason": "log-unavailable"}])
        self.assertEqual(self.connection.closed, (4001, "not logged in in time"))

    def test_unusable_resume_token_alone_has_expired_and_is_no_denial(self) -> None:
        for because in ("no cookie", None):
            session = self.session_of(self.connection, None, because)
            for resume in ("unknown", 5, "", "r" * 8001, "unknown"):
                self.assertEqual(self.say(login(None, resume=resume), session), [])
                session.resume_failed()
                self.assertEqual(self.connection.take(), [{**NO, "reason": "resume-expired"}])
        self.assertEqual((self.asked, self.connection.closed), ([], None))
        self.assertEqual(self.resumed[:3], [("unknown", None), ("", None), ("", None)])

    def test_unusable_resume_token_leaves_the_rest_of_the_request(self) -> None:
        self.say(login("good", resume="unknown"))
        self.session.resume_failed()
        by_cookie = self.session_of(self.connection, "the cookie")
        self.say(login(None, resume="unknown"), by_cookie)
        by_cookie.resume_failed()
        self.assertEqual(self.asked, ["good", "the cookie"])
        self.assertEqual(self.resumed, [("unknown", None), ("unknown", "the cookie")])
        self.assertEqual(self.connection.take(), [])
        self.decide(Denied())
        self.assertEqual(self.connection.take(), [NO])

    def test_resume_token_logs_in_where_the_client_was(self) -> None:
        self.keep("8", 7, 3)
        self.say(login(None, {"epoch": self.log.epoch, "n": 2}, resume="usable"))
        self.assertEqual((self.connection.take(), self.asked), ([], []))
        self.assertTrue(self.decide(LoggedIn(7)))
        answer, *replayed = self.connection.take()
        self.assertEqual((answer["response"], answer["uID"], answer["recovered"]), (True, "7", True))
        self.assertEqual([frame["n"] for frame in replayed], [3])
        self.session.resume_failed()  # too late
        self.assertEqual((self.connection.take(), self.session.logged_in), ([], True))

    def test_token_that_fails_after_the_inbox_was_loaded_leaves_the_rest_of_the_request(self) -> None:
        self.say(login("good", resume="usable"))
        self.session.prepare(LoggedIn(8))
        self.session.resume_failed()
        self.assertEqual((self.connection.take(), self.asked), ([], ["good"]))
        self.assertTrue(self.decide(LoggedIn(7)))
        self.assertEqual(self.connection.take()[0]["uID"], "7")

    def test_auth_request_while_a_token_is_checked_is_pending(self) -> None:
        self.say(login(None, resume="usable"))
        self.assertEqual(self.say(login("good", resume="usable")), [{**NO, "reason": "login-pending"}])
        self.assertEqual((len(self.resumed), self.asked), (1, []))

    def test_resume_token_of_a_client_that_is_logged_in_is_ignored(self) -> None:
        self.log_in()
        self.say(login("good", resume="usable"))
        self.assertEqual((self.resumed, self.asked), ([], ["good", "good"]))

    def test_log_that_cannot_tell_about_a_token_is_unavailable(self) -> None:
        self.say(login("good", resume="usable"))
        self.session.answered(Unavailable("the log"))
        self.assertEqual(self.connection.take(), [{**NO, "reason": "log-unavailable"}])
        self.say(login("good", resume="usable"))
        self.session.login_timed_out()
        self.assertEqual(self.connection.take(), [{**NO, "reason": "log-unavailable"}])

    def test_client_is_sent_its_tokens(self) -> None:
        self.shared = attrs.evolve(self.shared, token=lambda connection: f"token {connection is self.connection}")
        self.session = self.session_of(self.connection)
        self.session.announce_close(codes.STOPPING, 0)
        self.assertNotIn("resume", self.connection.take()[0])
        self.assertEqual(self.log_in()["resume"], "token True")
        self.session.send_token("another")
        self.assertEqual(self.connection.take(), [{"type": "resume", "resume": "another"}])
        self.session.announce_close(codes.STOPPING, 1.5)
        closing = {"type": "closing", "code": 4000, "retryAfter": 1500, "resume": "token True"}
        self.assertEqual(self.connection.take(), [closing])

    def test_closed_session_keeps_no_token_and_no_session_id(self) -> None:
        self.say(login("good", resume="usable"))
        self.session.closed()
        self.session.resume_failed()
        self.assertEqual((self.connection.take(), self.asked, self.session._request), ([], [], None))
        self.session._resume("usable", None)
        self.assertEqual(len(self.resumed), 1)

    def test_connection_that_closes_leaves_directory_and_inbox(self) -> None:
        self.log_in()
        self.assertEqual(len(self.inboxes), 1)
        self.session.closed()
        self.assertEqual((len(self.inboxes), len(self.directory)), (0, 0))

    def test_connection_that_its_answer_closes_leaves_nothing(self) -> None:
        def over_budget(payload: bytes) -> bool:
            self.session.closed()
            return False

        self.say(login("good"))
        self.patch(self.connection, "send", over_budget)
        self.assertFalse(self.decide(LoggedIn(7)))
        self.assertEqual((len(self.inboxes), len(self.directory)), (0, 0))


class Recovery(SessionV2TestCase):
    """What a client that names its last place is sent."""

    def recover(self, n: Any, epoch: Any = None) -> tuple[Any, list[int]]:
        """Log in with ``after``; return ``recovered``, and the places that follow."""
        connection = self.connection = RecordedConnection()
        session = self.session_of(connection)
        self.say(login("good", {"epoch": self.log.epoch if epoch is None else epoch, "n": n}), session)
        self.decide(LoggedIn(7), session)
        answer, *rest = connection.take()
        session.closed()
        return answer["recovered"], [frame["n"] for frame in rest]

    def test_places_after_the_clients_own_follow(self) -> None:
        self.keep("8", 7, 7)
        for n in (2, 3, 6):
            self.assertEqual(self.recover(n), (True, list(range(n + 1, 8))))
        self.assertEqual(self.recover(7), (True, []))

    def test_place_that_is_too_far_behind_or_too_far_ahead_is_not_recovered(self) -> None:
        self.keep("8", 7, 7)
        self.assertEqual(self.recover(1), (False, []))  # six are missed, and five may be replayed
        self.assertEqual(self.recover(8), (False, []))
        self.assertEqual(self.recover(-1), (False, []))
        self.assertEqual(self.recover("2"), (False, []))

    def test_place_of_another_epoch_is_not_recovered(self) -> None:
        self.keep("8", 7, 3)
        self.assertEqual(self.recover(2, "another"), (False, []))
        self.assertEqual(self.recover(2, ""), (False, []))

    def test_place_before_the_first_one_that_is_kept_is_not_recovered(self) -> None:
        self.keep("8", 7, 7)
        of_log = self.log.inbox

        def trimmed(user: str) -> Deferred[InboxState]:
            return of_log(user).addCallback(lambda state: attrs.evolve(state, first=5))

        self.patch(self.log, "inbox", trimmed)
        self.assertEqual(self.recover(3), (False, []))
        self.assertEqual(self.recover(4), (True, [5, 6, 7]))

    def test_no_limit_replays_everything(self) -> None:
        self.shared = attrs.evolve(self.shared, replay_messages=0)
        self.keep("8", 7, 20)
        self.assertEqual(self.recover(0), (True, list(range(1, 21))))

    def test_unsettled_place_is_neither_told_nor_replayed(self) -> None:
        self.keep("8", 7, 5)
        self.inboxes.hold("7", 4)
        self.say(login("good", {"epoch": self.log.epoch, "n": 1}))
        self.decide(LoggedIn(7))
        answer, *rest = self.connection.take()
        self.assertEqual((answer["n"], answer["recovered"], [frame["n"] for frame in rest]), (3, True, [2, 3]))
        self.assertEqual(self.say(ping()), [{"type": "pong", "id": "p", "last": 3}])
        self.inboxes.release_void("7", 4)
        self.assertEqual([frame["n"] for frame in self.connection.take()], [4, 5])

    def test_denied_login_forgets_the_place(self) -> None:
        self.keep("8", 7, 3)
        self.say(login("bad", {"epoch": self.log.epoch, "n": 1}))
        self.decide(Denied())
        self.connection.take()
        self.assertNotIn("recovered", self.log_in())


class Silence(SessionV2TestCase):
    """Before the login."""

    def test_only_auth_requests_and_pings_are_answered(self) -> None:
        for value in (
            message("8"),
            message(None),
            {"type": "message-send-request"},
            history("8"),
            history(None),
            {"type": "history-request"},
            conversations(),
            conversations(limit=0),
            {"type": "received", "received": 1},
            {"type": "received"},
            {"type": "read", "with": "8", "read": 1},
            {"type": "typing", "touID": "8"},
            {"type": "typing"},
            {"type": "presence-request", "id": 1, "of": ["8"]},
            {"type": "presence-request", "id": 1},
            {"type": "wave"},
        ):
            self.assertEqual(self.say(value), [], value)
        self.assertEqual(self.relay.stored, [])
        self.assertEqual(self.say(ping()), [{"type": "pong", "id": "p"}])

    def test_frames_that_are_no_request_are_unusable(self) -> None:
        for value, reason in (
            ({}, "unknown-type"),
            ({"type": "ping"}, "invalid-request"),
            ({"type": "auth-request", "SESSID": 5}, "invalid-auth-request"),
        ):
            ((answer),) = self.say(value)
            self.assertEqual((answer["type"], answer["reason"]), ("error", reason))
        self.session.received(b"junk")
        self.assertEqual(self.connection.take()[0]["reason"], "invalid-json")

    def test_requests_that_exceed_the_limit_close_without_an_answer(self) -> None:
        for _ in range(30 + 60):
            self.assertEqual(self.say(history("8")), [])
        self.assertIsNone(self.connection.closed)
        self.say(history("8"))
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_auth_request_that_exceeds_the_limit_is_rate_limited(self) -> None:
        for _ in range(30):
            self.say({"type": "wave"})
        self.assertEqual(self.say(login("good")), [{**NO, "reason": "rate-limited"}])
        self.assertEqual(self.asked, [])


class Sending(SessionV2TestCase):
    """Sending messages."""

    def test_message_is_stored_by_the_relay_with_its_flags(self) -> None:
        self.log_in()
        for more, again, reject in (
            ({}, False, None),
            ({"again": True}, True, None),
            ({"again": 1, "offline": "store"}, False, False),
            ({"offline": "reject"}, False, True),
        ):
            self.assertEqual(self.say(message(8, "hej", ID, 5, **more)), [])
            stored, submitter, *flags = self.relay.stored.pop()
            self.assertEqual(
                (stored.from_uid, stored.to_uid, stored.client_id, stored.time_stamp, stored.content),
                (7, 8, ID, 5, "hej"),
            )
            self.assertEqual((stored.received_at, stored.has_unique_id), (1764271000.123, True))
            self.assertEqual((submitter, flags), (self.session, [again, reject]))
            self.assertIs(submitter.connection, self.connection)

    def test_answer_moves_the_cursor_if_its_place_is_the_next_one(self) -> None:
        self.log_in()
        self.say(message(8, id=ID))
        sent = self.relay.stored[0][0]
        self.session.stored(sent, 1, 1764271000123456, True)
        response = {"id": ID, "value": True, "n": 1, "at": 1764271000123, "delivery": "delivered"}
        self.assertEqual(self.connection.take(), [{"type": "send-request-response", "response": response}])
        assert self.session.cursor is not None
        self.assertEqual(self.session.cursor.place, 1)
        self.session.stored(sent, 5, 1764271000123456, False)
        self.assertEqual(self.connection.take()[0]["response"]["delivery"], "stored")
        self.assertEqual(self.session.cursor.place, 1)

    def test_refusal_has_its_reason(self) -> None:
        self.log_in()
        self.say(message(8, id=ID))
        self.session.refused(self.relay.stored[0][0], Reason.BUSY)
        response = {"id": ID, "value": False, "reason": "busy"}
        self.assertEqual(self.connection.take(), [{"type": "send-request-response", "response": response}])

    def test_unknown_outcome_closes_with_4005(self) -> None:
        self.log_in()
        self.say(message(8, id=ID))
        self.session.unknown(self.relay.stored[0][0])
        self.assertEqual(self.connection.closed, (4005, "the message log was lost or can't be read"))

    def test_answer_after_the_connection_has_closed_changes_nothing(self) -> None:
        self.log_in()
        self.say(message(8, id=ID))
        self.session.closed()
        self.connection.close(codes.STOPPING)
        self.session.stored(self.relay.stored[0][0], 1, 5, True)
        self.assertEqual(self.connection.take(), [])

    def test_limits_of_a_connection_and_of_a_user_refuse_with_rate_limited(self) -> None:
        self.log_in()
        refused = {"type": "send-request-response", "response": {"id": ID, "value": False, "reason": "rate-limited"}}
        for number in range(30):
            self.assertEqual(self.say(message(number, id=ID)), [])
        self.assertEqual(self.say(message(1, id=ID)), [refused])
        self.clock.advance(3)
        self.assertEqual(self.say(message(1, id=ID)), [])
        self.assertEqual([self.say(message(number, id=ID)) for number in (31, 32)], [[], [refused]])  # a new recipient

    def test_unusable_message_is_refused_under_its_id_and_counted(self) -> None:
        self.log_in()
        for _ in range(9):
            (answer,) = self.say(message(None, id=ID))
            self.assertEqual(answer["response"]["reason"], "invalid-message")
        (answer,) = self.say({"type": "message-send-request"})
        self.assertEqual((answer["type"], answer["reason"]), ("error", "invalid-message"))
        self.assertEqual(self.connection.closed, (4502, "ten frames could not be used"))


class Reading(SessionV2TestCase):
    """Requests that are answered from the log."""

    def setUp(self) -> None:
        super().setUp()
        self.keep("8", 7, 3)
        self.keep(7, "9", 2)
        self.log_in()

    def response(self, value: dict[str, Any]) -> Any:
        """Send a request; return the response."""
        (answer,) = self.say(value)
        self.assertEqual(answer["type"], value["type"].replace("request", "response"))
        return answer["response"]

    def test_history_has_the_messages_newest_first(self) -> None:
        found = self.response(history(8, "h1", limit=2))
        self.assertEqual([each["n"] for each in found.pop("messages")], [3, 2])
        marks = {"received": 0, "read": 0, "readByMe": 0}
        self.assertEqual(found, {"id": "h1", "value": True, "with": "8", "more": True, **marks})
        self.assertEqual([each["n"] for each in self.response(history(8, before=2))["messages"]], [1])
        self.assertEqual([each["n"] for each in self.response(history(8, after=1))["messages"]], [2, 3])
        self.assertEqual(self.response(history("nobody"))["messages"], [])

    def test_request_after_a_change_of_the_epoch_closes_with_4005_and_does_nothing(self) -> None:
        for request in (history(8), conversations(), {"type": "received", "received": 5}, ping()):
            self.setUp()
            self.log.epoch = "another"
            self.assertEqual((self.say(request), self.connection.closed), ([], codes.LOG_LOST))
            self.clock.advance(0)
            self.assertEqual(self.log.marks, {})

    def test_answer_of_another_epoch_is_not_sent(self) -> None:
        self.log.reader.holds = True
        self.say(history(8))
        self.log.epoch = "another"
        while self.log.reader.waiting:
            self.log.reader.answer()
        self.assertEqual((self.connection.take(), self.connection.closed), ([], codes.LOG_LOST))

    def test_conversations_have_their_last_messages_and_what_is_unread(self) -> None:
        self.log.save_marks([Mark("7", MarkKind.READ, "8", 2)])
        found = self.response(conversations("c1"))
        told = [(each["with"], each["n"], each["unread"], each["readByMe"]) for each in found["conversations"]]
        self.assertEqual((told, found["more"]), ([("9", 5, 0, 0), ("8", 3, 1, 2)], False))
        found = self.response(conversations(limit=1))
        self.assertEqual((len(found["conversations"]), found["more"]), (1, True))
        self.assertEqual([each["with"] for each in self.response(conversations(before=5))["conversations"]], ["8"])

    def test_conversation_with_oneself_is_one(self) -> None:
        self.keep(7, 7)
        self.clock.advance(1)
        self.inboxes.grew("7", 6)
        self.connection.take()
        found = self.response(conversations())["conversations"]
        self.assertEqual([each["with"] for each in found], ["7", "9", "8"])

    def test_no_answer_passes_an_unsettled_place(self) -> None:
        self.inboxes.hold("7", 3)
        self.assertEqual([each["n"] for each in self.response(history(8))["messages"]], [2, 1])
        self.assertEqual([each["n"] for each in self.response(conversations())["conversations"]], [2])

    def test_reads_are_done_one_after_the_other_and_in_order(self) -> None:
        self.log.reader.holds = True
        self.assertEqual(self.say(history(8, "a")) + self.say(conversations("b")), [])
        self.assertEqual(len(self.log.reader.waiting), 1)
        order = []
        while self.log.reader.waiting:
            self.assertEqual(len(self.log.reader.waiting), 1)
            self.log.reader.answer()
            order += [answer["response"]["id"] for answer in self.connection.take()]
        self.assertEqual(order, ["a", "b"])

    def test_ninth_read_that_would_wait_is_busy(self) -> None:
        self.log.reader.holds = True
        answers = []
        for number in range(1 + MAX_WAITING_READS + 1):
            self.clock.advance(1)
            answers += self.say(history(8, number))
        response = {"id": 1 + MAX_WAITING_READS, "value": False, "reason": "busy"}
        self.assertEqual(answers, [{"type": "history-response", "response": response}])

    def test_log_that_cannot_be_read_is_log_unavailable_and_a_busy_one_busy(self) -> None:
        self.log.reader.holds = True
        for error, reason in ((LogUnavailable("gone"), "log-unavailable"), (LogBusy("many"), "busy")):
            for request in (history(8, "i"), conversations("i")):
                self.clock.advance(1)
                self.say(request)
                self.log.reader.fail(error)
                (answer,) = self.connection.take()
                self.assertEqual(answer["response"], {"id": "i", "value": False, "reason": reason})

    def test_defect_of_the_reader_is_reported_and_answered(self) -> None:
        def defect(*_: object, **__: object) -> Deferred[Any]:
            raise ZeroDivisionError

        self.patch(self.log.reader, "history", defect)
        self.assertEqual(self.response(history(8, "i")), {"id": "i", "value": False, "reason": "log-unavailable"})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_sixth_request_of_a_user_within_a_second_is_rate_limited(self) -> None:
        other = RecordedConnection()
        session = self.session_of(other)
        self.say(login("good"), session)
        self.decide(LoggedIn("7"), session)
        other.take()
        for _ in range(READS_PER_SECOND - 1):
            self.assertTrue(self.response(history(8))["value"])
        session.received(json.dumps(conversations("c")).encode())
        self.assertTrue(other.take()[0]["response"]["value"])
        self.assertEqual(self.response(history(8)), {"id": "h", "value": False, "reason": "rate-limited"})
        self.assertEqual(self.response(conversations())["reason"], "rate-limited")
        self.clock.advance(0.25)
        self.assertTrue(self.response(history(8))["value"])

    def test_unusable_requests_are_refused_under_their_ids_and_do_not_count(self) -> None:
        for _ in range(11):
            self.assertEqual(
                self.response(history(None, "i")), {"id": "i", "value": False, "reason": "invalid-request"}
            )
            self.assertEqual(self.response(conversations("i", limit=0))["reason"], "invalid-request")
        self.assertIsNone(self.connection.closed)

    def test_request_without_a_readable_id_is_an_unusable_frame(self) -> None:
        for number in range(10):
            self.assertIsNone(self.connection.closed)
            (answer,) = self.say(history(8, [number]))
            self.assertEqual((answer["type"], answer["reason"]), ("error", "invalid-request"))
        self.assertEqual(self.connection.closed, (4502, "ten frames could not be used"))

    def test_requests_that_exceed_the_limit_of_messages_are_rate_limited_whatever_is_wrong_with_them(self) -> None:
        for _ in range(30):
            self.say({"type": "wave"})
        for request in (history(8, "i"), history(None, "i"), conversations("i"), conversations("i", limit=0)):
            self.assertEqual(self.response(request), {"id": "i", "value": False, "reason": "rate-limited"})
        for _ in range(60 - 4):
            self.say(history(8))
        self.assertIsNone(self.connection.closed)
        self.say(history(8))
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_reads_that_wait_are_forgotten_when_the_connection_closes(self) -> None:
        self.log.reader.holds = True
        self.say(history(8, "a"))
        self.say(history(8, "b"))
        self.session.closed()
        while self.log.reader.waiting:
            self.log.reader.answer()
        self.assertLessEqual(len(self.connection.take()), 1)


class Pings(SessionV2TestCase):
    """Pings, marks, and the features that are off."""

    def test_ping_is_answered_with_the_last_place_and_without_a_read(self) -> None:
        self.keep("8", 7, 3)
        self.log_in()
        self.log.reader.holds = True
        self.assertEqual(self.say(ping("x")), [{"type": "pong", "id": "x", "last": 3}])

    def test_pings_beyond_the_bucket_of_the_marks_are_not_answered_and_close_nothing(self) -> None:
        self.log_in()
        for _ in range(30):
            self.assertEqual(len(self.say(ping())), 1)
        for _ in range(200):
            self.assertEqual(self.say(ping()), [])
        self.assertIsNone(self.connection.closed)
        self.assertEqual(self.charged, [EXCESS_MARK] * 200)
        self.assertEqual(self.say(message(8)), [])  # a message has its own bucket
        self.assertEqual(len(self.relay.stored), 1)

    def test_marks_take_nothing_from_the_bucket_of_messages_and_are_activity(self) -> None:
        self.log_in()
        level = self.session.messages_level
        self.say({"type": "typing", "touID": "8"})
        self.assertNotEqual(self.session.messages_level, level)
        for _ in range(30):
            self.say(ping())
        for _ in range(30):
            self.say(message(8))
        self.assertEqual(len(self.relay.stored), 30)

    def test_unusable_mark_is_an_unusable_frame(self) -> None:
        self.log_in()
        for value in ({"type": "received"}, {"type": "read"}, {"type": "typing"}, ping(None)):
            (answer,) = self.say(value)
            self.assertEqual((answer["type"], answer["reason"]), ("error", "invalid-request"))

    def test_unknown_type_is_ignored_but_counted_as_a_message(self) -> None:
        self.log_in()
        for _ in range(30 + 60):
            self.assertEqual(self.say({"type": "wave"}), [])
        self.assertIsNone(self.connection.closed)
        self.say({"type": "wave"})
        self.assertEqual(self.connection.closed, (4503, "kept on past the rate limit"))

    def test_large_message_is_charged(self) -> None:
        self.say({"type": "wave", "x": "\\" * 30_000})
        self.assertEqual(len(self.charged), 1)

    def test_client_is_told_when_to_come_back(self) -> None:
        self.session.announce_close(codes.STOPPING, 1.5)
        self.assertEqual(self.connection.take(), [{"type": "closing", "code": 4000, "retryAfter": 1500}])
        self.session.closed()
        self.session.announce_close(codes.STOPPING, 1.5)
        self.assertEqual(self.connection.take(), [])


class Marks(SessionV2TestCase):
    """Marks, watches and typing of a client, and those beyond their limit."""

    def setUp(self) -> None:
        super().setUp()
        self.keep(8, 7, 49)
        self.keep(7, 9)
        self.log_in()

    def marks(self) -> dict[Any, int]:
        """Return the marks that the user has set and that are kept, after a moment."""
        self.clock.advance(0)
        kinds = (MarkKind.RECEIVED, MarkKind.READ)
        return {
            (kind, peer): value for (user, kind, peer), value in self.log.marks.items() if kind in kinds and user == "7"
        }

    def use_up(self) -> None:
        """Take all tokens of the marks."""
        for _ in range(30):
            self.say({"type": "typing", "touID": 9})

    def refill(self) -> list[Any]:
        """Wait until there is room for a few marks; return what was sent."""
        for _ in range(10):
            self.clock.advance(0.125)
        return self.connection.take()

    def test_marks_are_kept(self) -> None:
        self.assertEqual(self.say({"type": "received", "received": 48}), [])
        self.say({"type": "read", "with": 8, "read": 1000})
        self.assertEqual(self.marks(), {(MarkKind.RECEIVED, ""): 48, (MarkKind.READ, "8"): 50})

    def test_marks_before_the_login_do_nothing(self) -> None:
        other = self.session_of(self.connection)
        for request in ({"type": "received", "received": 48}, {"type": "read", "with": 8, "read": 9}):
            self.assertEqual(self.say(request, other), [])
        self.say({"type": "typing", "touID": 7}, other)
        self.say({"type": "presence-request", "id": "p", "of": ["8"]}, other)
        self.assertEqual((self.marks(), self.connection.take()), ({}, []))

    def test_marks_beyond_the_limit_count_later_the_greatest_of_each_conversation(self) -> None:
        self.use_up()
        for place in (3, 48, 47):
            self.assertEqual(self.say({"type": "received", "received": place}), [])
        for peer, place in ((8, 5), ("9", 7), ("8", 4)):
            self.say({"type": "read", "with": peer, "read": place})
        self.assertEqual(self.marks(), {})
        self.refill()
        self.assertEqual(
            self.marks(),
            {(MarkKind.RECEIVED, ""): 48, (MarkKind.READ, "8"): 5, (MarkKind.READ, "9"): 7},
        )
        self.assertIsNone(self.connection.closed)

    def test_request_to_watch_beyond_the_limit_is_answered_later_and_the_ones_before_it_are_refused(self) -> None:
        self.use_up()
        for number in range(3):
            self.say({"type": "presence-request", "id": number, "of": ["8"] * number})
        self.assertEqual(
            self.refill(),
            [{"type": "presence-response", "response": {"id": 2, "value": True, "online": [], "offline": {"8": None}}}],
        )
        self.assertIsNone(self.connection.closed)

    def test_requests_that_are_replaced_are_answered_at_once(self) -> None:
        self.use_up()
        heard = [self.say({"type": "presence-request", "id": number, "of": []}) for number in range(3)]
        refused = [
            {"type": "presence-response", "response": {"id": number, "value": False, "reason": "rate-limited"}}
            for number in range(2)
        ]
        self.assertEqual(heard, [[], [refused[0]], [refused[1]]])

    def test_latest_ping_beyond_the_limit_is_answered_later_and_typing_is_left_out(self) -> None:
        self.use_up()
        self.say(ping("one"))
        self.say(ping("two"))
        self.say({"type": "typing", "touID": 8})
        self.assertEqual(self.refill(), [{"type": "pong", "id": "two", "last": 50}])

    def test_mark_after_those_that_wait_keeps_its_turn(self) -> None:
        self.use_up()
        self.say({"type": "presence-request", "id": "one", "of": ["8"]})
        self.clock.advance(0.2)  # there is a token, but the earlier one still waits
        self.assertEqual(len(self.say({"type": "presence-request", "id": "two", "of": []})), 1)
        self.assertEqual([frame["response"]["id"] for frame in self.refill()], ["two"])

    def test_marks_that_wait_are_forgotten_when_the_connection_closes(self) -> None:
        self.use_up()
        self.say({"type": "received", "received": 48})
        self.session.closed()
        self.assertEqual((self.refill(), self.marks().get((MarkKind.RECEIVED, ""))), ([], None))

    def test_flood_of_marks_is_read_slowly(self) -> None:
        self.use_up()
        self.say({"type": "received", "received": 1})
        self.assertEqual(self.charged, [EXCESS_MARK])

    def test_watches_are_counted_with_the_other_reads_and_close_nothing(self) -> None:
        for number in range(READS_PER_SECOND + 80):
            (answer,) = self.say({"type": "presence-request", "id": number, "of": []}) or [None]
            if number < READS_PER_SECOND:
                self.assertTrue(answer["response"]["value"])
            elif number < 30:
                self.assertEqual(answer["response"]["reason"], "rate-limited")
        self.assertIsNone(self.connection.closed)

    def test_watched_users_are_named_by_their_keys(self) -> None:
        (answer,) = self.say({"type": "presence-request", "id": "p", "of": [8, "8", 9]})
        self.assertEqual(answer["response"], {"id": "p", "value": True, "online": [], "offline": {"8": None}})

    def test_watching_fails_if_the_log_can_not_be_read(self) -> None:
        self.log.reader.holds = True
        self.say({"type": "presence-request", "id": "p", "of": [8]})
        self.log.reader.fail()
        self.assertEqual(
            self.connection.take()[0]["response"], {"id": "p", "value": False, "reason": "log-unavailable"}
        )


class MarksSwitchedOff(SessionV2TestCase):
    """``--receipts off --presence off``."""

    options = (False, "off")

    def test_watching_is_refused_and_no_feature_is_there(self) -> None:
        self.log_in()
        (answer,) = self.say({"type": "presence-request", "id": "p", "of": [8]})
        self.assertEqual(answer["response"], {"id": "p", "value": False, "reason": "invalid-request"})
        self.assertEqual(self.shared.awareness.features, ["typing"])

    def test_history_has_only_ones_own_mark(self) -> None:
        self.keep(8, 7)
        self.log_in()
        self.say({"type": "read", "with": 8, "read": 1})
        (answer,) = self.say(history(8))
        self.assertEqual(
            {name: value for name, value in answer["response"].items() if name in ("received", "read", "readByMe")},
            {"readByMe": 1},
        )
