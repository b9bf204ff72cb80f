"""A message log in SQLite without threads: what is asked of it is done in the call, so that it can be counted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred, maybeDeferred, succeed

from chatrelay.messagelog.sqlite import index_search
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_run import FileRun
from chatrelay.messagelog.sqlite.store import SqliteStore
from chatrelay.model import InboxState, Mark, Message

READS = (
    *("entries", "history", "conversations", "progress", "find", "has_written", "writers", "place_of_sender"),
    "marks",
)
"""The methods of `chatrelay.interfaces.InboxReader`."""


class DirectReader:
    """The `chatrelay.interfaces.InboxReader` of a `DirectLog`."""

    def __init__(self, queries: InboxQueries) -> None:
        for name in READS:
            setattr(self, name, partial(maybeDeferred, getattr(queries, name)))


class DirectLog:
    """An `chatrelay.interfaces.InboxLog`.

    :param path: of the file, which must not exist.
    :param messages_per_run: the messages after which a file of the index is written.
    :ivar counts: the statements, the reads of the index with their bytes, and the bytes of the index that were
        searched.
    """

    is_open = is_alive = True

    def __init__(self, path: Path, messages_per_run: int) -> None:
        self._store = SqliteStore(str(path))
        self._store.open()
        self.epoch = self._store.epoch
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self._index = Index(str(path), bytes, messages_per_run)  # the same hashes each time
        self._index.open(self._connection, self.epoch)
        self.on_erased: Any = None  # nothing is erased here
        self.reader: Any = DirectReader(InboxQueries(self._connection, self._index))
        self.counts: dict[str, int] = {}
        self.reset()
        for connection in (self._connection, self._store._connection):
            assert connection is not None
            connection.set_trace_callback(lambda _: self._count("statements"))
        self._patches = [
            patch.object(FileRun, "read", self._counting_reads(FileRun.read)),
            patch.object(index_search, "positions", self._counting_searches(index_search.positions)),
        ]
        for each in self._patches:
            each.start()

    def reset(self) -> None:
        """Begin to count again."""
        self.counts = dict.fromkeys(("statements", "reads of the index", "bytes read", "bytes searched"), 0)

    def index_all(self) -> None:
        """Index everything, and write the files that are due."""
        while not self._index.catch_up(self._connection):
            pass
        while self._index.work():
            pass

    @property
    def files(self) -> int:
        """How many files the index has."""
        return len(list(Path(self._index.folder).glob("*.run")))

    def start(self) -> None:
        """Do nothing: it is open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch."""
        return maybeDeferred(self._store.append, messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark messages as delivered to nobody."""
        return maybeDeferred(self._store.mark_undelivered, numbers)

    def inbox(self, user: str) -> Deferred[InboxState]:
        """Look up a user's inbox."""
        return maybeDeferred(self._store.inbox, user)

    def save_marks(self, marks: Sequence[Mark]) -> Deferred[None]:
        """Keep marks for the next batch."""
        return maybeDeferred(self._store.add_marks, marks)

    def stop(self) -> Deferred[None]:
        """Close everything."""
        for each in self._patches:
            each.stop()
        self._connection.close()
        self._store.close()
        return succeed(None)

    def _count(self, what: str, more: int = 1) -> None:
        self.counts[what] += more

    def _counting_reads(self, read: Callable[..., bytes]) -> Callable[..., bytes]:
        def counted(run: FileRun, section: str, start: int, stop: int) -> bytes:
            data = read(run, section, start, stop)
            self._count("reads of the index")
            if section != "hashes":  # the rest of a file, or a page of 4 KiB
                self._count("bytes read", len(data))
            return data

        return counted

    def _counting_searches(self, positions: Callable[..., Any]) -> Callable[..., Any]:
        def counted(data: bytes, value: int) -> Any:
            self._count("bytes searched", len(data))
            return positions(data, value)

        return counted
