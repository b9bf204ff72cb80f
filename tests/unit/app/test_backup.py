"""Copies of a message log, and putting one in its place, with real SQLite files."""

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

from chatrelay.messagelog.sqlite import APPLICATION_ID, MIGRATIONS, SqliteMessageReader, SqliteStore
from chatrelay.messagelog.sqlite.backup import NotDone, back_up
from chatrelay.messagelog.sqlite.reading import Damaged, NotUsable
from chatrelay.messagelog.sqlite.restore import Restored, restore
from chatrelay.messagelog.sqlite.verify import Contents, verify
from chatrelay.model import Message

SIDES = ("-wal", "-shm", "-journal")
NOW = 1_795_000_000.0
STAMP = "20261118T110640Z"


def messages(first: int, count: int) -> list[Message]:
    """Messages between a few users, some to themselves."""
    return [
        Message(number % 7, number % 5, number, str(number), f"content {number}", 1_700_000_000.0 + number)
        for number in range(first, first + count)
    ]


def fill(path: Path, *counts: int) -> SqliteStore:
    """A message log with so many messages in each batch, still open."""
    store = SqliteStore(str(path))
    store.open()
    first = 1
    for count in counts:
        store.append(messages(first, count))
        first += count
    return store


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A message log with 250 messages that no process has open."""
    path = tmp_path / "log.sqlite3"
    fill(path, 3, 247).close()
    return path


def killed(path: Path, *counts: int) -> Path:
    """A message log as a killed relay leaves it: the last batches are in the ``-wal``."""
    original = path.with_name("original")
    store = fill(original, *counts)
    shutil.copy(original, path)
    shutil.copy(f"{original}-wal", f"{path}-wal")
    shutil.copy(f"{original}-shm", f"{path}-shm")
    store.close()
    for suffix in ("", ".lock"):
        os.unlink(f"{original}{suffix}")
    assert os.path.getsize(f"{path}-wal") > 4096
    return path


def copy(log: Path, destination: Path, replace: bool = False, report: Any = lambda *_: None) -> Contents:
    """Back up, quietly."""
    return back_up(str(log), str(destination), replace=replace, report=report, commit=lambda: None)


def put_back(log: Path, backup: Path, confirm: Any = lambda *_: None, report: Any = lambda *_: None) -> Restored:
    """Restore, quietly."""
    return restore(str(log), str(backup), now=NOW, confirm=confirm, report=report, commit=lambda: None)


def contents(path: Path) -> list[str]:
    """What the messages in a log say."""
    return [message.content for message in SqliteMessageReader(str(path)).messages()]


def expected(count: int, first: int = 1) -> list[str]:
    """What so many messages say."""
    return [f"content {number}" for number in range(first, first + count)]


def spoil(path: Path, statement: str, *parameters: object) -> None:
    """Change a log behind its back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, parameters)


# Backing up ------------------------------------------------------------------


def test_a_copy_has_what_the_log_of_a_running_relay_has(tmp_path: Path) -> None:
    log, destination = tmp_path / "log", tmp_path / "copy"
    store = fill(log, 120, 30)
    assert os.path.getsize(log) < os.path.getsize(f"{log}-wal")  # it is all in the write-ahead log
    found = copy(log, destination)
    assert (found.messages, found.last_received_at) == (150, 1_700_000_150_000_000)
    assert found.size == os.path.getsize(destination)
    assert contents(destination) == expected(150)
    store.close()


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_a_copy_is_one_file_that_only_its_owner_may_read(log: Path, tmp_path: Path, umask: int) -> None:
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


def test_a_copy_is_taken_at_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatrelay.messagelog.sqlite.backup.COPY_PAGES", 10)
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


def test_a_destination_that_exists_is_replaced_only_where_that_is_wanted(log: Path, tmp_path: Path) -> None:
    destination = tmp_path / "copy"
    destination.write_text("precious")
    with pytest.raises(NotDone, match=r"copy exists: name another destination, or replace it with --yes"):
        copy(log, destination)
    assert destination.read_text() == "precious"
    copy(log, destination, replace=True)
    assert contents(destination) == expected(250)


def test_a_destination_that_appears_meanwhile_is_not_replaced(log: Path, tmp_path: Path) -> None:
    destination = tmp_path / "copy"
    with pytest.raises(NotDone, match="exists by now"):
        copy(log, destination, report=lambda *_: destination.write_text("precious"))
    assert destination.read_text() == "precious"
    assert not (tmp_path / "copy.unfinished").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_the_log_itself_is_no_destination(log: Path, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "link").symlink_to(log)
    os.link(log, tmp_path / "name")
    for name in ("log.sqlite3", "log.sqlite3-wal", "log.sqlite3-shm", "log.sqlite3.lock", "link", "name"):
        with pytest.raises(NotDone, match="of the message log itself"):
            copy(log, tmp_path / name, replace)
    assert contents(log) == expected(250)


