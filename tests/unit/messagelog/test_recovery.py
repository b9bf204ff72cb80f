"""Recovery: a write-ahead log whose database is missing or was replaced is kept, and the log says where."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.messagelog.sqlite import MIGRATIONS, SqliteMessageReader, SqliteStore, checkpoints, files, schema, wal
from chatrelay.model import LogUnavailable
from tests.support import ROOT
from tests.support.message_logs import message
from tests.support.relay_case import logged_lines

SEEDS = 6
"""The random histories of a log that are tried."""


def contents(path: object) -> list[str]:
    """Return the contents of a log's messages."""
    return [row.content for row in SqliteMessageReader(str(path)).messages()]


def run(command: str) -> str:
    """Run a command of a log message in a shell; return its output."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "chatrelay")
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m chatrelay.app.cli "$@"\n')
        program.chmod(0o700)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


class Recovery(SynchronousTestCase):
    """Opening a log beside a write-ahead log."""

    def setUp(self) -> None:
        self.folder = Path(os.path.realpath(self.mktemp()))
        self.folder.mkdir()
        self.path = self.folder / "log.sqlite3"
        self.wal = self.folder / "log.sqlite3-wal"
        self.running = self.folder / "running"
        self.running.mkdir()
        self.lines = logged_lines(self)

    def opened(self, path: Path) -> SqliteStore:
        """Return an open store, which is closed at the end of the test."""
        store = SqliteStore(str(path))
        store.open()
        self.addCleanup(store.close)
        return store

    def crash(self, store: SqliteStore) -> None:
        """Copy the files of a store to `self.path`, as a relay that is killed now leaves them."""
        for suffix in ("", "-wal"):
            shutil.copy(f"{store.path}{suffix}", f"{self.path}{suffix}")

    def killed(self, messages: int = 300) -> None:
        """Make the files of a relay at `self.path` that was killed after this many messages."""
        store = self.opened(self.running / "log.sqlite3")
        self.fill(store, messages)
        self.crash(store)

    def fill(self, store: SqliteStore, messages: int) -> None:
        """Write this many messages, a few in a batch."""
        for number in range(0, messages, 10):
            store.append([message(str(number)) for number in range(number, min(number + 10, messages))])

    def aside(self) -> list[Path]:
        """Return the write-ahead logs that were set aside."""
        return sorted(self.folder.glob("*.orphaned-*"))

    def refused(self) -> str:
        """Return why the log at `self.path` can't be opened; check that its write-ahead log is unchanged."""
        before = self.wal.read_bytes()
        error = self.assertRaises(LogUnavailable, SqliteStore(str(self.path)).open)
        self.assertTrue(self.wal.read_bytes() == before)
        return str(error)

    def remedy(self) -> str:
        """Return the command in the log message about the write-ahead log."""
        (line,) = (line for line in self.lines if "was renamed to" in line)
        return line.partition("To read them: ")[2]

    # The database is not there ------------------------------------------------

    def test_messages_of_a_log_moved_after_a_kill_can_be_read(self) -> None:
        self.killed()
        os.rename(self.path, self.folder / "log.sqlite3.1")
        store = self.opened(self.path)
        self.assertEqual(store.append([message("new")]), [1])
        (aside,) = self.aside()
        self.assertTrue(re.fullmatch(r"log\.sqlite3-wal\.orphaned-\d{8}T\d{6}Z", aside.name), aside.name)
        self.assertIn(str(aside), self.lines[-1])
        self.assertEqual(len(run(self.remedy()).splitlines()), 300)
        self.assertEqual(contents(self.folder / "log.sqlite3.1"), [str(number) for number in range(300)])
        self.assertEqual(contents(self.path), ["new"])

    def test_messages_of_a_log_moved_while_open_can_be_read(self) -> None:
        store = self.opened(self.path)
        self.fill(store, 300)
        os.rename(self.path, self.folder / "log.sqlite3.1")
        self.assertRaises(LogUnavailable, store.append, [message("refused")])
        store.open()
        self.assertEqual(store.append([message("new")]), [1])
        self.assertEqual(len(run(self.remedy()).splitlines()), 300)
        self.assertEqual(contents(self.folder / "log.sqlite3.1"), [str(number) for number in range(300)])

    def test_remedy_works_for_any_file_name(self) -> None:
        odd = self.folder / 'it\'s a $HOME; "log"'
        odd.mkdir()
        self.path, self.wal = odd / "log.sqlite3", odd / "log.sqlite3-wal"
        self.killed()
        os.rename(self.path, odd / "log of Nov'26.sqlite3")
        self.opened(self.path)
        self.assertEqual(len(run(self.remedy()).splitlines()), 300)

    def test_remedy_has_a_placeholder_for_a_database_that_is_not_found(self) -> None:
        self.killed()
        os.rename(self.path, self.running / "moved.sqlite3")
        self.opened(self.path)
        command, _, what = self.remedy().partition(" (DATABASE: ")
        self.assertEqual(what, "the file that the database was moved to)")
        printed = run(command.replace("DATABASE", str(self.running / "moved.sqlite3")))
        self.assertEqual(len(printed.splitlines()), 300)

    def test_wal_beside_an_empty_file_is_set_aside(self) -> None:
        self.killed()
        os.rename(self.path, self.folder / "log.sqlite3.1")
        self.path.touch()
        self.opened(self.path)
        self.assertEqual(len(run(self.remedy()).splitlines()), 300)

    def test_wal_beside_a_log_without_messages_is_set_aside(self) -> None:
        self.killed()
        os.rename(self.path, self.folder / "log.sqlite3.1")
        self.opened(self.folder / "fresh").close()
        os.rename(self.folder / "fresh", self.path)
        self.opened(self.path)
        self.assertEqual(len(run(self.remedy()).splitlines()), 300)

    def test_wals_set_aside_in_one_second_have_different_names(self) -> None:
        self.killed(1)
        os.remove(self.path)
        content = self.wal.read_bytes()
        for _ in range(3):
            store = SqliteStore(str(self.path), now=lambda: 1_700_000_000.5)
            store.open()
            store.close()
            os.remove(self.path)
            self.wal.write_bytes(content)
        names = [path.name.partition("orphaned-")[2] for path in self.aside()]
        self.assertEqual(names, ["20231114T221320Z", "20231114T221320Z-2", "20231114T221320Z-3"])

    # The database is another one ----------------------------------------------

    def test_backup_beside_the_old_wal_is_refused_with_a_remedy(self) -> None:
        source = self.running / "log.sqlite3"

        def by_sqlite(copy: Path) -> None:
            with closing(sqlite3.connect(source)) as log, closing(sqlite3.connect(copy)) as into:
                log.backup(into)

        def again_by_sqlite(copy: Path) -> None:
            for _ in range(20):
                by_sqlite(copy)

        def by_vacuum(copy: Path) -> None:
            with closing(sqlite3.connect(source)) as log:
                log.execute("VACUUM INTO ?", (str(copy),))

        def of_a_stopped_relay(copy: Path) -> None:
            shutil.copy(self.stopped, copy)

        def of_the_file_alone(copy: Path) -> None:
            shutil.copy(source, copy)

        for way in (by_sqlite, again_by_sqlite, by_vacuum, of_a_stopped_relay, of_the_file_alone):
            for later in (1, 50):  # without a checkpoint after the copy, and with some
                if way is of_the_file_alone and later == 1:
                    continue  # that copy is the database that the write-ahead log belongs to
                with patch.object(checkpoints, "CHECKPOINT_BYTES", 100_000):
                    store = self.opened(source)
                    store.append([message("before")])
                    store.close()
                    self.stopped = self.folder / "stopped"
                    shutil.copy(source, self.stopped)
                    store.open()
                    copy = self.folder / "copy"
                    way(copy)
                    for number in range(later):
                        store.append([message(f"{number}" * 3000)])
                    self.crash(store)
                shutil.copy(copy, self.path)  # the file stays the same one, as with cp
                why = self.refused()
                self.assertIn("does not belong to", why, f"{way.__name__} {later}")
                self.assertRaises(LogUnavailable, contents, self.path)
                run(re.search(r"set those messages aside: (.*?\))\. ", why)[1])  # type: ignore[index]
                opened = self.opened(self.path)
                self.assertEqual(contents(self.path), ["before"])
                opened.close()
                store.close()
                self.assertEqual(len(list(self.folder.glob("*.aside-*"))), 1)
                for path in (*self.folder.glob("log*"), *self.running.glob("*"), copy):
                    path.unlink()

    def test_database_of_another_program_is_refused(self) -> None:
        self.killed()
        os.remove(self.path)
        with closing(sqlite3.connect(self.folder / "theirs")) as other:
            other.execute("CREATE TABLE theirs (a)")
        os.rename(self.folder / "theirs", self.path)
        self.assertIn("belongs to another program", self.refused())

    def test_file_that_is_not_a_database_is_refused(self) -> None:
        self.killed()
        self.path.write_bytes(b"this is no database" * 1000)
        self.assertIn("not a message log, but a file of another kind", self.refused())
        self.assertIn("not a message log", str(self.assertRaises(LogUnavailable, contents, self.path)))

    def test_wal_with_another_page_size_does_not_belong(self) -> None:
        self.killed()
        self.assertFalse(wal.belongs(str(self.wal), 8192, 0))

    # The database is the right one --------------------------------------------

    def test_own_database_is_accepted_after_any_history(self) -> None:
        # After any operations, and killed at any moment.
        for seed in range(SEEDS):
            chance = random.Random(seed)
            source = self.running / f"{seed}.sqlite3"
            store = SqliteStore(str(source))
            readers: list[sqlite3.Connection] = []
            sent: list[str] = []
            with patch.object(checkpoints, "CHECKPOINT_BYTES", chance.choice([8192, 40_000, 400_000])):
                store.open()
                for _ in range(40):
                    what = chance.randrange(12)
                    if what == 0:
                        store.close()
                        store.open()
                    elif what == 1:
                        reader = sqlite3.connect(source, isolation_level=None)
                        reader.execute("BEGIN")
                        reader.execute("SELECT count(*) FROM block").fetchone()
                        readers.append(reader)
                    elif what == 2 and readers:
                        readers.pop().close()
                    elif what == 3:
                        with closing(sqlite3.connect(source, timeout=0)) as other:
                            other.execute(f"PRAGMA wal_checkpoint({chance.choice(['PASSIVE', 'RESTART', 'TRUNCATE'])})")
                    elif what == 4:
                        with closing(sqlite3.connect(source, timeout=0)) as other:
                            other.execute(
                                f"CREATE INDEX theirs_{len(sent)}_{chance.random():.6f} ON block (messages)".replace(
                                    ".", "_"
                                )
                            )
                    elif what == 5 and not readers:
                        with closing(sqlite3.connect(source, timeout=0)) as other:
                            other.execute("VACUUM")
                    elif what == 6:
                        store.check()
                    else:
                        content = f"{len(sent)}-" + "x" * chance.choice([1, 1000, 20_000])
                        store.append([message(content)])
                        sent.append(content)
                    self.crash(store)
                    header = self.path.read_bytes()[:100]
                    size, cookie = int.from_bytes(header[16:18], "big"), int.from_bytes(header[40:44], "big")
                    self.assertTrue(wal.belongs(str(self.wal), size, cookie), f"seed {seed}, {what}, {len(sent)}")
                self.assertEqual(contents(source), sent)
                recovered = self.opened(self.path)
                self.assertEqual(contents(self.path), sent)
                recovered.close()
                for reader in readers:
                    reader.close()
                store.close()
            for path in self.folder.glob("log*"):
                path.unlink()

    def test_own_database_is_accepted_after_a_checkpoint_by_another_program(self) -> None:
        # The next batch restarts the write-ahead log, with what was to be the last commit before a checkpoint.
        source = self.running / "log.sqlite3"
        store = self.opened(source)
        store.append([message("a")])
        with (
            closing(sqlite3.connect(source)) as other,
            closing(sqlite3.connect(source, isolation_level=None)) as reader,
        ):
            other.execute("PRAGMA wal_checkpoint")
            reader.execute("BEGIN")
            reader.execute("SELECT 1 FROM block").fetchall()  # in the database alone, which can't be written meanwhile
            with patch.object(checkpoints, "CHECKPOINT_BYTES", 1):
                store.append([message("b")])
            self.crash(store)
        self.opened(self.path)
        self.assertEqual(contents(self.path), ["a", "b"])

    def test_wal_of_an_older_chatrelay_is_recovered(self) -> None:
        # It did not change the cookie, and let SQLite restart the write-ahead log.
        source = self.running / "old"
        with closing(sqlite3.connect(source, isolation_level=None)) as old:
            old.execute("PRAGMA journal_mode = WAL")
            schema.migrate(old, 0, MIGRATIONS)
            for number in range(1, 1600):
                row = ["a", number, "b", number, 1, 1, "x" * 1000, 0]
                old.execute("INSERT INTO block VALUES (?, ?)", (number, f"[{row!r}]".replace("'", '"')))
                if number % 500 == 7:
                    for suffix in ("", "-wal"):
                        shutil.copy(f"{source}{suffix}", f"{self.path}{suffix}")
                    store = self.opened(self.path)
                    self.assertEqual(store.append([message("new")]), [number + 1])
                    store.close()

    def test_damaged_first_frame_does_not_prove_another_database(self) -> None:
        self.killed()
        content = bytearray(self.wal.read_bytes())
        content[32 + 24 + 1000] ^= 1
        content[32 + 24 + 40 : 32 + 24 + 44] = b"\\1\\2\\3\\4"
        self.wal.write_bytes(content)
        self.assertTrue(wal.belongs(str(self.wal), 4096, 1))
        self.opened(self.path)

    def test_empty_wal_is_not_set_aside(self) -> None:
        self.killed()
        self.wal.write_bytes(b"")
        os.remove(self.path)
        self.opened(self.path)
        self.assertEqual(self.aside(), [])

    # While it is open ---------------------------------------------------------

    def test_removed_wal_of_an_open_log_loses_no_message(self) -> None:
        store = self.opened(self.path)
        # The last program to close a log copies the write-ahead log; with a reader, closing the store does not.
        code = (
            "import sqlite3, sys; log = sqlite3.connect(sys.argv[1]); log.execute('SELECT * FROM block').fetchall();"
            "print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            self.fill(store, 300)
            os.remove(self.wal)
            self.assertRaises(LogUnavailable, store.append, [message("refused")])
            reader.kill()
        store.open()
        store.append([message("new")])
        self.assertEqual(contents(self.path), [*map(str, range(300)), "new"])

    def test_wal_that_replaced_the_logs_own_is_kept(self) -> None:
        self.killed(3)
        theirs = self.wal.read_bytes()
        for path in (self.path, self.wal):
            path.unlink()
        store = self.opened(self.path)
        store.append([message("ours")])
        (self.folder / "theirs").write_bytes(theirs)
        os.replace(self.folder / "theirs", self.wal)
        self.assertRaises(LogUnavailable, store.append, [message("refused")])
        store.open()
        self.assertEqual(contents(self.path), ["ours"])
        (aside,) = self.aside()
        self.assertTrue(aside.read_bytes() == theirs)

    def test_truncated_wal_is_noticed(self) -> None:
        store = self.opened(self.running / "log.sqlite3")
        store.append([message("a")])
        store.append([message("b")])
        os.truncate(f"{store.path}-wal", 0)
        self.assertRaises(LogUnavailable, store.append, [message("refused")])
        store.open()
        store.append([message("new")])
        self.crash(store)
        self.assertEqual(contents(self.path)[-1], "new")

    def test_wal_emptied_by_a_checkpoint_of_another_program_refuses_no_message(self) -> None:
        store = self.opened(self.path)
        for look in (False, True):
            store.append([message("a"), message("b")])
            with closing(sqlite3.connect(self.path)) as other:
                self.assertEqual(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone(), (0, 0, 0))
            self.assertEqual(self.wal.stat().st_size, 0)
            if look:
                store.check()
            store.append([message("c")])
        self.assertEqual(contents(self.path), ["a", "b", "c"] * 2)
        self.assertEqual(self.lines, [])

    # Reading ------------------------------------------------------------------

    def test_reading_does_not_delete_a_wal(self) -> None:
        self.killed()
        os.truncate(self.path, 0)
        before = self.wal.read_bytes()
        self.assertIn("holds messages of another", str(self.assertRaises(LogUnavailable, contents, self.path)))
        self.assertTrue(self.wal.read_bytes() == before)

    def test_reading_works_while_the_wal_is_restarted(self) -> None:
        self.patch(files, "_locked_here", set())  # as in a process of its own
        with patch.object(checkpoints, "CHECKPOINT_BYTES", 8192):
            store = self.opened(self.path)
            for number in range(60):
                store.append([message("x" * 5000)])
                self.assertEqual(len(contents(self.path)), number + 1)
