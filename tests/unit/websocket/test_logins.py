"""Logins of a connection: answers, their time, denials and the limits on them."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from chatrelay.auth.throttle import DenialCache
from chatrelay.model import Denied, LoggedIn, Unavailable
from chatrelay.testing import HeldAuthenticator
from chatrelay.websocket.factory import ChatFactory
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase, logged_lines
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE


class Logins(WebSocketTestCase):
    """The webserver's verdict comes later than other things happen."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.webserver = HeldAuthenticator()
        self.factory = self.make_factory(self.webserver)

    def test_leaving_while_the_webserver_thinks_gives_the_question_up(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        client.lost()
        self.assertEqual(self.webserver.cancelled, ["alice"])
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_login_has_its_time(self) -> None:
        client = self.client().open()
        self.pass_time(9.5)
        self.assertEqual(client.hear(), [])
        self.pass_time(1)
        self.assertEqual(client.hear(), [(4001, "not logged in in time")])

    def test_the_time_is_not_prolonged_by_asking(self) -> None:
        client = self.client().open()
        self.pass_time(9.5)
        client.say_login("slow")
        self.pass_time(1)
        answer, close = client.hear()
        self.assertEqual(answer["reason"], "webserver-unavailable")
        self.assertEqual(close[0], 4001)
        self.assertEqual(self.webserver.cancelled, ["slow"])

    def test_who_is_logged_in_stays(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        self.webserver.answer(LoggedIn(1))
        self.pass_time(60)
        self.assertEqual(client.hear(), [ADMITTED])

    def test_an_authenticator_that_fails_is_reported_and_nobody_is_let_in(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        self.webserver.asked.pop()[1].errback(KeyError("CANARY"))
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")
        (event,) = [event for event in self.events if event.get("log_level") is LogLevel.critical]
        self.assertIn("KeyError", formatEvent(event))
        self.assertNotIn("CANARY", str(event))

    def test_an_authenticator_that_raises_is_no_different(self) -> None:
        self.patch(self.webserver, "authenticate", {}.__getitem__)
        client = self.client().open()
        client.say_login("CANARY")
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")
        self.assertNotIn("CANARY", str(self.events))

    def test_trouble_is_answered(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        self.webserver.answer(Unavailable("down"))
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")


class DeniedLogins(WebSocketTestCase):
    """logins-per-minute; tests/unit/auth/test_throttle.py has it in every detail."""

    def setUp(self) -> None:
        super().setUp()
        self.held = HeldAuthenticator()
        self.factory = self.make_factory(self.held)

    def log_in(self, sessid: str, verdict: Any, client: MemoryClient | None = None) -> Any:
        """What a client is answered, and whether anybody was asked."""
        client = client or self.client().open()
        client.say_login(sessid)
        was_asked = bool(self.held.asked)
        if was_asked:
            self.held.answer(verdict)
        return client.hear()[0]["response"], was_asked

    def test_20_denials_of_an_address_and_no_further(self) -> None:
        for number in range(20):
            self.assertEqual(self.log_in(f"guess {number}", Denied()), (False, True))
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (False, False))
        self.clock.advance(3)
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (True, True))
        self.assertEqual(self.log_in("guess", Denied()), (False, True))
        self.assertEqual(self.log_in("guess", Denied()), (False, False))

    def test_one_that_is_not_asked_about_is_a_denial_of_the_connection(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1)
        client = self.client().open()
        for was_asked in (True, False):
            self.assertEqual(self.log_in("guess", Denied(), client), (False, was_asked))
        client.say_login("guess")
        self.assertEqual(client.hear(), [DENIED, (4500, "login refused three times")])

    def test_zero_is_no_limit(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=0)
        for number in range(100):
            self.assertEqual(self.log_in(f"guess {number}", Denied()), (False, True))

    def test_who_has_no_cookie_uses_nothing_up(self) -> None:
        self.factory = self.make_factory(
            self.held, logins_per_minute=1, session_cookie="sid", origin=("https://example.com",)
        )
        for _ in range(30):
            client = self.client().open("Origin: https://example.com")
            client.say_login()
            self.assertEqual(client.hear(), [DENIED])
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (True, True))

    def test_who_is_in_stays_in_and_is_asked_about_again(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1, recheck_interval=10)
        alice = self.client().open()
        self.assertEqual(self.log_in("alice", LoggedIn(1), alice), (True, True))
        self.log_in("guess", Denied())
        self.assertEqual(self.log_in("guess", Denied()), (False, False))
        self.pass_time(13)
        ((sessid, _),) = self.held.asked
        self.assertEqual(sessid, "alice")
        self.held.answer(LoggedIn(1))
        self.assertEqual(alice.hear(), [])

    def test_the_operator_is_told_once(self) -> None:
        told = logged_lines(self)
        for number in range(100):
            self.log_in(f"guess {number}", Denied())
        lines = [line for line in told if "too many logins" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn("too many logins from 192.0.2.1 were denied", lines[0])

    def test_who_leaves_while_waiting_for_others_of_the_address(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1, login_timeout=10)
        first, second, third = (self.client().open() for _ in range(3))
        for client in (first, second, third):
            client.say_login("alice")
        self.assertEqual(len(self.held.asked), 1)
        second.lost()
        self.held.answer(LoggedIn(1))
        self.assertEqual((first.hear(), third.hear()), ([ADMITTED], []))
        self.pass_time(10.5)
        self.assertEqual(
            third.hear(),
            [
                UNAVAILABLE,
                (4001, "not logged in in time"),
            ],
        )
        self.assertEqual(len(self.factory.logins.throttle), 0)


class RememberedDenials(WebSocketTestCase):
    """A denial that is remembered, and whom it does not concern."""

    def setUp(self) -> None:
        self.held = HeldAuthenticator()
        self.denials = DenialCache(b"key", 5)
        super().setUp()
        self.factory = self.make_factory(self.held)

    def make_factory(self, authenticator: Any = None, **options: Any) -> ChatFactory:
        factory = super().make_factory(authenticator, logins_per_minute=0, **options)
        self.patch(factory.logins.throttle, "_recent", self.denials)
        return factory

    def ask(self, *headers: str, sessid: str | None = None) -> MemoryClient:
        """A client that asks to be logged in."""
        client = self.client().open(*headers)
        client.say_login(sessid)
        return client

    def deny(self, sessid: str) -> None:
        """Have a session denied."""
        client = self.ask(sessid=sessid)
        self.held.answer(Denied())
        client.hear()

    def test_it_is_denied_without_asking(self) -> None:
        self.deny("alice")
        self.assertEqual(self.ask(sessid="alice").hear(), [DENIED])
        self.pass_time(5)
        self.ask(sessid="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_a_recheck_is_not_answered_by_it(self) -> None:
        self.factory = self.make_factory(self.held, recheck_interval=10)
        alice = self.ask(sessid="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        # Out at the site for a moment, as another page learns; in again by the time of the re-check.
        self.pass_time(7.5)
        self.deny("alice")
        self.pass_time(4.75)
        self.assertEqual([sessid for sessid, _ in self.held.asked], ["alice"])
        self.held.answer(LoggedIn(1))
        self.assertEqual(alice.hear(), [])

    def test_a_denied_recheck_makes_none(self) -> None:
        self.factory = self.make_factory(self.held, recheck_interval=10)
        alice = self.ask(sessid="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        self.pass_time(13)
        self.held.answer(Denied())
        self.assertEqual(alice.hear(), [(4501, "the session at the site has ended")])
        self.ask(sessid="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_ending_a_session_from_outside_makes_none(self) -> None:
        alice = self.ask(sessid="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        self.assertEqual(self.factory.logins.index.end_session("alice"), 1)
        self.ask(sessid="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_a_ticket_makes_none_and_a_cookie_makes_one(self) -> None:
        self.factory = self.make_factory(
            self.held, auth_tickets=True, session_cookie="sid", origin=("https://example.com",)
        )
        for _ in range(2):
            self.ask(sessid="ticket")
        self.assertEqual(len(self.held.asked), 2)
        self.held.answer(Denied())
        self.held.answer(Denied())
        self.assertEqual(len(self.denials), 0)
        from_a_page = ("Origin: https://example.com", "Cookie: sid=cookie")
        self.ask(*from_a_page)
        self.held.answer(Denied())
        self.assertEqual(self.ask(*from_a_page).hear(), [DENIED])
        self.assertEqual(self.held.asked, [])