def test_a_log_with_the_name_of_an_unfinished_copy_is_not_removed(tmp_path: Path) -> None:
    log = tmp_path / "copy.unfinished"
    fill(log, 5).close()
    with pytest.raises(NotDone, match="of the message log itself"):
        copy(log, tmp_path / "copy")
    assert contents(log) == expected(5)


def test_a_destination_that_cannot_be_is_named_with_the_remedy(log: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other-wal").write_text("of another database")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("nowhere/copy", "there is no folder .*nowhere: make it"),
        ("folder", "is a folder: name a file in it"),
        ("other", "other-wal would pass for a part of the copy: move it away"),
        ("pipe", "is not a file"),
    ):
        with pytest.raises(NotDone, match=why):
            copy(log, tmp_path / name, replace=True)


def test_a_link_to_a_destination_is_followed(log: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tmp_path / "copy")
    copy(log, tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert contents(tmp_path / "copy") == expected(250)


def test_what_is_no_message_log_is_not_backed_up(tmp_path: Path) -> None:
    log, destination = tmp_path / "log", tmp_path / "copy"
    with pytest.raises(NotUsable, match="there is no message log at"):
        copy(log, destination)
    log.write_bytes(b"")
    with pytest.raises(NotUsable, match="is not a message log"):
        copy(log, destination)
    log.write_bytes(b"this is no database" * 1000)
    with pytest.raises(NotUsable, match="is not a message log"):
        copy(log, destination)
    log.unlink()
    spoil(log, "CREATE TABLE address (name TEXT)")
    with pytest.raises(NotUsable, match="is not a message log"):
        copy(log, destination)
    log.unlink()
    log.mkdir()
    with pytest.raises(NotUsable, match="is not a file"):
        copy(log, destination)
    assert os.listdir(tmp_path) == ["log"]


def test_a_log_of_a_newer_schema_is_refused_and_one_of_an_older_is_copied(log: Path, tmp_path: Path) -> None:
    spoil(log, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(NotUsable, match="was made by a newer chatrelay"):
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
    with pytest.raises(Damaged, match="it holds 1 messages, and the last one has number 2"):
        copy(old, tmp_path / "other")


DAMAGE = {
    "a block that is not JSON": (
        "UPDATE block SET messages = 'x' WHERE first_number = 4",
        "from 4 on cannot be decoded",
    ),
    "a block of other things": ("UPDATE block SET messages = '[[1]]' WHERE first_number = 4", "cannot be decoded"),
    "a block that is no text": ("UPDATE block SET messages = 7 WHERE first_number = 4", "cannot be decoded"),
    "a block that is gone": ("DELETE FROM block WHERE first_number = 104", "message 104 is missing"),
    "the first block gone": ("DELETE FROM block WHERE first_number = 1", "message 1 is missing"),
    "a place that is not the next": ("UPDATE block SET messages = json_set(messages, '$[0][1]', 9)", "the places"),
    "a user without messages": ("INSERT INTO saved_inbox VALUES ('nobody', 1)", "the places"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_log_makes_no_backup(log: Path, tmp_path: Path, damage: str) -> None:
    statement, why = DAMAGE[damage]
    spoil(log, statement)
    (tmp_path / "copy").write_text("the last good one")
    with pytest.raises(Damaged, match=f"what was copied from {log} is damaged: .*{why}"):
        copy(log, tmp_path / "copy", replace=True)
    assert (tmp_path / "copy").read_text() == "the last good one"
    assert not (tmp_path / "copy.unfinished").exists()


def test_damaged_pages_make_no_backup(log: Path, tmp_path: Path) -> None:
    fill(tmp_path / "long", *[500] * 10).close()
    size = os.path.getsize(tmp_path / "long")
    for offset in range(4096, size, size // 7):
        damaged = tmp_path / f"damaged-{offset}"
        shutil.copy(tmp_path / "long", damaged)
        with open(damaged, "r+b") as file:
            file.seek(offset)
            file.write(os.urandom(4096))
        with pytest.raises(Damaged):
            copy(damaged, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_damage_beside_the_messages_makes_no_backup(log: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(log)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'undelivered'").fetchone()
    with open(log, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    with pytest.raises(Damaged, match=f"what was copied from {log} is damaged: "):
        copy(log, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_every_cut_short_copy_is_recognised(log: Path, tmp_path: Path) -> None:
    copy(log, tmp_path / "copy")
    size = os.path.getsize(tmp_path / "copy")
    for left in range(0, size, 1024):
        os.truncate(tmp_path / "copy", size - left)
        if left:
            with pytest.raises(NotUsable):
                verify(str(tmp_path / "copy"), lambda *_: None)
        else:
            assert verify(str(tmp_path / "copy"), lambda *_: None).messages == 250


class Stop(BaseException):
    """What ends a command."""


@pytest.mark.parametrize("during", ["copying", "checking"])
def test_an_interrupted_backup_leaves_nothing(log: Path, tmp_path: Path, during: str) -> None:
    def report(what: str, done: int, total: int) -> None:
        if what == during:
            raise Stop

    with pytest.raises(Stop):
        copy(log, tmp_path / "copy", report=report)
    assert sorted(os.listdir(tmp_path)) == ["log.sqlite3", "log.sqlite3.lock"]


def test_a_backup_that_is_being_made_is_not_disturbed_by_another(log: Path, tmp_path: Path) -> None:
    tried: list[str] = []

    def report(*_: object) -> None:
        if not tried:
            with pytest.raises(NotDone) as refusal:
                copy(log, tmp_path / "copy")
            tried.append(str(refusal.value))

    copy(log, tmp_path / "copy", report=report)
    assert tried == [f"another command is writing {tmp_path}/copy.unfinished: wait until it has ended"]
    assert contents(tmp_path / "copy") == expected(250)


def test_what_a_killed_backup_left_is_replaced_by_the_next(log: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.unfinished").write_bytes(b"half of it" * 100_000)
    copy(log, tmp_path / "copy")
    assert contents(tmp_path / "copy") == expected(250)
    assert not (tmp_path / "copy.unfinished").exists()


def test_a_link_in_the_place_of_the_unfinished_copy_is_not_followed(log: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "copy.unfinished").symlink_to(precious)
    with pytest.raises(NotDone, match=r"copy.unfinished cannot be written"):
        copy(log, tmp_path / "copy")
    assert precious.read_text() == "precious"


def test_a_disk_without_room_is_not_filled(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_bavail, f_frsize, f_blocks, f_flag = 3, 4096, 1000, 0

    monkeypatch.setattr(os, "statvfs", lambda path: Disk)
    with pytest.raises(NotDone, match=r"takes 0 MiB, and .* has 0 free: make room there"):
        copy(log, tmp_path / "copy")
    assert not (tmp_path / "copy.unfinished").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_a_copy_is_synced_before_it_has_its_name_and_its_name_after(
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


def test_a_file_system_without_links_will_do(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Restoring -------------------------------------------------------------------


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup with 40 messages."""
    source = tmp_path / "source"
    fill(source, 40).close()
    copy(source, tmp_path / "backup")
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{source}{suffix}").unlink(missing_ok=True)
    return tmp_path / "backup"


def test_a_restored_log_goes_on_where_the_backup_ended(backup: Path, tmp_path: Path) -> None:
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


def test_what_a_restored_log_replaces_is_kept(log: Path, backup: Path, tmp_path: Path) -> None:
    before = log.read_bytes()
    restored = put_back(log, backup)
    assert restored.kept == f"{log}.replaced-{STAMP}"
    assert Path(restored.kept).read_bytes() == before
    assert contents(log) == expected(40)
    again = put_back(log, Path(restored.kept))  # and back
    assert contents(log) == expected(250)
    assert again.kept == f"{log}.replaced-{STAMP}-2"


def test_what_a_killed_relay_left_in_the_wal_is_kept_too(backup: Path, tmp_path: Path) -> None:
    log = killed(tmp_path / "log", 3, 60)
    restored = put_back(log, backup)
    assert contents(log) == expected(40)
    assert contents(Path(str(restored.kept))) == expected(63)
    for suffix in SIDES:
        assert not Path(f"{log}{suffix}").exists()


def test_a_log_that_is_not_whole_is_kept_as_it_lies(backup: Path, tmp_path: Path) -> None:
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


def test_a_log_beside_the_wal_of_another_is_kept_as_it_lies(log: Path, backup: Path, tmp_path: Path) -> None:
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


def test_a_log_beside_the_wal_of_another_makes_no_backup(log: Path, tmp_path: Path) -> None:
    other = killed(tmp_path / "other", *[100] * 20)
    shutil.copy(f"{other}-wal", f"{log}-wal")
    with pytest.raises(NotUsable, match="does not belong to the message log"):
        copy(log, tmp_path / "copy")
    with pytest.raises(NotUsable, match="does not belong to the message log"):
        put_back(tmp_path / "new", log)


def test_a_wal_without_its_database_is_kept(backup: Path, tmp_path: Path) -> None:
    log = killed(tmp_path / "log", 60)
    log.unlink()
    wal = Path(f"{log}-wal").read_bytes()
    restored = put_back(log, backup)
    assert contents(log) == expected(40)
    assert restored.kept == f"{log}.replaced-{STAMP}-wal"
    assert Path(restored.kept).read_bytes() == wal


def test_a_backup_with_a_wal_is_restored_with_it(tmp_path: Path) -> None:
    snapshot = killed(tmp_path / "snapshot", 3, 60)
    before = [Path(f"{snapshot}{suffix}").read_bytes() for suffix in ("", "-wal")]
    put_back(tmp_path / "log", snapshot)
    assert contents(tmp_path / "log") == expected(63)
    assert [Path(f"{snapshot}{suffix}").read_bytes() for suffix in ("", "-wal")] == before


def test_a_log_that_a_relay_has_open_is_not_restored(backup: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    store = fill(log, 5)
    (tmp_path / "link").symlink_to(log)
    for path in (log, tmp_path / "link"):
        with pytest.raises(NotDone, match=f"has {log} open: stop it first"):
            put_back(path, backup)
    assert store.append(messages(6, 1)) == [6]
    store.close()


def test_no_relay_starts_while_a_log_is_restored(log: Path, backup: Path) -> None:
    tried = []

    def report(*_: object) -> None:
        with pytest.raises(Exception, match="is in use by another chatrelay"):
            SqliteStore(str(log)).open()
        tried.append(1)

    put_back(log, backup, report=report)
    assert tried


def test_a_log_behind_a_link_is_restored_behind_it(log: Path, backup: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(log)
    restored = put_back(link, backup)
    assert link.is_symlink()
    assert contents(log) == expected(40)
    assert restored.kept == f"{log}.replaced-{STAMP}"
    assert os.listdir(tmp_path / "elsewhere") == ["link"]


def test_what_is_no_good_backup_changes_nothing(log: Path, backup: Path, tmp_path: Path) -> None:
    before = log.read_bytes()
    bad = tmp_path / "bad"

    def refused(why: str) -> None:
        with pytest.raises((NotDone, NotUsable), match=why):
            put_back(log, bad)
        assert log.read_bytes() == before
        assert not [name for name in os.listdir(tmp_path) if "replaced" in name or "unfinished" in name]

    refused("there is no message log at")
    bad.write_bytes(b"x" * 10_000)
    refused("is not a message log of chatrelay's")
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


def test_an_unfinished_copy_is_not_restored_nor_removed(log: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "log.sqlite3.unfinished"
    shutil.copy(log, unfinished)
    with pytest.raises(NotDone, match="is not known to be whole"):
        put_back(log, unfinished)
    assert unfinished.exists()


def test_a_log_is_replaced_only_after_a_question(log: Path, backup: Path, tmp_path: Path) -> None:
    asked: list[Any] = []

    def no(new: Contents, old: Contents | NotUsable) -> None:
        asked.append((new.messages, old.messages if isinstance(old, Contents) else str(old)))
        raise NotDone("no")

    with pytest.raises(NotDone, match="no"):
        put_back(log, backup, no)
    assert contents(log) == expected(250)
    log.write_bytes(b"x" * 10_000)
    Path(f"{log}-wal").unlink(missing_ok=True)
    with pytest.raises(NotDone, match="no"):
        put_back(log, backup, no)
    put_back(tmp_path / "new", backup, no)  # where there is nothing, nothing is asked
    assert asked == [(40, 250), (40, f"{log} is not a message log of chatrelay's")]


def test_root_gives_the_log_to_the_owner_of_the_former(
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
    with pytest.raises(NotDone, match="belongs to another user"):
        put_back(log, backup)


def test_a_reader_that_holds_the_log_is_waited_for_in_vain(backup: Path, tmp_path: Path) -> None:
    log = killed(tmp_path / "log", 3, 60)
    with closing(sqlite3.connect(log, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM block").fetchone()
        with pytest.raises(NotDone, match=r"another program has .*log open: end it, and try again"):
            put_back(log, backup)
        reader.execute("COMMIT")
    assert contents(log) == expected(63)
