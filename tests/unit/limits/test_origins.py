"""Refused origins that are logged, even among many made-up ones."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits import origins
from chatrelay.limits.origins import LINES_PER_MINUTE, MAX_LOGGED, RefusedOrigins

PAGE = "https://www.example.com"


class RefusedOriginsTests(SynchronousTestCase):
    """Each origin is logged once; of very many, some are logged and the others counted."""

    def setUp(self) -> None:
        self.refused = RefusedOrigins()

    def made_up(self, count: int, now: float = 0.0, start: int = 0) -> int:
        """Return how many of this many made-up origins are logged."""
        return sum(self.refused.refused(f"https://{number}.test", now) for number in range(start, start + count))

    def test_each_origin_is_logged_once(self) -> None:
        self.assertEqual([self.refused.refused(PAGE, now) for now in (0, 0, 1, 1000)], [True, False, False, False])
        self.assertEqual(self.refused.take_unlogged(1e9), 0)

    def test_ten_origins_are_logged_at_once_and_each_minute(self) -> None:
        self.assertEqual(self.made_up(10), 10)
        self.assertEqual(self.made_up(990, start=10), 0)
        self.assertEqual(self.made_up(1000, 60.0, start=1000), LINES_PER_MINUTE)

    def test_repeated_origin_is_logged_among_any_number_of_others(self) -> None:
        self.made_up(1000)
        self.assertFalse(self.refused.refused(PAGE, 1.0))
        self.made_up(1000, 1.0, start=1000)
        self.assertTrue(self.refused.refused(PAGE, 2.0))
        self.assertFalse(self.refused.refused(PAGE, 3.0))

    def test_repeated_made_up_origins_are_limited_too(self) -> None:
        for _ in range(3):
            told = self.made_up(1000)
        self.assertEqual(told, 0)
        self.assertEqual(self.made_up(1000, 60.0), LINES_PER_MINUTE)

    def test_further_origins_are_counted(self) -> None:
        self.made_up(1000)
        self.assertEqual(self.refused.take_unlogged(59.9), 0)
        self.assertEqual(self.refused.take_unlogged(60.0), 1000 - LINES_PER_MINUTE)
        self.assertEqual(self.refused.take_unlogged(1e9), 0)
        self.made_up(500, 60.0, start=1000)
        self.assertEqual(self.refused.take_unlogged(60.0, at_least=0), 500 - LINES_PER_MINUTE)

    def test_clock_set_back_delays_the_count_by_at_most_a_minute(self) -> None:
        self.made_up(1000, 10_000.0)
        self.assertEqual(self.refused.take_unlogged(0.0), 0)
        self.assertEqual(self.refused.take_unlogged(60.0), 1000 - LINES_PER_MINUTE)

    def test_number_of_remembered_origins_is_limited(self) -> None:
        self.patch(origins, "MAX_SEEN", 500)
        for minute in range(100):
            self.made_up(100, 60.0 * minute, start=100 * minute)
        self.assertLessEqual(len(self.refused), 500 + MAX_LOGGED)
