"""Revocations: in memory for as long as a token lasts, and in the message log for other processes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth import revocations
from chatrelay.auth.revocations import CLOCK_TOLERANCE_SECONDS, Revocations
from chatrelay.model import LogBusy, LogUnavailable, Mark
from chatrelay.testing import HeldMessageLog

LIFE = 100.0
START = 1_764_271_000.25
BEFORE = START - 10_000
"""When the site confirmed a session, in most tests."""


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

    def has(self, *digests: bytes, confirmed: float = BEFORE) -> bool:
        """Return what this process knows of a session that the site confirmed at a time."""
        return self.revocations.has(digests, confirmed)

    def found(self, *digests: bytes, confirmed: float = BEFORE) -> bool:
        """Return what another process finds."""
        return bool(self.successResultOf(self.make(self.message_log).find(digests, confirmed)))

    def test_revocation_is_kept_for_the_life_of_a_token(self) -> None:
        self.revocations.add(b"a")
        for seconds in (0, LIFE - 0.001):
            self.pass_time(seconds)
            self.assertTrue(self.has(b"b", b"a"))
            self.assertTrue(self.successResultOf(self.revocations.find([b"a"], BEFORE)))
        self.assertFalse(self.has(b"b"))
        self.pass_time(0.001)
        self.assertFalse(self.has(b"a"))
        self.assertEqual(len(self.revocations), 0)

    def test_second_revocation_is_kept_for_as_long_again(self) -> None:
        self.revocations.add(b"a")
        self.pass_time(60)
        self.revocations.add(b"b")
        self.revocations.add(b"a")
        self.pass_time(60)
        self.assertEqual(len(self.revocations), 2)
        self.assertTrue(self.has(b"a"))
        self.pass_time(40)
        self.assertEqual(len(self.revocations), 0)

    def test_revocation_is_about_what_the_site_said_before(self) -> None:
        self.with_log().add(b"a")
        self.message_log.save()
        for confirmed, is_revoked in ((START - 1, True), (START, True), (START + 0.001, False)):
            self.assertEqual(self.has(b"a", confirmed=confirmed), is_revoked)
        # A log keeps whole seconds, and rounds up. The clock of the relay that revoked may be behind.
        for seconds, is_revoked in ((CLOCK_TOLERANCE_SECONDS, True), (CLOCK_TOLERANCE_SECONDS + 1, False)):
            self.assertEqual(self.found(b"a", confirmed=START + seconds), is_revoked)

    def test_as_many_as_the_limit_are_kept_and_beyond_it_the_oldest_stand_for_all(self) -> None:
        self.patch(revocations, "MAX_REVOCATIONS", 20)
        self.with_log()
        for number in range(20):
            self.clock.advance(2)
            self.revocations.add(b"%d" % number)
        self.save_all()
        self.assertEqual((len(self.revocations), len(self.message_log.marks)), (20, 20))
        self.assertEqual((self.has(b"other"), self.found(b"other")), (False, False))
        self.clock.advance(2)
        self.revocations.add(b"20")
        self.save_all()
        self.assertEqual((len(self.revocations), len(self.message_log.marks)), (18, 19))
        dropped = START + 2 * 3  # when the third one was revoked, the last that was dropped
        for digest in (b"0", b"2", b"20", b"other"):
            self.assertTrue(self.has(digest, confirmed=dropped), digest)
            self.assertTrue(self.found(digest, confirmed=dropped), digest)
        for digest, is_revoked in ((b"0", False), (b"3", True), (b"20", True), (b"other", False)):
            self.assertEqual(self.has(digest, confirmed=dropped + 1), is_revoked)
            self.assertEqual(self.found(digest, confirmed=dropped + 1 + CLOCK_TOLERANCE_SECONDS), is_revoked)

    def test_log_does_not_grow_with_revocations_that_are_over(self) -> None:
        self.patch(revocations, "MAX_REVOCATIONS", 20)
        self.with_log()
        for number in range(400):
            self.pass_time(LIFE / 10)
            self.revocations.add(b"%d" % number)
            self.save_all()
            self.assertLessEqual(len(self.message_log.marks), 21)
        self.assertEqual((len(self.revocations), self.found(b"399"), self.found(b"392")), (10, True, True))
        self.assertFalse(self.has(b"other"))

    def save_all(self) -> None:
        """Save all marks that wait."""
        while self.message_log.saving:
            self.message_log.save()

    def test_revocations_that_cannot_be_saved_are_as_few(self) -> None:
        self.patch(revocations, "MAX_REVOCATIONS", 20)
        self.with_log()
        for number in range(100):
            self.clock.advance(0.001)
            self.revocations.add(b"%d" % number)
            self.message_log.fail_save(LogUnavailable("the disk is full"))
        self.pass_time(1)
        ((marks, _),) = self.message_log.saving
        self.assertLessEqual(len(marks), 21)
        self.message_log.save()
        self.assertTrue(all(self.found(b"%d" % number, confirmed=START) for number in range(100)))

    def test_revocations_that_need_not_be_saved_at_once_are_saved_together_by_the_next_sweep(self) -> None:
        revocations = self.with_log()
        for digest in (b"a", b"b", b"a"):
            revocations.add(digest, at_once=False)
        self.assertTrue(self.has(b"a"))
        self.assertEqual(self.message_log.saving, [])
        self.pass_time(0.25)
        self.assertEqual([len(marks) for marks, _ in self.message_log.saving], [2])
        self.message_log.fail_save(LogUnavailable("the disk is full"))
        revocations.add(b"c", at_once=False)
        self.pass_time(0.75)
        self.assertEqual(self.message_log.saving, [])
        self.pass_time(0.25)
        self.assertEqual([len(marks) for marks, _ in self.message_log.saving], [3])
        self.message_log.save()
        self.pass_time(1)
        self.assertEqual((self.message_log.saving, self.found(b"c")), ([], True))

    def test_saved_fires_when_the_newest_is_in_the_log(self) -> None:
        self.successResultOf(self.revocations.saved())  # without a log, at once
        self.with_log().add(b"a")
        saved = [self.revocations.saved() for _ in range(2)]
        self.assertNoResult(saved[0])
        self.message_log.save()
        for each in (*saved, self.revocations.saved()):
            self.assertIsNone(self.successResultOf(each))

    def test_saved_fails_if_the_log_cannot_be_written(self) -> None:
        self.with_log().add(b"a")
        saved = self.revocations.saved()
        self.message_log.fail_save(LogUnavailable("the disk is full"))
        for each in (saved, self.revocations.saved()):
            self.failureResultOf(each, LogUnavailable)
        self.pass_time(1)
        self.message_log.save()
        self.assertIsNone(self.successResultOf(self.revocations.saved()))

    def test_second_revocation_that_fails_is_saved_again_though_the_first_succeeds(self) -> None:
        revocations = self.with_log()
        revocations.add(b"a")
        self.clock.advance(50)
        revocations.add(b"a")
        self.message_log.save()
        self.message_log.fail_save(LogUnavailable("the disk is full"))
        self.pass_time(1)
        self.save_all()
        self.assertTrue(self.found(b"a", confirmed=START + 50))

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
        self.assertTrue(self.successResultOf(revocations.find([b"a"], BEFORE)))
        self.assertFalse(self.successResultOf(revocations.find([b"b"], BEFORE)))

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
        found = self.with_log().find([b"a"], BEFORE)
        self.assertNoResult(found)
        self.message_log.reader.fail()
        self.assertIsNone(self.successResultOf(found))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_look_that_is_given_up_finds_nothing(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"], BEFORE)
        found.cancel()
        self.assertIsNone(self.successResultOf(found))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_defect_while_looking_is_logged(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"], BEFORE)
        self.message_log.reader.waiting.pop()[1].errback(ZeroDivisionError())
        self.assertIsNone(self.successResultOf(found))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_look_at_a_busy_log_waits(self) -> None:
        self.message_log.reader.holds = True
        found = self.with_log().find([b"a"], BEFORE)
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
