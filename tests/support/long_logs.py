"""Long message logs in SQLite files, written in seconds: blocks as a busy relay writes them, without a relay."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from tests.support.indexed_logs import TABLES

MESSAGES_PER_BLOCK = 100
"""The messages in a block, as under load. In shorter blocks, a message is found faster."""

RARE_SHARE = 100
"""Of so many messages of the log, `RARE` receives one."""

PAIR = ("alice", "bob")
"""Two users who write only to each other, at the end of the log."""

RARE = "rare"
"""A user who receives one in `RARE_SHARE` messages."""


def write_long_log(path: Path, count: int, users: int, pair: int = 10_000) -> None:
    """Write a log.

    :param count: of messages between random users.
    :param users: of them.
    :param pair: messages between the two of `PAIR`, which follow.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(TABLES)
        connection.execute("PRAGMA synchronous = OFF")
        encode = msgspec.json.Encoder().encode
        block: list[object] = []
        first = 1
        connection.execute("BEGIN")
        for row in rows(count, users, pair):
            block.append(row)
            if len(block) == MESSAGES_PER_BLOCK:
                connection.execute("INSERT INTO block VALUES (?, ?)", (first, encode(block).decode()))
                first += len(block)
                block = []
                if first % 100_000 == 1:
                    connection.execute("COMMIT")
                    connection.execute("BEGIN")
        if block:
            connection.execute("INSERT INTO block VALUES (?, ?)", (first, encode(block).decode()))
        connection.execute("COMMIT")


def rows(count: int, users: int, pair: int) -> Iterator[tuple[object, ...]]:
    """Yield messages as they are in a block."""
    choose = random.Random(1)
    names = [*(f"user-{number}" for number in range(users)), RARE, *PAIR]
    last = [0] * len(names)
    for number in range(1, count + pair + 1):
        sender = int(choose.random() * users)
        recipient = users if number % RARE_SHARE == 0 else int(choose.random() * users)
        if number > count:
            sender, recipient = users + 1 + number % 2, users + 2 - number % 2
        last[recipient] += 1
        to_place = from_place = last[recipient]
        if sender != recipient:
            last[sender] += 1
            from_place = last[sender]
        client_id = f"{number:032x}"
        yield names[sender], from_place, names[recipient], to_place, client_id, number, "x" * 40, 10**15 + number, 1
