"""Reads by user in a long message log: what they cost, by counts and, on an idle machine, by time."""

from __future__ import annotations

import random
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from unittest.mock import patch

import pytest

from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_run import FileRun
from chatrelay.model import Conversation
from tests.support.evidence import Evidence
from tests.support.long_logs import PAIR, RARE, write_long_log

EVERYTHING = 2**53
PAGE = 50
PAGE_BYTES = 256 * 1024
REPLAY_PAGE, REPLAY_BYTES = 100, 64 * 1024


@dataclass(frozen=True)
class LongLog:
    """A long message log and its index.

    :ivar count: its messages between random users.
    :ivar users: how many these are.
    :ivar built: what building the index cost.
    """

    count: int
    users: int
    connection: sqlite3.Connection
    index: Index
    built: str


@pytest.fixture(scope="module")
def long_log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongLog]:
    """Return a log of 10,000,000 messages and 100,000 users; in the short form of 200,000 and 2,000."""
    is_full = bool(request.config.getoption("full"))
    count, users, messages_per_run = (10_000_000, 100_000, 10_000) if is_full else (200_000, 2_000, 1_000)
    path = tmp_path_factory.mktemp("long") / "log"
    write_long_log(path, count, users)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as connection:
        index = Index(str(path), messages_per_run=messages_per_run)
        index.open(connection, "epoch")
        yield LongLog(count, users, connection, index, build(path, connection, index))


def build(path: Path, connection: sqlite3.Connection, index: Index) -> str:
    """Index all of a log; return what that cost."""
    before = time.process_time()
    longest = 0.0
    is_complete = False
    while not is_complete:
        is_complete = index.catch_up(connection)
        has_more = True
        while has_more:
            started = time.perf_counter()
            has_more = index.work()
            longest = max(longest, time.perf_counter() - started)
    cpu = time.process_time() - before
    count = index.view.runs[0].last
    index_bytes = sum(file.stat().st_size for file in Path(index.folder).iterdir())
    log_bytes = path.stat().st_size
    assert index_bytes <= 0.4 * log_bytes
    return (
        f"index of {count:,} messages: {cpu / count * 1e6:.1f} µs of CPU and {index_bytes / count:.1f} bytes each, "
        f"{len(index.view.runs)} runs, longest slice {longest * 1000:.0f} ms; log and index are "
        f"{1 + index_bytes / log_bytes:.2f} × the log"
    )


