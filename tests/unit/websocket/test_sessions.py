"""Sessions that end at the site, are rechecked, or have other names than their SESSID."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, formatEvent

from chatrelay.model import Denied, LoggedIn, Verdict
from chatrelay.testing import HeldAuthenticator, KnownSessions
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase, logged_events
from tests.support.v1 import ADMITTED


class EndedFromOutside(WebSocketTestCase):
    """Sessions that the operator or the site ends."""

    CLOSED = (4505, "ended by the operator or the site")

    def test_ended_user_or_session_closes_with_4505(self) -> None:
        alice, tab, bo = (self.client().open().log_in(name) for name in ("alice", "alice", "bo"))
        self.assertEqual(self.factory.parts.logins.index.end_session("alice"), 2)
        self.assertEqual([client.hear() for client in (alice, tab, bo)], [[self.CLOSED], [self.CLOSED], []])
        self.assertEqual(self.factory.parts.logins.index.end_user(2), 1)
        self.assertEqual(bo.hear(), [self.CLOSED])
        self.assertEqual((len(self.directory), len(self.factory.parts.logins.index)), (0, 0))

    def test_ended_session_neither_sends_nor_receives(self) -> None:
        alice, bo = (self.client().open().log_in(name) for name in ("alice", "bo"))
        self.factory.parts.logins.index.end_user(1)
        alice.send(2)
        bo.send(1)
        self.clock.advance(0)
        self.assertEqual(alice.hear(), [self.CLOSED])
        self.assertEqual(bo.hear()[0]["response"]["reason"], "receiving-user-not-connected")
        self.assertEqual(self.log.rows, [])

    def test_login_in_progress_closes_with_4505_when_its_session_ends(self) -> None:
        site = HeldAuthenticator()
        self.factory = self.make_factory(site)
        by_sessid, by_user, other = (self.client().open() for _ in range(3))
        by_sessid.say_login("a")
        by_user.say_login("b")
        other.say_login("c")
        self.assertEqual(self.factory.parts.logins.index.end_session("a"), 1)
        self.assertEqual(site.cancelled, ["a"])
        self.assertEqual(by_sessid.hear(), [self.CLOSED])
        self.assertEqual(self.factory.parts.logins.index.end_user(7), 0)
        site.answer(LoggedIn(7))  # as the site saw it before
        site.answer(LoggedIn(8))
        self.assertEqual([by_user.hear(), other.hear()], [[self.CLOSED], [ADMITTED]])
        self.assertEqual((len(self.directory), len(self.factory.parts.logins.index)), (1, 1))

    def test_connection_ends_by_the_sessid_of_its_last_login(self) -> None:
        self.factory = self.make_factory(KnownSessions({"old": 1, "new": 1, "another": 2}))
        client = self.client().open().log_in("old").log_in("new")
        client.say_login("another")
        client.say_login("unknown")
        self.assertEqual([answer["response"] for answer in client.hear()], [False, False])
        self.assertEqual(
            [self.factory.parts.logins.index.end_session(name) for name in ("old", "another", "unknown")], [0, 0, 0]
        )
        self.assertEqual(self.factory.parts.logins.index.end_session("new"), 1)


class RecheckedSessions(WebSocketTestCase):
    """Rechecks of sessions that are logged in."""

    GONE = (4501, "the session at the site has ended")

    def test_session_that_ended_at_the_site_closes_with_4501_at_its_recheck(self) -> None:
        known = KnownSessions({"alice": 1, "bo": 2})
        self.factory = self.make_factory(known)
        alice, tab, bo = (self.client().open().log_in(name) for name in ("alice", "alice", "bo"))
        known.users = {"bo": 2}
        self.pass_time(239)
        self.assertEqual([client.hear() for client in (alice, tab, bo)], [[], [], []])
        self.pass_time(122)
        self.assertEqual([client.hear() for client in (alice, tab, bo)], [[self.GONE], [self.GONE], []])
        self.assertEqual(
            (len(self.directory), len(self.factory.parts.logins.index), len(self.factory.parts.logins.rechecks)),
            (1, 1, 1),
        )

    def test_rechecks_are_spread_over_the_interval(self) -> None:
        for spread, chance, due in ((0.0, 0.0, 100), (50.0, 0.0, 50), (50.0, 1.0, 150)):
            self.chance = chance
            known = KnownSessions({"alice": 1})
            self.factory = self.make_factory(known, recheck_interval=100, recheck_spread=spread)
            alice = self.client().open().log_in("alice")
            known.users = {}
            self.pass_time(due - 1)
            self.assertEqual(alice.hear(), [])
            self.pass_time(2.5)
            self.assertEqual(alice.hear(), [self.GONE])

    def test_failing_authenticator_is_logged_and_users_stay(self) -> None:
        events = logged_events(self)
        known = KnownSessions({"alice": 1})
        self.factory = self.make_factory(known, recheck_interval=300)
        alice = self.client().open().log_in("alice")
        self.patch(known, "authenticate", {"x": 1}.__getitem__)
        self.pass_time(361)
        self.assertEqual(alice.hear(), [])
        told = [formatEvent(event) for event in events if event.get("log_level") is LogLevel.critical]
        self.assertEqual(len(told), 1)
        self.assertIn("KeyError", told[0])
        self.assertNotIn("alice", str(events))

    def test_rechecks_leave_some_requests_to_logins(self) -> None:
        for checks, most in ((32, 8), (4, 1), (1, 1), (0, 8)):
            site = HeldAuthenticator()
            self.factory = self.make_factory(site, webserver_checks=checks)
            for number in range(20):
                self.client().open().say_login(str(number))
                site.answer(LoggedIn(number))
            self.pass_time(361)
            self.assertEqual(len(site.asked), most)


class Handles(WebSocketTestCase):
    """Names of a session for re-checks and for ending it."""

    def log_in(self, verdict: LoggedIn, *headers: str, **options: Any) -> MemoryClient:
        """Return a client that logged in by "sid" and whose re-check is due."""
        self.site = HeldAuthenticator()
        self.factory = self.make_factory(self.site, **options)
        client = self.client().open(*headers)
        client.say_login(None if headers else "sid")
        self.site.answer(verdict)
        self.assertEqual(client.hear(), [ADMITTED])
        self.pass_time(361)
        return client

    def asked(self) -> list[str]:
        """Return what the site is asked about."""
        return [sessid for sessid, _ in self.site.asked]

    def test_recheck_asks_about_the_sessid_or_the_handle_of_the_site(self) -> None:
        self.log_in(LoggedIn(1))
        self.assertEqual(self.asked(), ["sid"])
        client = self.log_in(LoggedIn(1, session="handle"))
        self.assertEqual(self.asked(), ["handle"])
        self.site.answer(Denied())
        self.assertEqual(client.hear()[0][0], 4501)

    def test_ticket_is_not_rechecked(self) -> None:
        self.log_in(LoggedIn(1, expires_in=1), auth_tickets=True)
        self.assertEqual((self.asked(), len(self.factory.parts.logins.rechecks)), ([], 0))
        self.log_in(LoggedIn(1, session="handle"), auth_tickets=True)
        self.assertEqual(self.asked(), ["handle"])

    def test_cookie_is_not_taken_for_a_ticket(self) -> None:
        self.log_in(
            LoggedIn(1),
            "Origin: https://example.com",
            "Cookie: c=from-cookie",
            auth_tickets=True,
            session_cookie="c",
            origin=("https://example.com",),
        )
        self.assertEqual(self.asked(), ["from-cookie"])

    def test_only_a_sessid_of_a_message_is_asked_about_as_a_ticket(self) -> None:
        tickets: list[str] = []

        class Both(HeldAuthenticator):
            def authenticate_ticket(self, sessid: str) -> Deferred[Verdict]:
                tickets.append(sessid)
                return self.authenticate(sessid)

        self.site = Both()
        self.factory = self.make_factory(
            self.site, auth_tickets=True, session_cookie="c", origin=("https://example.com",)
        )
        self.client().open("Origin: https://example.com", "Cookie: c=cookie").say_login()
        self.client().open("Origin: https://example.com").say_login("ticket")
        self.site.answer(LoggedIn(1))
        self.site.answer(LoggedIn(2, session="handle"))
        self.pass_time(361)
        self.assertEqual(sorted(self.asked()), ["cookie", "handle"])
        self.assertEqual(tickets, ["ticket"])

    def test_session_ends_by_its_handle_or_a_sessid_that_is_not_a_ticket(self) -> None:
        for tickets, name, ended in (
            (False, "sid", 1),
            (False, "handle", 1),
            (True, "sid", 0),
            (True, "handle", 1),
        ):
            client = self.log_in(LoggedIn(1, session="handle"), auth_tickets=tickets)
            self.assertEqual(self.factory.parts.logins.index.end_session(name), ended, (tickets, name))
            self.assertEqual(len(client.hear()), ended)
            client.lost()
            self.assertEqual(len(self.factory.parts.logins.index), 0)

    def test_ticket_whose_session_ends_during_its_login_closes_with_4505(self) -> None:
        self.site = HeldAuthenticator()
        self.factory = self.make_factory(self.site, auth_tickets=True)
        client = self.client().open()
        client.say_login("ticket")
        self.assertEqual(self.factory.parts.logins.index.end_session("handle"), 0)
        self.site.answer(LoggedIn(1, session="handle"))
        self.assertEqual([code for code, _ in client.hear()], [4505])
        self.assertEqual(len(self.directory), 0)

    def test_login_whose_session_ends_by_its_handle_meanwhile_closes_with_4505(self) -> None:
        origin = "https://example.com"
        for by_cookie in (False, True):
            self.site = HeldAuthenticator()
            self.factory = self.make_factory(self.site, session_cookie="c", origin=(origin,))
            tabs = [self.client().open(f"Origin: {origin}", "Cookie: c=sid") for _ in range(2)]
            for tab in tabs:
                tab.say_login(None if by_cookie else "other")
            self.assertEqual(self.factory.parts.logins.index.end_session("handle"), 0)
            for _ in tabs:
                self.site.answer(LoggedIn(1, session="handle"))
            self.assertEqual([[code for code, _ in tab.hear()] for tab in tabs], [[4505], [4505]])
            self.assertEqual((len(self.directory), len(self.factory.parts.logins.index)), (0, 0))
            again = self.client().open()
            again.say_login("other")
            self.site.answer(LoggedIn(1, session="handle"))
            self.assertEqual(again.hear(), [ADMITTED])  # later verdicts of the site count
            again.lost()
