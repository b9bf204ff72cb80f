"""The index of a message log in SQLite: every read answers as the log in memory does, whatever happened to the files."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatrelay.messagelog.sqlite import index as index_module
from chatrelay.messagelog.sqlite import index_search
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.index_run import UNFINISHED
from chatrelay.model import Conversation, LogNotIndexed, LogUnavailable, MarkKind, Message
from tests.support.indexed_logs import EVERYTHING, IndexedLog

PACKAGE = "chatrelay.messagelog.sqlite"
USERS = ["1", "2", "3", "ä", "5"]

SMALL = {
    f"{PACKAGE}.index_run.HASHES_PER_PAGE": 2,
    f"{PACKAGE}.index_run.READ_BYTES": 16,
    f"{PACKAGE}.index_run.LARGE_PART": 3,
    f"{PACKAGE}.index_run.MAX_DISTINCT_SIDES": 3,
    f"{PACKAGE}.index_run.MAX_KEPT_SIDES": 2,
    f"{PACKAGE}.index_tail.USERS_PER_SLICE": 2,
    f"{PACKAGE}.index_tail.ENTRIES_PER_SLICE": 3,
    f"{PACKAGE}.index_tail.MIN_KEPT": 2,
    f"{PACKAGE}.index_merge.USERS_PER_SLICE": 2,
    f"{PACKAGE}.index_merge.VALUES_PER_SLICE": 3,
    f"{PACKAGE}.index_merge.VALUES_PER_WINDOW": 2,
    f"{PACKAGE}.index_search.FIRST_WINDOW": 2,
    f"{PACKAGE}.index_search.MAX_WINDOW": 4,
    f"{PACKAGE}.index.RUNS_PER_MERGE": 3,
    f"{PACKAGE}.index.MAX_NOTED": 30,
    f"{PACKAGE}.index.NOTED_PER_SLICE": 8,
    f"{PACKAGE}.inbox_queries.MAX_NUMBERS": 3,
}
"""Sizes with which a few messages reach every branch."""


@contextmanager
def small_sizes() -> Iterator[None]:
    """Let slices, windows and pages have a few values."""
    with ExitStack() as stack:
        for name, value in SMALL.items():
            stack.enter_context(patch(name, value))
        yield


def message(number: int, sender: int, recipient: int, is_unique: bool = False) -> Message:
    """Build a message between two of `USERS`."""
    identity = f"unique-{number % 7}" if is_unique else number
    return Message(USERS[sender], USERS[recipient], identity, number, f"c{number}" * (number % 3), number, is_unique)


def check(log: IndexedLog, choose: random.Random) -> None:
    """Compare each kind of read, with random arguments, for each user."""
    for user in [*USERS, "nobody"]:
        peer = choose.choice([*USERS, "nobody"])
        last = len(log.memory.inboxes.get(user, ()))

        def place(last: int = last) -> int:
            return choose.randint(0, last + 1)

        def some() -> tuple[int, int]:
            return choose.choice([1, 3, EVERYTHING]), choose.choice([0, 9, EVERYTHING])

        def conversation(peer: str, user: str = user) -> Conversation:
            return Conversation(peer, log.last(user, peer), choose.random() < 0.8, place(), place(), place())

        through = choose.choice([EVERYTHING, place()])
        limit, size = some()
        before, after = choose.choice([(None, None), (place(), None), (None, place())])
        reads: list[tuple[str, tuple[object, ...], dict[str, object]]] = [
            ("entries", (user, place(), through, limit, size), {}),
            (
                "history",
                (user, peer),
                {"before": before, "after": after, "through": through, "limit": limit, "size": size},
            ),
            ("conversations", (user,), {"before": before, "through": through, "limit": limit, "size": size}),
            ("progress", (user, [conversation(each) for each in USERS]), {"through": through, "limit": limit}),
            ("find", (user, f"unique-{choose.randrange(7)}", choose.randint(0, 10**6 * len(log.memory.rows))), {}),
            ("has_written", (user, peer), {}),
            ("writers", (user, USERS), {}),
            ("place_of_sender", (peer, user, through), {}),
            ("marks", ([(user, MarkKind.READ, each) for each in USERS[:3]],), {}),
        ]
        for name, arguments, options in reads:
            found, expected = log.answers(name, *arguments, **options)
            assert found == expected, (name, arguments, options)


STEPS = st.one_of(
    st.tuples(
        st.sampled_from(["append", "append and note"]),
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
    ),
    st.tuples(
        st.sampled_from(["mark", "read", "work", "kill", "damage", "cut", "delete", "save", "trim"]), st.integers(0, 40)
    ),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_reads_are_those_of_the_log_in_memory_whatever_happens_to_the_index(
    steps: list[tuple[str, object]], choose: random.Random
) -> None:
    with ExitStack() as stack:
        stack.enter_context(small_sizes())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(closing(IndexedLog(Path(folder) / "log", messages_per_run=5)))
        for name, value in steps:
            take(log, name, value, choose)
        check(log, choose)
        log.index_all()
        check(log, choose)


def take(log: IndexedLog, name: str, value: object, choose: random.Random) -> None:
    """Do one step: write, read, index a little, or break a file and open the index again."""
    count = len(log.memory.rows)
    if isinstance(value, list):
        messages = [message(number, *each) for number, each in enumerate(value, count + 1)]
        log.append(messages, is_noted=name == "append and note")
        return
    assert isinstance(value, int)
    if name == "mark" and count:
        log.mark_undelivered([value % count + 1])
    elif name == "save":
        log.save_mark(USERS[value % 5], USERS[value % 3], value)
    elif name == "read":
        check(log, choose)
    elif name == "work":
        for _ in range(value):
            log.index.drop_deleted(log.connection)
            log.index.catch_up(log.connection)
            log.index.work()
    elif name == "trim":
        ends = [first - 1 for (first,) in log.connection.execute("SELECT first_number FROM block")] + [count]
        log.trim(ends[value % len(ends)])
    elif name == "kill":
        log.reopen()
    elif name in ("damage", "cut") and log.files:
        file = log.files[value % len(log.files)]
        data = bytearray(file.read_bytes())
        if name == "cut":
            del data[choose.randrange(len(data)) :]
        elif data:
            data[choose.randrange(len(data))] ^= 1 << value % 8
        file.unlink()  # open descriptors keep the old file, as after a crash nobody has it open
        file.write_bytes(data)
        log.reopen()
    elif name == "delete":
        shutil.rmtree(log.index.folder, ignore_errors=True)
        log.reopen()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[IndexedLog]:
    """Return a log with 100 messages in blocks of 7, and an index with runs of 10 messages that were merged."""
    with closing(IndexedLog(tmp_path / "log", messages_per_run=10)) as log:
        choose = random.Random(1)
        for first in range(1, 100, 7):
            log.append(
                [message(n, choose.randrange(5), choose.randrange(5), n % 2 == 0) for n in range(first, first + 7)]
            )
        yield log


def names(log: IndexedLog) -> list[str]:
    """Return the names of the files of an index, without zeros."""
    return ["-".join(part.lstrip("0") for part in file.stem.split("-")) for file in log.files]


def test_index_is_only_in_memory_until_there_are_enough_messages_for_a_file(tmp_path: Path) -> None:
    with closing(IndexedLog(tmp_path / "log", messages_per_run=10)) as log:
        log.append([message(number, 0, 1) for number in range(1, 10)])
        log.index_all()
        assert (log.index.has_files, log.files) == (False, [])
        assert log.answers("has_written", "1", "2") == (True, True)
        log.append([message(10, 0, 1)])
        log.index_all()
        assert names(log) == ["1-10"]


def test_files_can_be_read_by_their_owner_only(log: IndexedLog) -> None:
    log.index_all()
    assert stat.S_IMODE(os.stat(log.index.folder).st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in log.files} == {0o600}


def test_eight_runs_of_one_size_become_one(log: IndexedLog) -> None:
    with patch.object(index_module, "RUNS_PER_MERGE", 3):
        log.index_all()
    # Blocks are not split, so a run has 14 messages. Three make a run of 42.
    assert names(log) == ["1-42", "43-84", "85-98"]
    check(log, random.Random(2))


def test_merged_run_replaces_its_parts_after_a_crash_before_they_were_deleted(log: IndexedLog) -> None:
    log.index_all()
    kept = {file: file.read_bytes() for file in log.files}
    with patch.object(index_module, "RUNS_PER_MERGE", 3):
        log.index_all()
        for file, data in kept.items():
            file.write_bytes(data)
        log.reopen()
        assert names(log) == ["1-42", "43-84", "85-98"]
        check(log, random.Random(2))


def test_files_of_deleted_messages_are_deleted_and_the_others_are_kept(log: IndexedLog) -> None:
    log.index_all()
    before = names(log)
    log.trim(35)  # in the third run, which still has a block
    log.index.drop_deleted(log.connection)
    assert (before[:3], names(log)) == (["1-14", "15-28", "29-42"], before[2:])
    check(log, random.Random(2))
    log.reopen()
    assert names(log) == before[2:]
    log.trim(42)
    log.reopen()
    assert names(log) == before[3:]
    check(log, random.Random(2))
    log.trim(105)
    log.index.drop_deleted(log.connection)
    assert names(log) == []
    check(log, random.Random(2))
    log.append([message(number, 0, 1) for number in range(106, 120)])
    log.index_all()
    assert names(log) == ["106-119"]
    check(log, random.Random(2))


def test_messages_that_are_deleted_before_they_are_indexed_leave_no_gap(log: IndexedLog) -> None:
    with patch.object(index_module, "_BLOCKS_PER_READ", 2):
        log.index.catch_up(log.connection)
    log.trim(49)
    check(log, random.Random(2))
    log.index_all()
    check(log, random.Random(2))


def test_reads_do_not_look_at_deleted_messages_of_a_run_that_is_kept(log: IndexedLog) -> None:
    with patch.object(index_module, "RUNS_PER_MERGE", 3):
        log.index_all()
    log.trim(35)
    queries = log.queries
    read: list[int] = []
    message_of = queries._blocks.message
    with patch.object(queries._blocks, "message", lambda number: read.append(number) or message_of(number)):
        for user in USERS:
            queries.history(user, "1", before=None, after=None, through=99, limit=99, size=EVERYTHING)
            queries.conversations(user, before=None, through=99, limit=99, size=EVERYTHING)
    assert min(read) > 35


def test_run_with_any_damaged_byte_is_built_again(log: IndexedLog) -> None:
    log.index_all()
    file = log.files[2]
    data = file.read_bytes()
    for at in range(0, len(data), 5):
        file.unlink()
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        log.reopen()
        assert names(log) == ["1-14", "15-28"], at
        log.index_all()
        assert file in log.files
    check(log, random.Random(2))


def test_unfinished_file_is_deleted(log: IndexedLog) -> None:
    log.index_all()
    unfinished = Path(log.index.folder) / f"000000000099-000000000109.run{UNFINISHED}"
    unfinished.write_bytes(b"x" * 99)
    log.reopen()
    assert not unfinished.exists()


def test_other_file_in_the_folder_is_left_alone(log: IndexedLog) -> None:
    log.index_all()
    other = Path(log.index.folder) / "notes.txt"
    other.write_text("mine")
    log.reopen()
    log.index.discard()
    assert log.files == [other]


def test_index_of_another_epoch_is_deleted(log: IndexedLog) -> None:
    log.index_all()
    log.epoch = "another"
    log.reopen()
    assert log.files == []
    check(log, random.Random(2))


def test_index_of_a_log_with_other_messages_is_deleted(log: IndexedLog) -> None:
    """Somebody has copied an older file over the log, which has received other messages since."""
    log.index_all()
    log.execute("UPDATE block SET messages = replace(messages, '98000000', '98000001') WHERE first_number = 92")
    log.reopen()
    assert names(log) == names(log)[:6]
    assert "85-98" not in names(log)


def test_index_of_a_longer_log_is_cut(log: IndexedLog) -> None:
    log.index_all()
    log.execute("DELETE FROM block WHERE first_number > 49")
    log.reopen()
    assert names(log) == ["1-14", "15-28", "29-42"]


def test_index_that_begins_late_is_built_again(log: IndexedLog) -> None:
    log.index_all()
    log.files[0].unlink()
    log.reopen()
    assert log.files == []
    check(log, random.Random(2))


def test_index_begins_at_the_first_message_that_is_kept(log: IndexedLog) -> None:
    log.execute("DELETE FROM block WHERE first_number < 50")
    log.index_all()
    assert names(log)[0] == "50-63"
    last = len(log.memory.inboxes["1"])
    assert (
        log.answers("entries", "1", last - 3, last, 9, EVERYTHING)[0]
        == log.answers("entries", "1", last - 3, last, 9, EVERYTHING)[1]
    )


def test_discarded_index_is_built_again(log: IndexedLog) -> None:
    log.index_all()
    log.index.discard()
    assert log.files == []
    log.index_all()
    assert names(log)[0] == "1-14"
    check(log, random.Random(2))


def test_writing_stops_when_the_index_is_discarded_meanwhile(log: IndexedLog) -> None:
    for slices in range(40):
        log.index.catch_up(log.connection)
        for _ in range(slices):
            log.index.work()
        log.index.discard()
        while log.index.work():
            pass
        assert log.files == []


def test_reads_of_a_replaced_run_continue(log: IndexedLog) -> None:
    log.index_all()
    view = log.index.view
    with patch.object(index_module, "RUNS_PER_MERGE", 3):
        log.index_all()
    user = view.hashes.user("1")
    counts = [sum(part.count for run in runs if (part := run.part(user))) for runs in (view.runs, log.index.view.runs)]
    assert counts == [len(log.memory.inboxes["1"])] * 2


def test_read_fails_while_a_long_index_is_built(log: IndexedLog) -> None:
    with patch(f"{PACKAGE}.index._BLOCKS_PER_READ", 1), patch(f"{PACKAGE}.inbox_queries.MAX_BEHIND", 50):
        with pytest.raises(LogNotIndexed, match="92 messages are to do"):
            log.queries.has_written("1", "2")
        while log.index.behind(log.connection) > 50:
            log.index.catch_up(log.connection)
        assert log.answers("has_written", "1", "2") == (True, True)


def test_read_fails_for_good_while_a_long_index_cannot_be_written(log: IndexedLog) -> None:
    full = patch(f"{PACKAGE}.index_tail.MemoryRun.write", side_effect=OSError(errno.ENOSPC, "the disk is full"))
    with patch(f"{PACKAGE}.index._BLOCKS_PER_READ", 1), patch(f"{PACKAGE}.inbox_queries.MAX_BEHIND", 50):
        while not log.index.catch_up(log.connection) and log.index.behind(log.connection) > 80:
            pass
        with full, pytest.raises(OSError, match="full"):
            log.index.work()
        with pytest.raises(LogUnavailable, match=r"cannot be written.*the disk is full") as caught:
            log.queries.has_written("1", "2")
        assert not isinstance(caught.value, LogNotIndexed)
        assert log.index.work()
        with pytest.raises(LogNotIndexed):
            log.queries.has_written("1", "2")


def test_memory_is_bounded_when_no_file_can_be_written(log: IndexedLog) -> None:
    with patch.object(index_module, "MAX_MEMORY_RUNS", 3), patch(f"{PACKAGE}.index._BLOCKS_PER_READ", 1):
        with pytest.raises(LogUnavailable, match="as fast as it grows"):
            log.queries.has_written("1", "2")
        assert len(log.index.view.runs) == 3
    log.index_all()
    assert log.queries.has_written("1", "2")


def test_noted_messages_are_indexed_without_a_look_at_their_blocks(tmp_path: Path) -> None:
    with closing(IndexedLog(tmp_path / "log", messages_per_run=4)) as log:
        for first in range(1, 22, 3):
            log.append([message(number, number % 5, 1, True) for number in range(first, first + 3)], is_noted=True)
        with patch(f"{PACKAGE}.index.columns_of_block", side_effect=AssertionError("a block was decoded")):
            log.index_all()
            check(log, random.Random(1))


def test_noted_messages_beyond_the_limit_are_not_kept_and_are_indexed_from_the_log(tmp_path: Path) -> None:
    with closing(IndexedLog(tmp_path / "log")) as log, patch(f"{PACKAGE}.index.MAX_NOTED", 6):
        for first in range(1, 22, 3):
            log.append([message(number, number % 5, 1) for number in range(first, first + 3)], is_noted=True)
        assert log.index.noted == 6
        check(log, random.Random(1))
        assert log.index.noted == 0


def test_hash_of_a_user_depends_on_the_key_of_the_index(tmp_path: Path) -> None:
    hashes = [Index(str(tmp_path / name)).view.hashes for name in "ab"]
    assert hashes[0].user("1").hash != hashes[1].user("1").hash


def test_ids_whose_hashes_collide_are_told_apart_up_to_a_limit(tmp_path: Path) -> None:
    with (
        closing(IndexedLog(tmp_path / "log", messages_per_run=10)) as log,
        patch(f"{PACKAGE}.inbox_queries.id_hash", lambda unique_id: 7),
        patch(f"{PACKAGE}.index_columns.crc32", lambda data: 7),
        patch(f"{PACKAGE}.inbox_queries.MAX_CANDIDATES", 24),
    ):
        log.append([Message("1", "2", f"unique-{number:02}", 1, "c", number, True) for number in range(1, 13)])
        log.index_all()
        log.append([Message("1", "2", f"unique-{number:02}", 1, "c", number, True) for number in range(13, 26)])
        for number in range(1, 25):
            assert log.answers("find", "1", f"unique-{number:02}", 0)[0].number == number
        assert log.queries.find("1", "unique-25", 0) is None


def test_many_questions_about_strangers_search_a_large_inbox_once(tmp_path: Path) -> None:
    with (
        closing(IndexedLog(tmp_path / "log", messages_per_run=40)) as log,
        patch(f"{PACKAGE}.index_run.LARGE_PART", 16),
    ):
        log.append([message(number, number % 4, 4) for number in range(80)])
        log.index_all()
        searched: list[int] = []
        real = index_search.positions
        with patch.object(index_search, "positions", lambda data, side: searched.append(len(data)) or real(data, side)):
            for number in range(20):
                assert log.answers("has_written", f"stranger {number}", USERS[4]) == (False, False)
            assert not searched  # in both files, which have all messages
            assert log.answers("has_written", USERS[0], USERS[4]) == (True, True)
            assert searched


def test_many_messages_that_do_not_stand_take_few_statements_of_a_page_of_conversations(tmp_path: Path) -> None:
    with closing(IndexedLog(tmp_path / "log")) as log:
        log.append([Message("0", "4", str(number), 1, "c", number) for number in range(2)])
        log.append([Message(str(1 + number % 2), "4", str(number), 1, "c", number) for number in range(1_000)])
        log.mark_undelivered(range(3, 1_003))
        queries = log.queries
        statements: list[str] = []
        queries._connection.set_trace_callback(statements.append)
        page = queries.conversations("4", before=None, through=9_999, limit=9, size=EVERYTHING)
        queries._connection.set_trace_callback(None)
        assert [entry.place for entry in page.entries] == [2]
        assert page == log.answers("conversations", "4", before=None, through=9_999, limit=9, size=EVERYTHING)[1]
        assert len(statements) < 30
