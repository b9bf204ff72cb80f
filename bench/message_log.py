"""Measure the cost of a row of the message log with different schemas and statements: `python -m bench.message_log`.

Each variant writes batches of messages to its own file, each batch in one transaction with one sync (WAL,
synchronous=FULL), as the message log does. All variants run in each round. The results are the median CPU time of a
row, and the rows per second of the same rounds.

The variants differ only in SQL. The figures include the encoding of JSON if a variant stores it, and no other work
outside SQLite (finding the places in the inboxes, reading the fields of a message).
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from bench import proc
from bench.report import Table

Row = tuple[int, str, int, str, int, str, int, str, int]
"""The values number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at."""

Write = Callable[[sqlite3.Connection, Sequence[Row], dict[str, int]], object]
"""Writes rows, and the last places of their users, in a transaction."""

BATCHES = (1, 10, 100, 500)
USERS = 1000
MESSAGES_PER_SAVE = 10_000
SECONDS = 0.25
"""The time in which one variant writes batches of one size in one round."""


@dataclass(frozen=True)
class Variant:
    """A schema and a way to write to it."""

    name: str
    schema: str
    write: Write
    checkpoint: int = 1000


def messages(users: int = USERS) -> Iterator[tuple[Row, dict[str, int]]]:
    """Return messages between random users, each with its places."""
    choose = random.Random(1)
    last: dict[str, int] = {}
    number = 0
    while True:
        number += 1
        sender, recipient = (str(choose.randrange(users)) for _ in range(2))
        places = {}
        for user in {sender, recipient}:
            places[user] = last[user] = last.get(user, 0) + 1
        yield (
            (
                number,
                sender,
                places[sender],
                recipient,
                places[recipient],
                str(number),
                number,
                "x" * 40,
                10**15 + number,
            ),
            places,
        )


# Ways of writing -------------------------------------------------------------

COLUMNS = "number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at"
ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
ON_CONFLICT = "ON CONFLICT (uid) DO UPDATE SET last_place = excluded.last_place"
_encode = msgspec.json.Encoder().encode


def row_by_row(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
    """Use executemany: one step of SQLite for each row, and the GIL is released and acquired for each."""
    connection.executemany(f"INSERT INTO message ({COLUMNS}) VALUES {ROW}", rows)


def many_values(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
    """Use statements with many VALUES, in a few sizes, so that SQLite keeps them prepared."""
    for part in powers_of_two(rows):
        values = ", ".join([ROW] * len(part))
        connection.execute(f"INSERT INTO message ({COLUMNS}) VALUES {values}", list(chain.from_iterable(part)))


def powers_of_two(rows: Sequence[Row], largest: int = 64) -> Iterator[Sequence[Row]]:
    """Yield slices whose lengths are powers of two."""
    start, size = 0, largest
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        yield rows[start : start + size]
        start += size


def from_json(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
    """Use one statement that splits the batch."""
    fields = ", ".join(f"json_extract(value, '$[{column}]')" for column in range(9))
    connection.execute(f"INSERT INTO message ({COLUMNS}) SELECT {fields} FROM json_each(?)", (_encode(rows).decode(),))


def records(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
    """Use one statement with a row of JSON for each message."""
    text = _encode([row[1:] for row in rows]).decode()
    connection.execute("INSERT INTO message SELECT ? + key, value FROM json_each(?)", (rows[0][0], text))


def blocks_of(size: int) -> Write:
    """Store `size` messages in a row of JSON."""

    def blocks(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
        starts = range(0, len(rows), size)
        blocks = [
            (rows[start][0], _encode([row[1:] for row in rows[start : start + size]]).decode()) for start in starts
        ]
        connection.executemany("INSERT INTO block VALUES (?, ?)", blocks)

    return blocks


def clustered(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
    """Store the number of each message in the inboxes of both users."""
    entries = ((user, place, row[0]) for row in rows for user, place in {row[1:3], row[3:5]})
    connection.executemany("INSERT INTO entry VALUES (?, ?, ?)", entries)


def copied(connection: sqlite3.Connection, rows: Sequence[Row], _: object = None) -> None:
    """Store each message in full in the inboxes of both users."""
    entries = ((user, place, *row) for row in rows for user, place in {row[1:3], row[3:5]})
    connection.executemany(f"INSERT INTO entry VALUES ({'?, ' * 10}?)", entries)


def places_one_by_one(connection: sqlite3.Connection, _: Sequence[Row], places: dict[str, int]) -> None:
    """Use one upsert for each user."""
    connection.executemany(f"INSERT INTO inbox VALUES (?, ?) {ON_CONFLICT}", places.items())


def places_looked_up(connection: sqlite3.Connection, _: Sequence[Row], places: dict[str, int]) -> None:
    """Query the last place of each user, then use one upsert for each user."""
    for user in places:
        connection.execute("SELECT last_place FROM inbox WHERE uid = ?", (user,)).fetchone()
    places_one_by_one(connection, _, places)


def places_at_once(connection: sqlite3.Connection, _: Sequence[Row], places: dict[str, int]) -> None:
    """Use one statement for all users."""
    sql = f"INSERT INTO inbox SELECT key, value FROM json_each(?) WHERE true {ON_CONFLICT}"
    connection.execute(sql, (_encode(places).decode(),))


def places_now_and_then(connection: sqlite3.Connection, rows: Sequence[Row], _: object) -> None:
    """Use one statement for all users after every 10,000th message. By then each user has some messages."""
    last = rows[-1][0]
    if rows[0][0] // MESSAGES_PER_SAVE != (last + 1) // MESSAGES_PER_SAVE:
        places_at_once(connection, rows, {str(user): last for user in range(USERS)})


def both(*parts: Write) -> Write:
    """Call several writers in order."""

    def write(connection: sqlite3.Connection, rows: Sequence[Row], places: dict[str, int]) -> None:
        for part in parts:
            part(connection, rows, places)

    return write


# Schemas ---------------------------------------------------------------------

MESSAGE = """
CREATE TABLE message (
    number INTEGER PRIMARY KEY, from_uid TEXT NOT NULL, from_place INTEGER NOT NULL, to_uid TEXT NOT NULL,
    to_place INTEGER NOT NULL, client_id NOT NULL, time_stamp NOT NULL, content TEXT NOT NULL,
    received_at INTEGER NOT NULL, delivered INTEGER NOT NULL DEFAULT 1
);
"""
INBOX = "CREATE TABLE inbox (uid TEXT PRIMARY KEY, last_place INTEGER NOT NULL) WITHOUT ROWID;"
INDEXES = """
CREATE UNIQUE INDEX sent ON message (from_uid, from_place);
CREATE UNIQUE INDEX received ON message (to_uid, to_place);
"""
CLUSTERED = """
CREATE TABLE entry (
    uid TEXT, place INTEGER, number INTEGER NOT NULL, PRIMARY KEY (uid, place)
) WITHOUT ROWID;
"""
COPIED = """
CREATE TABLE entry (
    uid TEXT, place INTEGER, number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content,
    received_at, PRIMARY KEY (uid, place)
) WITHOUT ROWID;
"""
RECORD = "CREATE TABLE message (number INTEGER PRIMARY KEY, record TEXT NOT NULL);"
BLOCK = "CREATE TABLE block (first_number INTEGER PRIMARY KEY, messages TEXT NOT NULL);"

VARIANTS = (
    Variant("columns, row by row; places read and set one by one", MESSAGE + INBOX, both(row_by_row, places_looked_up)),
    Variant("... places remembered, set one by one", MESSAGE + INBOX, both(row_by_row, places_one_by_one)),
    Variant("... places remembered, set in one statement", MESSAGE + INBOX, both(row_by_row, places_at_once)),
    Variant("... and two unique indexes", MESSAGE + INBOX + INDEXES, both(row_by_row, places_at_once)),
    Variant("... and clustered numbers", MESSAGE + CLUSTERED + INBOX, both(clustered, row_by_row, places_at_once)),
    Variant("... and clustered copies", MESSAGE + COPIED + INBOX, both(copied, row_by_row, places_at_once)),
    Variant("columns, statements of up to 64 rows", MESSAGE + INBOX, both(many_values, places_at_once)),
    Variant("columns, one statement from JSON", MESSAGE + INBOX, both(from_json, places_at_once)),
    Variant("a row of JSON a message", RECORD + INBOX, both(records, places_at_once)),
    Variant("blocks of up to 100 messages", BLOCK + INBOX, both(blocks_of(100), places_at_once)),
    Variant("... places set every 10,000 messages (chosen)", BLOCK + INBOX, both(blocks_of(100), places_now_and_then)),
    Variant("... and a WAL of 16 MiB", BLOCK + INBOX, both(blocks_of(100), places_now_and_then), checkpoint=4000),
    Variant("... and one block a batch", BLOCK + INBOX, both(blocks_of(10_000), places_now_and_then)),
)  # fmt: skip


# Measuring -------------------------------------------------------------------


class Trial:
    """The file, the batch size and the measurements of one variant."""

    def __init__(self, path: Path, variant: Variant, batch: int) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(f"PRAGMA wal_autocheckpoint = {variant.checkpoint}")
        self.connection.executescript(variant.schema)
        self.variant = variant
        self.batch = batch
        self.costs: list[float] = []
        self.rates: list[float] = []
        self._messages = messages()

    def run(self, seconds: float) -> None:
        """Write for some time; keep the CPU seconds per row and the rows per second."""
        rows, cpu, taken = 0, 0.0, 0.0
        while taken < seconds:
            batch, places = gather(islice(self._messages, self.batch))
            cpu_before, before = time.process_time(), time.perf_counter()
            self.connection.execute("BEGIN IMMEDIATE")
            self.variant.write(self.connection, batch, places)
            self.connection.execute("COMMIT")
            cpu += time.process_time() - cpu_before
            taken += time.perf_counter() - before
            rows += len(batch)
        self.costs.append(cpu / rows)
        self.rates.append(rows / taken)


def gather(made: Iterable[tuple[Row, dict[str, int]]]) -> tuple[list[Row], dict[str, int]]:
    """Return a batch: its rows, and the last place of each of its users."""
    rows: list[Row] = []
    last: dict[str, int] = {}
    for row, places in made:
        rows.append(row)
        last.update(places)
    return rows, last


def measure(folder: Path, batches: Sequence[int], rounds: int, seconds: float) -> list[list[Trial]]:
    """Run all variants in turns with each batch size; return the trials by size, in the order of the variants."""
    found = []
    for batch in batches:
        print(f"batches of {batch}", file=sys.stderr, flush=True)
        trials = [Trial(folder / f"{batch}-{number}", variant, batch) for number, variant in enumerate(VARIANTS)]
        for _ in range(rounds):
            for trial in trials:
                trial.run(seconds)
        for trial in trials:
            trial.connection.close()
        found.append(trials)
    return found


def table(found: Sequence[Sequence[Trial]]) -> Table:
    """Return a line for each variant: CPU per row and rows per second, for each batch size."""
    heads = ["schema and writing"]
    for trials in found:
        heads += [f"µs at {trials[0].batch}", "rows/s"]
    rows = []
    for number, variant in enumerate(VARIANTS):
        cells: list[str] = [variant.name]
        for trials in found:
            cells += [
                f"{statistics.median(trials[number].costs) * 1e6:.1f}",
                f"{statistics.median(trials[number].rates):,.0f}",
            ]
        rows.append(tuple(cells))
    return Table("CPU time of a row and rows a second, by rows in a batch", tuple(heads), tuple(rows))


def main(command_line: Sequence[str]) -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.message_log", description="Compare ways to write the message log."
    )
    parser.add_argument("--folder", type=Path, help="the folder to write in (default: the folder for temporary files)")
    parser.add_argument("--batch", type=int, action="append", help=f"rows in a batch (default: {BATCHES})")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each variant (default: 7)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"length of a run (default: {SECONDS})")
    arguments = parser.parse_args(command_line)
    machine: dict[str, Any] = proc.machine()
    machine["SQLite"] = sqlite3.sqlite_version
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        machine["one fdatasync"] = proc.describe_sync(proc.sync_seconds(Path(name)))
        found = measure(Path(name), arguments.batch or BATCHES, arguments.rounds, arguments.seconds)
    for line in machine.items():
        print(": ".join(line))
    print("by: " + shlex.join(["python", "-m", "bench.message_log", *command_line]))
    print("\n" + table(found).plain(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
