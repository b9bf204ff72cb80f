"""The thread that writes a message log in SQLite, with one call back into the reactor for each batch.

It decides when to call the store, and logs its failures. This module must not know what is in the files.
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

from chatrelay.messagelog.sqlite.store import SqliteStore
from chatrelay.model import LogUnavailable, Message

log = Logger("chatrelay.messagelog")

RETRY_SECONDS = 0.5
"""The wait before a failed log is reopened."""

CHECK_SECONDS = 1.0
"""The time between two checks of the files, with or without messages."""

MAX_REASONS = 10
"""The most reasons that are logged for one outage of the log."""

_Job = tuple[Callable[[Any], Any], Any, "Deferred[Any]"]


class SqliteMessageLog:
    """The `chatrelay.interfaces.MessageLog` that writes to an `SqliteStore` in a separate thread.

    :param path: the file.
    :param reactor: gets the results, with one call for each batch.
    :param monotonic: a monotonic clock, in seconds; called in the thread.
    """

    def __init__(
        self, path: str, reactor: IReactorFromThreads, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = SqliteStore(path)
        self._reactor = reactor
        self._monotonic = monotonic
        self._retry_at = 0.0
        self._check_at = 0.0
        self._reasons: set[str] = set()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopped: Deferred[None] = Deferred()
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether the log can be written, as far as is known."""
        return self.is_alive and self._store.is_open

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Open the file and start the thread."""
        self._store.open()
        self._check_at = self._monotonic() + CHECK_SECONDS
        self._stopped = Deferred()
        self._thread = threading.Thread(target=self._write, name="message-log", daemon=True)
        self._thread.start()

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch in the thread."""
        return self._run(self._store.append, messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark messages as delivered to nobody, in the thread."""
        return self._run(self._store.mark_undelivered, numbers)

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

    # In the thread, from here on.

    def _write(self) -> None:
        while True:
            # A closed log is reopened, and an open one is checked, even if there is no job.
            is_open = self._store.is_open
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
            work, argument, done = job
            was_open = self._store.is_open
            try:
                result = work(argument)
            except LogUnavailable as error:
                if was_open:
                    self._failed(error)
                self._reactor.callFromThread(done.errback, error)
            # Any error must reach the caller. Otherwise the senders would wait for ever.
            except Exception:
                self._reactor.callFromThread(done.errback, Failure())
            else:
                self._reactor.callFromThread(done.callback, result)
        if not self._store.is_open:
            self._reopen()  # the last chance to write the pending marks
        self._store.close()
        self._reactor.callFromThread(self._stopped.callback, None)

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

    def _reopen(self) -> None:
        try:
            self._store.open()
        except LogUnavailable as error:
            self._failed(error)
        # The thread must survive any error. Otherwise all senders would wait for ever.
        except Exception:
            log.failure("opening the message log failed because of a defect in chatrelay; please report it")
        else:
            self._reasons.clear()
            self._check_at = self._monotonic() + CHECK_SECONDS
            log.warn("the message log {path} can be written again", path=self._store.path)
        finally:
            # Count from now, because opening may take long, and jobs must be done between two attempts.
            self._retry_at = self._monotonic() + RETRY_SECONDS
