"""Re-checks, with a clock that the test controls."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.rechecks import Rechecks
from chatrelay.config.options import Config
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.testing import HeldAuthenticator, RecordedConnection
from chatrelay.wire.codes import Close

DEFAULTS = Config()

GONE = (4501, "the session at the site has ended")
TOO_LONG = (4501, "the site could not be asked about the session for too long")


class Member(RecordedConnection):
    """A connection of a user, which disconnects when it is closed."""

    def __init__(self, rechecks: Rechecks) -> None:
        super().__init__()
        self.rechecks = rechecks

    def close(self, close: Close) -> None:
        super().close(close)
        self.rechecks.disconnected(self)


class RechecksTests(SynchronousTestCase):
    """When a session is re-checked, and what follows."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.held_up = 0.0
        self.chance = 0.5
        self.site = HeldAuthenticator()
        self.rechecks = self.make()

    def make(
        self, interval: float = 300.0, grace: float = 1800.0, at_once: int = 8, spread: float = DEFAULTS.recheck_spread
    ) -> Rechecks:
        """Return re-checks that ask the held authenticator."""

        def ask(sessid: str) -> Deferred[Verdict]:
            return self.site.authenticate(sessid).addErrback(lambda _: Unavailable("given up"))

        return Rechecks(
            interval, spread, grace, at_once, ask, self.clock.seconds, lambda: self.chance, self.active_seconds
        )

    def active_seconds(self) -> float:
        """Return the time without that in which the process was held up."""
        return self.clock.seconds() - self.held_up

    def member(self, sessid: str = "sid", uid: str | int = 1, expires_in: float | None = None) -> Member:
        """Return a connection that has just logged in."""
        member = Member(self.rechecks)
        self.rechecks.entered(member, sessid, LoggedIn(uid, expires_in))
        return member

    def asked(self, seconds: float = 0) -> list[str]:
        """Let time pass, with four sweeps a second; return the sessions of the pending requests."""
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
            self.rechecks.sweep()
        self.rechecks.sweep()
        return [sessid for sessid, _ in self.site.asked]

    def test_recheck_is_sent_at_the_interval(self) -> None:
        member = self.member()
        self.assertEqual(self.asked(299.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])
        self.site.answer(LoggedIn(1))
        self.assertIsNone(member.closed)
        self.assertEqual(self.asked(299.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])

    def test_recheck_varies_within_the_spread(self) -> None:
        for spread, chance, due in (
            *((DEFAULTS.recheck_spread, 0.0, 240), (DEFAULTS.recheck_spread, 1.0, 360)),
            *((90, 0.0, 30), (90, 1.0, 570), (0, 0.0, 300), (0, 1.0, 300)),
        ):
            self.rechecks = self.make(spread=spread)
            self.chance = chance
            member = self.member()
            self.assertEqual(self.asked(due - 0.25), [])
            self.assertEqual(self.asked(0.25), ["sid"])
            self.site.answer(LoggedIn(1))
            self.rechecks.disconnected(member)

    def test_rechecks_of_simultaneous_logins_are_spread(self) -> None:
        for number in range(100):
            self.chance = number / 100
            self.member(str(number), number)
        most = 0
        for _ in range(360):
            out = self.asked(1)
            most = max(most, len(out))
            for sessid in out:
                self.site.answer(LoggedIn(int(sessid)))
        self.assertLessEqual(most, 2)

    def test_interval_zero_sends_no_rechecks(self) -> None:
        self.rechecks = self.make(interval=0)
        self.member(expires_in=1)
        self.assertEqual(self.asked(1000), [])
        self.assertEqual(len(self.rechecks), 0)

    def test_expires_in_sets_the_time_of_the_recheck(self) -> None:
        self.member("short", 1, expires_in=10)
        self.member("long", 2, expires_in=1000)
        self.assertEqual(self.asked(9.75), [])
        self.assertEqual(self.asked(0.25), ["short"])
        self.site.answer(LoggedIn(1, 20))
        self.assertEqual(self.asked(19.75), [])
        self.assertEqual(self.asked(0.25), ["short"])
        self.site.answer(LoggedIn(1, 10_000))
        self.assertEqual(self.asked(969.75), [])
        self.assertEqual(self.asked(0.25), ["long"])

    def test_short_expires_in_rechecks_once_a_second(self) -> None:
        self.member(expires_in=0.001)
        self.assertEqual(self.asked(0.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])
        self.site.answer(LoggedIn(1, 0.001))
        self.assertEqual(self.asked(0.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])

    def test_denied_recheck_closes_all_connections_of_the_session(self) -> None:
        for verdict in (Denied(), LoggedIn(2)):
            first, second, other = self.member(), self.member(), self.member("other", 3)
            self.assertEqual(self.asked(300), ["sid", "other"])
            self.site.answer(verdict)
            self.assertEqual([member.closed for member in (first, second, other)], [GONE, GONE, None])
            self.site.answer(LoggedIn(3))
            self.rechecks.disconnected(other)
            self.assertEqual(len(self.rechecks), 0)

    def test_recheck_accepts_either_form_of_a_uid(self) -> None:
        member = self.member(uid=7)
        self.asked(300)
        self.site.answer(LoggedIn("7"))
        self.assertIsNone(member.closed)

    def test_new_login_postpones_the_recheck(self) -> None:
        self.member()
        self.asked(200)
        self.member()
        self.assertEqual(self.asked(299.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])
        # While its re-check is pending, another tab changes nothing.
        self.member()
        self.assertEqual(self.asked(600), ["sid"])

    def test_last_session_of_a_connection_counts(self) -> None:
        member = self.member("old")
        self.rechecks.entered(member, "new", LoggedIn(1))
        self.assertEqual(self.asked(300), ["new"])

    def test_session_without_a_sessid_is_not_rechecked(self) -> None:
        member = self.member()
        self.rechecks.entered(member, None, LoggedIn(1, 1))
        self.assertEqual((self.asked(1000), len(self.rechecks)), ([], 0))

    def test_session_of_two_users_is_rechecked_for_each(self) -> None:
        first, second = self.member("sid", 1), self.member("sid", 2)
        self.assertEqual(self.asked(300), ["sid", "sid"])
        self.site.answer(LoggedIn(2))
        self.site.answer(LoggedIn(2))
        self.assertEqual([first.closed, second.closed], [GONE, None])

    def test_session_without_connections_is_not_rechecked(self) -> None:
        first, second = self.member(), self.member()
        self.rechecks.disconnected(first)
        self.rechecks.disconnected(first)
        self.asked(100)
        self.rechecks.disconnected(second)
        self.assertEqual(self.asked(1000), [])
        self.assertEqual(len(self.rechecks), 0)

    def test_recheck_is_given_up_with_its_last_connection(self) -> None:
        first, second = self.member(), self.member()
        self.asked(300)
        self.rechecks.disconnected(first)
        self.assertEqual(self.site.cancelled, [])
        self.rechecks.disconnected(second)
        self.assertEqual(self.site.cancelled, ["sid"])
        # Another re-check has its turn now.
        self.rechecks = self.make(at_once=1)
        leaving, staying = self.member("a", 1), self.member("b", 2)
        self.assertEqual(self.asked(300), ["a"])
        self.rechecks.disconnected(leaving)
        self.assertEqual(self.asked(), ["b"])
        self.site.answer(LoggedIn(2))
        self.assertIsNone(staying.closed)

    def test_pending_rechecks_stay_within_their_limit(self) -> None:
        self.rechecks = self.make(at_once=3)
        members = [self.member(str(number), number) for number in range(10)]
        asked: list[str] = []
        self.asked(300)
        for _ in range(10):
            out = self.asked()
            self.assertLessEqual(len(out), 3)
            asked.append(out[0])
            self.site.answer(LoggedIn(int(out[0])))
        self.assertEqual(asked, [str(number) for number in range(10)])
        self.assertEqual({member.closed for member in members}, {None})

    def test_login_takes_its_session_off_the_due_rechecks(self) -> None:
        self.rechecks = self.make(at_once=1)
        self.member("a", 1)
        self.member("b", 2)
        self.assertEqual(self.asked(300), ["a"])
        self.member("b", 2)
        self.site.answer(LoggedIn(1))
        self.assertEqual(self.asked(), [])

    def test_unavailable_site_closes_connections_after_the_grace(self) -> None:
        member = self.member()
        requests = 0
        for _ in range(300 * 4, (300 + 1800) * 4):
            if self.asked(0.25):
                requests += 1
                self.site.answer(Unavailable("down"))
        self.assertIsNone(member.closed)
        self.assertEqual(requests, 6)
        self.assertEqual(self.asked(300), ["sid"])
        self.site.answer(Unavailable("down"))
        self.assertEqual(member.closed, TOO_LONG)
        self.assertEqual(len(self.rechecks), 0)

    def test_grace_stands_still_while_the_process_is_held_up(self) -> None:
        member = self.member()
        self.asked(300)
        self.site.answer(Unavailable("down"))
        self.clock.advance(5000)
        self.held_up += 5000
        self.assertEqual(self.asked(0.25), ["sid"])
        self.site.answer(Unavailable("the network is not there yet"))
        self.assertIsNone(member.closed)
        self.assertEqual(self.asked(299.5), [])
        self.assertEqual(self.asked(1.5), ["sid"])
        self.site.answer(LoggedIn(1))
        self.assertIsNone(member.closed)

    def test_grace_ends_on_time(self) -> None:
        self.rechecks = self.make(grace=100)
        member = self.member()
        self.asked(300)
        self.site.answer(Unavailable("down"))
        self.assertEqual(self.asked(99.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])
        self.site.answer(Unavailable("down"))
        self.assertEqual(member.closed, TOO_LONG)

    def test_answer_restarts_the_grace(self) -> None:
        self.rechecks = self.make(grace=100)
        member = self.member()
        for _ in range(3):
            self.asked(300)
            self.site.answer(Unavailable("down"))
            self.asked(100)
            self.site.answer(LoggedIn(1))
        self.assertIsNone(member.closed)

    def test_grace_zero_is_no_limit(self) -> None:
        self.rechecks = self.make(grace=0)
        member = self.member()
        for _ in range(50):
            self.assertEqual(self.asked(300), ["sid"])
            self.site.answer(Unavailable("down"))
        self.assertIsNone(member.closed)

    def test_every_session_is_forgotten_when_all_have_disconnected(self) -> None:
        for number in range(1000):
            self.rechecks.disconnected(self.member(str(number), number, expires_in=1 + number % 7))
        self.asked(10)
        kept = [value for value in vars(self.rechecks).values() if isinstance(value, dict | list)]
        self.assertEqual([len(value) for value in kept], [0] * len(kept))

    def test_far_due_times_of_sessions_without_connections_are_not_kept(self) -> None:
        two_weeks = 14 * 86400
        there = [self.member(f"there {number}", number, two_weeks + number) for number in range(10)]
        most = 0
        for number in range(100_000):
            self.rechecks.disconnected(self.member("sid", 77, expires_in=two_weeks + number))
            most = max(most, len(self.rechecks._slots), len(self.rechecks._times))
        self.assertLessEqual(most, 2 * 11)
        for member in there:
            self.rechecks.disconnected(member)
        kept = [value for value in vars(self.rechecks).values() if isinstance(value, dict | list)]
        self.assertEqual([len(value) for value in kept], [0] * len(kept))

    def test_session_with_a_repeated_due_time_is_rechecked_once(self) -> None:
        self.member("other", 2, expires_in=20)
        for _ in range(2):
            self.rechecks.disconnected(self.member(expires_in=10))
        self.member(expires_in=10)
        self.assertEqual(self.asked(9.75), [])
        self.assertEqual(self.asked(0.25), ["sid"])
        self.assertEqual(self.asked(10), ["sid", "other"])

    def test_repr_has_no_session_id(self) -> None:
        self.member("CANARY")
        self.assertNotIn("CANARY", repr(vars(self.rechecks)))
        self.asked(300)
        self.site.asked.clear()
        self.assertNotIn("CANARY", repr(vars(self.rechecks)))
