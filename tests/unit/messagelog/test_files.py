"""The files of a message log: one log under several names, and the lock on it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.messagelog.sqlite import SqliteMessageReader, SqliteStore
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.model import LogUnavailable
from tests.support.message_logs import message


class Names(SynchronousTestCase):
    """All files of a log are beside its database, under any name of it."""

    def setUp(self) -> None:
        self.folder = Path(os.path.realpath(self.mktemp()))
        self.folder.mkdir()
        (self.folder / "disk" / "deep").mkdir(parents=True)
        self.real = self.folder / "disk" / "log.sqlite3"

    def opened(self, path: str | Path) -> SqliteStore:
        """Return an open store, which is closed at the end of the test."""
        store = SqliteStore(str(path))
        store.open()
        self.addCleanup(store.close)
        return store

    def names(self) -> list[str]:
        """Return several names of the log, with the links that they need."""
        (self.folder / "link").symlink_to(self.real)
        (self.folder / "link-to-link").symlink_to("link")
        (self.folder / "folder").symlink_to("disk")
        (self.folder / "deep").symlink_to("disk/deep")
        return [
            str(self.real),
            str(self.folder / "link"),
            str(self.folder / "link-to-link"),
            str(self.folder / "folder" / "log.sqlite3"),
            # The kernel follows the link before it goes up; os.path.abspath does not.
            str(self.folder / "deep" / ".." / "log.sqlite3"),
            os.path.relpath(self.folder / "link"),
        ]

    def test_all_names_of_a_log_mean_the_same_files(self) -> None:
        for name in self.names():
            files = LogFiles(name)
            self.assertEqual((files.path, files.wal), (str(self.real), f"{self.real}-wal"), name)
        store = self.opened(self.folder / "link")
        store.append([message()])
        beside = {path.name for path in self.real.parent.iterdir() if path.is_file()}
        self.assertEqual(beside, {f"log.sqlite3{suffix}" for suffix in ("", "-wal", "-shm", ".lock")})
        self.assertEqual(
            {path.name for path in self.folder.iterdir()}, {"disk", "deep", "folder", "link", "link-to-link"}
        )

    def test_second_relay_is_refused_under_any_name(self) -> None:
        for first in (names := self.names()):
            store = self.opened(first)
            for second in names:
                error = self.assertRaises(LogUnavailable, SqliteStore(second).open)
                self.assertIn("in use by another chatrelay", str(error), f"{first}, {second}")
            store.close()

    def test_relative_path_counts_from_the_first_working_directory(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder / "disk")
        store = SqliteStore("log.sqlite3")
        os.chdir("/")
        store.open()
        self.addCleanup(store.close)
        self.assertEqual(store.path, str(self.real))

    def test_removed_write_ahead_log_behind_a_link_is_noticed(self) -> None:
        for name in self.names()[1:]:
            store = self.opened(name)
            store.append([message("a")])
            os.remove(f"{self.real}-wal")
            error = self.assertRaises(LogUnavailable, store.append, [message("lost?")])
            self.assertIn("was removed, replaced or cut", str(error), name)

    def test_changed_link_is_noticed_and_followed_by_the_next_open(self) -> None:
        link = self.folder / "link"
        link.symlink_to(self.real)
        store = self.opened(link)
        store.append([message("there")])
        link.unlink()
        link.symlink_to(self.folder / "disk" / "other.sqlite3")
        self.assertRaises(LogUnavailable, store.append, [message("lost?")])
        store.open()
        self.assertEqual(store.append([message("elsewhere")]), [1])
        for path, content in ((self.real, "there"), (self.folder / "disk" / "other.sqlite3", "elsewhere")):
            self.assertEqual([row.content for row in SqliteMessageReader(str(path)).messages()], [content])

    def test_open_rewrites_the_write_ahead_log_behind_a_link(self) -> None:
        # Opening a log rewrites its write-ahead log, which is beside the real file.
        self.opened(self.real).append([message("a")])
        for suffix in ("", "-wal"):
            (self.folder / f"copy{suffix}").write_bytes(Path(f"{self.real}{suffix}").read_bytes())
        (self.folder / "link").symlink_to("copy")
        rewritten: list[str] = []
        pwrite = os.pwrite

        def recorded(descriptor: int, data: bytes, offset: int) -> int:
            rewritten.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            return pwrite(descriptor, data, offset)

        self.patch(os, "pwrite", recorded)
        self.opened(self.folder / "link")
        self.assertEqual(set(rewritten), {str(self.folder / "copy-wal"), str(self.folder / "copy.lock")})

    def test_file_with_hard_links_is_refused(self) -> None:
        self.opened(self.real).close()
        os.link(self.real, self.folder / "second")
        for path in (self.real, self.folder / "second"):
            error = self.assertRaises(LogUnavailable, SqliteStore(str(path)).open)
            self.assertIn("more than one name", str(error))
            self.assertIn("run it again", str(error))
        os.unlink(self.folder / "second")
        self.opened(self.real)

    def test_path_that_is_not_a_file_is_refused(self) -> None:
        os.mkfifo(self.real)
        for path in (self.real, self.real.parent):
            self.assertIn("not a file", str(self.assertRaises(LogUnavailable, SqliteStore(str(path)).open)))
            self.assertFalse(os.path.exists(f"{path}.lock"))


class Lock(SynchronousTestCase):
    """The lock that keeps two relays from writing one log."""

    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        self.store = SqliteStore(self.path)
        self.store.open()
        self.addCleanup(self.store.close)

    def test_second_relay_is_refused_after_the_lock_file_was_removed(self) -> None:
        os.remove(f"{self.path}.lock")
        error = self.assertRaises(LogUnavailable, SqliteStore(self.path).open)
        self.assertIn("in use by another chatrelay", str(error))
        self.store.append([message()])

    def test_moved_log_is_locked_under_its_new_name(self) -> None:
        os.rename(self.path, f"{self.path}.1")
        error = self.assertRaises(LogUnavailable, SqliteStore(f"{self.path}.1").open)
        self.assertIn("in use by another chatrelay", str(error))

    def test_link_in_the_place_of_the_lock_file_is_refused(self) -> None:
        self.store.close()
        other = Path(f"{self.path}.other")
        other.write_bytes(b"of somebody else")
        Path(f"{self.path}.lock").unlink()
        Path(f"{self.path}.lock").symlink_to(other)
        with self.assertRaisesRegex(LogUnavailable, r"\.lock: "):
            self.store.open()
        self.assertEqual(other.read_bytes(), b"of somebody else")

    def test_removed_or_replaced_lock_file_is_locked_again(self) -> None:
        files = self.store._files
        self.assertFalse(files.restore_lock())
        for replaced in (False, True):
            os.remove(files.lock)
            if replaced:
                Path(files.lock).touch()
            self.assertTrue(files.restore_lock())
            self.assertFalse(files.restore_lock())
            self.assertRaises(LogUnavailable, files._locked_file)

    def test_lock_file_that_another_relay_has_is_locked_when_it_is_free(self) -> None:
        files = self.store._files
        os.remove(files.lock)
        other = LogFiles(self.path)
        descriptor = other._locked_file()
        self.assertFalse(files.restore_lock())
        os.close(descriptor)
        self.assertTrue(files.restore_lock())

    def test_removed_lock_file_is_an_error_without_a_lock_on_the_database(self) -> None:
        # As on systems where flock() and SQLite's locks conflict.
        self.patch(sys.modules["chatrelay.messagelog.sqlite.files"], "LOCKS_DATABASE", False)
        self.store.close()
        self.store.open()
        os.remove(f"{self.path}.lock")
        error = self.assertRaises(LogUnavailable, self.store._files.restore_lock)
        self.assertIn("was removed or replaced", str(error))

    def test_closed_store_releases_its_lock(self) -> None:
        self.store.close()
        other = SqliteStore(self.path)
        other.open()
        other.close()

    def test_restoring_the_lock_file_keeps_the_locks_of_sqlite(self) -> None:
        # Closing a descriptor of the database would drop them in this process.
        self.store.append([message("a")])
        os.remove(f"{self.path}.lock")
        self.store._files.restore_lock()
        change = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE'))"
        ran = subprocess.run([sys.executable, "-c", change, self.path], capture_output=True, text=True)
        self.assertIn("locked", ran.stderr)
        with closing(sqlite3.connect(self.path)) as reader:
            self.assertEqual(reader.execute("SELECT content FROM message").fetchall(), [("a",)])


class Faults(SynchronousTestCase):
    """Errors of the file system raise `LogUnavailable`, and the store recovers."""

    CALLS = (
        *("stat", "open", "fstat", "lstat", "pread", "pwrite", "fdatasync", "rename", "fsync", "scandir", "access"),
    )
    ERRORS = (
        *(errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ENAMETOOLONG),
        *(errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.ENOLCK, errno.EMFILE),
    )

    def tried(self, path: str, store: SqliteStore) -> set[str]:
        """Call every method of a store; return the texts of its errors."""
        said: set[str] = set()

        def attempt(work: Any, *arguments: Any) -> None:
            try:
                work(*arguments)
            except LogUnavailable as error:
                said.add(str(error))

        if store.is_open:
            attempt(store.check)
            attempt(store.append, [message()])
            attempt(store.mark_undelivered, [1])
        attempt(store.open)
        attempt(SqliteStore(path).open)
        attempt(lambda: list(SqliteMessageReader(path).messages()))
        store.close()
        attempt(store.open)
        return said

    def test_any_error_of_a_system_call_raises_log_unavailable(self) -> None:
        met: Counter[str] = Counter()
        for call in (*self.CALLS, "flock"):
            module = fcntl if call == "flock" else os
            for number in self.ERRORS:
                path = self.mktemp()
                store = SqliteStore(path)
                store.open()
                store.append([message("kept")])
                with closing(sqlite3.connect(path)) as reader:  # so that closing the store leaves a write-ahead log
                    reader.execute("SELECT * FROM block").fetchall()
                    with patch.object(module, call, side_effect=OSError(number, os.strerror(number))) as failing:
                        said = self.tried(path, store)
                        met[call] += failing.call_count
                self.assertFalse([text for text in said if "please report" in text])
                store.close()
                store.open()
                store.append([message("after")])
                contents = [row.content for row in SqliteMessageReader(path).messages()]
                self.assertEqual((contents[0], contents[-1]), ("kept", "after"))
                store.close()
        self.assertEqual({call for call in met if not met[call]} - {"access", "scandir", "rename", "fsync"}, set())

    def test_any_error_while_a_wal_is_set_aside_loses_no_message(self) -> None:
        for call in ("rename", "fsync", "scandir", "open", "stat"):
            for number in self.ERRORS:
                path = self.mktemp()
                store = SqliteStore(path)
                store.open()
                store.append([message("kept")])
                os.rename(path, f"{path}.1")
                self.assertRaises(LogUnavailable, store.append, [message()])
                with patch.object(os, call, side_effect=OSError(number, os.strerror(number))):
                    with contextlib.suppress(LogUnavailable):
                        store.open()
                    store.close()
                store.open()
                store.close()
                (kept,) = Path(path).parent.glob(f"{Path(path).name}-wal.orphaned-*")
                os.rename(kept, f"{path}.1-wal")
                self.assertEqual([row.content for row in SqliteMessageReader(f"{path}.1").messages()], ["kept"])

    def test_failed_lock_is_reported_with_its_file(self) -> None:
        path = os.path.realpath(self.mktemp())
        with patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
            error = self.assertRaises(LogUnavailable, SqliteStore(path).open)
        self.assertIn(f"{path}.lock: No locks available", str(error))

    def test_sqlite_warning_raises_log_unavailable(self) -> None:
        store = SqliteStore(self.mktemp())
        store.open()
        with self.assertRaises(LogUnavailable), store._close_on_error():
            raise sqlite3.Warning("some warning")

    def test_path_that_is_not_utf_8_can_be_used(self) -> None:
        path = os.fsdecode(os.fsencode(self.mktemp()) + b"\xff")
        store = SqliteStore(path)
        store.open()
        self.addCleanup(store.close)
        store.append([message("a")])
        self.assertEqual([row.content for row in SqliteMessageReader(path).messages()], ["a"])
