"""A process is killed while it writes the index of a message log, and then every read must be complete and right."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from tests.support.evidence import Evidence
from tests.support.indexed_logs import EVERYTHING, reference
from tests.trials.indexing import USERS, small_index

CHECKED = 10
"""The users whose inboxes are checked after each kill. After the last one, all are."""


def test_reads_are_complete_after_kills_at_any_moment_of_indexing(
    tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """In the short form there are 12 kills, in the full one 300."""
    path = tmp_path / "log"
    choose = random.Random(1)
    found: Counter[str] = Counter()
    kills = 300 if full else 12
    for kill in range(kills):
        before = {file.name for file in tmp_path.glob("log-index/*.run")}
        run_and_kill(path, kill, choose)
        files = sorted(file.name for file in tmp_path.glob("log-index/*"))
        found["unfinished"] += any(name.endswith(".unfinished") for name in files)
        found["overlapping"] += overlap([name for name in files if name.endswith(".run")])
        found["written"] += bool({*files} - before)
        users = list(map(str, range(USERS)))
        found["messages"] = check(path, choose, choose.sample(users, CHECKED) if kill < kills - 1 else users)
    evidence.count("kills", kills, at_least=12)
    evidence.count("kills after which there was another file", found["written"], at_least=kills // 4)
    evidence.figure(f"{found['messages']:,} messages")
    evidence.figure(f"{found['unfinished']} kills left an unfinished file")
    evidence.figure(f"{found['overlapping']} kills left a merged run and some of its parts")


def run_and_kill(path: Path, seed: int, choose: random.Random) -> None:
    """Let a process write the log and its index for a moment."""
    command = [sys.executable, "-m", "tests.trials.indexing", str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        time.sleep(choose.uniform(0.0, 0.4))
        process.kill()


def overlap(names: list[str]) -> bool:
    """Return whether some runs have messages in common."""
    ranges = [tuple(map(int, name.removesuffix(".run").split("-"))) for name in names]
    return any(second[0] <= first[1] for first, second in pairwise(ranges))


def check(path: Path, choose: random.Random, users: list[str]) -> int:
    """Compare the inboxes of users, and some other reads, with the log; return its number of messages."""
    store = SqliteStore(str(path))
    store.open()
    with closing(store), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as connection:
        memory = reference(connection)
        index = small_index(str(path))
        index.open(connection, "epoch")
        while not index.catch_up(connection):
            while index.work():
                pass
        queries = InboxQueries(connection, index)
        for user in users:
            rows = memory.inboxes.get(user, [])
            page = queries.entries(user, 0, EVERYTHING, EVERYTHING, EVERYTHING)
            assert [entry.message for entry in page.entries] == [row.logged() for row in rows]
            peer = str(choose.randrange(USERS))
            history = queries.history(
                user, peer, before=None, after=None, through=EVERYTHING, limit=EVERYTHING, size=EVERYTHING
            )
            assert [entry.message for entry in history.entries] == [
                row.logged() for row in reversed(rows) if row.peer(user) == peer
            ]
            for row in choose.sample(rows, min(len(rows), 3)):
                wanted = row.logged()
                assert wanted.unique_id is not None
                assert queries.find(wanted.from_uid, wanted.unique_id, 0) == wanted
        return len(memory.rows)
