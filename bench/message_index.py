"""Measure the cost of an index by user of the message log, in different forms: `python -m bench.message_index`.

Each variant indexes the same messages between random users, 10,000 at a time. The results are the CPU time and the
bytes of a message, the longest time in which nothing else could be written, and the time that it takes to find the
numbers of 50 messages between two users. All variants run in each round, and the results are medians.

The variants in SQLite get the messages as rows, in a file of their own. The chosen one reads them from a message log.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sqlite3
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from bench import proc
from bench.message_log import BLOCK, Row, blocks_of
from bench.report import Table
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_search import between

USERS = (1_000, 100_000)
MESSAGES = 200_000
MESSAGES_PER_FLUSH = 10_000
PAGES = 200
PAGE = 50

_OTHER_TABLES = """
CREATE TABLE undelivered (number INTEGER PRIMARY KEY);
CREATE TABLE saved_through (number INTEGER NOT NULL);
INSERT INTO saved_through VALUES (0);
"""


class Variant(Protocol):
    """One form of the index."""

    def add(self, rows: Sequence[Row]) -> Iterator[None]:
        """Index some messages, with a pause wherever others may write meanwhile."""

    def history(self, user: str, peer: str) -> list[int]:
        """Return the numbers of the last messages between two users."""

    def size(self) -> int:
        """Return the bytes of the files."""


class InSQLite:
    """What the variants in a file of SQLite share."""

    schema = ""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "index"
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(self.schema)
        self._ids: dict[str, int] = {}

    def id_of(self, user: str) -> int:
        """Return the integer id of a user."""
        return self._ids.setdefault(user, len(self._ids))

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows in a transaction."""
        raise NotImplementedError

    def add(self, rows: Sequence[Row]) -> Iterator[None]:
        """Index some messages in one transaction."""
        self.connection.execute("BEGIN")
        self.write(rows)
        self.connection.execute("COMMIT")
        yield

    def size(self) -> int:
        """Return the bytes of the file."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.path.stat().st_size


class Rows(InSQLite):
    """Rows by user and place, and by user, peer and place."""

    schema = """
    CREATE TABLE entry (uid, place, number, PRIMARY KEY (uid, place)) WITHOUT ROWID;
    CREATE TABLE conversation (uid, peer, place, number, PRIMARY KEY (uid, peer, place)) WITHOUT ROWID;
    """

    def user(self, uid: str) -> Any:
        """Return what names a user in the tables."""
        return uid

    def write(self, rows: Sequence[Row]) -> None:
        """Write two rows for each message to each table, in the order of the keys."""
        entries: list[Any] = []
        for number, sender, from_place, recipient, to_place, *_ in rows:
            one, other = self.user(sender), self.user(recipient)
            entries.append((one, other, from_place, number))
            if one != other:
                entries.append((other, one, to_place, number))
        entries.sort()
        self.connection.executemany("INSERT INTO conversation VALUES (?, ?, ?, ?)", entries)
        self.connection.executemany("INSERT INTO entry VALUES (?, ?, ?)", [(u, p, n) for u, _, p, n in entries])

    def history(self, user: str, peer: str) -> list[int]:
        """Return the numbers of the last messages between two users."""
        found = self.connection.execute(
            "SELECT number FROM conversation WHERE uid = ? AND peer = ? ORDER BY place DESC LIMIT ?",
            (self.user(user), self.user(peer), PAGE),
        )
        return [number for (number,) in found]


class RowsWithIds(Rows):
    """The same with integer ids of users, which are kept in memory."""

    def user(self, uid: str) -> int:
        """Return the integer id of a user."""
        return self.id_of(uid)


class Blobs(InSQLite):
    """For each user and 10,000 messages, a row with the numbers and the peers."""

    schema = "CREATE TABLE part (uid, place, codes, peers, PRIMARY KEY (uid, place)) WITHOUT ROWID;"

    def write(self, rows: Sequence[Row]) -> None:
        """Write a row for each user."""
        parts: dict[int, tuple[int, array[int], array[int]]] = {}
        for number, sender, from_place, recipient, to_place, *_ in rows:
            one, other = self.id_of(sender), self.id_of(recipient)
            for user, peer, place in {(one, other, from_place), (other, one, to_place)}:
                part = parts.get(user)
                if part is None:
                    part = parts[user] = (place, array("I"), array("I"))
                part[1].append(number)
                part[2].append(peer)
        found = [(user, place, codes.tobytes(), peers.tobytes()) for user, (place, codes, peers) in parts.items()]
        self.connection.executemany("INSERT INTO part VALUES (?, ?, ?, ?)", sorted(found))

    def history(self, user: str, peer: str) -> list[int]:
        """Return the numbers of the last messages between two users."""
        wanted, numbers = self.id_of(peer), list[int]()
        for codes, peers in self.connection.execute(
            "SELECT codes, peers FROM part WHERE uid = ? ORDER BY place DESC", (self.id_of(user),)
        ):
            pairs = zip(memoryview(codes).cast("I"), memoryview(peers).cast("I"), strict=True)
            numbers += [number for number, each in pairs if each == wanted][::-1]
            if len(numbers) >= PAGE:
                break
        return numbers[:PAGE]


class Runs:
    """Runs in files, which are merged: the index of chatrelay."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"
        self._log = sqlite3.connect(self._path, isolation_level=None)
        self._log.execute("PRAGMA journal_mode = WAL")
        self._log.executescript(BLOCK + _OTHER_TABLES)
        self._index = Index(str(self._path), messages_per_run=MESSAGES_PER_FLUSH)
        self._index.open(self._log, "epoch")

    def write_log(self, rows: Sequence[Row]) -> None:
        """Write the messages that `add` reads."""
        self._log.execute("BEGIN")
        blocks_of(100)(self._log, rows, {})
        self._log.execute("COMMIT")

    def add(self, rows: Sequence[Row]) -> Iterator[None]:
        """Index what was written."""
        while not self._index.catch_up(self._log):
            yield
        while self._index.work():
            yield

    def history(self, user: str, peer: str) -> list[int]:
        """Return the numbers of the last messages between two users."""
        runs, hashes = self._index.view
        return list(islice(between(runs, hashes.user(user), hashes.user(peer), 0, 2**53), PAGE))

    def size(self) -> int:
        """Return the bytes of the files."""
        return sum(file.stat().st_size for file in Path(self._index.folder).iterdir())


