"""The threads that read a message log in SQLite by user, and the one that writes its index.

The relay's writer never waits for them, and they never block the reactor. This module must not know what a read does.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.messagelog.sqlite.batch import Row
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_columns import columns_of_rows
from chatrelay.messagelog.sqlite.index_run import DamagedRun
from chatrelay.messagelog.sqlite.schema import LOCK_WAIT_SECONDS
from chatrelay.model import Conversation, LogBusy, LoggedMessage, LogUnavailable, MarkKey, Page, Progress

log = Logger("chatrelay.messagelog")

MAX_READS = 10_000
"""The most reads that wait. Beyond it a read fails with `LogBusy`."""

READ_THREADS = 2
"""The threads that read. While one waits for the disk, the other may work."""

TOGETHER_SECONDS = 0.005
"""The time after which a thread passes results to the reactor and begins no further read before."""

INDEX_SECONDS = 1.0
"""The time between two looks for messages to index, while nobody reads and few are written."""

MANY_NOTED = 10_000
"""The messages that wait to be indexed, and cause an earlier look."""

ROWS_PER_NOTE = 1_000
"""The rows that are noted for the index at once, so that no other thread waits long for the GIL."""

PAUSE_SECONDS = 0.001
"""The pause after each slice of the index's work, which takes about as long. Other threads need the GIL."""

_T = TypeVar("_T")
_Read = Callable[[InboxQueries], Any]
_Job = tuple[_Read, "Deferred[Any]"]


