"""Deleting the oldest messages of a message log in SQLite: what is in the file afterwards, and what it costs."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from twisted.logger import capturedLogs

from chatrelay.messagelog.sqlite import SqliteMessageReader, SqliteStore, erasure, trimming
from chatrelay.messagelog.sqlite.opening import DamagedLog
from chatrelay.messagelog.sqlite.verify import summary, verify
from chatrelay.model import InboxState, Mark, MarkKind, Message
from tests.support.message_logs import message
from tests.support.sqlite_logs import contents, copy, put_back, spoil, spoil_page

LATER = 2_000_000_000_000_000
"""A time after all messages, in microseconds since 1970 UTC."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a message log."""
    return tmp_path / "log"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """Return an open store."""
    store = SqliteStore(str(path))
    store.open()
    with closing(store):
        yield store


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Return what a statement finds in a log, by a connection of its own."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def written(store: SqliteStore, count: int, users: int = 7, seconds: float = 1_700_000_000.0) -> Sequence[Message]:
    """Append a batch of messages between some users."""
    batch = [
        message(f"content {number}", number % users, (number * 3 + 1) % users, received_at=seconds)
        for number in range(count)
    ]
    store.append(batch)
    return batch


def trim_all(store: SqliteStore, before: int = LATER) -> list[int]:
    """Delete all that is old; return how many messages each call deleted."""
    counts = []
    while count := store.trim(before):
        counts.append(count)
    return counts


def test_numbers_places_and_epoch_stay_after_every_message_was_deleted_and_the_log_opened_again(
    store: SqliteStore, path: Path
) -> None:
    written(store, 250)
    epoch, state = store.epoch, store.inbox("1")
    assert sum(trim_all(store)) == 250
    assert (rows(path, "SELECT * FROM block"), contents(path)) == ([], [])
    for _ in range(2):
        store.close()
        store.open()
        assert store.epoch == epoch
        assert store.inbox("1") == InboxState(state.last + 1, state.last)
    later = [message("later", 1, 9)]
    assert store.append(later) == [251]
    assert (later[0].from_place, later[0].to_place) == (state.last + 1, 1)


