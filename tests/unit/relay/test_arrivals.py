"""The latest messages to one user, compared with a list of all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.relay import arrivals as arrivals_module
from chatrelay.relay.arrivals import Arrivals


class ArrivalsTests(SynchronousTestCase):
    """Messages to Bo."""

    def test_acknowledged_messages_are_returned_once_the_last_of_each_sender(self) -> None:
        arrivals = Arrivals(4)
        for place, sender, place_of_sender in ((5, "a", 1), (6, "b", 7), (8, "a", 2), (9, "a", 3)):
            arrivals.add(place, sender, place_of_sender)
        self.assertEqual(arrivals.acknowledge(8), {"a": (8, 2), "b": (6, 7)})
        self.assertEqual(arrivals.acknowledge(8), {})
        self.assertEqual(arrivals.acknowledge(20), {"a": (9, 3)})
        self.assertEqual(arrivals.since, 20)

    def test_last_message_of_a_sender_stays_known_after_it_is_acknowledged(self) -> None:
        arrivals = Arrivals(0)
        arrivals.add(1, "a", 1)
        arrivals.acknowledge(1)
        self.assertEqual(arrivals.last("a", 1), (1, 1))
        self.assertEqual(arrivals.last("a", 9), (1, 1))
        self.assertIsNone(arrivals.last("a", 0))
        self.assertIsNone(arrivals.last("b", 9))

    def test_message_beyond_the_limit_displaces_the_oldest_which_must_be_read(self) -> None:
        self.patch(arrivals_module, "MAX_MESSAGES", 2)
        arrivals = Arrivals(0)
        for place in (1, 2, 3):
            arrivals.add(place, "a", place)
        self.assertEqual(arrivals.since, 1)
        self.assertIsNone(arrivals.last("a", 1))
        self.assertEqual(arrivals.last("a", 2), (2, 2))

    def test_sender_beyond_the_limit_displaces_another(self) -> None:
        self.patch(arrivals_module, "MAX_PEERS", 2)
        arrivals = Arrivals(0)
        for place, sender in enumerate("abac", 1):
            arrivals.add(place, sender, place)
        arrivals.acknowledge(4)
        self.assertEqual([arrivals.last(sender, 9) for sender in "abc"], [None, (2, 2), (4, 4)])

    @given(
        st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc")), max_size=12),
        st.lists(st.integers(0, 40), max_size=4),
        st.integers(0, 40),
    )
    def test_what_is_known_is_what_a_list_of_all_messages_says(
        self, steps: list[tuple[int, str]], acknowledged: list[int], through: int
    ) -> None:
        arrivals, messages, place = Arrivals(0), [], 0
        for number, (step, sender) in enumerate(steps, 100):
            place += step
            arrivals.add(place, sender, number)
            messages.append((place, sender, number))
        last = 0
        for mark in sorted(acknowledged):
            expected = {sender: (at, number) for at, sender, number in messages if last < at <= mark}
            self.assertEqual(arrivals.acknowledge(mark), expected)
            last = mark
        for sender in "abc":
            found = [(at, number) for at, each, number in messages if each == sender and at <= through]
            if arrivals.last(sender, through) is not None:
                self.assertEqual(arrivals.last(sender, through), found[-1])
            elif found:
                self.assertLess(found[-1][0], last + 1)  # it was acknowledged, and a later one came
