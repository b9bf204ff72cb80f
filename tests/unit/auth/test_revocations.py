"""Revocations: in memory for as long as a token lasts, and in the message log for other processes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.revocations import Revocations
from chatrelay.model import LogBusy, LogUnavailable, Mark
from chatrelay.testing import HeldMessageLog

LIFE = 100.0
START = 1_764_271_000.25


class SlowMessageLog(HeldMessageLog):
    """A message log that saves marks when the test says so.

    :ivar saving: the marks that wait, and the Deferred of each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saving: list[tuple[Any, Deferred[None]]] = []

    def save_marks(self, marks: Any) -> Deferred[None]:
        """Keep a call until the test calls `save` or `fail_save`."""
        saved: Deferred[None] = Deferred()
        self.saving.append((marks, saved))
        return saved

    def save(self) -> None:
        """Save the marks that have waited longest."""
        marks, saved = self.saving.pop(0)
        super().save_marks(marks).chainDeferred(saved)

    def fail_save(self, error: Exception) -> None:
        """Fail to save the marks that have waited longest."""
        self.saving.pop(0)[1].errback(Failure(error))


class RevocationsTests(SynchronousTestCase):
    """Revocations of one process, and of the next one with the same message log."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.message_log = SlowMessageLog()
        self.revocations = self.make()

    def make(self, message_log: SlowMessageLog | None = None) -> Revocations:
        """Return the revocations of a process."""
        return Revocations(LIFE, lambda: START + self.clock.seconds(), self.clock, message_log)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and sweep."""
        self.clock.advance(seconds)
        self.revocations.sweep()

    def with_log(self) -> Revocations:
        """Keep the revocations in the message log from now on."""
        self.revocations = self.make(self.message_log)
        return self.revocations

    def found(self, *digests: bytes) -> bool:
        """Return what another process finds."""
        return bool(self.successResultOf(self.make(self.message_log).find(digests)))

    def test_revocation_is_kept_for_the_life_of_a_token(self) -> None:
        self.revocations.add(b"a")
        for seconds in (0, LIFE - 0.001):
            self.pass_time(seconds)
            self.assertTrue(self.revocations.has([b"b", b"a"]))
            self.assertTrue(self.successResultOf(self.revocations.find([b"a"])))
        self.assertFalse(self.revocations.has([b"b"]))
        self.pass_time(0.001)
        self.assertFalse(self.revocations.has([b"a"]))
        self.assertEqual(len(self.revocations), 0)

    def test_second_revocation_is_kept_for_as_long_again(self) -> None:
        self.revocations.add(b"a")
        self.pass_time(60)
        self.revocations.add(b"b")
        self.revocations.add(b"a")
        self.pass_time(60)
        self.assertEqual(len(self.revocations), 2)
        self.assertTrue(self.revocations.has([b"a"]))
        self.pass_time(40)
        self.assertEqual(len(self.revocations), 0)

    def test_later_process_finds_the_revocation_in_the_log_for_the_life_of_a_token(self) -> None:
        self.with_log().add(b"a")
        self.message_log.save()
        self.assertTrue(self.found(b"b", b"a"))
        self.assertFalse(self.found(b"b"))
        self.clock.advance(LIFE)
        self.assertTrue(self.found(b"a"))  # a log keeps whole seconds
        self.clock.advance(1)
        self.assertFalse(self.found(b"a"))

    def test_own_revocation_is_found_before_it_is_saved(self) -> None:
        revocations = self.with_log()
        revocations.add(b"a")
        self.assertTrue(self.successResultOf(revocations.find([b"a"])))
        self.assertFalse(self.successResultOf(revocations.find([b"b"])))

    def test_failed_revocation_is_saved_again_after_a_second(self) -> None:
        revocations = self.with_log()
        revocations.add(b"a")
        revocations.add(b"b")
        self.message_log.fail_save(LogUnavailable("the disk is full"))
        self.message_log.save()
        self.pass_time(0.75)
        self.assertEqual(self.message_log.saving, [])
        self.pass_time(0.25)
        self.assertEqual([len(marks) for marks, _ in self.message_log.saving], [1])
        self.pass_time(5)
        self.assertEqual(len(self.message_log.saving), 1)  # it is still being saved
        self.message_log.save()
        self.assertTrue(self.found(b"a"))
        self.assertTrue(self.found(b"b"))
        self.pass_time(5)
        self.assertEqual(self.message_log.saving, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_defect_while_saving_is_logged(self) -> None:
        self.with_log().add(b"a")
        self.message_log.fail_save(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nothing_is_known_while_the_log_cannot_be_read(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"])
        self.assertNoResult(found)
        self.message_log.reader.fail()
        self.assertIsNone(self.successResultOf(found))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_look_that_is_given_up_finds_nothing(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"])
        found.cancel()
        self.assertIsNone(self.successResultOf(found))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_defect_while_looking_is_logged(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"])
        self.message_log.reader.waiting.pop()[1].errback(ZeroDivisionError())
        self.assertIsNone(self.successResultOf(found))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_look_at_a_busy_log_waits(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"])
        for _ in range(20):
            self.message_log.reader.fail(LogBusy())
            self.assertEqual(len(self.message_log.reader.waiting), 0)
            self.clock.advance(0.05)
        self.assertNoResult(found)
        self.message_log.reader.answer()
        self.assertFalse(self.successResultOf(found))

    def test_marks_have_nobody_as_user(self) -> None:
        self.with_log().add(b"\x01\xff")
        (mark,) = self.message_log.saving[0][0]
        self.assertIsInstance(mark, Mark)
        self.assertEqual((mark.user, mark.peer, mark.value), ("", "01ff", int(START + LIFE) + 1))