@pytest.mark.parametrize("saves", [10**9, 1, 30])
def test_last_places_are_right_whenever_they_were_saved(
    store: SqliteStore, path: Path, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last places are saved after some thousand messages only, and trimming may come before or after that."""
    monkeypatch.setattr("chatrelay.messagelog.sqlite.store.MESSAGES_PER_SAVE", saves)
    choose = random.Random(saves)
    last: dict[str, int] = {}
    for turn in range(1, 60):
        pair = choose.sample("abcdefgh", 2)
        batch = [message("", *pair, received_at=1_700_000_000.0 + turn) for _ in range(10)]
        store.append(batch)
        last[pair[0]], last[pair[1]] = batch[-1].from_place, batch[-1].to_place
        if turn % 5 == 4:
            trim_all(store, (1_700_000_000 + turn - choose.randrange(3)) * 1_000_000)
        if turn % 7 == 6:
            store.close()
            store.open()
        assert {user: store.inbox(user).last for user in last} == last
        assert dict(rows(path, "SELECT uid, last_place FROM inbox")) == last
    assert store.append([message()]) == [591]


def test_block_stays_as_a_whole_until_its_last_message_is_old(store: SqliteStore, path: Path) -> None:
    at = 1_700_000_000
    store.append([message(str(second), received_at=at + second) for second in range(3)])
    assert trim_all(store, (at + 2) * 1_000_000) == []
    assert contents(path) == ["0", "1", "2"]
    assert trim_all(store, (at + 2) * 1_000_000 + 1) == [3]


def test_call_deletes_a_bounded_number_of_blocks_and_messages(store: SqliteStore) -> None:
    for _ in range(trimming.MAX_BLOCKS + 20):
        written(store, 1)
    written(store, 2_500)
    counts = trim_all(store)
    assert counts[0] == trimming.MAX_BLOCKS
    assert max(counts) < trimming.MAX_MESSAGES + 100
    assert sum(counts) == trimming.MAX_BLOCKS + 20 + 2_500


def test_nothing_is_written_if_nothing_is_old(store: SqliteStore, path: Path) -> None:
    written(store, 250)
    before = os.stat(f"{path}-wal").st_mtime_ns, os.stat(path).st_mtime_ns
    assert store.trim(1_600_000_000_000_000) == 0
    assert before == (os.stat(f"{path}-wal").st_mtime_ns, os.stat(path).st_mtime_ns)


def test_what_is_kept_about_deleted_messages_is_deleted_with_them(store: SqliteStore, path: Path) -> None:
    written(store, 100)
    written(store, 100, seconds=1_800_000_000.0)
    store.mark_undelivered([1, 100, 101, 200])
    first = store.inbox("1").last // 2 + 1
    store.add_marks([Mark("1", MarkKind.READ, peer, value) for peer, value in (("2", first - 1), ("3", first))])
    store.write_marks()
    trim_all(store, 1_750_000_000_000_000)
    assert rows(path, "SELECT number FROM undelivered") == [(101,), (200,)]
    assert rows(path, "SELECT user, peer, value FROM mark") == [("1", "3", first)]
    assert store.inbox("1").first == first


def test_failed_deletion_leaves_the_log_as_it_was_and_can_be_repeated(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, 250)
    before = rows(path, "SELECT * FROM saved_inbox"), rows(path, "SELECT first_number FROM block")
    with monkeypatch.context() as patched, pytest.raises(Exception, match="cannot be written"):
        patched.setattr(trimming, "_DELETE_MARKS", "DELETE FROM no_such_table WHERE ? AND ?")
        store.trim(LATER)
    assert not store.is_open
    assert before == (rows(path, "SELECT * FROM saved_inbox"), rows(path, "SELECT first_number FROM block"))
    store.open()
    assert sum(trim_all(store)) == 250


def test_damaged_block_is_reported_once_and_the_log_can_be_written(store: SqliteStore, path: Path) -> None:
    written(store, 3)
    spoil(path, "UPDATE block SET messages = '[[1]]'")
    with capturedLogs() as events:
        assert (store.trim(LATER), store.trim(LATER)) == (0, 0)
    assert [event["log_format"].split(",")[0] for event in events] == ["no old messages can be deleted"]
    assert store.append([message()]) == [4]


def test_damaged_page_is_reported_once_and_the_log_stays_open(store: SqliteStore, path: Path) -> None:
    for _ in range(20):
        written(store, 100)
    store.close()
    store.open()  # it saves the last places, so that the next one need not read all blocks
    store.close()
    spoil_page(path, 1)
    store.open()
    with capturedLogs() as events:
        assert (store.trim(LATER), store.trim(LATER)) == (0, 0)
    assert [event["log_format"].split(",")[0] for event in events] == ["no old messages can be deleted"]
    assert store.is_open
    assert store.append([message()]) == [2001]


def test_log_that_is_trimmed_between_the_parts_of_an_erasure_is_whole(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "BLOCKS_PER_PART", 2)
    monkeypatch.setattr(trimming, "MAX_BLOCKS", 1)
    for second in range(20):
        written(store, 30, seconds=1_700_000_000.0 + second)
    with closing(sqlite3.connect(path)) as connection:
        erasure.ask(connection, "1", True, 1_700_000_000)
        connection.commit()
    store.check()
    deleted = 0
    while store.is_erasing:
        store.erase()
        deleted += store.trim(1_700_000_015_000_000)
    deleted += sum(trim_all(store, 1_700_000_015_000_000))
    assert deleted == 15 * 30
    state, other = store.inbox("1"), store.inbox("2")
    store.close()
    verify(str(path), lambda *_: None)
    store.open()
    assert (store.inbox("1"), store.inbox("2")) == (state, other)
    reader = SqliteMessageReader(str(path))
    assert all("1" not in (each.from_uid, each.to_uid) for each in reader.messages())
    kept = [entry for entry in reader.entries("2", 0, other.last) if entry.message is not None or entry.erased]
    assert kept[0].place >= other.first
    later = message("later", "1", "1")
    store.append([later])
    assert later.to_place == state.last + 1


def test_space_of_deleted_messages_is_used_again(store: SqliteStore, path: Path) -> None:
    """With as many new messages as old ones go, the file stays as it is."""
    sizes = []
    for turn in range(12):
        for _ in range(5):
            written(store, 500, seconds=1_700_000_000.0 + turn)
        trim_all(store, (1_700_000_000 + turn - 2) * 1_000_000)
        sizes.append(rows(path, "PRAGMA page_count")[0][0])
    assert max(sizes[4:]) <= sizes[3] * 1.05, sizes  # type: ignore[operator]


def test_users_with_quotes_and_backslashes_in_their_names_keep_their_places(store: SqliteStore) -> None:
    names = ['"', "\\", '\\"', "\\u0041", "a\u0308", "'", "7", "[0]", '{"a":1}']
    for _ in range(2):
        store.append([message("", name, name) for name in names])
    trim_all(store)
    store.close()
    store.open()
    assert [store.inbox(name) for name in names] == [InboxState(3, 2)] * len(names)


def test_trimmed_log_can_be_verified_copied_and_restored(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    written(store, 250)
    written(store, 250, seconds=1_800_000_000.0)
    trim_all(store, 1_750_000_000_000_000)
    kept = contents(path)
    assert (len(kept), summary(str(path)).messages) == (250, 250)
    assert copy(path, tmp_path / "copy").messages == 250
    store.close()
    os.unlink(path)
    assert put_back(path, tmp_path / "copy").contents.messages == 250
    store.open()
    assert (contents(path), store.append([message()])) == (kept, [501])
    trim_all(store)
    assert copy(path, tmp_path / "empty").messages == summary(str(path)).messages == 0


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM block WHERE first_number = 251",
        "UPDATE saved_inbox SET first_place = first_place - 1 WHERE uid = '1'",
        "UPDATE saved_inbox SET first_place = first_place + 1 WHERE uid = '2'",
        "UPDATE saved_inbox SET last_place = last_place + 1 WHERE uid = '2'",
    ],
)
def test_damage_of_a_trimmed_log_is_noticed(store: SqliteStore, path: Path, statement: str) -> None:
    written(store, 250)
    written(store, 250, seconds=1_800_000_000.0)
    trim_all(store, 1_750_000_000_000_000)
    store.close()
    store.open()  # which saves the last places
    store.close()
    assert verify(str(path), lambda *_: None).messages == 250
    spoil(path, statement)
    with pytest.raises(DamagedLog, match="the places of its messages do not match its inboxes"):
        verify(str(path), lambda *_: None)
