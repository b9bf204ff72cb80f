"""The circuit breaker, on a clock that is only numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.breaker import FIRST_WAIT, LONGEST_WAIT, Breaker, State


class BreakerTests(SynchronousTestCase):
    """When it opens, who is the probe, and when it closes."""

    def opened(self, now: float = 0.0) -> Breaker[str]:
        """A breaker that has just opened."""
        breaker: Breaker[str] = Breaker(3)
        self.assertEqual([breaker.failed("x", now) for _ in range(3)], [False, False, True])
        return breaker

    def test_it_opens_at_the_limit_and_not_before(self) -> None:
        breaker: Breaker[str] = Breaker(3)
        for _ in range(2):
            self.assertFalse(breaker.failed("x", 0))
            self.assertTrue(breaker.admits("y", 0))
        self.assertTrue(breaker.failed("x", 0))
        self.assertIs(breaker.state, State.OPEN)
        self.assertFalse(breaker.admits("y", 0))

    def test_an_answer_ends_the_row(self) -> None:
        breaker: Breaker[str] = Breaker(3)
        for _ in range(10):
            breaker.failed("x", 0)
            breaker.failed("x", 0)
            self.assertFalse(breaker.answered())
        self.assertIs(breaker.state, State.CLOSED)

    def test_zero_is_no_breaker(self) -> None:
        breaker: Breaker[str] = Breaker(0)
        self.assertEqual({breaker.failed("x", 0) for _ in range(1000)}, {False})
        self.assertTrue(breaker.admits("x", 0))

    def test_one_probe_when_the_wait_is_over_and_not_before(self) -> None:
        breaker = self.opened()
        self.assertFalse(breaker.admits("early", FIRST_WAIT - 0.01))
        self.assertTrue(breaker.admits("probe", FIRST_WAIT))
        self.assertIs(breaker.state, State.PROBING)
        self.assertFalse(breaker.admits("second", 1000))

    def test_an_answer_closes_it(self) -> None:
        breaker = self.opened()
        breaker.admits("probe", 5)
        self.assertTrue(breaker.answered())
        self.assertTrue(breaker.admits("x", 5))
        # And the row begins anew.
        self.assertEqual([breaker.failed("x", 5) for _ in range(3)], [False, False, True])

    def test_a_late_answer_closes_it_too(self) -> None:
        breaker = self.opened()
        self.assertTrue(breaker.answered())
        self.assertIs(breaker.state, State.CLOSED)

    def test_the_wait_doubles_up_to_its_limit(self) -> None:
        breaker = self.opened()
        now, waits = 0.0, []
        for _ in range(6):
            wait = next(step / 4 for step in range(1000) if breaker.admits("probe", now + step / 4))
            waits.append(wait)
            now += wait
            self.assertFalse(breaker.failed("probe", now))
        self.assertEqual(waits, [1, 2, 4, 8, 10, 10])
        self.assertEqual(waits[-1], LONGEST_WAIT)
        breaker.answered()
        for _ in range(3):
            breaker.failed("x", now)
        self.assertFalse(breaker.admits("probe", now + FIRST_WAIT - 0.01))
        self.assertTrue(breaker.admits("probe", now + FIRST_WAIT))

    def test_what_was_out_when_it_opened_says_nothing_new(self) -> None:
        breaker = self.opened()
        for _ in range(20):
            self.assertFalse(breaker.failed("late", 0.5))
        self.assertTrue(breaker.admits("probe", FIRST_WAIT))
        self.assertFalse(breaker.failed("late", FIRST_WAIT))
        self.assertIs(breaker.state, State.PROBING)

    def test_a_probe_that_is_given_up_makes_the_next_question_the_probe(self) -> None:
        breaker = self.opened()
        breaker.admits("probe", FIRST_WAIT)
        breaker.given_up("another")
        self.assertFalse(breaker.admits("next", FIRST_WAIT))
        breaker.given_up("probe")
        self.assertTrue(breaker.admits("next", FIRST_WAIT))
        self.assertFalse(breaker.admits("third", FIRST_WAIT))

    @given(st.lists(st.tuples(st.sampled_from(["ask", "answered", "failed", "given up"]), st.integers(0, 4))))
    def test_never_two_probes_and_never_shut_for_good(self, steps: list[tuple[str, int]]) -> None:
        breaker: Breaker[int] = Breaker(3)
        out: set[int] = set()
        now, serial = 0, 0
        for what, number in steps:
            now += number
            if what == "ask":
                was_closed = breaker.state is State.CLOSED
                serial += 1
                if breaker.admits(serial, now):
                    out.add(serial)
                    self.assertTrue(was_closed or breaker.state is State.PROBING)
            elif out:
                question = sorted(out)[number % len(out)]
                out.remove(question)
                if what == "answered":
                    breaker.answered()
                elif what == "failed":
                    breaker.failed(question, now)
                else:
                    breaker.given_up(question)
        for question in out:
            breaker.given_up(question)
        self.assertTrue(breaker.admits(-1, now + LONGEST_WAIT))
