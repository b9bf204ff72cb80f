"""Erasing in a message log in SQLite: what is left in its files, in what parts, and what a crash between them leaves."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pytest
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from chatrelay.messagelog import BadMessageLogURL, message_eraser
from chatrelay.messagelog.erasing import ErasureProgress
from chatrelay.messagelog.sqlite import SqliteEraser, SqliteMessageReader, SqliteStore, erasure
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.verify import verify
from chatrelay.model import InboxEntry, LogUnavailable, Message, Selection
from tests.support.message_logs import message
from tests.support.sqlite_logs import fail_commits, make_older, spoil, spoil_page

USERS = ["a", "b", "c", "d", "e"]


def some_messages(size: int) -> list[Message]:
    """Return messages between a few users, some to themselves, with contents that are nowhere else in a file."""
    chance = random.Random(size)
    made = []
    for number in range(size):
        sender, recipient = chance.choices(USERS, k=2)
        content = f"<{sender} {recipient} {number}>" * chance.choice([1, 1, 1, 40, 400])
        made.append(message(content, sender, recipient, unique_id=f"<id {sender} {number:06}>" if number % 2 else None))
    return made


@pytest.fixture
def small_parts() -> Iterator[None]:
    """Make a part of an erasure two blocks, or eight ranges."""
    with (
        patch.object(erasure, "BLOCKS_PER_PART", 2),
        patch.object(erasure, "RANGES_PER_PART", 8),
        patch.object(erasure, "RANGES_PER_NOTICE", 4),
    ):
        yield


def filled(path: Path, size: int, batch: int = 17) -> SqliteStore:
    """Make a message log; return its open store."""
    store = SqliteStore(str(path))
    store.open()
    messages = some_messages(size)
    for start in range(0, size, batch):
        store.append(messages[start : start + batch])
    return store


def ask(path: Path, user: str, received: bool = False) -> None:
    """Ask for an erasure, and do not wait for it."""
    with closing(sqlite3.connect(path)) as connection:
        erasure.ask(connection, user, received, 1_700_000_000)
        connection.commit()


def finish(store: SqliteStore) -> int:
    """Have a store do everything that is asked for; return the number of parts."""
    store.check()
    parts = 0
    while store.is_erasing:
        assert store.erase()[1]
        parts += 1
    return parts


def erase(path: Path, user: str, received: bool = False) -> list[ErasureProgress]:
    """Erase as the command does; return the progress."""
    return list(SqliteEraser(str(path), wait=no_wait).erase(user, received=received))


def no_wait(_: float) -> None:
    """Take no time."""


def entries(path: Path, user: str) -> list[InboxEntry]:
    """Return a user's inbox."""
    reader = SqliteMessageReader(str(path))
    return list(reader.entries(user, 0, reader.inbox(user).last))


def told(path: Path, user: str) -> list[int]:
    """Return the places that a user is told of, in the order in which they are told."""
    ranges = [each for entry in entries(path, user) for each in entry.erased]
    return [place for first, last in ranges for place in range(first, last + 1)]


def void(path: Path, user: str) -> list[int]:
    """Return the places of a user that have neither a message nor a notice."""
    return [entry.place for entry in entries(path, user) if entry.message is None and not entry.erased]


def files(path: Path) -> bytes:
    """Return the bytes of a message log and of all files beside it."""
    folder = path.parent
    return b"".join(each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file())


