"""Logins of a connection: answers, their time, denials and the limits on them."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel, formatEvent

from chatrelay.auth.throttle import DenialCache
from chatrelay.model import Denied, LoggedIn
from chatrelay.testing import HeldAuthenticator
from chatrelay.websocket.factory import ChatFactory
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase, logged_events, logged_lines
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE


class Logins(WebSocketTestCase):
    """Logins whose answer comes after something else has happened."""

    def setUp(self) -> None:
        super().setUp()
        self.events = logged_events(self)
        self.site = HeldAuthenticator()
        self.factory = self.make_factory(self.site)

    def test_client_that_leaves_cancels_its_login(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        client.lost()
        self.assertEqual(self.site.cancelled, ["alice"])
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_visitor_without_a_login_closes_with_4001_after_login_timeout(self) -> None:
        client = self.client().open()
        self.pass_time(9.5)
        self.assertEqual(client.hear(), [])
        self.pass_time(1)
        self.assertEqual(client.hear(), [(4001, "not logged in in time")])

    def test_login_request_does_not_extend_login_timeout(self) -> None:
        client = self.client().open()
        self.pass_time(9.5)
        client.say_login("slow")
        self.pass_time(1)
        answer, close = client.hear()
        self.assertEqual(answer["reason"], "webserver-unavailable")
        self.assertEqual(close[0], 4001)
        self.assertEqual(self.site.cancelled, ["slow"])

    def test_logged_in_client_outlives_login_timeout(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        self.site.answer(LoggedIn(1))
        self.pass_time(60)
        self.assertEqual(client.hear(), [ADMITTED])

    def test_failing_authenticator_is_logged_and_login_is_unavailable(self) -> None:
        client = self.client().open()
        client.say_login("alice")
        self.site.asked.pop()[1].errback(KeyError("CANARY"))
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")
        (event,) = [event for event in self.events if event.get("log_level") is LogLevel.critical]
        self.assertIn("KeyError", formatEvent(event))
        self.assertNotIn("CANARY", str(event))

    def test_raising_authenticator_is_logged_and_login_is_unavailable(self) -> None:
        self.patch(self.site, "authenticate", {}.__getitem__)
        client = self.client().open()
        client.say_login("CANARY")
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")
        self.assertNotIn("CANARY", str(self.events))


class DeniedLogins(WebSocketTestCase):
    """The limit logins-per-minute; tests/unit/auth/test_throttle.py tests it in detail."""

    def setUp(self) -> None:
        super().setUp()
        self.held = HeldAuthenticator()
        self.factory = self.make_factory(self.held)

    def log_in(self, sessid: str, verdict: Any, client: MemoryClient | None = None) -> Any:
        """Return whether a client logs in, and whether the site was asked."""
        client = client or self.client().open()
        client.say_login(sessid)
        was_asked = bool(self.held.asked)
        if was_asked:
            self.held.answer(verdict)
        return client.hear()[0]["response"], was_asked

    def test_login_after_20_denials_of_its_address_is_denied_without_a_request(self) -> None:
        for number in range(20):
            self.assertEqual(self.log_in(f"guess {number}", Denied()), (False, True))
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (False, False))
        self.clock.advance(3)
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (True, True))
        self.assertEqual(self.log_in("guess", Denied()), (False, True))
        self.assertEqual(self.log_in("guess", Denied()), (False, False))

    def test_denial_without_a_request_to_the_site_counts_for_the_connection(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1)
        client = self.client().open()
        for was_asked in (True, False):
            self.assertEqual(self.log_in("guess", Denied(), client), (False, was_asked))
        client.say_login("guess")
        self.assertEqual(client.hear(), [DENIED, (4500, "login refused three times")])

    def test_login_without_a_cookie_uses_none_of_the_limit(self) -> None:
        self.factory = self.make_factory(
            self.held, logins_per_minute=1, session_cookie="sid", origin=("https://example.com",)
        )
        for _ in range(30):
            client = self.client().open("Origin: https://example.com")
            client.say_login()
            self.assertEqual(client.hear(), [DENIED])
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (True, True))

    def test_logged_in_client_stays_and_is_rechecked_at_the_limit(self) -> None:
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

    def test_reached_limit_is_logged_once(self) -> None:
        told = logged_lines(self)
        for number in range(100):
            self.log_in(f"guess {number}", Denied())
        lines = [line for line in told if "too many logins" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn("too many logins from 192.0.2.1 were denied", lines[0])

    def test_client_that_leaves_while_waiting_for_its_address_is_not_asked_about(self) -> None:
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
        self.assertEqual(len(self.factory.parts.logins.throttle), 0)


class RememberedDenials(WebSocketTestCase):
    """Denials that are remembered, and logins to which they do not apply."""

    def setUp(self) -> None:
        self.held = HeldAuthenticator()
        self.denials = DenialCache(b"key", 5)
        super().setUp()
        self.factory = self.make_factory(self.held)

    def make_factory(self, authenticator: Any = None, **options: Any) -> ChatFactory:
        factory = super().make_factory(authenticator, logins_per_minute=0, **options)
        self.patch(factory.parts.logins.throttle, "_recent", self.denials)
        return factory

    def ask(self, *headers: str, sessid: str | None = None) -> MemoryClient:
        """Return a client that has asked to be logged in."""
        client = self.client().open(*headers)
        client.say_login(sessid)
        return client

    def deny(self, sessid: str) -> None:
        """Have the site deny a session."""
        client = self.ask(sessid=sessid)
        self.held.answer(Denied())
        client.hear()

    def test_remembered_denial_is_repeated_without_a_request(self) -> None:
        self.deny("alice")
        self.assertEqual(self.ask(sessid="alice").hear(), [DENIED])
        self.pass_time(5)
        self.ask(sessid="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_remembered_denial_does_not_answer_a_recheck(self) -> None:
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

    def test_denied_recheck_is_not_remembered(self) -> None:
        self.factory = self.make_factory(self.held, recheck_interval=10)
        alice = self.ask(sessid="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        self.pass_time(13)
        self.held.answer(Denied())
        self.assertEqual(alice.hear(), [(4501, "the session at the site has ended")])
        self.ask(sessid="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_session_ended_from_outside_is_not_remembered_as_denied(self) -> None:
        alice = self.ask(sessid="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        self.assertEqual(self.factory.parts.logins.index.end_session("alice"), 1)
        self.ask(sessid="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_denied_ticket_is_not_remembered_and_a_denied_cookie_is(self) -> None:
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
