"""The threads that read a message log in PostgreSQL by user, each on a connection of its own.

The thread that writes never waits for them, and they never block the reactor. This module must not know what a read
does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from chatrelay.messagelog.postgres import queries
from chatrelay.messagelog.postgres.address import Address
from chatrelay.messagelog.postgres.connection import Connection, ConnectionLost
from chatrelay.messagelog.postgres.failures import explained
from chatrelay.messagelog.postgres.store import SESSION
from chatrelay.model import Conversation, LogBusy, LoggedMessage, LogUnavailable, MarkKey, Page, Progress

MAX_READS = 10_000
"""The most reads that wait. Beyond it a read fails with `LogBusy`."""

READ_THREADS = 2
"""The threads that read, and so the connections. While one waits for the server, the other may work."""

RETRY_SECONDS = 0.5
"""The time after a failed attempt to connect in which reads fail at once."""

_T = TypeVar("_T")
_Read = Callable[[Connection], Any]


class PostgresInboxReader:
    """Reads a message log by user: `chatrelay.interfaces.InboxReader`. The first read starts the threads.

    :param address: where the database is.
    :param reactor: gets the results, with one call for each read.
    """

    def __init__(self, address: Address, reactor: IReactorFromThreads) -> None:
        self._address = address
        self._reactor = reactor
        self._reads: queue.SimpleQueue[tuple[_Read, Deferred[Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()  # of the set of connections, and of the next value
        self._is_started = False

    def start(self) -> None:
        """Accept reads."""
        self._is_started = True

    def stop(self) -> None:
        """Interrupt the reads, and wait until the threads have ended. Reads that wait fail."""
        with self._lock:
            self._is_started = False
            for connection in self._connections:
                connection.abort()
        for _ in self._threads:
            self._reads.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        with suppress(queue.Empty):
            while True:
                if (read := self._reads.get_nowait()) is not None:
                    self._reactor.callFromThread(read[1].errback, self._not_open())

    # Reads ----------------------------------------------------------------------------

    def entries(self, user: str, after: int, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the entries of consecutive places, oldest first, void ones included."""
        return self._read(lambda log: queries.entries(log, user, after, through, limit, size))

    def history(
        self, user: str, peer: str, *, before: int | None, after: int | None, through: int, limit: int, size: int
    ) -> Deferred[Page]:
        """Read the messages that stand between two users, as `user` sees them."""
        return self._read(lambda log: queries.history(log, user, peer, before, after, through, limit, size))

    def conversations(self, user: str, *, before: int | None, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the last message that stands of each conversation of a user, newest first."""
        return self._read(lambda log: queries.conversations(log, user, before, through, limit, size))

    def progress(
        self, user: str, conversations: Sequence[Conversation], *, through: int, limit: int
    ) -> Deferred[Sequence[Progress]]:
        """Read how far conversations of a user were received and read."""
        return self._read(lambda log: queries.progress(log, user, conversations, through, limit))

    def find(self, sender: str, unique_id: str, since: int) -> Deferred[LoggedMessage | None]:
        """Find a message by its sender and its unique id, if that is still kept."""
        return self._read(lambda log: queries.find(log, sender, unique_id, since))

    def has_written(self, sender: str, recipient: str, by_sender: bool = False) -> Deferred[bool]:
        """Return whether a message from `sender` to `recipient` stands: one look into an index, whoever asks."""
        return self._read(lambda log: queries.has_written(log, sender, recipient))

    def writers(self, recipient: str, senders: Sequence[str]) -> Deferred[Collection[str]]:
        """Return those of some users from whom a message to `recipient` stands."""
        return self._read(lambda log: queries.writers(log, recipient, senders))

    def place_of_sender(self, sender: str, recipient: str, through: int) -> Deferred[int]:
        """Translate a place of the recipient's into one of the sender's."""
        return self._read(lambda log: queries.place_of_sender(log, sender, recipient, through))

    def marks(self, keys: Sequence[MarkKey]) -> Deferred[Mapping[MarkKey, int]]:
        """Read the values of marks of any users and kinds at once."""
        return self._read(lambda log: queries.marks(log, keys))

    def _read(self, read: Callable[[Connection], _T]) -> Deferred[_T]:
        if not self._is_started:
            return fail(self._not_open())
        if self._reads.qsize() >= MAX_READS:
            return fail(LogBusy(f"{MAX_READS:,} reads of the message log wait: try again later"))
        done: Deferred[_T] = Deferred()
        self._reads.put((read, done))
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._answer_reads, name="message-log-reader", daemon=True)
                for _ in range(READ_THREADS)
            ]
            for thread in self._threads:
                thread.start()
        return done

    def _not_open(self) -> LogUnavailable:
        return LogUnavailable(f"the message log {self._address.name} is not open")

    # In the threads -------------------------------------------------------------------

    def _answer_reads(self) -> None:
        source = _Source(self._address, self._keep)
        while (job := self._reads.get()) is not None:
            read, done = job
            try:
                if not self._is_started:
                    raise self._not_open()
                result = source.answer(read)
            except LogUnavailable as error:
                self._reactor.callFromThread(done.errback, error)
            # Any error must reach the caller. Otherwise a client would wait for ever.
            except Exception:
                self._reactor.callFromThread(done.errback, Failure())
            else:
                self._reactor.callFromThread(done.callback, result)
        source.close()

    def _keep(self, connection: Connection, is_open: bool) -> None:
        """Note a connection that `stop` must abort, or need not any more."""
        with self._lock:
            if is_open:
                self._connections.add(connection)
                if not self._is_started:
                    connection.abort()
            else:
                self._connections.discard(connection)


class _Source:
    """The connection of one thread. It is made when it is needed, and made again when it is lost.

    :param keep: called with each connection when it is open, and before it is closed.
    """

    def __init__(self, address: Address, keep: Callable[[Connection, bool], None]) -> None:
        self._address = address
        self._keep = keep
        self._connection: Connection | None = None
        self._failure: LogUnavailable | None = None
        self._retry_at = 0.0

    def answer(self, read: Callable[[Connection], _T]) -> _T:
        """Return the result of a read.

        :raises LogUnavailable: if the server can't be read.
        """
        was_open = self._connection is not None
        with explained(self._address, "read"):
            try:
                return read(self._connected())
            except ConnectionLost:
                self.close()
                if not was_open:
                    raise
            # The server may have ended the connection long ago. A read can be repeated.
            try:
                return read(self._connected())
            except ConnectionLost:
                self.close()
                raise

    def _connected(self) -> Connection:
        if self._connection is None:
            if self._failure is not None and time.monotonic() < self._retry_at:
                raise self._failure
            connection = self._open()
            self._keep(connection, True)
            self._connection = connection
        return self._connection

    def _open(self) -> Connection:
        self._failure = LogUnavailable("the server could not be reached a moment ago")
        try:
            connection = Connection(self._address)
            connection.run(SESSION)
        finally:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        self._failure = None
        return connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._keep(connection, False)
            connection.close()
