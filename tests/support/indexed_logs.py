"""A message log with blocks in a file, the index beside it, and what each read must answer.

The log in memory is the reference. The file has the tables of `chatrelay.messagelog.sqlite.schema` that are read by
user, so a test can write blocks of any size, and needs no store.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from chatrelay.messagelog.memory import MemoryMessageLog, MemoryRow
from chatrelay.messagelog.sqlite.checkpoints import Checkpoints
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_columns import columns_of_rows
from chatrelay.messagelog.sqlite.trimming import Trimmer
from chatrelay.model import LoggedMessage, Mark, MarkKind, Message

TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE block (first_number INTEGER PRIMARY KEY, messages TEXT NOT NULL);
CREATE TABLE undelivered (number INTEGER PRIMARY KEY);
CREATE TABLE saved_inbox (uid TEXT PRIMARY KEY, last_place INTEGER, first_place INTEGER) WITHOUT ROWID;
CREATE TABLE saved_through (number INTEGER NOT NULL);
INSERT INTO saved_through VALUES (0);
CREATE TABLE mark (user TEXT, kind INTEGER, peer TEXT, value INTEGER, PRIMARY KEY (user, kind, peer)) WITHOUT ROWID;
"""

EVERYTHING = 10**9
"""A place, a limit and a size beyond everything in these tests."""


def stored(row: MemoryRow) -> list[Any]:
    """Return a message as it is in a block."""
    message = row.message
    values = [row.from_user, row.from_place, row.to_user, row.to_place, message.client_id, message.time_stamp]
    values += [message.content, int(message.received_at * 1_000_000)]
    return [*values, 1] if message.has_unique_id else values


class IndexedLog:
    """A message log in a file, its index, and the same messages in memory.

    :param path: of the file, which must not exist.
    """

    def __init__(self, path: Path, messages_per_run: int = 10_000, epoch: str = "epoch") -> None:
        self.path = path
        self.epoch = epoch
        self.memory = MemoryMessageLog()
        self._messages_per_run = messages_per_run
        self._writer = sqlite3.connect(path, isolation_level=None)
        self._writer.executescript(TABLES)
        self.connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self.index = self.opened()

    def opened(self) -> Index:
        """Return the index as another process would open it."""
        index = Index(str(self.path), messages_per_run=self._messages_per_run)
        index.open(self.connection, self.epoch)
        return index

    def reopen(self) -> None:
        """Continue with what a killed process left in the files."""
        self.index = self.opened()

    def append(self, messages: Sequence[Message], is_noted: bool = False) -> None:
        """Write a batch as one block.

        :param is_noted: whether the index is told, as it is by the thread that writes.
        """
        before = len(self.memory.rows)
        self.memory.append(messages)
        rows = [stored(row) for row in self.memory.rows[before:]]
        self._writer.execute("INSERT INTO block VALUES (?, ?)", (before + 1, json.dumps(rows, separators=(",", ":"))))
        if is_noted:
            self.index.note(columns_of_rows(before + 1, [tuple(row) for row in rows]))

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        """Mark messages."""
        self.memory.mark_undelivered(numbers)
        self._writer.executemany("INSERT OR IGNORE INTO undelivered VALUES (?)", [(number,) for number in numbers])

    def trim(self, through: int) -> None:
        """Delete the blocks up to the one that ends with a message, whose time must be its number in seconds."""
        before = (through + 1) * 1_000_000
        checkpoints = Checkpoints(version=4)
        checkpoints.begin(self._writer, str(self.path), f"{self.path}-wal")
        while Trimmer().trim(self._writer, before, checkpoints).count:
            pass
        self.memory.trim(before)

    def save_mark(self, user: str, peer: str, value: int) -> None:
        """Keep how far a user has read."""
        self.memory.save_marks([Mark(user, MarkKind.READ, peer, value)])
        row = (user, MarkKind.READ.value, peer, self.memory.marks[user, MarkKind.READ, peer])
        self._writer.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)", row)

    def execute(self, statement: str, *parameters: object) -> None:
        """Change the file and not the log in memory."""
        self._writer.execute(statement, parameters)

    def index_all(self) -> None:
        """Index everything that can be indexed."""
        while True:
            is_complete = self.index.catch_up(self.connection)
            while self.index.work():
                pass
            if is_complete:
                return

    @property
    def files(self) -> list[Path]:
        """The files of the index, in the order of their names."""
        folder = Path(self.index.folder)
        return sorted(folder.iterdir()) if folder.is_dir() else []

    @property
    def queries(self) -> InboxQueries:
        """Reads the file."""
        return InboxQueries(self.connection, self.index)

    def last(self, user: str, peer: str) -> LoggedMessage | None:
        """Return the last message that stands between two users, as the log in memory has it."""
        pair = {user, peer}
        standing = (row for row in reversed(self.memory.rows) if row.delivered and {row.from_user, row.to_user} == pair)
        row = next(standing, None)
        return None if row is None else row.logged()

    def answers(self, name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """Return what the file and the log in memory answer to a read."""
        expected: list[Any] = []
        answer: Deferred[Any] = getattr(self.memory.reader, name)(*arguments, **options)
        answer.addCallback(expected.append)
        return getattr(self.queries, name)(*arguments, **options), expected[0]

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        self._writer.close()


def reference(connection: sqlite3.Connection) -> MemoryMessageLog:
    """Return the messages of a file as a log in memory, read one after the other."""
    memory = MemoryMessageLog()
    for (text,) in connection.execute("SELECT messages FROM block ORDER BY first_number"):
        for sender, _, recipient, _, client_id, time_stamp, content, received_at, *unique in json.loads(text):
            seconds: Any = Fraction(received_at, 1_000_000)  # exact
            memory.append([Message(sender, recipient, client_id, time_stamp, content, seconds, unique == [1])])
    memory.mark_undelivered([number for (number,) in connection.execute("SELECT number FROM undelivered")])
    return memory
