"""The flow of a login: which parts are notified, in which order, and what happens to the client."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.diagnosis import MissingCookie
from chatrelay.auth.login import Logins, VerdictSource
from chatrelay.auth.rechecks import Rechecks
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import LoginThrottle
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.relay.directory import Directory
from chatrelay.testing import HeldAuthenticator
from tests.support.logins import RecordedClient

ENDED = (4505, "ended by the operator or the site")
TOO_MANY = (4504, "too many connections of this user: the oldest goes")
ADDRESS = "192.0.2.1"


class LoginsTests(SynchronousTestCase):
    """Logins by an authenticator that answers when the test does."""

    def setUp(self) -> None:
        self.site = HeldAuthenticator()
        self.directory = Directory()
        self.missing_cookie = MissingCookie()
        self.logins = self.make()

    def make(self, auth_tickets: bool = False, connections_per_user: int = 0) -> Logins:
        """Make the flow and its parts."""
        clock, verdicts = Clock(), VerdictSource(self.site, lambda: 0.0)
        return Logins(
            self.directory,
            SessionIndex(self.directory, b"key"),
            LoginThrottle(20, verdicts.ask, clock.seconds, None, lambda address: None, verdicts.give_up),
            Rechecks(300, 0, 0, 8, verdicts.ask, clock.seconds, lambda: 0.5, clock.seconds, verdicts.give_up),
            self.missing_cookie,
            auth_tickets,
            connections_per_user,
        )

    def begin(self, sessid: str = "alice", is_cookie: bool = False) -> RecordedClient:
        """Begin the login of a new client."""
        client = RecordedClient(self.directory)
        self.logins.begin(client, ADDRESS, sessid, is_cookie)
        return client

    def counts(self) -> tuple[int, int, int]:
        """Return how many logins are pending, connections indexed, and sessions re-checked."""
        return len(self.logins), len(self.logins.index), len(self.logins.rechecks)

    def test_verdict_logs_the_client_in(self) -> None:
        client = self.begin()
        self.assertEqual(self.counts(), (1, 1, 0))
        self.site.answer(LoggedIn(1))
        self.assertEqual((client.session.verdicts, client.first_logins), ([LoggedIn(1)], 1))
        self.assertEqual(self.counts(), (0, 1, 1))
        self.assertEqual(self.logins.index.end_session("alice"), 1)
        self.assertEqual(client.outgoing.closed, ENDED)

    def test_denial_and_failure_leave_nothing(self) -> None:
        for verdict in (Denied(), Unavailable("it is away")):
            client = self.begin()
            self.site.answer(verdict)
            self.assertEqual((client.session.verdicts, client.first_logins), ([verdict], 0))
            self.assertEqual(self.counts(), (0, 0, 0))

    def test_second_login_is_not_a_first_login(self) -> None:
        client = self.begin()
        self.site.answer(LoggedIn(1))
        self.logins.begin(client, ADDRESS, "alice again", False)
        self.site.answer(LoggedIn("1"))
        self.assertEqual(client.first_logins, 1)
        self.assertEqual([self.logins.index.end_session(name) for name in ("alice", "alice again")], [0, 1])

    def test_login_as_another_user_keeps_the_session(self) -> None:
        client = self.begin()
        self.site.answer(LoggedIn(1))
        self.logins.begin(client, ADDRESS, "bo", False)
        self.site.answer(LoggedIn(2))
        self.assertEqual([self.logins.index.end_session(name) for name in ("bo", "alice")], [0, 1])

    def test_verdict_older_than_an_end_closes_the_connection(self) -> None:
        client = self.begin()
        self.logins.index.end_user(1)
        self.site.answer(LoggedIn(1))
        self.assertEqual((client.outgoing.closed, client.session.verdicts), (ENDED, []))

    def test_closing_connection_gives_its_login_up(self) -> None:
        client = self.begin()
        self.logins.disconnected(client.outgoing)
        self.assertEqual(self.site.cancelled, ["alice"])
        self.assertEqual(self.counts(), (0, 0, 0))
        self.assertEqual(client.first_logins, 0)

    def test_ticket_names_no_session(self) -> None:
        self.logins = self.make(auth_tickets=True)
        self.begin("ticket")
        self.site.answer(LoggedIn(1))
        self.assertEqual((self.logins.index.end_session("ticket"), len(self.logins.rechecks)), (0, 0))
        self.begin("ticket 2")
        self.site.answer(LoggedIn(1, session="handle"))
        self.assertEqual((len(self.logins.rechecks), self.logins.index.end_session("handle")), (1, 1))

    def test_cookie_is_not_a_ticket(self) -> None:
        self.logins = self.make(auth_tickets=True)
        self.begin("cookie", is_cookie=True)
        self.site.answer(LoggedIn(1))
        self.assertEqual((len(self.logins.rechecks), self.logins.index.end_session("cookie")), (1, 1))

    def test_cookie_resets_the_count_of_missing_ones(self) -> None:
        self.missing_cookie.login_without_cookie()
        self.begin("cookie", is_cookie=True)
        self.assertEqual(self.missing_cookie.logins, 0)

    def test_oldest_connection_beyond_the_limit_is_closed(self) -> None:
        self.logins = self.make(connections_per_user=2)
        clients = []
        for number in range(3):
            clients.append(self.begin(f"session {number}"))
            self.site.answer(LoggedIn(1))
        self.assertEqual([client.outgoing.closed for client in clients], [TOO_MANY, None, None])

    def test_session_gets_the_verdict_once_it_is_prepared(self) -> None:
        client = self.begin()
        client.session.preparing = Deferred()
        self.site.answer(LoggedIn(7))
        self.assertEqual((client.session.verdicts, len(self.logins)), ([], 1))
        client.session.preparing.callback(None)
        self.assertEqual((client.session.verdicts, len(self.logins)), ([LoggedIn(7)], 0))
        self.assertEqual(client.first_logins, 1)

    def test_session_that_ends_while_it_is_prepared_closes_with_4505(self) -> None:
        client = self.begin()
        client.session.preparing = Deferred()
        self.site.answer(LoggedIn(7))
        self.logins.index.end_user(7)
        client.session.preparing.callback(None)
        self.assertEqual((client.session.verdicts, client.outgoing.closed), ([], ENDED))

    def test_disconnecting_cancels_the_preparation(self) -> None:
        client = self.begin()
        cancelled: list[object] = []
        client.session.preparing = Deferred(cancelled.append)
        client.session.preparing.addErrback(lambda _: None)
        self.site.answer(LoggedIn(7))
        self.logins.disconnected(client.outgoing)
        self.assertEqual((len(cancelled), len(self.logins), client.outgoing.closed), (1, 0, None))


class Sources(SynchronousTestCase):
    """Every authenticator gives a verdict."""

    def test_ticket_is_asked_by_its_own_method_where_there_is_one(self) -> None:
        class WithTickets(HeldAuthenticator):
            def authenticate_ticket(self, sessid: str) -> Deferred[Verdict]:
                return self.authenticate(f"ticket {sessid}")

        for site, asked in ((HeldAuthenticator(), ["a", "a"]), (WithTickets(), ["a", "ticket a"])):
            source = VerdictSource(site, lambda: 0.0)
            source.ask("a")
            source.ask("a", is_ticket=True)
            self.assertEqual([sessid for sessid, _ in site.asked], asked)

    def test_request_is_given_up_by_its_own_method_where_there_is_one(self) -> None:
        given_up: list[Deferred[Verdict]] = []

        class Abandoned(HeldAuthenticator):
            def give_up(self, verdict: Deferred[Verdict]) -> None:
                given_up.append(verdict)

        for site, cancelled, count in ((HeldAuthenticator(), ["a"], 0), (Abandoned(), [], 1)):
            source = VerdictSource(site, lambda: 0.0)
            source.give_up(source.ask("a"))
            self.assertEqual((site.cancelled, len(given_up)), (cancelled, count))

    def test_verdict_has_the_time_of_the_oldest_request_that_it_may_answer(self) -> None:
        clock, site = Clock(), HeldAuthenticator()
        source = VerdictSource(site, clock.seconds)

        def ask(sessid: str) -> Deferred[Verdict]:
            clock.advance(1)
            return source.ask(sessid)

        asking = [ask("a"), ask("b"), ask("a"), ask("a")]
        asking[0].cancel()  # the others may still share its request
        for _ in range(3):
            site.answer(LoggedIn(1, asked_at=1e12))
        asking.append(ask("a"))
        site.answer(LoggedIn(1))
        verdicts = [self.successResultOf(each) for each in asking]
        self.assertEqual([getattr(verdict, "asked_at", None) for verdict in verdicts], [None, 2.0, 1.0, 1.0, 5.0])

    def test_cancelled_request_is_unavailable(self) -> None:
        asking = VerdictSource(HeldAuthenticator(), lambda: 0.0).ask("a")
        asking.cancel()
        self.assertIsInstance(self.successResultOf(asking), Unavailable)
