"""The reads of one connection: one at a time, in order, and a few that wait."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.relay.reads import MAX_WAITING_READS, Reads


class OneAtATime(SynchronousTestCase):
    """Reads that end when the test says so."""

    def setUp(self) -> None:
        self.reads = Reads()
        self.begun: list[tuple[object, Deferred[None]]] = []

    def add(self, name: object) -> bool:
        """Add a read; it is in `begun` once it has begun."""

        def read() -> Deferred[None]:
            reading: Deferred[None] = Deferred()
            self.begun.append((name, reading))
            return reading

        return self.reads.add(read)

    def end(self) -> object:
        """End the oldest read that has begun; return its name."""
        name, reading = self.begun.pop(0)
        reading.callback(None)
        return name

    def test_next_read_begins_when_the_one_before_has_ended(self) -> None:
        for name in "abc":
            self.add(name)
        order = []
        while self.begun:
            self.assertEqual(len(self.begun), 1)
            order.append(self.end())
        self.assertEqual(order, ["a", "b", "c"])

    def test_so_many_may_wait_and_no_more(self) -> None:
        self.assertEqual([self.add(number) for number in range(10)], [True] * (1 + MAX_WAITING_READS) + [False])
        self.end()
        self.assertEqual([self.add("x"), self.add("y")], [True, False])

    def test_cleared_reads_do_not_begin(self) -> None:
        self.add("a")
        self.add("b")
        self.reads.clear()
        self.end()
        self.assertEqual(self.begun, [])

    def test_defect_of_one_read_is_logged_and_the_next_one_begins(self) -> None:
        def defect() -> Deferred[None]:
            raise ZeroDivisionError

        self.add("a")
        self.reads.add(defect)
        self.add("b")
        self.end()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.end(), "b")

    def test_thousands_of_reads_that_end_at_once_make_no_recursion(self) -> None:
        done = []

        def read() -> Deferred[None]:
            done.append(len(done))
            if len(done) < 5000:
                self.reads.add(read)
            return succeed(None)

        self.reads.add(read)
        self.assertEqual(len(done), 5000)
