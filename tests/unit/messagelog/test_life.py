"""The epoch of a message log in SQLite: which files keep it, and which get a new one."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.messagelog.sqlite.life import Note, is_continued
from chatrelay.model import LogUnavailable
from tests.support.message_logs import message
from tests.support.sqlite_logs import copy, put_back


class Epochs(SynchronousTestCase):
    """A file that may have lost places must not keep its epoch, and any other file should."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "log"
        self.store = self.opened(self.path)
        self.epoch = self.store.epoch
        self.store.append([message("a")])

    def opened(self, path: Path) -> SqliteStore:
        """Return an open store, which is closed at the end of the test."""
        store = SqliteStore(str(path))
        store.open()
        self.addCleanup(store.close)
        return store

    def crash(self, store: SqliteStore) -> None:
        """End a store as SIGKILL does: its files stay as they are, and nothing more is written."""
        with patch("os.pwrite", side_effect=OSError):
            store.close()

    def reopened(self) -> str:
        """Close the store; return the epoch at the next start."""
        self.store.close()
        return self.epoch_at_start()

    def epoch_at_start(self) -> str:
        """Return the epoch that a new process finds."""
        self.store = self.opened(self.path)
        return self.store.epoch

    def test_restarts_keep_the_epoch(self) -> None:
        for _ in range(3):
            self.assertEqual(self.reopened(), self.epoch)
            self.store.append([message()])

    def test_kill_keeps_the_epoch(self) -> None:
        for _ in range(3):
            self.store.append([message()])
            self.crash(self.store)
            self.assertEqual(self.epoch_at_start(), self.epoch)

    def test_failed_log_that_is_reopened_keeps_the_epoch_and_is_not_written_to(self) -> None:
        with patch.object(self.store._files, "identity", side_effect=OSError), self.assertRaises(LogUnavailable):
            self.store.append([message()])
        note = Path(f"{self.path}.lock").read_bytes()
        self.store.open()
        self.assertEqual((self.store.epoch, Path(f"{self.path}.lock").read_bytes()), (self.epoch, note))

    def test_kill_at_any_step_of_the_opening_keeps_the_epoch(self) -> None:
        self.store.close()
        steps = 0
        for steps in range(20):
            remaining = iter(range(steps))

            def counted(call: Any, remaining: Any = remaining) -> Any:
                def count(*arguments: Any) -> Any:
                    if next(remaining, None) is None:
                        raise KeyboardInterrupt
                    return call(*arguments)

                return count

            store = SqliteStore(str(self.path))
            is_killed = False
            with (
                patch("os.pwrite", counted(os.pwrite)),
                patch("os.fsync", counted(os.fsync)),
                patch("os.fdatasync", counted(os.fdatasync)),
            ):
                try:
                    store.open()
                except KeyboardInterrupt:
                    is_killed = True
            self.crash(store)
            self.assertEqual(self.epoch_at_start(), self.epoch)
            self.store.close()
            if not is_killed:
                break
        self.assertEqual(steps, 5)  # the note, two syncs, the note after the commit, and its sync

    def test_older_copy_that_is_written_over_the_log_has_a_new_epoch(self) -> None:
        copy(self.path, self.folder / "copy")
        self.store.append([message("b")])
        self.store.close()
        with open(self.path, "r+b") as log:  # cp keeps the inode
            log.truncate()
            log.write((self.folder / "copy").read_bytes())
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_copy_from_before_the_last_start_has_a_new_epoch(self) -> None:
        copy(self.path, self.folder / "copy")
        self.reopened()
        self.store.close()
        with open(self.path, "r+b") as log:
            log.truncate()
            log.write((self.folder / "copy").read_bytes())
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_copy_from_before_the_last_start_has_a_new_epoch_after_a_power_cut(self) -> None:
        self.store.close()
        before = self.path.read_bytes()
        lock = Path(f"{self.path}.lock")
        synced = [lock.read_bytes()]
        with patch("os.fsync", lambda _: synced.append(lock.read_bytes())):
            self.store = self.opened(self.path)
        self.crash(self.store)
        with open(lock, "r+b") as note, open(self.path, "r+b") as log:
            note.write(synced[-1])  # what was not synced is lost
            log.truncate()
            log.write(before)
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_older_copy_that_is_put_in_place_after_a_kill_has_a_new_epoch(self) -> None:
        copy(self.path, self.folder / "copy")
        self.store.append([message("b")])
        self.store.check()  # the writer's thread calls it every second
        self.crash(self.store)
        with open(self.path, "r+b") as log:
            log.truncate()
            log.write((self.folder / "copy").read_bytes())
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_copy_that_is_moved_to_the_log_has_a_new_epoch(self) -> None:
        self.store.close()
        shutil.copy(self.path, self.folder / "copy")
        os.rename(self.folder / "copy", self.path)
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_restored_backup_has_a_new_epoch(self) -> None:
        copy(self.path, self.folder / "backup")
        self.store.close()
        put_back(self.path, self.folder / "backup")
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_backup_that_is_restored_to_a_lost_log_has_a_new_epoch(self) -> None:
        self.store.close()
        copy(self.path, self.folder / "backup")
        os.unlink(self.path)  # the next file may get its inode
        put_back(self.path, self.folder / "backup")
        self.assertEqual(Path(f"{self.path}.lock").read_bytes().strip(), b"")
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_log_in_another_folder_has_a_new_epoch(self) -> None:
        self.store.close()
        self.path = self.folder / "elsewhere"
        os.rename(self.folder / "log", self.path)
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_log_without_its_newest_messages_has_a_new_epoch(self) -> None:
        self.store.check()
        self.crash(self.store)
        shutil.copy(self.path, self.folder / "copy")  # without its write-ahead log
        self.store = self.opened(self.path)
        self.store.append([message("b")])
        self.store.check()
        with closing(sqlite3.connect(self.path)) as reader:  # keeps the write-ahead log at the close
            reader.execute("SELECT * FROM block").fetchall()
            self.crash(self.store)
            os.truncate(f"{self.path}-wal", 0)
        self.assertNotEqual(self.epoch_at_start(), self.epoch)

    def test_file_that_is_put_in_place_while_the_log_is_open_has_a_new_epoch(self) -> None:
        other = self.opened(self.folder / "other")
        other.append([message("x"), message("y")])
        other.close()
        os.rename(self.folder / "other", self.path)
        self.assertRaises(LogUnavailable, self.store.append, [message()])
        os.rename(f"{self.path}-wal", f"{self.path}-wal.aside")
        self.store.open()
        self.assertNotIn(self.store.epoch, (self.epoch, other.epoch))

    def test_lock_file_that_is_removed_while_the_log_is_open_keeps_the_epoch(self) -> None:
        os.unlink(f"{self.path}.lock")
        self.store.check()
        self.assertEqual(self.reopened(), self.epoch)

    def test_lock_file_that_is_removed_or_damaged_in_between_makes_a_new_epoch(self) -> None:
        epochs = {self.epoch}
        for content in (None, b"", b"\xff", b"{}", b"null", b'{"openings": [], "inode": 0, "number": 0}'):
            self.store.close()
            os.unlink(f"{self.path}.lock")
            if content is not None:
                Path(f"{self.path}.lock").write_bytes(content)
            epochs.add(self.epoch_at_start())
        self.assertEqual(len(epochs), 7)


class Notes(SynchronousTestCase):
    """What a note says of a database."""

    def test_database_is_continued_only_with_opening_inode_and_messages(self) -> None:
        note = Note(("old", "new"), 7, 100)
        self.assertTrue(is_continued(note, "old", 7, 100))
        self.assertTrue(is_continued(note, "new", 7, 101))
        for other in (
            is_continued(None, "new", 7, 100),
            is_continued(note, "another", 7, 100),
            is_continued(note, "", 7, 100),
            is_continued(note, "new", 8, 100),
            is_continued(note, "new", 7, 99),
        ):
            self.assertFalse(other)