class SqliteInboxReader:
    """Reads a message log by user: `chatrelay.interfaces.InboxReader`.

    The results of reads that wait for a thread are passed to the reactor together: each call into it costs as much as a
    short read.

    The store calls `opened` and `closing`, in the thread that writes.

    :param reactor: gets the results.
    :param make_index: returns the index of the message log with a path.
    """

    def __init__(self, reactor: IReactorFromThreads, make_index: Callable[[str], Index] = Index) -> None:
        self._reactor = reactor
        self._make_index = make_index
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._log: _OpenLog | None = None
        self._failures: set[str] = set()  # that were logged since the log was opened
        self._threads: list[threading.Thread] = []
        self._is_stopping = threading.Event()
        self._is_due = threading.Event()  # when the index is to be looked after early

    # What the store calls -----------------------------------------------------

    def opened(self, path: str, epoch: str) -> None:
        """Begin to read a message log that was opened, and go on to index it if that was begun before.

        :param path: without symbolic links.
        """
        self._failures.clear()
        self._log = _OpenLog(self._make_index(path), path, epoch)
        if self._log.index.has_files:
            self._start_threads()

    def committed(self, first: int, rows: Sequence[Row]) -> None:
        """Hand messages that were just committed to the index, if there is one.

        :param first: the number of the first one.
        """
        opened = self._log
        if opened is None or not self._threads:
            return
        index = opened.index
        try:
            for start in range(0, len(rows), ROWS_PER_NOTE):
                index.note(columns_of_rows(first + start, rows[start : start + ROWS_PER_NOTE]))
        # The messages are committed, so no error may refuse them. The index reads what it was not handed.
        except Exception:
            log.failure("indexing the message log failed because of a defect in chatrelay; please report it")
        if index.noted >= MANY_NOTED:
            self._is_due.set()

    def closing(self) -> None:
        """Close all connections to the message log, and wait for that. Reads fail until it is opened again."""
        opened, self._log = self._log, None
        if opened is not None:
            opened.close()

    def stop(self) -> None:
        """End the threads, and wait for that. Reads that wait fail. Call `closing` before."""
        self._is_stopping.set()
        self._is_due.set()
        for _ in self._threads:
            self._reads.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._is_stopping.clear()
        with suppress(queue.Empty):
            while True:
                if (read := self._reads.get_nowait()) is not None:
                    self._reactor.callFromThread(read[1].errback, _not_open())

    # Reads --------------------------------------------------------------------

    def entries(self, user: str, after: int, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the entries of consecutive places, oldest first, void ones included."""
        return self._read(lambda log: log.entries(user, after, through, limit, size))

    def history(
        self, user: str, peer: str, *, before: int | None, after: int | None, through: int, limit: int, size: int
    ) -> Deferred[Page]:
        """Read the messages that stand between two users, as `user` sees them."""
        return self._read(
            lambda log: log.history(user, peer, before=before, after=after, through=through, limit=limit, size=size)
        )

    def conversations(self, user: str, *, before: int | None, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the last message that stands of each conversation of a user, newest first."""
        return self._read(lambda log: log.conversations(user, before=before, through=through, limit=limit, size=size))

    def progress(
        self, user: str, conversations: Sequence[Conversation], *, through: int, limit: int
    ) -> Deferred[Sequence[Progress]]:
        """Read how far conversations of a user were received and read."""
        return self._read(lambda log: log.progress(user, conversations, through, limit))

    def find(self, sender: str, unique_id: str, since: int) -> Deferred[LoggedMessage | None]:
        """Find a message by its sender and its unique id."""
        return self._read(lambda log: log.find(sender, unique_id, since))

    def has_written(self, sender: str, recipient: str, by_sender: bool = False) -> Deferred[bool]:
        """Return whether a message from `sender` to `recipient` stands."""
        return self._read(lambda log: log.has_written(sender, recipient, by_sender))

    def writers(self, recipient: str, senders: Sequence[str]) -> Deferred[Collection[str]]:
        """Return those of some users from whom a message to `recipient` stands."""
        return self._read(lambda log: log.writers(recipient, senders))

    def place_of_sender(self, sender: str, recipient: str, through: int) -> Deferred[int]:
        """Translate a place of the recipient's into one of the sender's."""
        return self._read(lambda log: log.place_of_sender(sender, recipient, through))

    def marks(self, keys: Sequence[MarkKey]) -> Deferred[Mapping[MarkKey, int]]:
        """Read the values of marks of any users and kinds at once."""
        return self._read(lambda log: log.marks(keys))

    def _read(self, read: Callable[[InboxQueries], _T]) -> Deferred[_T]:
        if self._log is None:
            return fail(_not_open())
        if self._reads.qsize() >= MAX_READS:
            return fail(LogBusy(f"{MAX_READS:,} reads of the message log wait: try again later"))
        done: Deferred[_T] = Deferred()
        self._reads.put((read, done))
        self._start_threads()
        return done

    def _start_threads(self) -> None:
        if not self._threads:
            targets = [("message-log-index", self._index_messages)]
            targets += [("message-log-reader", self._answer_reads)] * READ_THREADS
            self._threads = [threading.Thread(target=each, name=name, daemon=True) for name, each in targets]
            for thread in self._threads:
                thread.start()

    # In the threads that read -------------------------------------------------

    def _answer_reads(self) -> None:
        while (job := self._reads.get()) is not None:
            finished = []
            until = time.monotonic() + TOGETHER_SECONDS
            while job is not None:
                finished.append(self._finished(*job))
                job = self._waiting_read() if time.monotonic() < until else None
            self._reactor.callFromThread(_call_all, finished)

    def _waiting_read(self) -> _Job | None:
        """Return a read that waits; None if there is none."""
        try:
            job = self._reads.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._reads.put(None)  # it ends one of the threads, which must pass on its results first
        return job

    def _finished(self, read: _Read, done: Deferred[Any]) -> Callable[[], None]:
        """Do a read, and return what passes its result on, to be called in the reactor."""
        try:
            return partial(done.callback, self._answered(read))
        except LogUnavailable as error:
            return partial(done.errback, error)
        # Any error must reach the caller. Otherwise a client would wait for ever.
        except Exception:
            return partial(done.errback, Failure())

    def _answered(self, read: _Read) -> Any:
        opened = self._log
        if opened is None:
            raise _not_open()
        try:
            with opened.connected() as connection:
                return read(InboxQueries(connection, opened.index))
        except DamagedRun as error:
            self._discard(opened, error)
            raise LogUnavailable("the index of the message log is being built again") from error
        except (sqlite3.Error, OSError) as error:
            raise LogUnavailable(f"the message log {opened.path} cannot be read: {error}") from error
        except msgspec.MsgspecError as error:
            raise LogUnavailable(f"the message log {opened.path} is damaged: {error}") from error

    def _discard(self, opened: _OpenLog, error: DamagedRun) -> None:
        log.warn("{error}: the index of the message log is built again", error=error)
        with suppress(OSError):  # it is tried again when the index is opened
            opened.index.discard()

    # In the thread that writes the index --------------------------------------

    def _index_messages(self) -> None:
        has_more = True
        while not self._is_stopping.is_set():
            if has_more:
                self._is_stopping.wait(PAUSE_SECONDS)
            else:
                self._is_due.wait(INDEX_SECONDS)
            self._is_due.clear()
            has_more = False
            opened = self._log
            if opened is None:
                continue
            try:
                has_more = self._index_some(opened)
            except DamagedRun as error:
                self._discard(opened, error)
            except (sqlite3.Error, OSError, LogUnavailable, msgspec.MsgspecError) as error:
                if self._log is opened and str(error) not in self._failures:
                    self._failures.add(str(error))
                    log.warn(
                        "the index in {folder} cannot be written: {error}. No message is lost. Retrying every "
                        "{seconds} s",
                        folder=opened.index.folder,
                        error=error,
                        seconds=INDEX_SECONDS,
                    )
            # The thread must survive any error. Otherwise no message would be indexed.
            except Exception:
                log.failure("indexing the message log failed because of a defect in chatrelay; please report it")

    def _index_some(self, opened: _OpenLog) -> bool:
        """Index some messages and write a part of a file; return whether there is more to do."""
        with opened.connected() as connection:
            opened.index.drop_deleted(connection)
            is_complete = opened.index.catch_up(connection)
        return opened.index.work() or not (is_complete or opened.index.is_full)


class _OpenLog:
    """A message log that is open, its index, and the connections that read it, one for each thread.

    :ivar index: it is opened with the first connection.
    """

    def __init__(self, index: Index, path: str, epoch: str) -> None:
        self.index = index
        self.path = path
        self._epoch = epoch
        self._is_index_open = False
        self._lock = threading.Lock()  # of the values here
        self._index_lock = threading.Lock()
        self._is_closed = False
        self._idle: list[sqlite3.Connection] = []
        self._busy: set[sqlite3.Connection] = set()
        self._no_busy = threading.Condition(self._lock)

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Return a connection for one read.

        :raises LogUnavailable: if the log was closed.
        """
        with self._lock:
            if self._is_closed:
                raise _not_open()
            connection = self._idle.pop() if self._idle else self._connect()
            self._busy.add(connection)
        try:
            with self._index_lock:
                if not self._is_index_open:
                    self.index.open(connection, self._epoch, self._check_open)
                    self._is_index_open = True
            yield connection
        finally:
            with self._lock:
                self._busy.discard(connection)
                self._idle.append(connection)
                self._no_busy.notify_all()

    def _check_open(self) -> None:
        """Raise `LogUnavailable` if the log is being closed: the thread that writes waits for that."""
        if self._is_closed:
            raise _not_open()

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(os.fsencode(self.path))}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Interrupt the reads, and close the connections."""
        with self._lock:
            self._is_closed = True
            while self._busy:
                for connection in self._busy:
                    connection.interrupt()
                self._no_busy.wait(0.01)  # again, because a read may just be between two statements
            for connection in self._idle:
                connection.close()
            self._idle = []


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _not_open() -> LogUnavailable:
    return LogUnavailable("the message log is not open")
