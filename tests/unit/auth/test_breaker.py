"""The circuit breaker, with times that are only numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.breaker import Breaker, BreakerState
from chatrelay.config.options import Config

DEFAULTS = Config()
WAIT, LONGEST_WAIT = DEFAULTS.breaker_wait, DEFAULTS.breaker_longest_wait


class BreakerTests(SynchronousTestCase):
    """When the breaker opens, which request is the probe, and when it closes."""

    def opened(self, now: float = 0.0, wait: float = WAIT, longest_wait: float = LONGEST_WAIT) -> Breaker[str]:
        """Return a breaker that has just opened."""
        breaker: Breaker[str] = Breaker(3, wait, longest_wait)
        self.assertEqual([breaker.failed("x", now) for _ in range(3)], [False, False, True])
        return breaker

    def test_breaker_opens_at_its_limit(self) -> None:
        breaker: Breaker[str] = Breaker(3, WAIT, LONGEST_WAIT)
        for _ in range(2):
            self.assertFalse(breaker.failed("x", 0))
            self.assertTrue(breaker.admit("y", 0))
        self.assertTrue(breaker.failed("x", 0))
        self.assertIs(breaker.state, BreakerState.OPEN)
        self.assertFalse(breaker.admit("y", 0))

    def test_answer_resets_the_failures(self) -> None:
        breaker: Breaker[str] = Breaker(3, WAIT, LONGEST_WAIT)
        for _ in range(10):
            breaker.failed("x", 0)
            breaker.failed("x", 0)
            self.assertFalse(breaker.answered())
        self.assertIs(breaker.state, BreakerState.CLOSED)

    def test_failures_zero_is_no_breaker(self) -> None:
        breaker: Breaker[str] = Breaker(0, WAIT, LONGEST_WAIT)
        self.assertEqual({breaker.failed("x", 0) for _ in range(1000)}, {False})
        self.assertEqual({breaker.suspect("x", "own") for _ in range(100)}, {False})
        self.assertTrue(breaker.admit("x", 0))

    def test_one_probe_is_admitted_after_the_wait(self) -> None:
        breaker = self.opened()
        self.assertFalse(breaker.admit("early", WAIT - 0.01))
        self.assertTrue(breaker.admit("probe", WAIT))
        self.assertIs(breaker.state, BreakerState.PROBING)
        self.assertFalse(breaker.admit("second", 1000))

    def test_answer_closes_the_breaker(self) -> None:
        breaker = self.opened()
        breaker.admit("probe", 5)
        self.assertTrue(breaker.answered())
        self.assertTrue(breaker.admit("x", 5))
        # The failures are counted from zero again.
        self.assertEqual([breaker.failed("x", 5) for _ in range(3)], [False, False, True])

    def test_late_answer_closes_the_breaker(self) -> None:
        breaker = self.opened()
        self.assertTrue(breaker.answered())
        self.assertIs(breaker.state, BreakerState.CLOSED)

    def test_wait_doubles_up_to_its_limit(self) -> None:
        breaker = self.opened()
        waits = self.waits(breaker, 6)
        self.assertEqual(waits, [1, 2, 4, 8, 10, 10])
        now = sum(waits)
        breaker.answered()
        for _ in range(3):
            breaker.failed("x", now)
        self.assertFalse(breaker.admit("probe", now + WAIT - 0.01))
        self.assertTrue(breaker.admit("probe", now + WAIT))

    def test_wait_and_its_limit_are_the_configured_ones(self) -> None:
        for options, waits in (
            ({"wait": 3, "longest_wait": 7}, [3, 6, 7, 7]),
            ({"wait": 5, "longest_wait": 5}, [5, 5, 5]),
            ({"longest_wait": 0}, [2**number for number in range(9)]),  # no limit
        ):
            self.assertEqual(self.waits(self.opened(**options), len(waits)), waits)

    def test_wait_zero_makes_each_request_a_probe(self) -> None:
        breaker = self.opened(wait=0)
        for number in range(20):
            self.assertTrue(breaker.admit(str(number), 0))
            self.assertFalse(breaker.admit("meanwhile", 0))
            self.assertFalse(breaker.failed(str(number), 0))

    def waits(self, breaker: Breaker[str], count: int) -> list[float]:
        """Return the waits before the next probes, all of which fail."""
        now, waits = 0.0, []
        for _ in range(count):
            wait = next(step / 4 for step in range(10_000) if breaker.admit("probe", now + step / 4))
            waits.append(wait)
            now += wait
            self.assertFalse(breaker.failed("probe", now))
        return waits

    def test_failure_of_a_request_from_before_the_opening_is_ignored(self) -> None:
        breaker = self.opened()
        for _ in range(20):
            self.assertFalse(breaker.failed("late", 0.5))
        self.assertTrue(breaker.admit("probe", WAIT))
        self.assertFalse(breaker.failed("late", WAIT))
        self.assertIs(breaker.state, BreakerState.PROBING)

    def test_given_up_probe_is_followed_by_another(self) -> None:
        breaker = self.opened()
        breaker.admit("probe", WAIT)
        breaker.given_up("another")
        self.assertFalse(breaker.admit("next", WAIT))
        breaker.given_up("probe")
        self.assertTrue(breaker.admit("next", WAIT))
        self.assertFalse(breaker.admit("third", WAIT))

    def test_invalid_answers_open_the_breaker_only_after_an_own_request_failed(self) -> None:
        breaker: Breaker[str] = Breaker(3, WAIT, LONGEST_WAIT)
        self.assertEqual([breaker.suspect("x", f"own {number}") for number in range(9)], [False, True, *[False] * 7])
        self.assertIs(breaker.state, BreakerState.CLOSED)
        self.assertTrue(breaker.failed("own 1", 0))
        self.assertIs(breaker.state, BreakerState.OPEN)

    def test_one_own_request_is_pending_at_a_time(self) -> None:
        breaker: Breaker[str] = Breaker(2, WAIT, LONGEST_WAIT)
        self.assertEqual([breaker.suspect("x", "a"), breaker.suspect("x", "b")], [True, False])
        breaker.given_up("a")
        self.assertEqual([breaker.suspect("x", "c"), breaker.suspect("x", "d")], [True, False])
        breaker.answered()
        self.assertEqual([breaker.suspect("x", "e"), breaker.suspect("x", "f")], [True, False])
        self.assertTrue(breaker.failed("e", 0))

    def test_failures_open_the_breaker_beside_invalid_answers(self) -> None:
        breaker: Breaker[str] = Breaker(3, WAIT, LONGEST_WAIT)
        for _ in range(9):
            breaker.suspect("x", "own")
        self.assertTrue(breaker.failed("y", 0))
        self.assertFalse(breaker.failed("own", 0))

    def test_invalid_answer_to_the_probe_makes_an_own_request_the_probe(self) -> None:
        breaker = self.opened()
        self.assertTrue(breaker.admit("probe", WAIT))
        self.assertFalse(breaker.suspect("late", "own"))
        self.assertTrue(breaker.suspect("probe", "own"))
        self.assertFalse(breaker.admit("next", 1000))
        self.assertFalse(breaker.failed("own", WAIT))
        self.assertFalse(breaker.admit("next", 3 * WAIT - 0.01))
        self.assertTrue(breaker.admit("next", 3 * WAIT))
        self.assertTrue(breaker.suspect("next", "own too"))
        self.assertTrue(breaker.answered())

    @given(
        st.lists(st.tuples(st.sampled_from(["ask", "answered", "failed", "doubted", "given up"]), st.integers(0, 4)))
    )
    def test_breaker_never_has_two_probes_and_never_stays_open(self, steps: list[tuple[str, int]]) -> None:
        breaker: Breaker[int] = Breaker(3, WAIT, LONGEST_WAIT)
        out: set[int] = set()
        now, serial = 0, 0
        for what, number in steps:
            now += number
            if what == "ask":
                was_closed = breaker.state is BreakerState.CLOSED
                serial += 1
                if breaker.admit(serial, now):
                    out.add(serial)
                    self.assertTrue(was_closed or breaker.state is BreakerState.PROBING)
            elif out:
                request = sorted(out)[number % len(out)]
                out.remove(request)
                if what == "answered":
                    breaker.answered()
                elif what == "failed":
                    breaker.failed(request, now)
                elif what == "doubted":
                    serial += 1
                    if breaker.suspect(request, serial):
                        out.add(serial)
                else:
                    breaker.given_up(request)
        for request in out:
            breaker.given_up(request)
        self.assertTrue(breaker.admit(-1, now + LONGEST_WAIT))
