"""A process is killed while it deletes old messages, and then the log must be whole, and go on where it was."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.messagelog.sqlite.verify import verify
from chatrelay.model import InboxEntry
from tests.support.evidence import Evidence
from tests.support.indexed_logs import EVERYTHING
from tests.support.message_logs import message
from tests.trials.indexing import USERS, small_index

CHECKED = 5
"""The users whose inboxes are checked after each kill."""

LONGEST_WAIT = 0.01
"""The longest time, in seconds, between the beginning of a step and the kill."""

DELETES = "deletes\n"
"""What the process prints before each step."""

SENT = "SELECT from_place, number, content, delivered FROM message WHERE from_uid = ?"
RECEIVED = "SELECT to_place, number, content, delivered FROM message WHERE to_uid = ?"


def test_log_is_whole_and_goes_on_after_kills_at_any_moment_of_deleting(
    tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """In the short form there are 8 kills, in the full one 200."""
    path = tmp_path / "log"
    choose = random.Random(1)
    epochs: set[str] = set()
    kills = 200 if full else 8
    deleted = before = 0
    for kill in range(kills):
        printed = run_and_kill(path, kill, choose)
        epoch, first, last = check(path, choose, choose.sample([str(user) for user in range(USERS)], CHECKED))
        assert last >= printed, f"message {printed} was committed, and the last one is {last}"
        assert last >= before and first >= deleted + 1, "a number was given again, or a deleted message is back"
        epochs.add(epoch)
        deleted, before = first - 1, last
    assert len(epochs) == 1, "a killed process is taken for a copy"
    evidence.count("kills", kills, at_least=8)
    evidence.count("deleted messages", deleted, at_least=200)
    evidence.figure(f"{before:,} messages were written")


def run_and_kill(path: Path, seed: int, choose: random.Random) -> int:
    """Kill a process while it deletes; return the number of the last message that it had committed."""
    command = [sys.executable, "-m", "tests.trials.trimming", str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed: list[str] = []
        for _ in range(choose.randint(1, 12)):
            while not printed or printed[-1] != DELETES:
                printed.append(process.stdout.readline())
                assert printed[-1], "the process has ended by itself"
            printed.append("")
        time.sleep(choose.uniform(0.0, LONGEST_WAIT))
        process.kill()
        printed += process.stdout.read().splitlines(keepends=True)
    return max(int(line) for line in printed if line.endswith("\n") and line != DELETES)


def check(path: Path, choose: random.Random, users: list[str]) -> tuple[str, int, int]:
    """Compare inboxes with the messages; return the epoch, the number of the first message that is kept, and the last.

    The first number is that of the next message if none is kept.
    """
    store = SqliteStore(str(path))
    store.open()
    with closing(store), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as connection:
        index = small_index(str(path))
        index.open(connection, "epoch")
        while not index.catch_up(connection):
            while index.work():
                pass
        for user in users:
            check_inbox(store, connection, InboxQueries(connection, index), user)
        # It is as old as the others, which are numbered and not dated.
        after = message("after the kill", choose.choice(users), choose.choice(users), received_at=0.0)
        (number,) = store.append([after])
        (first,) = connection.execute("SELECT min(first_number) FROM block").fetchone()
        assert connection.execute("SELECT count(*) FROM undelivered WHERE number < ?", (first,)).fetchone() == (0,)
    verify(str(path), lambda *_: None)
    return store.epoch, first, number


def check_inbox(store: SqliteStore, connection: sqlite3.Connection, queries: InboxQueries, user: str) -> None:
    """Check that a user's places are void up to the first one that is kept, and then those of the messages."""
    state = store.inbox(user)
    kept: dict[int, Any] = {}
    for statement in (SENT, RECEIVED):
        kept.update({place: row for place, *row in connection.execute(statement, (user,))})
    assert sorted(kept) == list(range(state.first, state.last + 1))
    found = queries.entries(user, 0, EVERYTHING, EVERYTHING, EVERYTHING).entries
    assert [entry.place for entry in found] == list(range(1, state.last + 1))
    assert list(found[: state.first - 1]) == [InboxEntry(place) for place in range(1, state.first)]
    for entry in found[state.first - 1 :]:
        number, content, delivered = kept[entry.place]
        assert bool(delivered) == (entry.message is not None)
        if entry.message is not None:
            assert (entry.message.number, entry.message.content) == (number, content)