def test_page_costs_few_reads_in_a_long_log(long_log: LongLog, evidence: Evidence, full: bool) -> None:
    """In the full form, the 99th percentile of the time of a page of history is at most 20 ms."""
    evidence.count("messages", long_log.count, at_least=200_000)
    evidence.figure(long_log.built)
    connection, index, users = long_log.connection, long_log.index, long_log.users
    choose = random.Random(2)

    def user() -> str:
        return f"user-{choose.randrange(users)}"

    def history(queries: InboxQueries, user: str, peer: str) -> object:
        return queries.history(user, peer, before=None, after=None, through=EVERYTHING, limit=PAGE, size=PAGE_BYTES)

    def conversations(queries: InboxQueries) -> object:
        return queries.conversations(user(), before=None, through=EVERYTHING, limit=PAGE, size=PAGE_BYTES)

    def progress(queries: InboxQueries) -> object:
        """Read the marks of a page of conversations, of which half was read."""
        asker, half = user(), EVERYTHING if choose.random() < 0.5 else 100
        page = queries.conversations(asker, before=None, through=EVERYTHING, limit=PAGE, size=PAGE_BYTES)
        last = [entry.message for entry in page.entries if entry.message is not None]
        peers = [message.from_uid if message.from_uid != asker else message.to_uid for message in last]
        found = [
            Conversation(peer, message, True, half, half, half // 2) for peer, message in zip(peers, last, strict=True)
        ]
        return queries.progress(asker, found, EVERYTHING, 100)

    pages: dict[str, Callable[[InboxQueries], object]] = {
        "history of a long conversation": lambda queries: history(queries, *PAIR),
        "history of random users": lambda queries: history(queries, user(), user()),
        "history of a random user with a heavy one": lambda queries: history(queries, user(), RARE),
        "history of a heavy user with a random one": lambda queries: history(queries, RARE, user()),
        "conversations of a random user": conversations,
        "conversations of a random user with their marks": progress,
        "has_written, of random users": lambda queries: queries.has_written(user(), user()),
        "has_written, of an unknown user": lambda queries: queries.has_written("nobody", user()),
        "has_written, of an unknown user to a heavy one": lambda queries: queries.has_written("nobody", RARE),
        "find an unknown id": lambda queries: queries.find(user(), "an unknown id", 0),
        "place_of_sender": lambda queries: queries.place_of_sender(*PAIR, 5_000),
    }
    for name, read in pages.items():
        statements, reads, seconds = cost(connection, index, read, 200)
        p99 = quantiles(seconds, n=100)[98]
        evidence.figure(f"{name}: {statements} statements, {reads} reads of the index, p99 {p99 * 1000:.1f} ms")
        # A block and a look at the undelivered ones for each message. Of each run of the index, some pages of 4 KiB.
        # For the marks: as many for each of three places, and a few reads of each run for each conversation.
        has_marks = name.endswith("marks")
        assert statements <= (8 if has_marks else 2) * PAGE + 10
        assert reads <= (12 * PAGE if has_marks else 40) * len(index.view.runs)
        assert not full or not name.startswith("history") or p99 <= 0.020, name


def test_replay_costs_few_reads_and_little_memory(long_log: LongLog, evidence: Evidence) -> None:
    """10,000 messages that are side by side, and as many of which the log has one in a hundred (short form: 2,000)."""
    connection, index = long_log.connection, long_log.index
    for user, most_statements in ((PAIR[1], 6.0), (RARE, REPLAY_PAGE + 6.0)):
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        cpu = time.process_time()
        done, pages = replay(InboxQueries(connection, index), user, 10_000)
        cpu = time.process_time() - cpu
        connection.set_trace_callback(None)
        evidence.count(f"messages of {user}", done, at_least=2_000)
        evidence.figure(f"{cpu / done * 1e6:.1f} µs of CPU for each of {user}")
        assert len(statements) / pages <= most_statements
    tracemalloc.start()
    replay(InboxQueries(connection, index), PAIR[1], 10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    evidence.figure(f"{peak / 1024:.0f} KiB of memory")
    assert peak < 1024 * 1024


def cost(
    connection: sqlite3.Connection, index: Index, read: Callable[[InboxQueries], object], times: int
) -> tuple[int, int, list[float]]:
    """Return the most statements and reads of the index that a read takes, and the seconds of each."""
    most_statements = most_reads = 0
    seconds = []
    real = FileRun.read
    for _ in range(times):
        statements: list[str] = []
        reads: list[str] = []

        def counting(run: FileRun, section: str, start: int, stop: int, reads: list[str] = reads) -> bytes:
            reads.append(section)
            return real(run, section, start, stop)

        connection.set_trace_callback(statements.append)
        with patch.object(FileRun, "read", counting):
            started = time.perf_counter()
            read(InboxQueries(connection, index))
            seconds.append(time.perf_counter() - started)
        connection.set_trace_callback(None)
        most_statements = max(most_statements, len(statements))
        most_reads = max(most_reads, len(reads))
    return most_statements, most_reads, seconds


def replay(queries: InboxQueries, user: str, most: int) -> tuple[int, int]:
    """Read the beginning of an inbox page by page; return the number of its entries and of the pages.

    :param most: the most entries.
    """
    done = pages = 0
    more = True
    while more and done < most:
        page = queries.entries(user, done, most, REPLAY_PAGE, REPLAY_BYTES)
        done += len(page.entries)
        pages += 1
        more = page.more
    return done, pages
