"""Message logs in SQLite files: filled, left behind by a killed relay, copied, restored and damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from chatrelay.messagelog.sqlite import MIGRATIONS, SqliteMessageReader, SqliteStore, schema
from chatrelay.messagelog.sqlite.backup import back_up
from chatrelay.messagelog.sqlite.restore import Restored, restore
from chatrelay.messagelog.sqlite.verify import Contents
from chatrelay.model import Message

NOW = 1_795_000_000.0
"""The time of a restore."""

STAMP = "20261118T110640Z"
"""`NOW` as it is written in a file name."""

DAMAGE = {
    "a block that is not JSON": (
        "UPDATE block SET messages = 'x' WHERE first_number = 4",
        "from 4 on cannot be decoded",
    ),
    "a block of other values": ("UPDATE block SET messages = '[[1]]' WHERE first_number = 4", "cannot be decoded"),
    "a block that is not text": ("UPDATE block SET messages = 7 WHERE first_number = 4", "cannot be decoded"),
    "a missing block": ("DELETE FROM block WHERE first_number = 104", "message 104 is missing"),
    "a missing first block": ("DELETE FROM block WHERE first_number = 1", "message 1 is missing"),
    "a wrong place": ("UPDATE block SET messages = json_set(messages, '$[0][1]', 9)", "the places"),
    "a user without messages": ("INSERT INTO saved_inbox (uid, last_place) VALUES ('nobody', 1)", "the places"),
}
"""Statements that damage a log with 250 messages, each with a part of the error message."""


def messages(first: int, count: int) -> list[Message]:
    """Return messages between a few users, some to themselves."""
    return [
        Message(number % 7, number % 5, number, str(number), f"content {number}", 1_700_000_000.0 + number)
        for number in range(first, first + count)
    ]


def fill(path: Path, *counts: int) -> SqliteStore:
    """Make a message log with this many messages in each batch; return its open store."""
    store = SqliteStore(str(path))
    store.open()
    first = 1
    for count in counts:
        store.append(messages(first, count))
        first += count
    return store


def make_older(path: Path, version: int, count: int) -> None:
    """Make a message log as an older chatrelay left it, with `messages`. Every seventh of them is undelivered.

    :param version: of its schema, from 1 on.
    """
    places: Counter[str] = Counter()

    def rows() -> Iterator[tuple[Any, ...]]:
        for number, each in enumerate(messages(1, count), 1):
            sender, recipient = str(each.from_uid), str(each.to_uid)
            for user in {sender, recipient}:
                places[user] += 1
            received_at = int(each.received_at * 1_000_000)
            fields = (sender, places[sender], recipient, places[recipient], each.client_id, each.time_stamp)
            yield number, *fields, each.content, received_at

    def blocks() -> Iterator[tuple[int, str]]:
        numbered = rows()
        while block := list(islice(numbered, 100)):
            yield block[0][0], schema.json_text([row[1:] for row in block])

    undelivered = [(number,) for number in range(7, count + 1, 7)]
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        schema.migrate(old, 0, MIGRATIONS[:version])
        old.execute("BEGIN")
        if version == 1:
            old.executemany(f"INSERT INTO message VALUES ({'?, ' * 9}1)", rows())
            old.executemany("UPDATE message SET delivered = 0 WHERE number = ?", undelivered)
            old.executemany("INSERT INTO inbox VALUES (?, ?)", places.items())
        else:
            old.executemany(schema.INSERT_BLOCK, blocks())
            old.executemany("INSERT INTO undelivered VALUES (?)", undelivered)
            old.executemany("INSERT INTO saved_inbox (uid, last_place) VALUES (?, ?)", places.items())
            old.execute("UPDATE saved_through SET number = ?", (count,))
        old.execute("COMMIT")


def killed(path: Path, *counts: int) -> Path:
    """Make a message log as a killed relay leaves it, with the last batches in the ``-wal``."""
    original = path.with_name("original")
    store = fill(original, *counts)
    shutil.copy(original, path)
    shutil.copy(f"{original}-wal", f"{path}-wal")
    shutil.copy(f"{original}-shm", f"{path}-shm")
    store.close()
    for suffix in ("", ".lock"):
        os.unlink(f"{original}{suffix}")
    assert os.path.getsize(f"{path}-wal") > 4096
    return path


def copy(log: Path, destination: Path, replace: bool = False, report: Any = lambda *_: None) -> Contents:
    """Back up a log."""
    return back_up(str(log), str(destination), replace=replace, report=report, commit=lambda: None)


def put_back(log: Path, backup: Path, confirm: Any = lambda *_: None, report: Any = lambda *_: None) -> Restored:
    """Restore a backup."""
    return restore(str(log), str(backup), now=NOW, confirm=confirm, report=report, commit=lambda: None)


def contents(path: Path) -> list[str]:
    """Return the contents of the messages in a log."""
    return [message.content for message in SqliteMessageReader(str(path)).messages()]


def expected(count: int, first: int = 1) -> list[str]:
    """Return the contents of this many messages of `messages`."""
    return [f"content {number}" for number in range(first, first + count)]


def spoil(path: Path, statement: str, *parameters: object) -> None:
    """Execute a statement on a log without its store."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, parameters)


def spoil_page(path: Path, first: int) -> None:
    """Overwrite the beginning of the page of a block, so that SQLite can't read it. The store must be closed.

    :param first: the number of the first message of the block.
    """
    with closing(sqlite3.connect(path)) as connection:
        (start,) = connection.execute(
            "SELECT substr(messages, 1, 40) FROM block WHERE first_number = ?", (first,)
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    page = data.index(start.encode()) // size * size
    data[page : page + 8] = bytes(8)
    path.write_bytes(data)


class _FailingCommit:
    """A connection whose commits fail."""

    def __init__(self, connection: sqlite3.Connection, commits: bool) -> None:
        self._connection = connection
        self._commits = commits

    def execute(self, statement: str, *parameters: Any) -> Any:
        """Execute a statement; raise an error for a commit."""
        if statement != "COMMIT":
            return self._connection.execute(statement, *parameters)
        if self._commits:
            self._connection.execute(statement)
        raise sqlite3.OperationalError("disk I/O error")

    def executemany(self, *arguments: Any) -> Any:
        """Execute a statement several times."""
        return self._connection.executemany(*arguments)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def fail_commits(store: SqliteStore, *, commits: bool) -> None:
    """Let the commits of an open store fail until it is reopened.

    :param commits: whether they are made nevertheless.
    """
    assert store._connection is not None
    store._connection = _FailingCommit(store._connection, commits)  # type: ignore[assignment]
