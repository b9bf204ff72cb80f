"""The login throttle: how many logins of one address may be denied, and which denials are remembered."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth import throttle
from chatrelay.auth.throttle import DenialCache, LoginThrottle
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.testing import HeldAuthenticator, KnownSessions

HOME = "192.0.2.1"


class ThrottleTestCase(SynchronousTestCase):
    """A throttle with a clock that the test controls, and a site that answers at once."""

    def setUp(self) -> None:
        self.now = 1_800_000_000.0
        self.told: list[str] = []
        self.asked: list[str] = []
        self.given_up: list[Deferred[None]] = []
        self.answers: dict[str, Verdict] = {"alice": LoggedIn(1)}
        self.recent: DenialCache | None = DenialCache(b"key", 5)
        self.throttle = self.make(20)

    def make(self, per_minute: int, authenticator: Any = None) -> LoginThrottle:
        """Return a throttle with this limit."""
        known = authenticator or KnownSessions({"alice": 1})

        def ask(sessid: str, is_ticket: bool) -> Deferred[Verdict]:
            self.asked.append(sessid)
            verdict: Deferred[Verdict] = known.authenticate(sessid)
            return verdict.addErrback(lambda _: Unavailable("given up"))

        return LoginThrottle(per_minute, ask, lambda: self.now, self.recent, self.told.append, self.given_up.append)

    def asks(self, sessid: str, address: str | None = HOME, is_ticket: bool = False) -> Verdict:
        """Ask, and return the verdict, which comes at once."""
        return self.successResultOf(self.throttle.ask(address, sessid, is_ticket))

    def guess(self, count: int, address: str | None = HOME) -> int:
        """Try to log in with guesses, which are all denied; return how many the site was asked about."""
        before = len(self.asked)
        for number in range(count):
            self.assertEqual(self.asks(f"guess {before}.{number}", address), Denied())
        return len(self.asked) - before


class DenialsOfAnAddress(ThrottleTestCase):
    """logins-per-minute."""

    def test_address_has_20_denials_a_minute(self) -> None:
        self.assertEqual(self.guess(19), 19)
        self.assertEqual(self.asks("alice"), LoggedIn(1))
        self.assertEqual(self.guess(1), 1)
        self.assertEqual(self.guess(100), 0)
        # Even a right guess is denied, so that it can't be distinguished from a wrong one.
        self.assertEqual(self.asks("alice"), Denied())
        self.now += 2.5
        self.assertEqual(self.guess(1), 0)
        self.now += 0.5
        self.assertEqual(self.asks("alice"), LoggedIn(1))
        self.assertEqual(self.guess(10), 1)
        self.now += 60
        self.assertEqual(self.guess(100), 20)

    def test_successful_logins_do_not_count(self) -> None:
        for _ in range(1000):
            self.assertEqual(self.asks("alice"), LoggedIn(1))
        self.assertEqual(self.guess(100), 20)

    def test_unavailable_verdicts_do_not_count(self) -> None:
        held = HeldAuthenticator()
        self.throttle = self.make(1, held)
        for _ in range(100):
            waiting = self.throttle.ask(HOME, "sid", False)
            held.answer(Unavailable("it is down"))
            self.assertEqual(self.successResultOf(waiting), Unavailable("it is down"))
        for _ in range(100):
            waiting = self.throttle.ask(HOME, "sid", False)
            waiting.cancel()
            self.assertEqual(self.successResultOf(waiting), Unavailable("the login was given up"))
            held.answer(Unavailable("it is down"))
        self.assertEqual(len(self.given_up), 100)

    def test_addresses_are_counted_apart(self) -> None:
        self.assertEqual(self.guess(100), 20)
        self.assertEqual(self.guess(100, "192.0.2.2"), 20)
        self.assertEqual(self.told, [HOME, "192.0.2.2"])

    def test_client_without_an_address_and_logins_per_minute_zero_have_no_limit(self) -> None:
        for per_minute, address in ((20, None), (0, HOME)):
            self.throttle = self.make(per_minute)
            self.assertEqual(self.guess(1000, address), 1000)
            self.assertEqual(len(self.throttle), 0)

    def test_exhausted_address_is_reported_once(self) -> None:
        self.guess(100)
        self.now += 30
        self.guess(100)
        self.assertEqual(self.told, [HOME])
        self.now += 60
        self.throttle.sweep()
        self.guess(100)
        self.assertEqual(self.told, [HOME, HOME])


class ManyAtOnce(ThrottleTestCase):
    """Pending logins, and those that wait for them."""

    def setUp(self) -> None:
        super().setUp()
        self.held = HeldAuthenticator()
        self.throttle = self.make(20, self.held)

    def many(self, count: int) -> list[Deferred[Verdict]]:
        """Begin several logins of one address at once."""
        return [self.throttle.ask(HOME, f"session {number}", False) for number in range(count)]

    def test_simultaneous_logins_get_no_more_denials(self) -> None:
        waiting = self.many(100)
        while self.held.asked:
            self.held.answer(Denied())
        self.assertEqual([self.successResultOf(one) for one in waiting], [Denied()] * 100)
        self.assertEqual(len(self.asked), 20)

    def test_many_valid_logins_of_one_address_succeed(self) -> None:
        waiting = self.many(5000)
        self.assertEqual(len(self.held.asked), 20)
        while self.held.asked:
            self.held.answer(LoggedIn(7))
        self.assertEqual([self.successResultOf(one) for one in waiting], [LoggedIn(7)] * 5000)
        self.assertEqual(len(self.throttle), 0)

    def test_many_waiting_logins_do_not_recurse(self) -> None:
        waiting = self.many(5000)

        def down(sessid: str) -> Deferred[Verdict]:
            return succeed(Unavailable("it is down"))

        self.held.authenticate = down  # type: ignore[method-assign]
        self.held.answer(Unavailable("it is down"))
        self.assertEqual(sum(one.called for one in waiting), 5000 - 19)

    def test_cancelled_login_lets_the_next_one_start(self) -> None:
        waiting = self.many(22)
        waiting[20].cancel()
        self.assertEqual(self.successResultOf(waiting[20]), Unavailable("the login was given up"))
        waiting[0].cancel()
        self.assertEqual(self.successResultOf(waiting[0]), Unavailable("the login was given up"))
        # The site may be working on it, so it counts as pending until there is an answer.
        self.assertEqual((len(self.given_up), self.asked[20:]), (1, []))
        self.held.answer(LoggedIn(7))
        self.assertEqual(self.asked[20:], ["session 21"])

    def test_cancelled_logins_count_as_pending(self) -> None:
        for number in range(100):
            self.throttle.ask(HOME, f"guess {number}", False).cancel()
        self.assertEqual(len(self.asked), 20)
        while self.held.asked:
            self.held.answer(Denied())
        self.assertEqual(self.successResultOf(self.throttle.ask(HOME, "alice", False)), Denied())
        self.assertEqual(self.successResultOf(self.throttle.ask("192.0.2.9", "guess 7", False)), Denied())  # remembered
        self.assertEqual(len(self.asked), 20)

    def test_login_cancelled_while_it_starts_has_one_verdict(self) -> None:
        waiting = self.many(21)

        def authenticate(sessid: str) -> Deferred[Verdict]:
            waiting[20].cancel()
            return KnownSessions({sessid: 1}).authenticate(sessid)

        self.held.authenticate = authenticate  # type: ignore[method-assign]
        self.held.answer(LoggedIn(7))
        self.assertEqual(self.successResultOf(waiting[20]), Unavailable("the login was given up"))

    @given(st.lists(st.sampled_from(["ask", "denied", "logged in", "trouble", "leave", "wait"]), max_size=80))
    def test_pending_requests_never_exceed_the_denials_left(self, steps: list[str]) -> None:
        self.now, self.asked, denied = 0.0, [], 0
        held = HeldAuthenticator()
        self.throttle = self.make(4, held)
        waiting: list[Deferred[Verdict]] = []
        for number, step in enumerate(steps):
            if step == "ask":
                waiting.append(self.throttle.ask(HOME, f"session {number}", True))
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
        self.throttle.sweep()
        self.assertEqual(len(self.throttle), 0)


class RememberedAddresses(ThrottleTestCase):
    """Which addresses are remembered, and for how long."""

    def test_address_without_denials_is_forgotten_at_once(self) -> None:
        for number in range(100):
            self.asks("alice", f"192.0.2.{number}")
        self.assertEqual(len(self.throttle), 0)

    def test_address_is_forgotten_when_its_denials_are_back(self) -> None:
        self.guess(1)
        self.now += 30
        self.guess(20)
        self.now += 59.9
        self.throttle.sweep()
        self.assertEqual(len(self.throttle), 1)
        self.now += 0.1
        self.throttle.sweep()
        self.assertEqual(len(self.throttle), 0)

    def test_address_with_a_pending_request_is_kept(self) -> None:
        held = HeldAuthenticator()
        self.throttle = self.make(2, held)
        for _ in range(3):
            self.throttle.ask(HOME, "guess", True)
            held.answer(Denied()) if len(self.asked) == 1 else None
        self.now += 600
        self.throttle.sweep()
        self.assertEqual(len(self.throttle), 1)

    def test_addresses_are_limited_in_number(self) -> None:
        self.patch(throttle, "MAX_ADDRESSES", 100)
        for number in range(1000):
            self.guess(1, f"2001:db8:{number:x}::/64")
        self.assertEqual(len(self.throttle), 100)
        self.assertEqual(self.guess(100, "2001:db8:3e7::/64"), 19)  # remembered
        self.assertEqual(self.guess(100, "2001:db8:0::/64"), 20)  # forgotten


class RememberedDenials(ThrottleTestCase):
    """Sessions that were just denied."""

    def test_denial_is_remembered_for_every_client(self) -> None:
        self.asks("guess")
        self.now += 4.9
        for address in (HOME, "192.0.2.2", None):
            self.assertEqual(self.asks("guess", address), Denied())
        self.assertEqual(self.asked, ["guess"])
        self.now += 0.1
        self.asks("guess")
        self.assertEqual(self.asked, ["guess", "guess"])

    def test_denial_is_remembered_for_the_configured_time(self) -> None:
        for seconds in (0.5, 3600):
            self.recent, self.asked = DenialCache(b"key", seconds), []
            self.throttle = self.make(0)
            self.asks("guess")
            self.now += seconds - 0.01
            self.throttle.sweep()
            self.asks("guess")
            self.assertEqual(self.asked, ["guess"])
            self.now += 0.01
            self.asks("guess")
            self.assertEqual(self.asked, ["guess", "guess"])

    def test_denial_memory_zero_and_a_throttle_without_a_cache_remember_nothing(self) -> None:
        for self.recent in (DenialCache(b"key", 0), None):
            self.throttle, self.asked = self.make(20), []
            self.assertEqual([self.asks("guess") for _ in range(30)], [Denied()] * 30)
            self.assertEqual(len(self.asked), 20)  # each was a denial of the address
            self.assertFalse(self.recent)

    def test_only_denials_are_remembered(self) -> None:
        held = HeldAuthenticator()
        self.throttle = self.make(20, held)
        for verdict in (LoggedIn(1), Unavailable("it is down"), LoggedIn(2), Denied()):
            waiting = self.throttle.ask(HOME, "sid", False)
            held.answer(verdict)
            self.assertEqual(self.successResultOf(waiting), verdict)

    def test_denied_ticket_is_not_remembered(self) -> None:
        for _ in range(3):
            self.assertEqual(self.asks("ticket", is_ticket=True), Denied())
        assert self.recent is not None
        self.assertEqual((self.asked, len(self.recent)), (["ticket"] * 3, 0))
        # Nor is a ticket denied because a session with the same SESSID was.
        self.asks("cookie")
        self.asks("cookie", is_ticket=True)
        self.assertEqual(self.asked[3:], ["cookie"] * 2)

    def test_remembered_denial_does_not_count_for_the_address(self) -> None:
        for _ in range(100):
            self.asks("guess")
        self.assertEqual(self.guess(100), 19)

    def test_shared_denial_counts_once(self) -> None:
        held = HeldAuthenticator()
        self.throttle = self.make(3, held)
        tabs = [self.throttle.ask(HOME, "tab", False) for _ in range(10)]
        for _ in range(3):  # as many as may be denied share the request
            held.answer(Denied())
        self.assertEqual([self.successResultOf(tab) for tab in tabs], [Denied()] * 10)
        others = [self.throttle.ask(HOME, f"other {number}", False) for number in range(5)]
        self.assertEqual(len(held.asked), 2)
        while held.asked:
            held.answer(Denied())
        self.assertEqual([self.successResultOf(other) for other in others], [Denied()] * 5)
        self.assertEqual(len(self.asked), 5)

    def test_sweep_forgets_old_denials(self) -> None:
        assert self.recent is not None
        self.guess(10)
        self.now += 4
        self.guess(5)
        self.now += 1
        self.throttle.sweep()
        self.assertEqual(len(self.recent), 5)

    def test_denials_are_limited_in_number(self) -> None:
        self.patch(throttle, "MAX_DENIED_SESSIONS", 100)
        assert self.recent is not None
        self.throttle = self.make(0)
        self.guess(1000)
        self.assertEqual(len(self.recent), 100)
        self.asked.clear()
        self.asks("guess 999.0")
        self.asks("guess 0.0")
        self.assertEqual(self.asked, ["guess 999.0", "guess 0.0"])

    def test_clock_that_is_set_back_ends_a_denial(self) -> None:
        self.asks("guess", None)
        self.now -= 3600
        self.asks("guess", None)
        self.assertEqual(len(self.asked), 2)
        self.asks("guess", None)
        self.assertEqual(len(self.asked), 2)
