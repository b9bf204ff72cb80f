"""Backups of a message log in SQLite: what is copied, where it is written, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatrelay.messagelog.sqlite import APPLICATION_ID, MIGRATIONS
from chatrelay.messagelog.sqlite.backup import CopyFailed
from chatrelay.messagelog.sqlite.opening import DamagedLog, UnusableLog
from chatrelay.messagelog.sqlite.verify import verify
from tests.support.sqlite_logs import DAMAGE, contents, copy, expected, fill, killed, messages, put_back, spoil


def test_backup_of_a_running_relay_has_all_messages(tmp_path: Path) -> None:
    log, destination = tmp_path / "log", tmp_path / "copy"
    store = fill(log, 120, 30)
    assert b'"content 150"' not in log.read_bytes()  # the messages are in the write-ahead log
    assert b'"content 150"' in Path(f"{log}-wal").read_bytes()
    found = copy(log, destination)
    assert (found.messages, found.last_received_at) == (150, 1_700_000_150_000_000)
    assert found.size == os.path.getsize(destination)
    assert contents(destination) == expected(150)
    store.close()


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_backup_is_one_file_that_only_its_owner_may_read(log: Path, tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    before = os.umask(umask)
    try:
        copy(log, folder / "copy")
    finally:
        os.umask(before)
    assert os.listdir(folder) == ["copy"]
    assert stat.S_IMODE(os.stat(folder / "copy").st_mode) == 0o600
    assert contents(folder / "copy") == expected(250)
    assert os.listdir(folder) == ["copy"]  # it is read without any file beside it


def test_backup_has_the_messages_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatrelay.messagelog.sqlite.backup.PAGES_PER_STEP", 10)
    log = tmp_path / "log"
    store = fill(log, *[500] * 30)
    steps = []

    def report(what: str, done: int, total: int) -> None:
        if what == "copying":
            steps.append(done)
            assert len(steps) < 1000, "it begins again and again"
            store.append(messages(15_001 + len(steps), 1))

    found = copy(log, tmp_path / "copy", report=report)
    assert len(steps) > 20  # messages came while it was made
    assert found.messages == 15_000
    assert copy(log, tmp_path / "later").messages == 15_000 + len(steps)
    store.close()


def test_existing_destination_is_replaced_only_on_request(log: Path, tmp_path: Path) -> None:
    destination = tmp_path / "copy"
    destination.write_text("precious")
    with pytest.raises(CopyFailed, match=r"copy exists: name another destination, or replace it with --yes"):
        copy(log, destination)
    assert destination.read_text() == "precious"
    copy(log, destination, replace=True)
    assert contents(destination) == expected(250)


def test_destination_that_appears_during_the_backup_is_not_replaced(log: Path, tmp_path: Path) -> None:
    destination = tmp_path / "copy"
    with pytest.raises(CopyFailed, match="now exists"):
        copy(log, destination, report=lambda *_: destination.write_text("precious"))
    assert destination.read_text() == "precious"
    assert not (tmp_path / "copy.unfinished").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_file_of_the_log_is_refused_as_destination(log: Path, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "link").symlink_to(log)
    os.link(log, tmp_path / "name")
    for name in ("log.sqlite3", "log.sqlite3-wal", "log.sqlite3-shm", "log.sqlite3.lock", "link", "name"):
        with pytest.raises(CopyFailed, match="belongs to the message log itself"):
            copy(log, tmp_path / name, replace)
    assert contents(log) == expected(250)


def test_log_named_like_an_unfinished_copy_is_not_removed(tmp_path: Path) -> None:
    log = tmp_path / "copy.unfinished"
    fill(log, 5).close()
    with pytest.raises(CopyFailed, match="belongs to the message log itself"):
        copy(log, tmp_path / "copy")
    assert contents(log) == expected(5)


def test_bad_destination_is_refused_with_a_remedy(log: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other-wal").write_text("of another database")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("nowhere/copy", "there is no folder .*nowhere: make it"),
        ("folder", "is a folder: name a file in it"),
        ("other", "SQLite would take .*other-wal for a part of the copy: move that file away"),
        ("pipe", "is not a file"),
    ):
        with pytest.raises(CopyFailed, match=why):
            copy(log, tmp_path / name, replace=True)


def test_destination_that_is_a_link_is_followed(log: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tmp_path / "copy")
    copy(log, tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert contents(tmp_path / "copy") == expected(250)


def test_file_that_is_not_a_message_log_is_refused(tmp_path: Path) -> None:
    log, destination = tmp_path / "log", tmp_path / "copy"
    with pytest.raises(UnusableLog, match="there is no message log at"):
        copy(log, destination)
    log.write_bytes(b"")
    with pytest.raises(UnusableLog, match="is not a message log"):
        copy(log, destination)
    log.write_bytes(b"this is no database" * 1000)
    with pytest.raises(UnusableLog, match="is not a message log"):
        copy(log, destination)
    log.unlink()
    spoil(log, "CREATE TABLE address (name TEXT)")
    with pytest.raises(UnusableLog, match="is not a message log"):
        copy(log, destination)
    log.unlink()
    log.mkdir()
    with pytest.raises(UnusableLog, match="is not a file"):
        copy(log, destination)
    assert os.listdir(tmp_path) == ["log"]


def test_newer_schema_is_refused_and_older_schema_is_copied(log: Path, tmp_path: Path) -> None:
    spoil(log, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(UnusableLog, match="was made by a newer chatrelay"):
        copy(log, tmp_path / "copy")
    old = tmp_path / "old"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(
            f"{MIGRATIONS[0]}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
            "INSERT INTO message VALUES (1, 'a', 1, 'b', 1, 'id', 'time', 'hej', 17, 1);"
        )
    found = copy(old, tmp_path / "copy")
    assert (found.messages, found.last_received_at, found.schema) == (1, 17, 1)
    spoil(old, "UPDATE message SET number = 2")
    with pytest.raises(DamagedLog, match="it has 1 messages, and the last one has number 2"):
        copy(old, tmp_path / "other")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_block_is_refused(log: Path, tmp_path: Path, damage: str) -> None:
    statement, why = DAMAGE[damage]
    spoil(log, statement)
    (tmp_path / "copy").write_text("the last good one")
    with pytest.raises(DamagedLog, match=f"what was copied from {log} is damaged: .*{why}"):
        copy(log, tmp_path / "copy", replace=True)
    assert (tmp_path / "copy").read_text() == "the last good one"
    assert not (tmp_path / "copy.unfinished").exists()


def test_damaged_page_is_refused(log: Path, tmp_path: Path) -> None:
    fill(tmp_path / "long", *[500] * 10).close()
    size = os.path.getsize(tmp_path / "long")
    for offset in range(4096, size, size // 7):
        damaged = tmp_path / f"damaged-{offset}"
        shutil.copy(tmp_path / "long", damaged)
        with open(damaged, "r+b") as file:
            file.seek(offset)
            file.write(os.urandom(4096))
        with pytest.raises(DamagedLog):
            copy(damaged, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_damaged_other_table_is_refused(log: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(log)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'undelivered'").fetchone()
    with open(log, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    with pytest.raises(DamagedLog, match=f"what was copied from {log} is damaged: "):
        copy(log, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_truncated_copy_is_refused_at_any_length(log: Path, tmp_path: Path) -> None:
    copy(log, tmp_path / "copy")
    size = os.path.getsize(tmp_path / "copy")
    for left in range(0, size, 1024):
        os.truncate(tmp_path / "copy", size - left)
        if left:
            with pytest.raises(UnusableLog):
                verify(str(tmp_path / "copy"), lambda *_: None)
        else:
            assert verify(str(tmp_path / "copy"), lambda *_: None).messages == 250


class Stop(BaseException):
    """An exception that interrupts a command."""


@pytest.mark.parametrize("during", ["copying", "checking"])
def test_interrupted_backup_leaves_no_file(log: Path, tmp_path: Path, during: str) -> None:
    def report(what: str, done: int, total: int) -> None:
        if what == during:
            raise Stop

    with pytest.raises(Stop):
        copy(log, tmp_path / "copy", report=report)
    assert sorted(os.listdir(tmp_path)) == ["log.sqlite3", "log.sqlite3.lock"]


def test_second_backup_to_the_same_destination_is_refused(log: Path, tmp_path: Path) -> None:
    tried: list[str] = []

    def report(*_: object) -> None:
        if not tried:
            with pytest.raises(CopyFailed) as refusal:
                copy(log, tmp_path / "copy")
            tried.append(str(refusal.value))

    copy(log, tmp_path / "copy", report=report)
    assert tried == [f"another command is writing {tmp_path}/copy.unfinished: wait until it has ended"]
    assert contents(tmp_path / "copy") == expected(250)


def test_file_of_a_killed_backup_is_replaced(log: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.unfinished").write_bytes(b"half of it" * 100_000)
    copy(log, tmp_path / "copy")
    assert contents(tmp_path / "copy") == expected(250)
    assert not (tmp_path / "copy.unfinished").exists()


def test_link_in_the_place_of_the_unfinished_copy_is_not_followed(log: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "copy.unfinished").symlink_to(precious)
    with pytest.raises(CopyFailed, match=r"copy.unfinished cannot be written"):
        copy(log, tmp_path / "copy")
    assert precious.read_text() == "precious"


def test_full_disk_is_refused_before_the_copy(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_bavail, f_frsize, f_blocks, f_flag = 3, 4096, 1000, 0

    monkeypatch.setattr(os, "statvfs", lambda path: Disk)
    with pytest.raises(CopyFailed, match=r"needs 0 MiB, and .* has 0 MiB free: free some space there"):
        copy(log, tmp_path / "copy")
    assert not (tmp_path / "copy.unfinished").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_copy_is_synced_before_it_gets_its_name_and_the_folder_after(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    done: list[str] = []

    def noted(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            if isinstance(arguments[0], int):
                is_folder = stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
                done.append(f"{name} {'folder' if is_folder else 'file'}")
            else:
                done.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("pwrite", "fsync", "link", "replace"):
        noted(name)
    copy(log, tmp_path / "copy", replace)
    assert done == ["pwrite file", "fsync file", "replace" if replace else "link", "fsync folder"]


def test_backup_and_restore_work_without_hard_links(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    copy(log, tmp_path / "kept")
    monkeypatch.setattr(os, "link", link)
    copy(log, tmp_path / "copy")
    assert contents(tmp_path / "copy") == expected(250)
    fill(tmp_path / "other", 7).close()
    restored = put_back(tmp_path / "other", tmp_path / "copy")
    assert contents(tmp_path / "other") == expected(250)
    assert contents(Path(str(restored.kept))) == expected(7)


def test_log_beside_the_wal_of_another_log_is_refused(log: Path, tmp_path: Path) -> None:
    other = killed(tmp_path / "other", *[100] * 20)
    shutil.copy(f"{other}-wal", f"{log}-wal")
    with pytest.raises(UnusableLog, match="does not belong to the message log"):
        copy(log, tmp_path / "copy")
    with pytest.raises(UnusableLog, match="does not belong to the message log"):
        put_back(tmp_path / "new", log)
