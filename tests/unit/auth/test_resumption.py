"""Resume tokens in the flow of a login: who gets one, how long it lasts, and what using it does."""

from __future__ import annotations

import secrets

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.login import Logins, VerdictSource
from chatrelay.auth.rechecks import Rechecks
from chatrelay.auth.resume import MAX_LIFE_SECONDS, Sealer
from chatrelay.auth.resumption import MAX_RENEWALS, Resumption
from chatrelay.auth.revocations import Revocations
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import LoginThrottle
from chatrelay.model import Denied, LoggedIn, Unavailable
from chatrelay.relay.directory import Directory
from chatrelay.testing import HeldAuthenticator, HeldMessageLog
from tests.support.logins import ClosingConnection, RecordedClient

KEY = bytes(32)
START = 1_764_271_000.25
ADDRESS = "192.0.2.1"
RESUME_TIME = 300.0
INTERVAL = 240.0

ENDED = (4505, "ended by the operator or the site")
DENIED = (4501, "the session at the site has ended")
REPLACED = (4506, "replaced by a resumed connection")
TOO_MANY = (4504, "too many connections of this user: the oldest goes")


class Process:
    """The logins of one relay.

    :ivar site: the site, which answers when the test does.
    """

    def __init__(
        self,
        clock: Clock,
        message_log: HeldMessageLog | None = None,
        key: bytes = KEY,
        interval: float = INTERVAL,
        spread: float = 0,
        auth_tickets: bool = False,
        connections_per_user: int = 0,
    ) -> None:
        self.clock = clock
        self.site = HeldAuthenticator()
        self.directory = Directory()
        self.chance = 0.5

        def now() -> float:
            return START + clock.seconds()

        sealer = Sealer(key, secrets.token_bytes)
        self.revocations = Revocations(MAX_LIFE_SECONDS, now, clock, message_log)
        self.resumption = Resumption(sealer, self.revocations, RESUME_TIME, now, clock.seconds, secrets.token_bytes)
        self.index = SessionIndex(self.directory, self.resumption.digest_key, self.resumption.revoke)
        verdicts = VerdictSource(self.site, now)
        self.rechecks = Rechecks(
            interval,
            spread,
            0,
            8,
            verdicts.ask,
            clock.seconds,
            lambda: self.chance,
            clock.seconds,
            verdicts.give_up,
            confirmed=self.resumption.confirmed,
            put_off=self.resumption.put_off,
            denied=self.resumption.revoke_session,
        )
        self.logins = Logins(
            self.directory,
            self.index,
            LoginThrottle(
                20,
                verdicts.ask,
                clock.seconds,
                None,
                lambda address: None,
                verdicts.give_up,
                self.resumption.denied,
            ),
            self.rechecks,
            None,
            auth_tickets,
            connections_per_user,
            self.resumption,
        )

    def client(self, speaks_v2: bool = True) -> RecordedClient:
        """Return a client that has connected."""
        client = RecordedClient(self.directory, self.resumption.token if speaks_v2 else None)
        client.outgoing = connection = ClosingConnection(self.logins)
        connection.session = client.session
        client.session._connection = connection
        return client

    def member(
        self, sessid: str = "alice", verdict: LoggedIn | None = None, is_cookie: bool = False, speaks_v2: bool = True
    ) -> RecordedClient:
        """Return a client that has logged in by a SESSID."""
        client = self.client(speaks_v2)
        self.logins.begin(client, ADDRESS, sessid, is_cookie)
        self.site.answer(LoggedIn(7) if verdict is None else verdict)
        return client

    def resume(self, token: str | None, cookie: str | None = None) -> RecordedClient:
        """Return a client that has sent a token."""
        assert token is not None
        client = self.client()
        self.logins.resume(client, token, cookie)
        return client

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and sweep at its end."""
        self.clock.advance(seconds)
        self.rechecks.sweep()
        self.resumption.sweep()

    @property
    def asked(self) -> list[str]:
        """The sessions of the pending requests to the site."""
        return [sessid for sessid, _ in self.site.asked]


def token_of(client: RecordedClient) -> str:
    """Return the client's newest token."""
    token = client.session.tokens[-1]
    assert token is not None
    return token


