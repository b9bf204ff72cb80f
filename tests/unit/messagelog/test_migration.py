"""Message logs of older versions: how they are copied and migrated, and what is logged meanwhile."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from chatrelay.messagelog.sqlite import MIGRATIONS, SqliteMessageReader, SqliteStore, schema
from chatrelay.messagelog.sqlite.migration import SECONDS_PER_REPORT, Migrating
from chatrelay.messagelog.sqlite.verify import summary, verify
from chatrelay.model import LogUnavailable
from tests.support.message_logs import message
from tests.support.sqlite_logs import contents, expected, make_older

OLDER = range(1, len(MIGRATIONS))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a message log."""
    return tmp_path / "log"


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the texts of the log messages."""
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        texts.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield texts
    finally:
        globalLogPublisher.removeObserver(observe)


def migrate(log: Path, **how: Any) -> None:
    """Open a message log and close it."""
    store = SqliteStore(str(log), migrating=Migrating(**how))
    store.open()
    store.close()


def ignore(*_: object) -> None:
    """Take a report of progress."""


@pytest.mark.parametrize("version", OLDER)
@pytest.mark.parametrize("count", [0, 1, 250, 10_001])
def test_older_log_has_every_message_after_the_migration(log: Path, version: int, count: int) -> None:
    make_older(log, version, count)
    store = SqliteStore(str(log))
    store.open()
    assert store.append([message("new")]) == [count + 1]
    store.close()
    assert contents(log) == [*expected(count), "new"]
    found = list(SqliteMessageReader(str(log)).messages())
    assert [row.number for row in found if not row.delivered] == list(range(7, count + 1, 7))
    assert {row.unique_id for row in found} == {None}
    assert verify(str(log), ignore).schema == len(MIGRATIONS)  # the places are right, too


@pytest.mark.parametrize("version", OLDER)
def test_copy_is_the_log_as_it_was(log: Path, version: int) -> None:
    make_older(log, version, 250)
    before = summary(str(log))
    migrate(log)
    copy = f"{log}.schema-{version}"
    after = verify(copy, ignore)
    assert (after.messages, after.last_received_at, after.schema) == (250, before.last_received_at, version)
    assert os.stat(copy).st_mode & 0o777 == 0o600
    # An older chatrelay can go on with it.
    with closing(sqlite3.connect(copy)) as connection:
        assert schema.check(connection, MIGRATIONS[:version], copy) == version


def test_messages_of_the_first_schema_are_packed_into_blocks(log: Path) -> None:
    make_older(log, 1, 250)
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("DELETE FROM message WHERE number = 120")  # no chatrelay does that
        connection.commit()
    migrate(log, makes_copy=False)  # which would be refused as damaged
    with closing(sqlite3.connect(log)) as connection:
        blocks = connection.execute("SELECT first_number, json_array_length(messages) FROM block").fetchall()
        assert blocks == [(1, 100), (101, 19), (121, 100), (221, 30)]
        numbers = [number for (number,) in connection.execute("SELECT number FROM message ORDER BY number")]
        assert numbers == [*range(1, 120), *range(121, 251)]
        (tables,) = connection.execute("SELECT group_concat(name) FROM sqlite_master WHERE type = 'table'").fetchone()
    assert "old_message" not in tables


def test_no_copy_is_made_if_none_is_wanted_or_needed(log: Path, tmp_path: Path) -> None:
    migrate(log)  # an empty file
    migrate(log)  # the present schema
    make_older(tmp_path / "older", 2, 10)
    migrate(tmp_path / "older", makes_copy=False)
    assert contents(tmp_path / "older") == expected(10)
    assert not list(tmp_path.glob("*.schema-*"))


def test_copy_of_an_interrupted_migration_is_taken(log: Path, tmp_path: Path) -> None:
    make_older(log, 2, 250)
    Path(f"{log}.schema-2.unfinished").write_bytes(b"of a process that was killed")
    steps = (*MIGRATIONS[:2], "CREATE TABLE more (x); SELECT no_such_function()")
    for _ in range(3):
        with pytest.raises(LogUnavailable, match="no_such_function"):
            SqliteStore(str(log), steps).open()
    migrate(log)
    assert [each.name for each in tmp_path.glob("*.schema-*")] == ["log.schema-2"]


def test_migration_that_ends_between_two_steps_leaves_the_log_as_it_was(log: Path, tmp_path: Path) -> None:
    make_older(log, 1, 250)
    with pytest.raises(LogUnavailable, match="no_such_function"):
        SqliteStore(str(log), (*MIGRATIONS[:2], "SELECT no_such_function()")).open()
    assert summary(str(log)).schema == 1
    migrate(log)
    assert [each.name for each in tmp_path.glob("*.schema-*")] == ["log.schema-1"]


def test_copy_of_another_log_is_kept(log: Path) -> None:
    make_older(Path(f"{log}.schema-2"), 2, 10)
    Path(f"{log}.schema-2-2").write_bytes(b"something else")
    make_older(log, 2, 250)
    migrate(log)
    assert contents_of_older(f"{log}.schema-2") == 10
    assert Path(f"{log}.schema-2-2").read_bytes() == b"something else"
    assert contents_of_older(f"{log}.schema-2-3") == 250


def contents_of_older(path: str) -> int:
    """Return the number of messages in a log of any schema."""
    return summary(path).messages


def test_migration_waits_for_a_copy_that_fits(log: Path) -> None:
    make_older(log, 2, 250)
    before = log.read_bytes()
    disk = os.statvfs(log.parent)
    full = os.statvfs_result((*disk[:4], 1, *disk[5:]))
    with (
        patch("os.statvfs", return_value=full),
        pytest.raises(LogUnavailable, match=r"needs 0 MiB, and .* has 0 MiB free.*start once with --no-copy yes"),
    ):
        migrate(log)
    with (
        patch("os.rename", side_effect=OSError(errno.EACCES, "Permission denied")),
        pytest.raises(LogUnavailable, match="Permission denied"),
    ):
        migrate(log)
    assert log.read_bytes()[100:] == before[100:]  # but its header, which tells copies apart
    assert not list(log.parent.glob("*.schema-*"))
    migrate(log, makes_copy=False)
    assert contents(log) == expected(250)


def test_damaged_log_is_not_migrated(log: Path) -> None:
    make_older(log, 2, 250)
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("UPDATE block SET messages = 'x' WHERE first_number = 101")
        connection.commit()
    with pytest.raises(LogUnavailable, match="the messages from 101 on cannot be decoded"):
        migrate(log)
    assert summary(str(log)).schema == 2


def test_progress_is_logged_and_told(log: Path) -> None:
    make_older(log, 1, 30_000)
    clock = Clock()
    signs: list[float] = []

    def monotonic() -> float:
        clock.advance(SECONDS_PER_REPORT / 4)
        return clock.seconds()

    with logged() as texts:
        migrate(log, monotonic=monotonic, on_progress=lambda: signs.append(clock.seconds()))
    about = [text for text in texts if "upgrad" in text]
    assert about[-1].startswith(f"upgraded the message log {log} in ")
    assert any(text.startswith(f"upgrading the message log {log}: packing the messages, ") for text in about)
    assert any(text.startswith(f"upgrading the message log {log}: copying, ") for text in about)
    (first,) = (text for text in about if f"from schema 1 to {len(MIGRATIONS)}" in text)
    assert first.endswith(f"A copy of it is at {log}.schema-1")
    assert len(signs) > 3
    with logged() as texts:
        migrate(log)
    assert not [text for text in texts if "upgrad" in text]


def test_migration_without_a_copy_says_so(log: Path) -> None:
    make_older(log, 2, 1)
    with logged() as texts:
        migrate(log, makes_copy=False)
    assert any(text.endswith("There is no copy of it") for text in texts)
