"""How many logins of one address may be denied, and which denials are remembered."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth import throttle as attempts
from chatrelay.auth.throttle import DenialCache, LoginThrottle
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.testing import HeldAuthenticator, KnownSessions

HOME = "192.0.2.1"


class AttemptsTestCase(SynchronousTestCase):
    """LoginThrottle on a clock that the test holds, and a webserver that answers at once."""

    def setUp(self) -> None:
        self.now = 1_800_000_000.0
        self.told: list[str] = []
        self.asked: list[str] = []
        self.given_up: list[Deferred[None]] = []
        self.answers: dict[str, Verdict] = {"alice": LoggedIn(1)}
        self.recent: DenialCache | None = DenialCache(b"key", 5)
        self.attempts = self.make(20)

    def make(self, per_minute: int, authenticator: Any = None) -> LoginThrottle:
        """LoginThrottle with this limit."""
        known = authenticator or KnownSessions({"alice": 1})

        def ask(sessid: str, is_ticket: bool) -> Deferred[Verdict]:
            self.asked.append(sessid)
            verdict: Deferred[Verdict] = known.authenticate(sessid)
            return verdict.addErrback(lambda _: Unavailable("given up"))

        return LoginThrottle(per_minute, ask, lambda: self.now, self.recent, self.told.append, self.given_up.append)

    def asks(self, sessid: str, address: str | None = HOME, is_ticket: bool = False) -> Verdict:
        """The verdict that comes at once."""
        return self.successResultOf(self.attempts.ask(address, sessid, is_ticket))

    def guess(self, count: int, address: str | None = HOME) -> int:
        """How many of so many guesses the webserver is asked about; all are denied."""
        before = len(self.asked)
        for number in range(count):
            self.assertEqual(self.asks(f"guess {before}.{number}", address), Denied())
        return len(self.asked) - before


class DenialsOfAnAddress(AttemptsTestCase):
    """logins-per-minute."""

    def test_20_denials_a_minute_and_then_nobody_is_asked_about(self) -> None:
        self.assertEqual(self.guess(19), 19)
        self.assertEqual(self.asks("alice"), LoggedIn(1))
        self.assertEqual(self.guess(1), 1)
        self.assertEqual(self.guess(100), 0)
        # Not even one who would be logged in: guessing right must not be told from guessing wrong.
        self.assertEqual(self.asks("alice"), Denied())
        self.now += 2.5
        self.assertEqual(self.guess(1), 0)
        self.now += 0.5
        self.assertEqual(self.asks("alice"), LoggedIn(1))
        self.assertEqual(self.guess(10), 1)
        self.now += 60
        self.assertEqual(self.guess(100), 20)

    def test_logins_that_succeed_do_not_count(self) -> None:
        for _ in range(1000):
            self.assertEqual(self.asks("alice"), LoggedIn(1))
        self.assertEqual(self.guess(100), 20)

    def test_trouble_does_not_count(self) -> None:
        held = HeldAuthenticator()
        self.attempts = self.make(1, held)
        for _ in range(100):
            waiting = self.attempts.ask(HOME, "sid", False)
            held.answer(Unavailable("it is down"))
            self.assertEqual(self.successResultOf(waiting), Unavailable("it is down"))
        for _ in range(100):
            waiting = self.attempts.ask(HOME, "sid", False)
            waiting.cancel()
            self.assertEqual(self.successResultOf(waiting), Unavailable("the login was given up"))
            held.answer(Unavailable("it is down"))
        self.assertEqual(len(self.given_up), 100)

    def test_each_address_has_its_own(self) -> None:
        self.assertEqual(self.guess(100), 20)
        self.assertEqual(self.guess(100, "192.0.2.2"), 20)
        self.assertEqual(self.told, [HOME, "192.0.2.2"])

    def test_a_client_without_an_address_has_no_limit(self) -> None:
        self.assertEqual(self.guess(1000, None), 1000)
        self.assertEqual(len(self.attempts), 0)

    def test_zero_is_no_limit(self) -> None:
        self.attempts = self.make(0)
        self.assertEqual(self.guess(1000), 1000)
        self.assertEqual(len(self.attempts), 0)

    def test_the_operator_is_told_once_until_all_is_as_before(self) -> None:
        self.guess(100)
        self.now += 30
        self.guess(100)
        self.assertEqual(self.told, [HOME])
        self.now += 60
        self.attempts.sweep()
        self.guess(100)
        self.assertEqual(self.told, [HOME, HOME])


class ManyAtOnce(AttemptsTestCase):
    """Questions that are out, and those that wait for them."""

    def setUp(self) -> None:
        super().setUp()
        self.held = HeldAuthenticator()
        self.attempts = self.make(20, self.held)

    def many(self, count: int) -> list[Deferred[Verdict]]:
        """So many attempts of one address at once."""
        return [self.attempts.ask(HOME, f"session {number}", False) for number in range(count)]

    def test_many_at_once_have_no_more_denials_than_one_after_the_other(self) -> None:
        waiting = self.many(100)
        while self.held.asked:
            self.held.answer(Denied())
        self.assertEqual([self.successResultOf(one) for one in waiting], [Denied()] * 100)
        self.assertEqual(len(self.asked), 20)

    def test_an_address_of_many_who_may_come_in_lets_all_of_them_in(self) -> None:
        waiting = self.many(5000)
        self.assertEqual(len(self.held.asked), 20)
        while self.held.asked:
            self.held.answer(LoggedIn(7))
        self.assertEqual([self.successResultOf(one) for one in waiting], [LoggedIn(7)] * 5000)
        self.assertEqual(len(self.attempts), 0)

    def test_trouble_for_all_who_wait_is_no_deep_recursion(self) -> None:
        waiting = self.many(5000)

        def down(sessid: str) -> Deferred[Verdict]:
            return succeed(Unavailable("it is down"))

        self.held.authenticate = down  # type: ignore[method-assign]
        self.held.answer(Unavailable("it is down"))
        self.assertEqual(sum(one.called for one in waiting), 5000 - 19)

    def test_who_leaves_waits_no_more_and_lets_another_in(self) -> None:
        waiting = self.many(22)
        waiting[20].cancel()
        self.assertEqual(self.successResultOf(waiting[20]), Unavailable("the login was given up"))
        waiting[0].cancel()
        self.assertEqual(self.successResultOf(waiting[0]), Unavailable("the login was given up"))
        # The webserver may be at work on that one: it is out until there is an answer.
        self.assertEqual((len(self.given_up), self.asked[20:]), (1, []))
        self.held.answer(LoggedIn(7))
        self.assertEqual(self.asked[20:], ["session 21"])

    def test_who_asks_and_leaves_has_no_more_denials_than_who_stays(self) -> None:
        for number in range(100):
            self.attempts.ask(HOME, f"guess {number}", False).cancel()
        self.assertEqual(len(self.asked), 20)
        while self.held.asked:
            self.held.answer(Denied())
        self.assertEqual(self.successResultOf(self.attempts.ask(HOME, "alice", False)), Denied())
        self.assertEqual(self.successResultOf(self.attempts.ask("192.0.2.9", "guess 7", False)), Denied())  # remembered
        self.assertEqual(len(self.asked), 20)

    def test_one_that_is_given_up_by_what_it_is_asked_with(self) -> None:
        waiting = self.many(21)

        def authenticate(sessid: str) -> Deferred[Verdict]:
            waiting[20].cancel()
            return KnownSessions({sessid: 1}).authenticate(sessid)

        self.held.authenticate = authenticate  # type: ignore[method-assign]
        self.held.answer(LoggedIn(7))
        self.assertEqual(self.successResultOf(waiting[20]), Unavailable("the login was given up"))

    @given(st.lists(st.sampled_from(["ask", "denied", "logged in", "trouble", "leave", "wait"]), max_size=80))
    def test_whatever_happens_no_more_is_asked_than_may_be_denied(self, steps: list[str]) -> None:
        self.now, self.asked, denied = 0.0, [], 0
        held = HeldAuthenticator()
        self.attempts = self.make(4, held)
        waiting: list[Deferred[Verdict]] = []
        for number, step in enumerate(steps):
            if step == "ask":
                waiting.append(self.attempts.ask(HOME, f"session {number}", True))
            elif step == "wait":
                self.now += 4
            elif step == "leave" and waiting:
                waiting.pop(len(waiting) // 2).cancel()
            elif held.asked and not held.asked[0][1].called:
                held.answer({"denied": Denied(), "logged in": LoggedIn(1)}.get(step, Unavailable("trouble")))
                denied += step == "denied"
            held.asked = [(sessid, answer) for sessid, answer in held.asked if not answer.called]
            self.assertLessEqual(denied + len(held.asked), 4 + self.now * 4 / 60)
        for one in waiting:
            one.cancel()
        while held.asked:
            held.answer(Unavailable("trouble"))
        self.now += 60
        self.attempts.sweep()
        self.assertEqual(len(self.attempts), 0)


class RememberedAddresses(AttemptsTestCase):
    """Of whom is remembered what, and for how long."""

    def test_who_is_never_denied_is_not_remembered(self) -> None:
        for number in range(100):
            self.asks("alice", f"192.0.2.{number}")
        self.assertEqual(len(self.attempts), 0)

    def test_who_was_denied_is_remembered_for_a_minute_since(self) -> None:
        self.guess(1)
        self.now += 30
        self.guess(20)
        self.now += 59.9
        self.attempts.sweep()
        self.assertEqual(len(self.attempts), 1)
        self.now += 0.1
        self.attempts.sweep()
        self.assertEqual(len(self.attempts), 0)

    def test_a_question_that_is_out_is_not_forgotten(self) -> None:
        held = HeldAuthenticator()
        self.attempts = self.make(2, held)
        for _ in range(3):
            self.attempts.ask(HOME, "guess", True)
            held.answer(Denied()) if len(self.asked) == 1 else None
        self.now += 600
        self.attempts.sweep()
        self.assertEqual(len(self.attempts), 1)

    def test_no_more_addresses_than_there_is_room_for(self) -> None:
        self.patch(attempts, "MAX_ADDRESSES", 100)
        for number in range(1000):
            self.guess(1, f"2001:db8:{number:x}::/64")
        self.assertEqual(len(self.attempts), 100)
        self.assertEqual(self.guess(100, "2001:db8:3e7::/64"), 19)  # still known
        self.assertEqual(self.guess(100, "2001:db8:0::/64"), 20)  # forgotten


class RememberedDenials(AttemptsTestCase):
    """A session that was just denied."""

    def test_for_five_seconds_whoever_asks(self) -> None:
        self.asks("guess")
        self.now += 4.9
        for address in (HOME, "192.0.2.2", None):
            self.assertEqual(self.asks("guess", address), Denied())
        self.assertEqual(self.asked, ["guess"])
        self.now += 0.1
        self.asks("guess")
        self.assertEqual(self.asked, ["guess", "guess"])

    def test_for_as_long_as_was_said(self) -> None:
        for seconds in (0.5, 3600):
            self.recent, self.asked = DenialCache(b"key", seconds), []
            self.attempts = self.make(0)
            self.asks("guess")
            self.now += seconds - 0.01
            self.attempts.sweep()
            self.asks("guess")
            self.assertEqual(self.asked, ["guess"])
            self.now += 0.01
            self.asks("guess")
            self.assertEqual(self.asked, ["guess", "guess"])

    def test_zero_is_not_at_all(self) -> None:
        self.recent = DenialCache(b"key", 0)
        self.attempts = self.make(20)
        self.assertEqual([self.asks("guess") for _ in range(30)], [Denied()] * 30)
        self.assertEqual((len(self.asked), len(self.recent)), (20, 0))  # each was a denial of the address

    def test_a_ticket_never_however_long_a_denial_is_remembered(self) -> None:
        self.recent = DenialCache(b"key", 3600)
        self.attempts = self.make(20)
        for _ in range(3):
            self.assertEqual(self.asks("ticket", is_ticket=True), Denied())
        self.assertEqual((self.asked, len(self.recent)), (["ticket"] * 3, 0))

    def test_the_time_is_not_prolonged_by_asking(self) -> None:
        self.attempts = self.make(0)
        for _ in range(100):
            self.asks("guess")
            self.now += 0.5
        self.assertEqual(len(self.asked), 10)

    def test_another_session_is_asked_about(self) -> None:
        self.asks("guess")
        self.assertEqual(self.asks("alice"), LoggedIn(1))

    def test_a_success_and_trouble_never(self) -> None:
        held = HeldAuthenticator()
        self.attempts = self.make(20, held)
        for verdict in (LoggedIn(1), Unavailable("it is down"), LoggedIn(2), Denied()):
            waiting = self.attempts.ask(HOME, "sid", False)
            held.answer(verdict)
            self.assertEqual(self.successResultOf(waiting), verdict)

    def test_a_ticket_never(self) -> None:
        for _ in range(3):
            self.assertEqual(self.asks("ticket", is_ticket=True), Denied())
        self.assertEqual(self.asked, ["ticket"] * 3)
        # Nor is one answered by what is known of a session that is called the same.
        self.asks("cookie")
        self.asks("cookie", is_ticket=True)
        self.assertEqual(self.asked[3:], ["cookie"] * 2)

    def test_where_none_is_remembered(self) -> None:
        self.recent = None
        self.attempts = self.make(20)
        self.assertEqual([self.asks("guess") for _ in range(30)], [Denied()] * 30)
        self.assertEqual(len(self.asked), 20)

    def test_it_is_no_further_denial_of_the_address(self) -> None:
        for _ in range(100):
            self.asks("guess")
        self.assertEqual(self.guess(100), 19)

    def test_those_who_share_an_answer_are_denied_once(self) -> None:
        held = HeldAuthenticator()
        self.attempts = self.make(3, held)
        tabs = [self.attempts.ask(HOME, "tab", False) for _ in range(10)]
        for _ in range(3):  # as many as may be denied were let through to share it
            held.answer(Denied())
        self.assertEqual([self.successResultOf(tab) for tab in tabs], [Denied()] * 10)
        others = [self.attempts.ask(HOME, f"other {number}", False) for number in range(5)]
        self.assertEqual(len(held.asked), 2)
        while held.asked:
            held.answer(Denied())
        self.assertEqual([self.successResultOf(other) for other in others], [Denied()] * 5)
        self.assertEqual(len(self.asked), 5)

    def test_it_is_forgotten_when_the_time_is_over(self) -> None:
        assert self.recent is not None
        self.guess(10)
        self.now += 4
        self.guess(5)
        self.now += 1
        self.attempts.sweep()
        self.assertEqual(len(self.recent), 5)

    def test_no_more_than_there_is_room_for(self) -> None:
        self.patch(attempts, "MAX_DENIED_SESSIONS", 100)
        assert self.recent is not None
        self.attempts = self.make(0)
        self.guess(1000)
        self.assertEqual(len(self.recent), 100)
        self.asked.clear()
        self.asks("guess 999.0")
        self.asks("guess 0.0")
        self.assertEqual(self.asked, ["guess 999.0", "guess 0.0"])

    def test_a_clock_that_is_set_back_ends_it(self) -> None:
        self.asks("guess", None)
        self.now -= 3600
        self.asks("guess", None)
        self.assertEqual(len(self.asked), 2)
        self.asks("guess", None)
        self.assertEqual(len(self.asked), 2)