class ResumptionCase(SynchronousTestCase):
    """A relay, and clients that return to it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.relay = Process(self.clock)

    def resumes(self, token: str, cookie: str | None = None, relay: Process | None = None) -> bool:
        """Return whether a token logs a client in."""
        client = (relay or self.relay).resume(token, cookie)
        self.assertEqual(client.session.failures, 0 if client.session.logged_in else 1)
        return client.session.logged_in


class Tokens(ResumptionCase):
    """How long tokens last, and when new ones come."""

    def test_token_logs_the_same_user_in_without_a_request(self) -> None:
        for uid in (7, "7", "anna"):
            relay = Process(self.clock)
            token = token_of(relay.member(verdict=LoggedIn(uid)))
            client = relay.resume(token)
            (verdict,) = client.session.verdicts
            self.assertEqual((verdict, client.first_logins), (LoggedIn(uid, session="alice"), 1))
            assert isinstance(verdict, LoggedIn)
            self.assertIs(type(verdict.uid), type(uid))
            self.assertEqual((relay.asked, client.outgoing.closed), ([], None))
            self.assertEqual((len(relay.logins), len(relay.index), len(relay.rechecks)), (0, 1, 1))

    def test_token_lasts_until_the_next_recheck(self) -> None:
        token = token_of(self.relay.member())
        self.clock.advance(INTERVAL - 0.002)
        self.assertTrue(self.resumes(token))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token))

    def test_token_follows_the_spread_and_the_site(self) -> None:
        self.relay = Process(self.clock, spread=20)
        self.relay.chance = 0.75
        token, own = token_of(self.relay.member()), token_of(self.relay.member("bo", LoggedIn(8, 1000)))
        self.clock.advance(INTERVAL * 1.1 - 0.002)
        self.assertTrue(self.resumes(token))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token))
        self.clock.advance(1000 - INTERVAL * 1.1 - 0.002)
        self.assertTrue(self.resumes(own))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(own))

    def test_token_lasts_a_day_at_most(self) -> None:
        token = token_of(self.relay.member(verdict=LoggedIn(7, 1_000_000)))
        self.clock.advance(MAX_LIFE_SECONDS - 0.002)
        self.assertTrue(self.resumes(token))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token))

    def test_confirmed_recheck_sends_a_new_token(self) -> None:
        client = self.relay.member()
        self.relay.pass_time(INTERVAL)
        self.assertEqual((self.relay.asked, len(client.session.tokens)), (["alice"], 1))
        self.relay.site.answer(LoggedIn(7))
        self.assertEqual(len(client.session.tokens), 2)
        self.clock.advance(INTERVAL - 0.002)
        self.assertTrue(self.resumes(token_of(client)))
        self.assertFalse(self.resumes(client.session.tokens[0] or ""))

    def test_recheck_without_a_verdict_sends_no_token(self) -> None:
        client = self.relay.member()
        self.relay.pass_time(INTERVAL)
        self.relay.site.answer(Unavailable("away"))
        self.assertEqual((len(client.session.tokens), client.outgoing.closed), (1, None))
        self.assertIsNone(self.relay.resumption.token(client.outgoing))

    def test_recheck_sends_all_connections_of_the_session_new_tokens_except_v1(self) -> None:
        first, old = self.relay.member(), self.relay.member(speaks_v2=False)
        second = self.relay.member()
        before = [len(client.session.tokens) for client in (first, old, second)]
        self.relay.pass_time(INTERVAL)
        self.relay.site.answer(LoggedIn(7))
        after = [len(client.session.tokens) for client in (first, old, second)]
        self.assertEqual([now - then for then, now in zip(before, after, strict=True)], [1, 0, 1])

    def test_token_at_the_end_lasts_until_a_recheck_that_another_login_has_put_off(self) -> None:
        first = self.relay.member()
        self.clock.advance(100)
        self.relay.member()
        self.assertEqual(len(first.session.tokens), 1)
        self.clock.advance(INTERVAL - 0.002)
        self.assertFalse(self.resumes(token_of(first)))
        token = self.relay.resumption.token(first.outgoing)
        assert token is not None
        self.assertTrue(self.resumes(token))

    def test_token_at_the_end_of_a_connection_ends_with_the_trust(self) -> None:
        client = self.relay.member()
        self.clock.advance(200)
        token = self.relay.resumption.token(client.outgoing)
        assert token is not None
        self.clock.advance(INTERVAL - 200 - 0.002)
        self.assertTrue(self.resumes(token))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token))

    def test_v1_gets_no_token_and_is_not_remembered(self) -> None:
        client = self.relay.member(speaks_v2=False)
        self.assertEqual((client.session.tokens, len(self.relay.resumption)), ([], 0))
        self.assertIsNone(self.relay.resumption.token(client.outgoing))

    def test_denied_failed_and_refused_logins_get_no_token(self) -> None:
        for verdict in (Denied(), Unavailable("away"), LoggedIn(7)):
            client = self.relay.client()
            client.session.refuses = True
            self.relay.logins.begin(client, ADDRESS, "alice", False)
            self.relay.site.answer(verdict)
            self.assertEqual((client.session.tokens, len(self.relay.resumption)), ([], 0))

    def test_next_token_after_a_second_login_is_of_the_new_session(self) -> None:
        client = self.relay.member()
        self.clock.advance(100)
        self.relay.logins.begin(client, ADDRESS, "alice again", False)
        self.relay.site.answer(LoggedIn(7))
        self.assertEqual(len(client.session.tokens), 1)
        self.clock.advance(INTERVAL - 0.002)
        resumed = self.relay.resume(self.relay.resumption.token(client.outgoing))
        self.assertTrue(resumed.session.logged_in)
        self.assertEqual(client.outgoing.closed, REPLACED)
        self.relay.pass_time(1)
        self.assertEqual(self.relay.asked, ["alice again"])

    def test_second_login_as_another_user_changes_nothing(self) -> None:
        client = self.relay.member()
        for verdict in (LoggedIn(8), Denied(), Unavailable("away")):
            self.relay.logins.begin(client, ADDRESS, "bo", False)
            self.relay.site.answer(verdict)
        self.assertEqual((len(client.session.tokens), len(self.relay.resumption)), (1, 1))
        self.assertTrue(self.resumes(token_of(client)))

    def test_disconnected_connection_is_forgotten(self) -> None:
        client = self.relay.member()
        self.relay.logins.disconnected(client.outgoing)
        self.relay.logins.disconnected(client.outgoing)
        self.assertEqual(len(self.relay.resumption), 0)
        self.assertIsNone(self.relay.resumption.token(client.outgoing))


class WithoutRechecks(ResumptionCase):
    """Tokens of sessions that are not re-checked."""

    def setUp(self) -> None:
        super().setUp()
        self.relay = Process(self.clock, interval=0)

    def test_token_lasts_resume_time(self) -> None:
        token = token_of(self.relay.member())
        self.clock.advance(RESUME_TIME - 0.002)
        self.assertTrue(self.resumes(token))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token))

    def test_new_token_comes_every_half_of_resume_time(self) -> None:
        client = self.relay.member()
        for number in range(1, 4):
            self.relay.pass_time(RESUME_TIME / 2 - 0.25)
            self.assertEqual(len(client.session.tokens), number)
            self.relay.pass_time(0.25)
            self.assertEqual(len(client.session.tokens), number + 1)
        self.clock.advance(RESUME_TIME - 0.002)
        self.assertTrue(self.resumes(token_of(client)))
        self.assertEqual(self.relay.asked, [])

    def test_ticket_without_a_session_is_resumed(self) -> None:
        self.relay = Process(self.clock, auth_tickets=True)
        client = self.relay.member("ticket")
        self.relay.pass_time(RESUME_TIME / 2)
        self.assertEqual(len(client.session.tokens), 2)
        self.assertTrue(self.resumes(token_of(client)))
        self.assertEqual((client.outgoing.closed, len(self.relay.rechecks)), (REPLACED, 0))

    def test_many_tokens_are_renewed_in_several_sweeps(self) -> None:
        clients = [self.relay.member(f"session {number}") for number in range(MAX_RENEWALS + 1)]
        self.relay.pass_time(RESUME_TIME / 2)
        self.assertEqual([len(client.session.tokens) for client in clients], [2] * MAX_RENEWALS + [1])
        self.relay.pass_time(0)
        self.assertEqual([len(client.session.tokens) for client in clients], [2] * (MAX_RENEWALS + 1))

    def test_disconnected_connection_gets_no_more(self) -> None:
        client = self.relay.member()
        self.relay.logins.disconnected(client.outgoing)
        self.relay.pass_time(RESUME_TIME)
        self.assertEqual(len(client.session.tokens), 1)

    def test_token_of_a_resumed_connection_ends_with_the_used_one(self) -> None:
        token = token_of(self.relay.member())
        self.clock.advance(100)
        resumed = self.relay.resume(token)
        self.clock.advance(200 - 0.002)
        again = self.relay.resume(token_of(resumed))
        self.assertTrue(again.session.logged_in)
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token_of(again)))

    def test_session_is_rechecked_where_the_next_relay_does_that(self) -> None:
        token = token_of(self.relay.member())
        following = Process(self.clock)
        self.clock.advance(100)
        resumed = following.resume(token)
        following.pass_time(199)
        self.assertEqual(following.asked, [])
        following.pass_time(1)
        self.assertEqual(following.asked, ["alice"])
        following.site.answer(LoggedIn(7))
        self.assertEqual(len(resumed.session.tokens), 2)

    def test_session_is_not_rechecked_where_the_next_relay_does_not(self) -> None:
        token = token_of(Process(self.clock).member())
        resumed = self.relay.resume(token)
        self.relay.pass_time(RESUME_TIME / 2)
        self.assertEqual((self.relay.asked, len(resumed.session.tokens)), ([], 2))


class Using(ResumptionCase):
    """What using a token does."""

    def test_connection_that_got_the_token_is_closed(self) -> None:
        first, other = self.relay.member(), self.relay.member()
        second = self.relay.resume(token_of(first))
        self.assertEqual([one.outgoing.closed for one in (first, other, second)], [REPLACED, None, None])
        third = self.relay.resume(token_of(first))  # the connection that got it has gone
        self.assertEqual([one.outgoing.closed for one in (other, second, third)], [None, None, None])
        self.relay.resume(token_of(second))
        self.assertEqual([one.outgoing.closed for one in (other, second, third)], [None, REPLACED, None])

    def test_replaced_connection_does_not_count_for_the_limit(self) -> None:
        self.relay = Process(self.clock, connections_per_user=2)
        oldest, newer = self.relay.member(), self.relay.member()
        self.relay.resume(token_of(newer))
        self.assertEqual([one.outgoing.closed for one in (oldest, newer)], [None, REPLACED])
        self.relay.resume(token_of(newer))
        self.assertEqual(oldest.outgoing.closed, TOO_MANY)

    def test_connection_of_a_token_that_cannot_log_in_stays(self) -> None:
        first = self.relay.member()
        client = self.relay.client()
        client.session.refuses = True  # its inbox can't be loaded
        self.relay.logins.resume(client, token_of(first), None)
        self.assertEqual((first.outgoing.closed, len(self.relay.resumption)), (None, 1))

    def test_due_recheck_stays_due(self) -> None:
        first = self.relay.member()
        self.clock.advance(100)
        self.relay.resume(token_of(first))
        self.relay.pass_time(INTERVAL - 101)
        self.assertEqual(self.relay.asked, [])
        self.relay.pass_time(1)
        self.assertEqual(self.relay.asked, ["alice"])

    def test_due_recheck_stays_due_after_a_restart_and_many_resumptions(self) -> None:
        token = token_of(self.relay.member())
        for _ in range(3):
            self.clock.advance(60)
            relay = Process(self.clock)
            resumed = relay.resume(token)
            token = token_of(resumed)
        relay.pass_time(59)
        self.assertEqual(relay.asked, [])
        relay.pass_time(1)
        self.assertEqual(relay.asked, ["alice"])
        relay.site.answer(LoggedIn(7))
        self.assertEqual(len(resumed.session.tokens), 2)
        self.assertFalse(self.resumes(token, relay=relay))
        self.assertTrue(self.resumes(token_of(resumed), relay=relay))

    def test_token_of_a_resumed_connection_ends_with_the_used_one(self) -> None:
        first = self.relay.member()
        self.clock.advance(INTERVAL - 1)
        resumed = self.relay.resume(token_of(first))
        self.clock.advance(1 - 0.002)
        self.assertTrue(self.resumes(token_of(resumed)))
        self.clock.advance(0.002)
        self.assertFalse(self.resumes(token_of(resumed)))

    def test_resumed_session_joins_the_rechecks_of_its_other_connections(self) -> None:
        first = self.relay.member()
        self.clock.advance(100)
        self.relay.member()
        self.relay.resume(first.session.tokens[0])
        self.relay.pass_time(INTERVAL - 100)
        self.assertEqual((self.relay.asked, len(self.relay.rechecks)), ([], 1))
        self.relay.pass_time(100)
        self.assertEqual(self.relay.asked, ["alice"])

    def test_login_by_cookie_resumes_only_with_the_same_cookie(self) -> None:
        token = token_of(self.relay.member("cookie", is_cookie=True))
        for cookie in (None, "another", "", "cookie2"):
            self.assertFalse(self.resumes(token, cookie))
        self.assertTrue(self.resumes(token, "cookie"))
        again = token_of(self.relay.resume(token, "cookie"))
        self.assertFalse(self.resumes(again, None))
        self.assertTrue(self.resumes(again, "cookie"))

    def test_login_without_cookie_resumes_with_any(self) -> None:
        token = token_of(self.relay.member("alice"))
        self.assertTrue(self.resumes(token, "anything"))
        self.assertTrue(self.resumes(token, None))

    def test_token_of_a_handle_asks_about_the_handle(self) -> None:
        self.relay = Process(self.clock, auth_tickets=True)
        token = token_of(self.relay.member("ticket", LoggedIn(7, session="handle")))
        self.assertTrue(self.resumes(token))
        self.relay.pass_time(INTERVAL)
        self.assertEqual(self.relay.asked, ["handle"])

    def test_unusable_tokens_are_refused_alike(self) -> None:
        expired = token_of(self.relay.member())
        self.clock.advance(INTERVAL)
        foreign = token_of(Process(self.clock, key=bytes(31) + b"\1").member())
        for token in ("", "garbage", "A" * 8000, "A" * 8001, expired, foreign, "\udcff"):
            client = self.relay.resume(token)
            self.assertEqual((client.session.failures, client.session.verdicts), (1, []))
            self.assertEqual((client.outgoing.sent, client.outgoing.closed), ([], None))
            self.assertEqual(len(self.relay.logins), 0)
        self.assertEqual(self.relay.asked, [])

    def test_logins_without_resumption_refuse_every_token(self) -> None:
        token = token_of(self.relay.member())
        self.relay.logins.resumption = None
        self.assertFalse(self.resumes(token))

    def test_resumed_connection_can_be_ended_by_every_name(self) -> None:
        for name in ("ticket", "handle", 7):
            relay = Process(self.clock)
            token = token_of(relay.member("ticket", LoggedIn(7, session="handle")))
            relay = Process(self.clock)
            client = relay.resume(token)
            end = relay.index.end_user if isinstance(name, int) else relay.index.end_session
            self.assertEqual((end(name), client.outgoing.closed), (1, ENDED))  # type: ignore[arg-type]


class Revoked(ResumptionCase):
    """Sessions that were revoked or denied are never resumed."""

    def test_revoked_session_is_not_resumed_while_a_token_lasts(self) -> None:
        for name in ("ticket", "handle", 7, "7"):
            relay = Process(self.clock)
            client = relay.member("ticket", LoggedIn(7, MAX_LIFE_SECONDS, "handle"))
            other = relay.member("bo", LoggedIn(8, MAX_LIFE_SECONDS))
            relay.logins.disconnected(client.outgoing)
            client.session.closed()
            ended = relay.index.end_user(name) if name in (7, "7") else relay.index.end_session(str(name))
            self.assertEqual(ended, 0)
            self.assertFalse(self.resumes(token_of(client), relay=relay), name)
            self.assertTrue(self.resumes(token_of(other), relay=relay), name)
            self.clock.advance(MAX_LIFE_SECONDS - 1)
            relay.resumption.sweep()
            self.assertFalse(self.resumes(token_of(client), relay=relay), name)
            self.assertTrue(self.resumes(token_of(other), relay=relay), name)

    def test_session_that_is_denied_at_another_login_is_not_resumed(self) -> None:
        for message_log in (None, HeldMessageLog()):
            relay = Process(self.clock, message_log)
            alice, bo = relay.member("alice"), relay.member("bo", LoggedIn(8))
            self.deny(relay, "alice")
            if message_log is not None:
                relay.resumption.sweep()
                relay = Process(self.clock, message_log)
            self.assertFalse(self.resumes(token_of(alice), relay=relay))
            self.assertTrue(self.resumes(token_of(bo), relay=relay))

    def test_session_that_the_site_confirms_after_a_denial_is_resumed(self) -> None:
        self.deny(self.relay, "alice")
        self.assertEqual(len(self.relay.revocations), 1)
        self.clock.advance(0.001)
        self.assertTrue(self.resumes(token_of(self.relay.member("alice"))))

    def test_denial_of_a_ticket_revokes_nothing(self) -> None:
        relay = Process(self.clock, auth_tickets=True)
        self.deny(relay, "ticket")
        self.assertEqual(len(relay.revocations), 0)

    def deny(self, relay: Process, sessid: str) -> None:
        """Have the site deny a login."""
        relay.logins.begin(relay.client(), ADDRESS, sessid, False)
        relay.site.answer(Denied())

    def test_recheck_confirms_a_session_anew(self) -> None:
        client = self.relay.member("alice")
        self.clock.advance(1)
        self.deny(self.relay, "alice")
        self.clock.advance(INTERVAL)
        self.relay.rechecks.sweep()
        self.relay.site.answer(LoggedIn(7))
        self.assertTrue(self.resumes(token_of(client)))

    def test_token_of_a_resumed_or_renewed_connection_is_as_old_as_what_the_site_said(self) -> None:
        for resumes in (True, False):
            relay = Process(self.clock, interval=0)
            client = relay.member("alice")
            self.clock.advance(1)
            relay.index.end_session("alice" if resumes else "nobody")
            if not resumes:
                self.deny(relay, "alice")
            self.clock.advance(RESUME_TIME / 2)
            relay.resumption.sweep()
            self.assertFalse(self.resumes(token_of(client), relay=relay))

    def test_session_revoked_in_an_earlier_process_is_not_resumed(self) -> None:
        message_log = HeldMessageLog()
        relay = Process(self.clock, message_log)
        clients = [relay.member(name, LoggedIn(name, 1000)) for name in ("alice", "bo", "carol")]
        relay.index.end_session("alice")
        relay.index.end_user("bo")
        relay = Process(self.clock, message_log)
        self.assertEqual([self.resumes(token_of(client), relay=relay) for client in clients], [False, False, True])

    def test_session_revoked_elsewhere_between_question_and_answer_is_not_resumed(self) -> None:
        message_log = HeldMessageLog()
        other = Process(self.clock, message_log)
        for kind in ("login", "login that joins another's request", "re-check", "re-check put off by a login"):
            for is_revoked in (True, False):
                relay = Process(self.clock, message_log)
                client = relay.client() if kind.startswith("login") else relay.member()
                if not is_revoked:
                    other.index.end_session("alice")  # and the site is asked after that
                self.clock.advance(INTERVAL)
                if kind == "re-check":
                    relay.rechecks.sweep()
                else:
                    asking = client if kind == "login" else relay.client()
                    relay.logins.begin(asking, ADDRESS, "alice", False)
                self.clock.advance(10)
                if is_revoked:
                    other.index.end_session("alice")
                self.clock.advance(10)
                if kind == "login that joins another's request":
                    relay.logins.begin(client, ADDRESS, "alice", False)
                while relay.asked:
                    relay.site.answer(LoggedIn(7))
                token = relay.resumption.token(client.outgoing)
                assert token is not None
                self.assertNotEqual(self.resumes(token, relay=relay), is_revoked, kind)

    def test_session_denied_at_another_login_between_question_and_answer_is_not_resumed(self) -> None:
        client = self.relay.client()
        self.relay.logins.begin(client, ADDRESS, "alice", False)
        self.clock.advance(0.001)
        self.relay.resumption.denied("alice")
        self.clock.advance(0.001)
        self.relay.site.answer(LoggedIn(7))
        self.assertFalse(self.resumes(token_of(client)))

    def test_revocation_before_a_slow_answer_outlasts_the_token(self) -> None:
        client = self.relay.client()
        self.relay.logins.begin(client, ADDRESS, "alice", False)
        self.relay.resumption.denied("alice")
        self.clock.advance(10)
        self.relay.site.answer(LoggedIn(7, 1_000_000))
        for seconds in (0, MAX_LIFE_SECONDS - 10):
            self.relay.pass_time(seconds)
            self.assertFalse(self.resumes(token_of(client)))

    def test_session_revoked_while_the_log_is_read_is_not_resumed(self) -> None:
        message_log = HeldMessageLog()
        for end, name in (("end_session", "alice"), ("end_user", 7)):
            relay = Process(self.clock, message_log)
            token = token_of(relay.member())
            message_log.reader.holds = True
            client = relay.resume(token)
            self.assertEqual((client.session.verdicts, len(relay.logins)), ([], 1))
            getattr(relay.index, end)(name)
            message_log.reader.holds = False
            message_log.reader.answer()
            self.assertFalse(client.session.logged_in)

    def test_session_revoked_while_the_inbox_is_loaded_is_closed_with_4505(self) -> None:
        for end, name in (("end_session", "alice"), ("end_user", 7)):
            relay = Process(self.clock)
            token = token_of(relay.member())
            client = relay.client()
            preparing = client.session.preparing = Deferred()
            preparing.addErrback(lambda _: None)
            relay.logins.resume(client, token, None)
            getattr(relay.index, end)(name)
            if not preparing.called:  # else the connection was closed at once, and its login given up
                preparing.callback(None)
            self.assertEqual((client.session.logged_in, client.outgoing.closed), (False, ENDED))
            self.assertEqual((len(relay.logins), len(relay.index), len(relay.resumption)), (0, 0, 0))

    def test_token_that_ends_while_the_log_is_read_is_not_resumed(self) -> None:
        message_log = HeldMessageLog()
        relay = Process(self.clock, message_log)
        token = token_of(relay.member())
        message_log.reader.holds = True
        client = relay.resume(token)
        self.clock.advance(INTERVAL)
        message_log.reader.answer()
        self.assertEqual((client.session.logged_in, client.session.failures, len(relay.logins)), (False, 1, 0))

    def test_closing_connection_gives_the_look_up(self) -> None:
        message_log = HeldMessageLog()
        relay = Process(self.clock, message_log)
        token = token_of(relay.member())
        message_log.reader.holds = True
        client = relay.resume(token)
        relay.logins.disconnected(client.outgoing)
        self.assertEqual((client.session.failures, client.session.verdicts, len(relay.logins)), (0, [], 0))
        self.assertEqual(len(relay.index), 1)

    def test_session_is_not_resumed_while_the_log_cannot_be_read(self) -> None:
        message_log = HeldMessageLog()
        relay = Process(self.clock, message_log)
        token = token_of(relay.member())
        message_log.reader.holds = True
        client = relay.resume(token)
        message_log.reader.fail()
        self.assertEqual((client.session.logged_in, client.session.failures), (False, 0))
        self.assertEqual(client.session.verdicts, [Unavailable("the message log can't be read")])
        self.assertEqual((len(relay.logins), len(relay.resumption)), (0, 1))
        client = relay.resume(token)
        message_log.reader.answer()
        self.assertTrue(client.session.logged_in)

    def test_session_denied_by_a_recheck_is_not_resumed_by_a_token_that_lasts_longer(self) -> None:
        message_log = HeldMessageLog()
        relay = Process(self.clock, message_log)
        early = token_of(relay.member())
        self.clock.advance(100)
        late = token_of(relay.member())
        following = Process(self.clock, message_log)
        client = following.resume(early)
        following.pass_time(INTERVAL - 100)
        following.site.answer(Denied())
        self.assertEqual(client.outgoing.closed, DENIED)
        self.assertFalse(self.resumes(late, relay=following))
        self.assertFalse(self.resumes(late, relay=Process(self.clock, message_log)))

    def test_session_denied_while_the_inbox_is_loaded_is_not_resumed(self) -> None:
        early = token_of(self.relay.member())
        self.clock.advance(100)
        late = token_of(self.relay.member())
        following = Process(self.clock)
        first = following.resume(early)
        second = following.client()
        second.session.preparing = Deferred()
        following.logins.resume(second, late, None)
        following.pass_time(INTERVAL - 100)
        following.site.answer(Denied())
        self.assertEqual(first.outgoing.closed, DENIED)
        second.session.preparing.callback(None)
        self.assertEqual((second.session.verdicts, second.session.failures), ([], 1))
        self.assertEqual((len(following.logins), len(following.index), len(following.resumption)), (0, 0, 0))

    def test_session_of_another_user_by_now_is_not_resumed(self) -> None:
        client = self.relay.member()
        early = client.session.tokens[0]
        self.clock.advance(100)
        late = token_of(self.relay.member())
        following = Process(self.clock)
        resumed = following.resume(early)
        following.pass_time(INTERVAL - 100)
        following.site.answer(LoggedIn(8))
        self.assertEqual(resumed.outgoing.closed, DENIED)
        self.assertFalse(self.resumes(late, relay=following))
