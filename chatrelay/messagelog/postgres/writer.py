"""The thread that writes a message log in PostgreSQL, with one call back into the reactor for each batch.

It decides when to call the store, and logs its failures. This module must not know what is in the database.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.messagelog.postgres.address import parse
from chatrelay.messagelog.postgres.inbox_reader import PostgresInboxReader
from chatrelay.messagelog.postgres.store import AGAIN_SECONDS, PostgresStore
from chatrelay.model import PLACE_KINDS, InboxState, LogUnavailable, Mark, Message

log = Logger("chatrelay.messagelog")

MIN_RETRY_SECONDS = 0.5
"""The wait before a failed log is first reopened. It doubles with each failure."""

MAX_RETRY_SECONDS = 8.0
"""The longest wait before a failed log is reopened."""

CHECK_SECONDS = 1.0
"""The time between two checks of the connection, with or without messages."""

MARKS_SECONDS = 1.0
"""The longest time that marks wait for jobs that came before them."""

DROP_SECONDS = 60.0
"""The time between two deletions of old ids."""

MAX_REASONS = 10
"""The most reasons that are logged for one outage of the log."""

_Job = tuple[Callable[[Any], Any], Any, "Deferred[Any] | None"]
"""What is to be done, with which argument, and the Deferred that gets the result, if there is one."""


class PostgresMessageLog:
    """The `chatrelay.interfaces.TrimmableLog` that writes to a `PostgresStore` in a separate thread.

    :param url: ``postgresql://…``, as in PostgreSQL's documentation, 34.1.1.2.
    :param reactor: gets the results, with one call for each batch.
    :param again_seconds: the time for which the unique ids are kept, and unique; 0 for no limit.
    :param monotonic: a monotonic clock, in seconds; called in the thread.
    :raises chatrelay.messagelog.postgres.address.BadAddress: if the URL can't be used.
    """

    def __init__(
        self,
        url: str,
        reactor: IReactorFromThreads,
        again_seconds: float = AGAIN_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        address = parse(url)
        self._store = PostgresStore(address, again_seconds)
        self._reader = PostgresInboxReader(address, reactor)
        self._reactor = reactor
        self._monotonic = monotonic
        self._retry_seconds = MIN_RETRY_SECONDS
        self._retry_at = 0.0
        self._check_at = 0.0
        self._drop_at = 0.0
        self._reasons: set[str] = set()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopped: Deferred[None] = Deferred()
        self._thread: threading.Thread | None = None
        self._epoch = ""
        # In the thread:
        self._marks: list[tuple[Mark, str]] = []
        self._saved: list[Deferred[None]] = []  # fire when the marks are written
        self._marks_at = 0.0  # when the marks are written at the latest

    @property
    def is_open(self) -> bool:
        """Whether the log can be written, as far as is known."""
        return self.is_alive and self._store.is_open

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def epoch(self) -> str:
        """The name of the log's life. Another one after the database was restored, or a standby took over."""
        return self._epoch

    @property
    def reader(self) -> PostgresInboxReader:
        """Reads this log by user, on connections of its own."""
        return self._reader

    def start(self) -> None:
        """Connect, and start the thread."""
        self._store.open()
        self._opened(self._store.epoch, self._store.take_settled())
        self._check_at = self._monotonic() + CHECK_SECONDS
        self._stopped = Deferred()
        self._reader.start()
        self._thread = threading.Thread(target=self._write, name="message-log", daemon=True)
        self._thread.start()

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch in the thread."""
        return self._run(self._store.append, messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark messages as delivered to nobody, in the thread."""
        return self._run(self._mark_undelivered, (numbers, self._epoch))

    def inbox(self, user: str) -> Deferred[InboxState]:
        """Look up a user's inbox, in the thread."""
        return self._run(self._store.inbox, user)

    def save_marks(self, marks: Sequence[Mark]) -> Deferred[None]:
        """Write marks in the thread, together with those of other calls."""
        done: Deferred[None] = Deferred()
        self._jobs.put((self._add_marks, (marks, self._epoch, done), None))
        return done

    def trim(self, before: int) -> Deferred[int]:
        """Delete some of the oldest messages, in the thread."""
        return self._run(self._store.trim, before)

    def stop(self) -> Deferred[None]:
        """Close the connections after all earlier jobs, and end the threads."""
        thread, self._thread = self._thread, None
        if thread is None:
            return succeed(None)
        self._jobs.put(None)
        return self._stopped.addCallback(lambda _: thread.join())

    def _opened(self, epoch: str, settled: Sequence[tuple[Deferred[bool], bool]]) -> None:
        self._epoch = epoch
        for outcome, is_committed in settled:
            outcome.callback(is_committed)

    def _run(self, work: Callable[[Any], Any], argument: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._jobs.put((work, argument, done))
        return done

    # In the thread, from here on.

    def _write(self) -> None:
        while True:
            # A closed log is reopened, and an open one is checked, even if there is no job.
            is_open = self._store.is_open
            if self._saved and (self._jobs.empty() or self._monotonic() >= self._marks_at):
                self._write_marks()
                continue
            wait = max(0.0, (self._check_at if is_open else self._retry_at) - self._monotonic())
            if wait == 0.0:
                if is_open:
                    self._check()
                else:
                    self._reopen()
                continue
            try:
                job = self._jobs.get(timeout=wait)
            except queue.Empty:
                continue
            if job is None:
                break
            self._do(*job)
        if self._saved:
            self._write_marks()
        if not self._store.is_open:
            self._reopen()  # the last chance to write the pending marks, and to learn an outcome
        self._store.close()
        self._reader.stop()
        self._reactor.callFromThread(self._stopped.callback, None)

    def _do(self, work: Callable[[Any], Any], argument: Any, done: Deferred[Any] | None) -> None:
        was_open = self._store.is_open
        try:
            result = work(argument)
        except LogUnavailable as error:
            if was_open:
                self._failed(error)
            if done is not None:
                self._reactor.callFromThread(done.errback, error)
        # Any error must reach the caller. Otherwise the senders would wait for ever.
        except Exception:
            if done is not None:
                self._reactor.callFromThread(done.errback, Failure())
        else:
            if done is not None:
                self._reactor.callFromThread(done.callback, result)

    def _mark_undelivered(self, marked: tuple[Sequence[int], str]) -> None:
        """Mark messages as delivered to nobody.

        :param marked: their numbers, and the epoch in which they have them.
        """
        numbers, epoch = marked
        # The caller may not have learned yet that the log has another life, in which these are other messages.
        if epoch == self._store.epoch:
            self._store.mark_undelivered(numbers)

    def _add_marks(self, added: tuple[Sequence[Mark], str, Deferred[None]]) -> None:
        """Have marks written later.

        :param added: the marks, the epoch in which the caller has made them, and the Deferred to fire then.
        """
        marks, epoch, done = added
        if not self._saved:
            self._marks_at = self._monotonic() + MARKS_SECONDS
        self._marks.extend((mark, epoch) for mark in marks)
        self._saved.append(done)

    def _write_marks(self) -> None:
        """Write the marks that wait, and fire the Deferreds of all of them."""
        epoch = self._store.epoch
        marks = [mark for mark, made_in in self._marks if made_in == epoch or mark.kind not in PLACE_KINDS]
        self._marks = []
        saved, self._saved = self._saved, []
        done: Deferred[None] = Deferred()
        done.addBoth(_fire_all, saved)
        self._do(self._store.save_marks, marks, done)

    def _failed(self, error: LogUnavailable) -> None:
        self._retry_at = self._monotonic() + self._retry_seconds
        reason = str(error)
        if reason in self._reasons or len(self._reasons) >= MAX_REASONS:
            return
        self._reasons.add(reason)
        log.critical(
            "{error}. No message is delivered until it can be written. Retrying every {seconds} s",
            error=error,
            seconds=f"{MIN_RETRY_SECONDS} to {MAX_RETRY_SECONDS}",
        )

    def _check(self) -> None:
        try:
            self._store.check()
            if self._drop_at <= self._monotonic():
                has_more = self._store.drop_ids()
                self._drop_at = self._monotonic() + (CHECK_SECONDS if has_more else DROP_SECONDS)
        except LogUnavailable as error:
            self._failed(error)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("checking the message log failed because of a defect in chatrelay; please report it")
        finally:
            self._check_at = self._monotonic() + CHECK_SECONDS

    def _reopen(self) -> None:
        try:
            self._store.open()
        except LogUnavailable as error:
            self._failed(error)
            self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("opening the message log failed because of a defect in chatrelay; please report it")
        else:
            self._reasons.clear()
            self._retry_seconds = MIN_RETRY_SECONDS
            self._check_at = self._monotonic() + CHECK_SECONDS
            self._reactor.callFromThread(self._opened, self._store.epoch, self._store.take_settled())
            log.warn("the message log {name} can be written again", name=self._store.name)
        finally:
            # Count from now, because opening may take long, and jobs must be done between two attempts.
            self._retry_at = self._monotonic() + self._retry_seconds


def _fire_all(result: Failure | None, waiting: Sequence[Deferred[None]]) -> None:
    for done in waiting:
        done.callback(result)
