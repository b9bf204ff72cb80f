"""Restoring a backup of a message log in SQLite: what is replaced, what is kept, and what is refused."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatrelay.messagelog.sqlite import MIGRATIONS, SqliteStore
from chatrelay.messagelog.sqlite.backup import CopyFailed
from chatrelay.messagelog.sqlite.opening import UnusableLog
from chatrelay.messagelog.sqlite.verify import Contents, verify
from tests.support.sqlite_logs import (
    DAMAGE,
    STAMP,
    contents,
    copy,
    expected,
    fill,
    killed,
    messages,
    put_back,
    spoil,
)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Return a backup with 40 messages."""
    source = tmp_path / "source"
    fill(source, 40).close()
    copy(source, tmp_path / "backup")
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{source}{suffix}").unlink(missing_ok=True)
    return tmp_path / "backup"


def test_restored_log_continues_the_numbers_of_the_backup(backup: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    restored = put_back(log, backup)
    assert (restored.contents.messages, restored.kept) == (40, None)
    assert stat.S_IMODE(os.stat(log).st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["backup", "log", "log.lock"]
    store = SqliteStore(str(log))
    store.open()
    assert store.append(messages(41, 2)) == [41, 42]
    store.close()
    assert contents(log) == expected(42)
    assert verify(str(log), lambda *_: None).messages == 42


def test_replaced_log_is_kept_under_another_name(log: Path, backup: Path, tmp_path: Path) -> None:
    before = log.read_bytes()
    restored = put_back(log, backup)
    assert restored.kept == f"{log}.replaced-{STAMP}"
    assert Path(restored.kept).read_bytes() == before
    assert contents(log) == expected(40)
    again = put_back(log, Path(restored.kept))  # and back
    assert contents(log) == expected(250)
    assert again.kept == f"{log}.replaced-{STAMP}-2"


def test_replaced_log_of_a_killed_relay_keeps_the_messages_of_its_wal(backup: Path, tmp_path: Path) -> None:
    log = killed(tmp_path / "log", 3, 60)
    restored = put_back(log, backup)
    assert contents(log) == expected(40)
    assert contents(Path(str(restored.kept))) == expected(63)
    for suffix in ("-wal", "-shm", "-journal"):
        assert not Path(f"{log}{suffix}").exists()


def test_damaged_log_is_kept_unchanged_with_its_wal(backup: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fill(tmp_path / "original", *[500] * 10).close()
    killed(log, 100)
    content = bytearray(log.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    log.write_bytes(content)
    wal = Path(f"{log}-wal").read_bytes()
    restored = put_back(log, backup)
    assert contents(log) == expected(40)
    assert Path(str(restored.kept)).read_bytes() == content
    assert Path(f"{restored.kept}-wal").read_bytes() == wal


def test_log_beside_the_wal_of_another_log_is_kept_unchanged(log: Path, backup: Path, tmp_path: Path) -> None:
    other = killed(tmp_path / "other", *[100] * 20)
    wal = Path(f"{other}-wal").read_bytes()
    Path(f"{log}-wal").write_bytes(wal)  # as after a copy over PATH with the old -wal in place
    before = log.read_bytes()
    asked: list[str] = []
    restored = put_back(log, backup, lambda new, old: asked.append(str(old)))
    assert "does not belong to the message log" in asked[0]
    assert contents(log) == expected(40)
    assert Path(str(restored.kept)).read_bytes() == before
    assert Path(f"{restored.kept}-wal").read_bytes() == wal


def test_wal_without_its_database_is_kept(backup: Path, tmp_path: Path) -> None:
    log = killed(tmp_path / "log", 60)
    log.unlink()
    wal = Path(f"{log}-wal").read_bytes()
    restored = put_back(log, backup)
    assert contents(log) == expected(40)
    assert restored.kept == f"{log}.replaced-{STAMP}-wal"
    assert Path(restored.kept).read_bytes() == wal


def test_backup_with_a_wal_is_restored_with_its_messages(tmp_path: Path) -> None:
    snapshot = killed(tmp_path / "snapshot", 3, 60)
    before = [Path(f"{snapshot}{suffix}").read_bytes() for suffix in ("", "-wal")]
    put_back(tmp_path / "log", snapshot)
    assert contents(tmp_path / "log") == expected(63)
    assert [Path(f"{snapshot}{suffix}").read_bytes() for suffix in ("", "-wal")] == before


def test_log_that_a_relay_has_open_is_refused(backup: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    store = fill(log, 5)
    (tmp_path / "link").symlink_to(log)
    for path in (log, tmp_path / "link"):
        with pytest.raises(CopyFailed, match=f"has {log} open: stop it first"):
            put_back(path, backup)
    assert store.append(messages(6, 1)) == [6]
    store.close()


def test_relay_cannot_open_the_log_during_a_restore(log: Path, backup: Path) -> None:
    tried = []

    def report(*_: object) -> None:
        with pytest.raises(Exception, match="is in use by another chatrelay"):
            SqliteStore(str(log)).open()
        tried.append(1)

    put_back(log, backup, report=report)
    assert tried


def test_log_that_is_a_link_is_restored_behind_the_link(log: Path, backup: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(log)
    restored = put_back(link, backup)
    assert link.is_symlink()
    assert contents(log) == expected(40)
    assert restored.kept == f"{log}.replaced-{STAMP}"
    assert os.listdir(tmp_path / "elsewhere") == ["link"]


def test_bad_backup_is_refused_and_changes_nothing(log: Path, backup: Path, tmp_path: Path) -> None:
    before = log.read_bytes()
    bad = tmp_path / "bad"

    def refused(why: str) -> None:
        with pytest.raises((CopyFailed, UnusableLog), match=why):
            put_back(log, bad)
        assert log.read_bytes() == before
        assert not [name for name in os.listdir(tmp_path) if "replaced" in name or "unfinished" in name]

    refused("there is no message log at")
    bad.write_bytes(b"x" * 10_000)
    refused("is not a message log of chatrelay")
    shutil.copy(backup, bad)
    spoil(bad, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    refused("was made by a newer chatrelay")
    for statement, why in DAMAGE.values():
        fill(tmp_path / "long", 3, 247).close()
        shutil.copy(tmp_path / "long", bad)
        spoil(bad, statement)
        refused(why)
        (tmp_path / "long").unlink()
    shutil.copy(backup, bad)
    os.truncate(bad, os.path.getsize(bad) - 4096)
    refused("damaged")
    bad.unlink()
    bad.symlink_to(log)
    refused("is the message log itself")


def test_unfinished_copy_is_refused_and_not_removed(log: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "log.sqlite3.unfinished"
    shutil.copy(log, unfinished)
    with pytest.raises(CopyFailed, match="may be incomplete"):
        put_back(log, unfinished)
    assert unfinished.exists()


def test_existing_log_is_replaced_only_after_confirmation(log: Path, backup: Path, tmp_path: Path) -> None:
    asked: list[Any] = []

    def no(new: Contents, old: Contents | UnusableLog) -> None:
        asked.append((new.messages, old.messages if isinstance(old, Contents) else str(old)))
        raise CopyFailed("no")

    with pytest.raises(CopyFailed, match="no"):
        put_back(log, backup, no)
    assert contents(log) == expected(250)
    log.write_bytes(b"x" * 10_000)
    Path(f"{log}-wal").unlink(missing_ok=True)
    with pytest.raises(CopyFailed, match="no"):
        put_back(log, backup, no)
    put_back(tmp_path / "new", backup, no)  # where there is nothing, nothing is asked
    assert asked == [(40, 250), (40, f"{log} is not a message log of chatrelay")]


def test_root_gives_the_restored_log_to_the_owner_of_the_old_one(
    log: Path, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int, int]] = []

    def chown(file: int | str, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
        given.append((os.path.basename(path), uid, gid))
        assert follow_symlinks == isinstance(file, int)

    owner = os.stat(log)
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    put_back(log, backup)
    ours = (owner.st_uid, owner.st_gid)
    assert given == [("log.sqlite3.lock", *ours), ("log.sqlite3.unfinished", *ours)]
    monkeypatch.setattr(os, "geteuid", lambda: owner.st_uid + 1)
    with pytest.raises(CopyFailed, match="belongs to another user"):
        put_back(log, backup)


def test_log_that_a_reader_has_open_is_refused(backup: Path, tmp_path: Path) -> None:
    log = killed(tmp_path / "log", 3, 60)
    with closing(sqlite3.connect(log, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM block").fetchone()
        with pytest.raises(CopyFailed, match=r"another program has .*log open: stop it and try again"):
            put_back(log, backup)
        reader.execute("COMMIT")
    assert contents(log) == expected(63)
