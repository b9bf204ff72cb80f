"""Ask for an erasure in a message log in SQLite, from another process than the relay, and wait for its end.

While a relay has the log open, it erases: it alone gives numbers and places. Otherwise this module opens the log as a
relay does, and erases. It must not know what is written: `chatrelay.messagelog.sqlite.erasure` does.
"""

from __future__ import annotations

import glob
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar
from urllib.parse import quote

from chatrelay.messagelog.erasing import ErasureProgress
from chatrelay.messagelog.sqlite import erasure
from chatrelay.messagelog.sqlite.erasure import Request
from chatrelay.messagelog.sqlite.files import LogFiles, LogInUse
from chatrelay.messagelog.sqlite.reader import opened
from chatrelay.messagelog.sqlite.schema import LOCK_WAIT_SECONDS, MIGRATIONS
from chatrelay.messagelog.sqlite.store import SqliteStore
from chatrelay.model import LogUnavailable

_T = TypeVar("_T")

POLL_SECONDS = 0.2
"""The time between two reads of how far the relay is."""

CHECK_SECONDS = 1.0
"""The time between two checks of the files, without a relay."""

STALL_SECONDS = 3.0
"""The time without progress after which `ErasureProgress.waits_for` says what the erasure waits for. After it, this
process takes the erasure over if no relay has the log open. When a log has failed, its relay tries to open it twice a
second, and must find it free."""

READERS = "a program that reads the message log, such as a backup, to end"
RELAY = "the relay"

COPIES = (".schema-*", ".replaced-*", "-wal.orphaned-*")
"""How the names of the copies end that a relay or ``chatrelay restore`` makes beside a message log."""


class SqliteEraser:
    """The `chatrelay.messagelog.erasing.LogEraser` of a message log in a file.

    :param path: the file.
    :param wait: waits for some seconds.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param monotonic: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        path: str,
        wait: Callable[[float], object] = time.sleep,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._wait = wait
        self._now = now
        self._monotonic = monotonic

    def erase(self, user: str, *, received: bool) -> Iterator[ErasureProgress]:
        """Erase the messages that a user wrote up to now, and yield how far that is."""
        self._check()
        store = self._store_without_relay()
        try:
            asked = self._ask(user, received)
            if store is None:
                yield from self._erased_by_relay(asked)
                store = None if self._request(asked).finished else self._store_without_relay()
            if store is not None:
                yield from self._erased_here(store, asked)
        finally:
            if store is not None:
                store.close()
        request = self._request(asked)
        if request.through < asked.through:
            raise LogUnavailable(
                f"the message log {self._path} is damaged: {request.erased:,} messages up to number {request.through} "
                "were erased, and no later ones. Restore a backup, then run this command again"
            )

    @property
    def copies(self) -> Sequence[str]:
        """The copies of the message log beside it, which are not changed by an erasure."""
        path = os.path.realpath(self._path)
        return sorted(found for pattern in COPIES for found in glob.glob(glob.escape(path) + pattern))

    def _erased_by_relay(self, asked: Request) -> Iterator[ErasureProgress]:
        """Wait until a relay has erased what was asked for, or no relay has the log open."""
        last, changed_at = asked, self._monotonic()
        while True:
            request = self._request(asked)
            now = self._monotonic()
            if request != last or request.finished:
                last, changed_at = request, now
            is_stalled = now - changed_at >= STALL_SECONDS
            yield _progress(request, asked, is_stalled, RELAY)
            if request.finished:
                return
            if is_stalled and self._is_free():
                return
            self._wait(POLL_SECONDS)

    def _erased_here(self, store: SqliteStore, asked: Request) -> Iterator[ErasureProgress]:
        """Erase what was asked for, and what was asked for before."""
        check_at = self._monotonic()
        while True:
            if self._monotonic() >= check_at:
                store.check()
                check_at = self._monotonic() + CHECK_SECONDS
            if not store.is_erasing:
                break
            _, has_done = store.erase()
            yield _progress(self._request(asked), asked, not has_done)
            if not has_done:
                self._wait(CHECK_SECONDS)
        yield _progress(self._request(asked), asked)

    def _store_without_relay(self) -> SqliteStore | None:
        """Open the log to write to it; return None if a relay has it open."""
        store = SqliteStore(self._path, now=self._now)
        try:
            store.open()
        except LogInUse:
            return None
        return store

    def _is_free(self) -> bool:
        files = LogFiles(self._path)
        try:
            files.take_lock()
        except LogInUse:
            return False
        except OSError:
            return True  # opening the log says why
        files.release_lock()
        return True

    def _check(self) -> None:
        """Check that the file is a message log of this version.

        :raises LogUnavailable: if not.
        """
        self._read(lambda connection: None)

    def _ask(self, user: str, received: bool) -> Request:
        uri = f"file:{quote(os.fsencode(os.path.realpath(self._path)))}?mode=rw"

        def ask(_: sqlite3.Connection) -> Request:
            # The connection that reads stays open for longer than this one, so that SQLite leaves the -wal as it is.
            with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                connection.execute("BEGIN IMMEDIATE")
                # It writes page 1, as the first transaction in a -wal must: `checkpoints` says why.
                connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
                request = erasure.ask(connection, user, received, self._now())
                connection.execute("COMMIT")
                return request

        return self._read(ask)

    def _request(self, asked: Request) -> Request:
        """Return a request as it is now.

        :raises LogUnavailable: if it is not in the log any more.
        """
        request = self._read(lambda connection: erasure.request_of(connection, asked.number))
        if request is None or request[:4] != asked[:4]:
            raise LogUnavailable(f"the message log {self._path} was replaced meanwhile: run this command again")
        return request

    def _read(self, read: Callable[[sqlite3.Connection], _T]) -> _T:
        with opened(self._path) as connection:
            return read(connection)


def _progress(request: Request, asked: Request, is_stalled: bool = False, waits_for: str = READERS) -> ErasureProgress:
    """Return how far a request is.

    :param is_stalled: whether nothing has happened for a while.
    :param waits_for: what is waited for then, unless everything is erased and told.
    """
    if request.done >= request.through:
        waits_for = READERS
    return ErasureProgress(
        done=asked.through if request.finished else min(request.done, asked.through),
        total=asked.through,
        erased=request.erased,
        is_finished=bool(request.finished),
        waits_for=waits_for if is_stalled and not request.finished else "",
    )
