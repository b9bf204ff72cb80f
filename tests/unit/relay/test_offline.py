"""The bounds of what is stored: counts, caps, and what is given back."""

from __future__ import annotations

import tracemalloc

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.relay import offline
from chatrelay.relay.offline import DAY, Away, Strangers

PAIR = ("alice", "bo")


class StrangerTests(SynchronousTestCase):
    """Messages to people who have never written back."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.strangers = Strangers(2, self.clock.seconds)

    def test_each_message_counts_for_a_day(self) -> None:
        self.strangers.take(PAIR)
        self.clock.advance(DAY / 2)
        self.assertFalse(self.strangers.is_full(PAIR))
        self.strangers.take(PAIR)
        self.assertTrue(self.strangers.is_full(PAIR))
        self.assertFalse(self.strangers.is_full(("bo", "alice")))
        self.clock.advance(DAY / 2 - 1)
        self.assertTrue(self.strangers.is_full(PAIR))
        self.clock.advance(1)
        self.assertFalse(self.strangers.is_full(PAIR))
        self.strangers.take(PAIR)
        self.assertTrue(self.strangers.is_full(PAIR))

    def test_message_that_was_refused_is_given_back(self) -> None:
        self.strangers.give_back(PAIR)
        self.strangers.take(PAIR)
        self.strangers.take(PAIR)
        self.strangers.give_back(PAIR)
        self.assertFalse(self.strangers.is_full(PAIR))
        self.strangers.give_back(PAIR)
        self.assertEqual(len(self.strangers), 0)

    def test_pairs_that_are_out_of_date_are_forgotten(self) -> None:
        for number in range(5):
            self.strangers.take(("alice", str(number)))
        self.clock.advance(DAY)
        for number in range(5):
            self.strangers.take(("cy", str(number)))
        self.assertEqual(len(self.strangers), 5)

    def test_pair_whose_last_message_is_oldest_is_displaced(self) -> None:
        self.patch(offline, "MAX_STRANGERS", 2)
        for pair in (PAIR, ("alice", "cy"), PAIR, ("alice", "di")):
            self.strangers.take(pair)
        self.assertEqual(len(self.strangers), 2)
        self.assertTrue(self.strangers.is_full(PAIR))

    def test_pair_takes_little_memory(self) -> None:
        pairs = [("alice", str(number)) for number in range(2000)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        for pair in pairs:
            self.strangers.take(pair)
        now, _ = tracemalloc.get_traced_memory()
        self.assertLess((now - before) / len(pairs), 400)

    def test_zero_means_no_limit(self) -> None:
        strangers = Strangers(0, self.clock.seconds)
        for _ in range(100):
            self.assertFalse(strangers.is_full(PAIR))
            strangers.take(PAIR)
        self.assertEqual(len(strangers), 0)

    def test_people_who_have_written_to_each_other_are_forgotten(self) -> None:
        self.strangers.forget(PAIR)
        self.strangers.take(PAIR)
        self.strangers.forget(PAIR)
        self.assertEqual(len(self.strangers), 0)


class AwayTests(SynchronousTestCase):
    """Messages for people who are not here."""

    def test_places_since_the_last_connection_went_count(self) -> None:
        for last, expected in ((29, False), (30, True)):
            away = Away(20)
            self.assertFalse(away.is_known("bo"))
            self.assertFalse(away.is_full("alice", "bo"))
            away.note("bo", 10, last)
            away.note("bo", 0, 10_000)  # it is counted here from now on
            self.assertTrue(away.is_known("bo"))
            self.assertIs(away.is_full("alice", "bo"), expected)

    def test_messages_that_wait_for_the_log_count(self) -> None:
        away = Away(20)
        away.note("bo", None, 10)
        for sender in map(str, range(19)):
            away.take(sender, "bo")
        self.assertFalse(away.is_full("alice", "bo"))
        away.take("x", "bo")
        self.assertTrue(away.is_full("alice", "bo"))
        away.committed("bo", 11, was_taken=True)
        self.assertTrue(away.is_full("alice", "bo"))
        away.give_back("1", "bo")
        self.assertFalse(away.is_full("alice", "bo"))
        away.committed("bo", 12, was_taken=False)  # of a stranger
        self.assertTrue(away.is_full("alice", "bo"))

    def test_one_sender_may_fill_a_tenth(self) -> None:
        for limit, share in ((20, 2), (29, 2), (9, 1), (1, 1)):
            away = Away(limit)
            away.note("bo", None, 10)
            for _ in range(share):
                self.assertFalse(away.is_full("alice", "bo"))
                away.take("alice", "bo")
            self.assertTrue(away.is_full("alice", "bo"))
            self.assertIs(away.is_full("cy", "bo"), limit == share)

    def test_recipient_who_has_returned_is_forgotten(self) -> None:
        away = Away(1)
        away.note("bo", 0, 5)
        away.returned("bo")
        away.returned("bo")
        for change in (away.take, away.give_back):
            change("alice", "bo")
        away.committed("bo", 6, was_taken=True)
        self.assertEqual((len(away), away.is_known("bo")), (0, False))
        away.note("cy", 0, 5)
        away.forget()
        self.assertEqual(len(away), 0)

    def test_recipient_counted_for_longest_is_displaced(self) -> None:
        self.patch(offline, "MAX_AWAY", 2)
        away = Away(1)
        for user in ("bo", "cy", "di"):
            away.note(user, 0, 5)
        self.assertEqual([away.is_known(user) for user in ("bo", "cy", "di")], [False, True, True])

    def test_zero_means_no_limit(self) -> None:
        away = Away(0)
        self.assertTrue(away.is_known("bo"))
        self.assertFalse(away.is_full("alice", "bo"))