VARIANTS: dict[str, Callable[[Path], Variant]] = {
    "rows by user and place, and by user, peer and place": Rows,
    "... with integers for users, kept in memory": RowsWithIds,
    "a row for each user and 10,000 messages": Blobs,
    "runs in files, eight merged to one (chosen)": Runs,
}


def messages(users: int, count: int) -> list[Row]:
    """Return messages between random users."""
    choose = random.Random(1)
    last = [0] * users
    rows: list[Row] = []
    for number in range(1, count + 1):
        sender, recipient = choose.randrange(users), choose.randrange(users)
        last[recipient] += 1
        last[sender] += sender != recipient
        rows.append(
            (number, str(sender), last[sender], str(recipient), last[recipient], f"{number}", number, "x" * 40, number)
        )
    return rows


def measure(make: Callable[[Path], Variant], rows: Sequence[Row], users: int) -> tuple[float, float, float, float]:
    """Return µs of CPU and bytes a message, the longest slice in ms, and µs for a page."""
    cpu = longest = 0.0
    with tempfile.TemporaryDirectory() as name:
        variant = make(Path(name))
        for start in range(0, len(rows), MESSAGES_PER_FLUSH):
            chosen = rows[start : start + MESSAGES_PER_FLUSH]
            if isinstance(variant, Runs):
                variant.write_log(chosen)
            cpu_before, before = time.process_time(), time.perf_counter()
            for _ in variant.add(chosen):
                longest = max(longest, time.perf_counter() - before)
                before = time.perf_counter()
            cpu += time.process_time() - cpu_before
        choose = random.Random(2)
        pages = []
        for _ in range(PAGES):
            user, peer = (str(choose.randrange(users)) for _ in range(2))
            before = time.perf_counter()
            variant.history(user, peer)
            pages.append(time.perf_counter() - before)
        return cpu / len(rows) * 1e6, variant.size() / len(rows), longest * 1e3, statistics.median(pages) * 1e6


def table(users: int, count: int, rounds: int) -> Table:
    """Run all variants in turns; return a line for each."""
    rows = messages(users, count)
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        print(f"{users:,} users, round {number + 1}", file=sys.stderr, flush=True)
        for name, make in VARIANTS.items():
            found[name].append(measure(make, rows, users))
    lines = []
    for name, results in found.items():
        cpu, size, longest, page = (statistics.median(column) for column in zip(*results, strict=True))
        lines.append((name, f"{cpu:.1f}", f"{size:.0f}", f"{longest:.0f}", f"{page:.0f}"))
    heads = ("index", "µs a message", "bytes", "longest pause, ms", "µs a page")
    return Table(f"{count:,} messages of {users:,} users", heads, tuple(lines))


def main(command_line: Sequence[str]) -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.message_index", description="Compare forms of an index by user of the message log."
    )
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"messages to index (default: {MESSAGES:,})")
    parser.add_argument("--users", type=int, action="append", help=f"number of users (default: {USERS})")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant (default: 3)")
    arguments = parser.parse_args(command_line)
    machine: dict[str, Any] = proc.machine()
    machine["SQLite"] = sqlite3.sqlite_version
    for line in machine.items():
        print(": ".join(line))
    print("by: " + shlex.join(["python", "-m", "bench.message_index", *command_line]))
    for users in arguments.users or USERS:
        print("\n" + table(users, arguments.messages, arguments.rounds).plain(), end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
