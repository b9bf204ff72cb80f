"""The number of sessions that can be re-checked in time, and what is logged when there are more."""

from __future__ import annotations

from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.rechecks import RecheckBacklog, Rechecks
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.testing import RecordedConnection
from chatrelay.wire.codes import Close

LOOK = 0.25


class Member(RecordedConnection):
    """A connection of a user, which disconnects when it is closed.

    :ivar out_at: when that was.
    """

    out_at: float | None = None

    def __init__(self, rechecks: Rechecks, clock: Clock) -> None:
        super().__init__()
        self.rechecks = rechecks
        self.clock = clock

    def close(self, close: Close) -> None:
        super().close(close)
        self.out_at = self.clock.seconds()
        self.rechecks.disconnected(self)


class Capacity(SynchronousTestCase):
    """A site that takes some time for each answer, and a relay that sweeps four times a second."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.held_up = 0.0
        self.answer_seconds = 0.5
        self.ended: set[str] = set()
        self.away = False
        self.asked: list[str] = []
        self.out = self.most_out = 0
        self.told: list[RecheckBacklog | str] = []
        self.members: dict[str, Member] = {}
        self.chances = count()
        self.expires_in: float | None = None

    def make(self, interval: float, at_once: int = 8, sessions: int = 240) -> None:
        """Make a relay with this many sessions, which logged in at the same time."""
        self.rechecks = Rechecks(
            interval,
            20.0,
            1800.0,
            at_once,
            self.ask,
            self.clock.seconds,
            self.chance,
            lambda: self.clock.seconds() - self.held_up,
            lambda asking: None,  # the site goes on working on it
            self.told.append,
            lambda: self.told.append("on time"),
        )
        for number in range(sessions):
            sessid = str(number)
            self.members[sessid] = Member(self.rechecks, self.clock)
            self.rechecks.entered(self.members[sessid], sessid, LoggedIn(number, self.expires_in))

    def chance(self) -> float:
        """Return numbers that are evenly spread."""
        return (next(self.chances) * 0.618) % 1

    def ask(self, sessid: str) -> Deferred[Verdict]:
        """Answer after some seconds; at once while the site is unavailable."""
        self.asked.append(sessid)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        answered: Deferred[Verdict] = Deferred()

        def answer() -> None:
            self.out -= 1
            verdict: Verdict = Denied() if sessid in self.ended else LoggedIn(int(sessid), self.expires_in)
            answered.callback(Unavailable("it is away") if self.away else verdict)

        if self.away:
            answer()
        else:
            self.clock.callLater(self.answer_seconds, answer)
        return answered

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        for tick in range(int(seconds * 100)):
            self.clock.advance(0.01)
            if tick % 25 == 0:
                self.rechecks.sweep()

    def test_rechecks_use_the_full_capacity_of_the_site(self) -> None:
        # Seen in practice: 240 sessions, 3 s, half a second for an answer; the last one was closed after 21.8 s.
        self.answer_seconds = 0.51
        self.make(interval=3)
        self.ended = set(self.members)
        self.run_for(30)
        out = [member.out_at for member in self.members.values()]
        assert all(out)
        longest = max(at for at in out if at is not None)
        self.assertLess(longest, 240 / 8 * 0.51 + 3 * 1.2 + 1 + LOOK)
        self.assertEqual(self.most_out, 8)

    def test_answer_starts_the_next_recheck_before_the_next_sweep(self) -> None:
        self.answer_seconds = 0.01
        self.make(interval=3, sessions=1000)  # with 8 at each sweep it would take half a minute
        self.run_for(20)
        self.assertEqual(self.told, [])
        self.assertGreater(len(self.asked), 4 * 1000)
        self.assertEqual(self.most_out, 8)

    def test_session_that_is_due_longest_is_rechecked_first(self) -> None:
        self.make(interval=3)
        self.run_for(60)
        asked = [self.asked.count(sessid) for sessid in self.members]
        self.assertLessEqual(max(asked) - min(asked), 1)
        self.assertGreater(min(asked), 2)

    def test_late_rechecks_are_logged_once_with_the_capacity(self) -> None:
        self.make(interval=3)
        self.run_for(30)
        (behind,) = self.told
        assert isinstance(behind, RecheckBacklog)
        self.assertEqual((behind.sessions, behind.at_once, behind.interval), (240, 8, 3))
        self.assertAlmostEqual(behind.answer_seconds, 0.5, 1)
        self.assertAlmostEqual(behind.capacity, 8 * 3 / 0.5, -1)  # pending re-checks × interval / answer time
        self.assertGreater(behind.late, 2)
        self.assertGreater(behind.waiting, 100)
        self.answer_seconds = 0.05
        self.run_for(30)
        self.assertEqual(self.told, [behind, "on time"])
        self.answer_seconds = 0.5
        self.run_for(30)
        self.assertEqual(len(self.told), 3)

    def test_rechecks_on_time_log_nothing(self) -> None:
        # 8 × 20 / 0.5 = 320. They came at once, so the first round is late. Then they are spread.
        self.make(interval=20)
        self.run_for(200)
        self.assertEqual(self.told, [])
        self.assertGreater(len(self.asked), 8 * 240)

    def test_capacity_counts_expires_in_as_the_interval(self) -> None:
        self.expires_in = 3
        self.make(interval=300)
        self.run_for(30)
        (behind,) = self.told
        assert isinstance(behind, RecheckBacklog)
        self.assertAlmostEqual(behind.interval, 3, 0)
        self.assertAlmostEqual(behind.capacity, 48, -1)

    def test_capacity_grows_with_expires_in(self) -> None:
        self.expires_in = 30
        self.make(interval=3)
        self.run_for(200)
        self.assertEqual(self.told, [])

    def test_rechecks_that_are_late_repeatedly_are_logged_once(self) -> None:
        self.make(interval=3)
        for _ in range(20):
            self.answer_seconds = 0.5
            self.run_for(2)
            self.answer_seconds = 0.05
            self.run_for(1)
        self.assertLessEqual(len(self.told), 1)

    def test_rechecks_catch_up_when_users_leave(self) -> None:
        self.make(interval=3)
        self.run_for(20)
        for member in list(self.members.values())[10:]:
            self.rechecks.disconnected(member)
        self.run_for(20)
        self.assertEqual(self.told[1:], ["on time"])

    def test_hold_up_of_the_process_does_not_make_rechecks_late(self) -> None:
        self.make(interval=20)
        self.run_for(19)  # some are due
        self.held_up = 1000.0
        self.clock.rightNow += 1000.0
        self.run_for(0.25)
        self.assertEqual(self.told, [])
        self.assertGreater(len(self.rechecks._due), 8)

    def test_unavailable_site_does_not_count_as_slow(self) -> None:
        self.make(interval=20)
        self.run_for(60)
        self.away = True
        self.run_for(60)
        self.assertEqual(self.told, [])
        # Answers that come at once are not the site's, so they say nothing about how fast it is.
        self.away = False
        self.answer_seconds = 5.0
        self.run_for(60)
        (behind,) = self.told
        assert isinstance(behind, RecheckBacklog)
        self.assertGreater(behind.answer_seconds, 0.4)

    def test_many_immediate_answers_do_not_recurse(self) -> None:
        self.away = True
        self.make(interval=3, sessions=3000)
        self.run_for(5)
        self.assertGreaterEqual(len(self.asked), 3000)