def lengths_of_blocks(path: Path) -> list[tuple[int, int]]:
    """Return the first number and the length of each block."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT first_number, length(CAST(messages AS BLOB)) FROM block").fetchall()


# What is left ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_no_content_and_no_id_is_left_in_the_files_of_an_open_log(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "log"
    store = filled(path, 100 * batch + 300, batch)
    lengths = lengths_of_blocks(path)
    assert b"<c a " in files(path)
    for user in ("c", "a", "e"):  # one after the other: no part may copy what a later one erases to another page
        ask(path, user)
        finish(store)
        left = files(path)
        assert f"<{user} ".encode() not in left
        assert f"<id {user} ".encode() not in left
    assert f"<b {USERS[0]} ".encode() in left
    # If a block became shorter, SQLite might move its neighbours to other pages.
    assert lengths_of_blocks(path)[: len(lengths)] == lengths
    ask(path, "b", received=True)
    finish(store)
    assert b" b " not in files(path)
    store.close()
    assert verify(str(path), lambda *_: None).messages > 100 * batch + 300


def test_short_messages_that_leave_no_room_are_erased(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = SqliteStore(str(path))
    store.open()
    store.append([Message(1, 2, 1, 1, "§", 1_700_000_000.0) for _ in range(300)])
    ask(path, "1")
    finish(store)
    store.close()
    assert "§".encode() not in files(path)
    assert told(path, "2") == list(range(1, 301))


def test_users_places_and_times_are_left(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = SqliteStore(str(path))
    store.open()
    store.append([message("a", 1, 2, unique_id="id-id-id-1"), message("b", 2, 1)])
    ask(path, "1")
    finish(store)
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT * FROM entry ORDER BY number").fetchall()
        assert rows[0] == (1, "1", 1, "2", 1, 0, 0, "", 1_700_000_000_123_456, 2, 1)
        assert [(row[0], row[1], row[2], row[3], row[4], row[7], row[9]) for row in rows[2:]] == [
            (3, "1", 3, "1", 3, "[[1,1]]", 3),
            (4, "2", 3, "2", 3, "[[1,1]]", 3),
        ]
        assert connection.execute("SELECT content FROM message").fetchall() == [("b",)]
        assert connection.execute("SELECT uid, last_place FROM inbox").fetchall() == [("1", 3), ("2", 3)]
    store.close()


def test_commands_show_no_erased_message_and_no_notice(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = filled(path, 400)
    reader = SqliteMessageReader(str(path))
    follower = reader.follower()
    ask(path, "b")
    finish(store)
    store.append([message("new", "a", "b")])
    assert [each.content for each in follower.new_messages()] == ["new"]
    for selection in (Selection(), Selection("b"), Selection("a", "b"), Selection(since=1)):
        found = list(reader.messages(selection))
        assert found[-1].content == "new"
        assert not [each for each in found if each.from_uid == "b"]
        assert [each.number for each in reader.messages(selection, newest_first=True)] == [
            each.number for each in reversed(found)
        ]
    store.close()


@pytest.mark.parametrize("is_indexed_before", [True, False])
def test_index_finds_no_erased_message(tmp_path: Path, is_indexed_before: bool) -> None:
    path = tmp_path / "log"
    store = filled(path, 400)
    index = Index(str(path), messages_per_run=100)

    def build() -> None:
        with closing(sqlite3.connect(path)) as connection:
            index.open(connection, store.epoch)
            while not index.catch_up(connection) or index.work():
                pass

    if is_indexed_before:
        build()
    expected = [
        each.content for each in SqliteMessageReader(str(path)).messages(Selection("a")) if each.from_uid != "b"
    ]
    ask(path, "b")
    finish(store)
    if not is_indexed_before:
        build()
    assert os.listdir(f"{path}-index")
    reader = SqliteMessageReader(str(path))
    assert [each.content for each in reader.messages(Selection("a"))] == expected
    assert told(path, "a") == void(path, "a")
    store.close()


# In parts -------------------------------------------------------------------------------


def test_messages_are_written_between_the_parts_and_stay(tmp_path: Path, small_parts: None) -> None:
    path = tmp_path / "log"
    store = filled(path, 150, batch=5)
    ask(path, "a")
    store.check()
    new = 0
    while store.is_erasing:
        store.erase()
        (number,) = store.append([message(f"new {new}", "a", "b")])
        new += 1
    assert new > 15
    reader = SqliteMessageReader(str(path))
    assert [each.content for each in reader.messages(Selection("a", "b")) if each.from_uid == "a"] == [
        f"new {each}" for each in range(new)
    ]
    assert told(path, "b") == void(path, "b")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT max(number), count(*) FROM entry").fetchone() == (number, number)
    store.close()
    assert verify(str(path), lambda *_: None).messages == number


def test_part_examines_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = SqliteStore(str(path))
    store.open()
    for _ in range(8):
        store.append([message("x" * 10_000) for _ in range(30)])
    ask(path, "nobody")
    with patch.object(erasure, "BYTES_PER_PART", 500_000), patch.object(erasure, "PARTS_PER_NOTE", 2):
        parts = finish(store)
    assert parts == 6  # four times two blocks, then no more blocks, then the end
    store.close()


def test_notice_has_a_bounded_number_of_ranges(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = SqliteStore(str(path))
    store.open()
    for _ in range(5):
        store.append([message("a", 1 + number % 2, 2 - number % 2) for number in range(1000)])
    ask(path, "1")
    finish(store)
    notices = [entry.erased for entry in entries(path, "2") if entry.erased]
    assert [len(ranges) for ranges in notices] == [1000, 1000, 500]
    assert told(path, "2") == list(range(1, 5000, 2))
    store.close()


def test_neighbouring_places_are_one_range_over_all_parts(tmp_path: Path, small_parts: None) -> None:
    path = tmp_path / "log"
    store = SqliteStore(str(path))
    store.open()
    for _ in range(20):
        store.append([message("a", 1, 2), message("b", 3, 1)])
    ask(path, "1", received=True)
    finish(store)
    assert [entry.erased for entry in entries(path, "1") if entry.erased] == [((1, 40),)]
    store.close()


# Crashes --------------------------------------------------------------------------------


def copies_after_each_part(path: Path, store: SqliteStore) -> Iterator[Path]:
    """Have a store erase, and yield the log as a crash after each part leaves it."""
    store.check()
    number = 0
    while store.is_erasing:
        crashed = path.with_name(f"crashed-{number}")
        for suffix in ("", "-wal", ".lock"):
            shutil.copy(f"{path}{suffix}", f"{crashed}{suffix}")
        yield crashed
        store.erase()
        number += 1


def test_crash_after_any_part_tells_of_nothing_that_is_not_erased_and_leaves_nothing_untold(
    tmp_path: Path, small_parts: None
) -> None:
    path = tmp_path / "log"
    store = filled(path, 150, batch=6)
    ask(path, "a")
    crashes = 0
    for crashed in copies_after_each_part(path, store):
        for user in USERS:
            assert set(told(crashed, user)) <= set(void(crashed, user))
        again = SqliteStore(str(crashed))
        again.open()
        with patch.multiple(erasure, BLOCKS_PER_PART=100, RANGES_PER_PART=100):
            finish(again)
        for user in USERS:
            assert told(crashed, user) == void(crashed, user)
        assert not [each for each in SqliteMessageReader(str(crashed)).messages() if each.from_uid == "a"]
        again.close()
        for each in tmp_path.glob("crashed-*"):
            each.unlink()
        crashes += 1
    assert crashes > 10
    store.close()


@pytest.mark.parametrize("commits", [True, False])
def test_commit_that_fails_tells_nobody_twice(tmp_path: Path, small_parts: None, commits: bool) -> None:
    path = tmp_path / "log"
    store = filled(path, 60, batch=6)
    ask(path, "a")
    store.check()
    last: dict[str, int] = {}
    failures = 0
    while True:
        fail_commits(store, commits=commits)
        with pytest.raises(LogUnavailable, match="disk I/O error"):
            store.erase()
        failures += 1
        store.open()
        if not store.is_erasing:
            break
        last.update(store.erase()[0])
        if not store.is_erasing:
            break
    assert failures >= 5
    for user in USERS:
        assert told(path, user) == void(path, user)
        # The relay was told of the last place, also of one whose commit had seemed to fail.
        assert last[user] == SqliteMessageReader(str(path)).inbox(user).last
    store.close()


def test_erasure_ends_when_no_program_reads_the_log_any_more(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = filled(path, 200)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM block").fetchone()
        ask(path, "a")
        store.check()
        while store.erase()[1]:
            pass
        assert store.is_erasing
        assert b"<a b " in files(path)
        reader.execute("COMMIT")
        assert finish(store) == 1
    assert b"<a b " not in files(path)
    store.close()


def test_damaged_block_ends_an_erasure_and_the_command_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = filled(path, 200, batch=50)
    store.close()
    store.open()  # which saves the last places
    store.close()
    spoil(path, "UPDATE block SET messages = '[[\"a\"]]' WHERE first_number = 101")
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        texts.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        with pytest.raises(
            LogUnavailable, match=r"is damaged: \d+ messages up to number 100 were erased, and no later"
        ):
            erase(path, "a")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert [text for text in texts if "the messages from 101 on cannot be decoded, and are not erased" in text]
    with closing(sqlite3.connect(path)) as connection:
        erased = connection.execute("SELECT count(*), max(number) FROM entry WHERE block < 101 AND kind = 2").fetchone()
        assert erased[0] > 10
        assert connection.execute("SELECT finished, erased FROM erasure").fetchone() == (1, erased[0])


def test_row_that_cannot_be_decoded_leaves_its_whole_block_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = filled(path, 200, batch=50)
    store.close()
    store.open()  # which saves the last places
    store.close()
    spoil(path, "UPDATE block SET messages = json_set(messages, '$[49]', json('[\"a\"]')) WHERE first_number = 101")
    with pytest.raises(LogUnavailable, match="up to number 100 were erased"):
        erase(path, "a")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT max(number) FROM undelivered WHERE number < 201").fetchone()[0] <= 100


def test_damaged_page_ends_an_erasure_and_the_log_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = filled(path, 2_000, batch=50)
    store.close()
    store.open()  # which saves the last places
    store.close()
    spoil_page(path, 1_001)
    store.open()
    ask(path, "a")
    store.check()
    while store.is_erasing:
        store.erase()
        assert store.is_open
    with closing(sqlite3.connect(path)) as connection:
        finished, through = connection.execute("SELECT finished, through FROM erasure").fetchone()
    assert finished == 1
    assert 0 < through < 1_001
    store.close()


# The command ----------------------------------------------------------------------------


def test_command_erases_by_itself_without_a_relay(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path, 300).close()
    progress = erase(path, "a")
    assert progress[-1].is_finished
    assert progress[-1].done == progress[-1].total == 300
    assert [each.done for each in progress] == sorted(each.done for each in progress)
    assert b"<a b " not in files(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.lock"]
    again = SqliteStore(str(path))
    again.open()
    assert again.epoch == SqliteMessageReader(str(path)).epoch()
    again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_command_that_root_runs_leaves_only_files_of_the_owner_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path, 50).close()
    os.unlink(f"{path}.lock")
    os.chown(path, 12345, 12346)
    erasing = SqliteEraser(str(path), wait=no_wait).erase("a", received=False)
    next(erasing)
    owners = {(each.stat().st_uid, each.stat().st_gid) for each in tmp_path.iterdir()}
    assert owners == {(12345, 12346)}
    assert len(list(tmp_path.iterdir())) > 2
    list(erasing)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_command_that_root_runs_gives_away_no_file_that_has_another_name(tmp_path: Path) -> None:
    path, other = tmp_path / "log", tmp_path / "other"
    filled(path, 50).close()
    os.unlink(f"{path}.lock")
    other.touch()
    os.link(other, f"{path}.lock")
    os.chown(path, 12345, 12346)
    list(SqliteEraser(str(path), wait=no_wait).erase("a", received=False))
    assert (other.stat().st_uid, other.stat().st_gid) == (0, 0)


def test_command_ends_what_a_relay_has_left(tmp_path: Path, small_parts: None) -> None:
    path = tmp_path / "log"
    store = filled(path, 300)
    ask(path, "a")
    store.check()
    store.erase()
    store.close()
    erase(path, "b")
    assert told(path, "c") == sorted(told(path, "c"), key=lambda place: place not in void(path, "c"))
    assert not [each for each in SqliteMessageReader(str(path)).messages() if each.from_uid in ("a", "b")]


def waiting_eraser(path: Path, does: Sequence[object]) -> SqliteEraser:
    """Return an eraser that waits for a relay; during each wait, the next call of `does` is made."""
    steps = iter(does)
    clock = count(0, 2)

    def wait(_: float) -> None:
        step = next(steps)
        assert callable(step)
        step()

    return SqliteEraser(str(path), wait=wait, monotonic=lambda: float(next(clock)))


def test_command_waits_for_a_relay_and_takes_over_if_that_has_gone(tmp_path: Path, small_parts: None) -> None:
    path = tmp_path / "log"
    store = filled(path, 120)
    seen = waiting_eraser(
        path, [store.check, store.erase, store.erase, lambda: None, lambda: None, lambda: None, store.close]
    ).erase("a", received=False)
    progress = list(seen)
    assert 0 < progress[2].erased < progress[3].erased
    assert "the relay" in [each.waits_for for each in progress]
    assert progress[-1].is_finished
    assert told(path, "a") == void(path, "a")


def test_command_says_that_the_log_was_replaced_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = filled(path, 100)

    def replace() -> None:
        spoil(path, "DELETE FROM erasure")

    with pytest.raises(LogUnavailable, match="was replaced meanwhile: run this command again"):
        list(waiting_eraser(path, [replace]).erase("a", received=False))
    store.close()


def test_log_that_cannot_be_erased_in_is_refused(tmp_path: Path) -> None:
    make_older(tmp_path / "older", 3, 10)
    for name, why in (
        ("older", "made by an older chatrelay: start the relay once to upgrade it"),
        ("missing", "there is no message log at .*missing"),
    ):
        with pytest.raises(LogUnavailable, match=why):
            erase(tmp_path / name, "1")
    assert not (tmp_path / "missing").exists()
    for url in ("memory:", "none"):
        with pytest.raises(BadMessageLogURL, match="can't be erased"):
            message_eraser(url)


def test_copies_beside_the_log_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path, 1).close()
    names = ["log-wal.orphaned-20261127T213900Z", "log.replaced-20261127T213900Z", "log.schema-2", "log.schema-2-2"]
    for name in [*names, "other.schema-2", "log.lock2"]:
        (tmp_path / name).touch()
    assert [os.path.basename(each) for each in SqliteEraser(str(path)).copies] == names


def test_finished_request_is_forgotten_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path, 50).close()
    now = 1_700_000_000.0
    list(SqliteEraser(str(path), wait=no_wait, now=lambda: now).erase("a", received=False))
    for later, kept in ((86_399, 1), (86_401, 0)):
        store = SqliteStore(str(path), now=lambda later=later: now + later)  # type: ignore[misc]
        store.open()
        store.close()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM erasure").fetchone() == (kept,)
