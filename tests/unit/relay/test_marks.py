"""Marks that are kept in memory until the message log has saved them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import LogUnavailable, Mark, MarkKey, MarkKind
from chatrelay.relay import marks as marks_module
from chatrelay.relay.marks import Marks
from chatrelay.testing import HeldMessageLog

RECEIVED: MarkKey = ("bo", MarkKind.RECEIVED, "")


class Log(HeldMessageLog):
    """A log that saves marks when the test says so.

    :ivar saves: the calls that wait: (the marks, the Deferred to fire).
    """

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[tuple[Sequence[Mark], Deferred[None]]] = []

    def save_marks(self, marks: Sequence[Mark]) -> Deferred[None]:
        """Keep the call until `save` or `refuse`."""
        self.saves.append((marks, Deferred()))
        return self.saves[-1][1]

    def save(self) -> None:
        """Save the marks of the oldest call."""
        marks, saved = self.saves.pop(0)
        super().save_marks(marks).chainDeferred(saved)

    def refuse(self) -> None:
        """Fail the oldest call."""
        self.saves.pop(0)[1].errback(LogUnavailable("the disk is full"))


class MarksTests(SynchronousTestCase):
    """Bo's marks."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.log = Log()
        self.turns: list[Callable[[], None]] = []
        self.marks = Marks(self.log, self.turns.append, self.clock)

    def turn(self) -> None:
        """Begin the next turn of the reactor."""
        turns, self.turns[:] = list(self.turns), []
        for call in turns:
            call()

    def pass_time(self, seconds: float) -> None:
        """Let time pass in steps as short as those of a reactor that is not held up."""
        for _ in range(round(seconds * 8)):
            self.clock.advance(1 / 8)
            self.turn()

    def read(self, *keys: MarkKey) -> object:
        """Read marks."""
        return self.successResultOf(self.marks.read(keys))

    def test_marks_of_one_turn_are_saved_together_and_only_the_greatest(self) -> None:
        self.marks.set(*RECEIVED, 3)
        self.marks.set(*RECEIVED, 5)
        self.marks.set(*RECEIVED, 4)
        self.marks.set("bo", MarkKind.READ, "alice", 2)
        self.assertEqual(self.log.saves, [])
        self.turn()
        self.assertEqual(
            [marks for marks, _ in self.log.saves],
            [[Mark(*RECEIVED, 5), Mark("bo", MarkKind.READ, "alice", 2)]],
        )

    def test_mark_counts_before_it_is_saved_and_afterwards(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.assertEqual((self.read(RECEIVED), self.marks.unsaved(*RECEIVED)), ({RECEIVED: 5}, 5))
        self.turn()
        self.assertEqual((self.read(RECEIVED), self.marks.unsaved(*RECEIVED)), ({RECEIVED: 5}, 5))
        self.log.save()
        self.assertEqual((self.read(RECEIVED), self.marks.unsaved(*RECEIVED)), ({RECEIVED: 5}, 0))
        self.assertEqual(len(self.marks), 0)

    def test_mark_that_is_saved_while_it_is_read_is_not_missed(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.turn()
        self.log.reader.holds = True
        found = self.marks.read([RECEIVED])
        read, answer = self.log.reader.waiting.pop()
        before = read()  # the log is read here
        self.log.save()
        answer.callback(before)
        self.assertEqual(self.successResultOf(found), {RECEIVED: 5})

    def test_smaller_mark_than_the_saved_one_is_read_as_the_saved_one(self) -> None:
        self.log.marks[RECEIVED] = 9
        self.marks.set(*RECEIVED, 5)
        self.assertEqual(self.read(RECEIVED), {RECEIVED: 9})

    def test_mark_that_is_not_kept_is_left_out_and_no_keys_read_nothing(self) -> None:
        self.assertEqual(self.read(RECEIVED), {})
        self.log.reader.holds = True
        self.assertEqual(self.read(), {})

    def test_mark_that_grows_while_it_is_saved_is_saved_again(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.turn()
        self.marks.set(*RECEIVED, 6)
        self.log.save()
        self.assertEqual(self.marks.unsaved(*RECEIVED), 6)
        self.turn()
        self.log.save()
        self.assertEqual((self.log.marks[RECEIVED], len(self.marks)), (6, 0))

    def test_marks_that_could_not_be_saved_are_saved_after_a_second(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.turn()
        self.log.refuse()
        self.pass_time(0.75)
        self.assertEqual((self.log.saves, self.marks.unsaved(*RECEIVED)), ([], 5))
        self.pass_time(0.5)
        self.log.save()
        self.assertEqual((self.log.marks[RECEIVED], len(self.marks)), (5, 0))

    def test_greater_mark_than_one_that_could_not_be_saved_stays(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.turn()
        self.marks.set(*RECEIVED, 6)
        self.log.refuse()
        self.turn()
        self.log.save()
        self.pass_time(2)
        self.assertEqual((self.log.marks[RECEIVED], len(self.marks), self.log.saves), (6, 0, []))

    def test_save_passes_what_has_changed_at_once(self) -> None:
        self.marks.save()
        self.assertEqual(self.log.saves, [])
        self.marks.set(*RECEIVED, 5)
        self.marks.save()
        self.assertEqual([marks for marks, _ in self.log.saves], [[Mark(*RECEIVED, 5)]])
        self.turn()
        self.assertEqual(len(self.log.saves), 1)

    def test_marks_of_another_epoch_are_forgotten(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.log.epoch = "another"
        self.turn()
        self.assertEqual((self.log.saves, len(self.marks)), ([], 0))
        self.marks.set(*RECEIVED, 1)
        self.turn()
        self.assertEqual([marks for marks, _ in self.log.saves], [[Mark(*RECEIVED, 1)]])

    def test_no_more_marks_than_the_limit_wait(self) -> None:
        self.patch(marks_module, "MAX_UNSAVED", 3)
        for user in "abcd":
            self.marks.set(user, MarkKind.RECEIVED, "", 1)
        self.marks.set("d", MarkKind.RECEIVED, "", 2)
        self.assertEqual(
            [self.marks.unsaved(user, MarkKind.RECEIVED) for user in "abcd"],
            [0, 1, 1, 2],
        )
        self.turn()
        self.assertEqual(len(self.log.saves[0][0]), 3)

    def test_defect_of_the_log_is_reported(self) -> None:
        self.marks.set(*RECEIVED, 5)
        self.turn()
        self.log.saves.pop(0)[1].errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
