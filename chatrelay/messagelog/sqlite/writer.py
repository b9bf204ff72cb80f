"""The thread that writes a message log in SQLite, with one call back into the reactor for each batch.

It decides when to call the store, and logs its failures. This module must not know what is in the files.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import CommitUnknown
from chatrelay.messagelog.sqlite.inbox_reader import SqliteInboxReader
from chatrelay.messagelog.sqlite.migration import Migrating
from chatrelay.messagelog.sqlite.store import SqliteStore
from chatrelay.model import PLACE_KINDS, InboxState, LogUnavailable, Mark, MarkKind, Message

log = Logger("chatrelay.messagelog")

RETRY_SECONDS = 0.5
"""The wait before a failed log is reopened."""

CHECK_SECONDS = 1.0
"""The time between two checks of the files, with or without messages."""

MAX_REASONS = 10
"""The most reasons that are logged for one outage of the log."""

ERASE_PAUSE = 1.0
"""The pause after each part of an erasure, as a multiple of the time that the part took. Messages are written then."""

ERASE_SECONDS = 1.0
"""The wait before an erasure is tried again, if a program that reads the log kept it from ending."""

DEFECT_SECONDS = 60.0
"""The wait before an erasure is tried again, if it failed because of a defect in chatrelay."""

MARKS_SECONDS = 1.0
"""How long marks wait for a batch with which they are written."""

_Job = tuple[Callable[[Any], Any], Any, "Deferred[Any]"]


class SqliteMessageLog:
    """The `chatrelay.interfaces.TrimmableLog` that writes to an `SqliteStore` in a separate thread.

    :param path: the file.
    :param reactor: gets the results, with one call for each batch.
    :param monotonic: a monotonic clock, in seconds; called in the thread.
    :param makes_copy: whether a file of an older chatrelay is copied before it is migrated.
    :ivar on_erased: see `chatrelay.interfaces.ErasableLog`.
    """

    def __init__(
        self,
        path: str,
        reactor: IReactorFromThreads,
        monotonic: Callable[[], float] = time.monotonic,
        makes_copy: bool = True,
    ) -> None:
        self._reader = SqliteInboxReader(reactor)
        self._migrating = Migrating(makes_copy=makes_copy, monotonic=monotonic)
        self._store = SqliteStore(
            path,
            migrating=self._migrating,
            opened=self._opened,
            closing=self._reader.closing,
            committed=self._reader.committed,
        )
        self._reactor = reactor
        self._monotonic = monotonic
        self._retry_at = 0.0
        self._check_at = 0.0
        self._reasons: set[str] = set()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopped: Deferred[None] = Deferred()
        self._thread: threading.Thread | None = None
        self._epoch = ""
        self.on_erased: Callable[[Mapping[str, int]], object] = _ignore
        # In the thread:
        self._erase_at = 0.0
        self._marks_at: float | None = None  # when marks are written that no batch has taken along
        self._saved: list[Deferred[None]] = []  # fire when the marks are written
        self._outcome: Deferred[bool] | None = None  # of the commit that is in doubt

    @property
    def is_open(self) -> bool:
        """Whether the log can be written, as far as is known."""
        return self.is_alive and self._store.is_open

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def on_progress(self) -> Callable[[], object]:
        """What is called about once a second while an older file is migrated, in `start` or in the thread."""
        return self._migrating.on_progress

    @on_progress.setter
    def on_progress(self, call: Callable[[], object]) -> None:
        self._migrating.on_progress = call

    @property
    def epoch(self) -> str:
        """The name of the log's life. It changes before the first Deferred of a batch or read of another life fires."""
        return self._epoch

    @property
    def reader(self) -> SqliteInboxReader:
        """Reads this log by user."""
        return self._reader

    def start(self) -> None:
        """Open the file and start the thread."""
        is_in_log = self._store.open()
        self._epoch = self._store.epoch
        outcome, self._outcome = self._outcome, None
        if outcome is not None:  # of the last batch before the log was stopped
            outcome.callback(bool(is_in_log))
        self._check_at = self._monotonic() + CHECK_SECONDS
        self._stopped = Deferred()
        self._thread = threading.Thread(target=self._write, name="message-log", daemon=True)
        self._thread.start()

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch in the thread."""
        return self._run(self._store.append, messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark messages as delivered to nobody, in the thread."""
        return self._run(self._mark_undelivered, (numbers, self._epoch))

    def inbox(self, user: str) -> Deferred[InboxState]:
        """Look up a user's inbox in the thread."""
        return self._run(self._store.inbox, user)

    def save_marks(self, marks: Sequence[Mark]) -> Deferred[None]:
        """Write marks with the next batch, or alone after `MARKS_SECONDS`; revocations at once."""
        return self._run(self._add_marks, (marks, self._epoch))

    def trim(self, before: int) -> Deferred[int]:
        """Delete some of the oldest messages, in the thread."""
        return self._run(self._store.trim, before)

    def stop(self) -> Deferred[None]:
        """Close the file after all earlier jobs, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return succeed(None)
        self._jobs.put(None)
        return self._stopped.addCallback(lambda _: thread.join())

    def _run(self, work: Callable[[Any], Any], argument: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._jobs.put((work, argument, done))
        return done

    # In the thread, from here on, but for `start`.

    def _opened(self, path: str, epoch: str) -> None:
        """Have the log read, after the change of `epoch`: what is read of another life must not come before it."""
        if self._thread is not None and epoch != self._epoch:
            self._announce_epoch(epoch)
        self._reader.opened(path, epoch)

    def _write(self) -> None:
        while True:
            # A closed log is reopened, and an open one is checked, even if there is no job.
            is_open = self._store.is_open
            now = self._monotonic()
            if self._marks_at is not None and not self._store.has_marks:
                # A batch took them along, or a failure dropped them.
                self._marks_written(None if is_open else LogUnavailable("the message log failed before it kept marks"))
            if self._marks_at is not None and now >= self._marks_at:
                self._write_marks()
                continue
            wait = max(0.0, (self._check_at if is_open else self._retry_at) - now)
            if wait == 0.0:
                if is_open:
                    self._check()
                else:
                    self._reopen()
                continue
            if self._store.is_erasing:
                if now >= self._erase_at:
                    self._erase(now)
                    continue
                wait = min(wait, self._erase_at - now)
            if self._marks_at is not None:
                wait = min(wait, self._marks_at - now)
            try:
                job = self._jobs.get(timeout=wait)
            except queue.Empty:
                continue
            if job is None:
                break
            self._do(job)
        if self._marks_at is not None:
            self._write_marks()  # which fails if the log is closed
        if not self._store.is_open:
            self._reopen()  # the last chance to mark what is undelivered
        self._store.close()
        self._reader.stop()
        self._reactor.callFromThread(self._stopped.callback, None)

    def _do(self, job: _Job) -> None:
        """Do a job, and pass its result to the reactor."""
        work, argument, done = job
        store = self._store
        was_open = store.is_open
        try:
            result = work(argument)
        except LogUnavailable as error:
            if was_open:
                self._failed(error)
                if store.is_in_doubt and self._outcome is None:
                    self._outcome = Deferred()
                    error = CommitUnknown(str(error), self._outcome)
            self._reactor.callFromThread(done.errback, error)
        # Any error must reach the caller. Otherwise the senders would wait for ever.
        except Exception:
            self._reactor.callFromThread(done.errback, Failure())
        else:
            if store.epoch != self._epoch:
                self._announce_epoch(store.epoch)
            if result is _LATER:
                self._saved.append(done)
            else:
                self._reactor.callFromThread(done.callback, result)

    def _mark_undelivered(self, marked: tuple[Sequence[int], str]) -> None:
        """Mark messages as delivered to nobody.

        :param marked: their numbers, and the epoch in which they have them.
        """
        numbers, epoch = marked
        # The caller may not have learned yet that the log has another life, in which these are other messages.
        if epoch == self._store.epoch:
            self._store.mark_undelivered(numbers)

    def _add_marks(self, added: tuple[Sequence[Mark], str]) -> object:
        """Have marks written later.

        :param added: the marks, and the epoch in which the caller has made them.
        """
        marks, epoch = added
        if epoch != self._store.epoch:
            marks = [mark for mark in marks if mark.kind not in PLACE_KINDS]
        self._store.add_marks(marks)
        if not self._store.has_marks:
            return None
        now = self._monotonic()
        if any(mark.kind is MarkKind.REVOKED for mark in marks):
            self._marks_at = now  # a crash may lose what somebody has read, but not that a session was ended
        elif self._marks_at is None:
            self._marks_at = now + MARKS_SECONDS
        return _LATER

    def _write_marks(self) -> None:
        try:
            self._store.write_marks()
        except LogUnavailable as error:
            self._failed(error)
            self._marks_written(error)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("writing marks failed because of a defect in chatrelay; please report it")
            self._marks_written(LogUnavailable("the marks could not be written"))
        else:
            self._marks_written(None)

    def _marks_written(self, error: LogUnavailable | None) -> None:
        """Fire the Deferreds of all marks that waited.

        :param error: why they were not written; None if they were.
        """
        self._marks_at = None
        saved, self._saved = self._saved, []
        self._reactor.callFromThread(_fire_all, saved, error)

    def _announce_epoch(self, epoch: str) -> None:
        """Change `epoch` in the reactor, after the results of the earlier life and before those of this one."""
        self._reactor.callFromThread(setattr, self, "_epoch", epoch)

    def _failed(self, error: LogUnavailable) -> None:
        self._retry_at = self._monotonic() + RETRY_SECONDS
        reason = str(error)
        if reason in self._reasons or len(self._reasons) >= MAX_REASONS:
            return
        self._reasons.add(reason)
        log.critical(
            "{error}. No message is delivered until it can be written. Retrying every {seconds} s",
            error=error,
            seconds=RETRY_SECONDS,
        )

    def _check(self) -> None:
        try:
            self._store.check()
        except LogUnavailable as error:
            self._failed(error)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("checking the message log failed because of a defect in chatrelay; please report it")
        finally:
            self._check_at = self._monotonic() + CHECK_SECONDS

    def _erase(self, begun: float) -> None:
        """Do a part of an erasure.

        :param begun: the time.
        """
        wait = ERASE_SECONDS
        try:
            told, has_done = self._store.erase()
        except LogUnavailable as error:
            self._failed(error)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("erasing messages failed because of a defect in chatrelay; please report it")
            wait = DEFECT_SECONDS
        else:
            if told:
                self._reactor.callFromThread(self._erased, told)
            if has_done:
                wait = (self._monotonic() - begun) * ERASE_PAUSE
        self._erase_at = self._monotonic() + wait

    def _erased(self, told: Mapping[str, int]) -> None:
        """Pass on who was told, in the reactor."""
        self.on_erased(told)

    def _reopen(self) -> None:
        try:
            is_in_log = self._store.open()
        except LogUnavailable as error:
            self._failed(error)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("opening the message log failed because of a defect in chatrelay; please report it")
        else:
            outcome, self._outcome = self._outcome, None
            if outcome is not None:
                self._reactor.callFromThread(outcome.callback, bool(is_in_log))
            self._reasons.clear()
            self._check_at = self._monotonic() + CHECK_SECONDS
            log.warn("the message log {path} can be written again", path=self._store.path)
        finally:
            # Count from now, because opening may take long, and jobs must be done between two attempts.
            self._retry_at = self._monotonic() + RETRY_SECONDS


_LATER = object()
"""The result of a job whose Deferred fires later."""


def _ignore(told: Mapping[str, int]) -> None:
    """Do nothing, as long as nobody wants to know."""


def _fire_all(waiting: Sequence[Deferred[None]], error: LogUnavailable | None) -> None:
    for done in waiting:
        if error is None:
            done.callback(None)
        else:
            done.errback(error)
