"""A message log of an older version is migrated, and the process is killed at any moment of it, again and again."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from chatrelay.messagelog.sqlite import MIGRATIONS, SqliteMessageReader, SqliteStore
from chatrelay.messagelog.sqlite.verify import verify
from tests.support.evidence import Evidence
from tests.support.sqlite_logs import make_older

OPEN = """
import sys
from chatrelay.messagelog.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
print("begins", flush=True)
store.open()
print("done", flush=True)
store.close()
"""


def begin(log: Path) -> subprocess.Popen[str]:
    """Start a process that opens a message log; wait until it begins."""
    process = subprocess.Popen([sys.executable, "-c", OPEN, str(log)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def end(process: subprocess.Popen[str]) -> float:
    """Wait until a process has opened its message log and has ended; return the seconds that the opening took."""
    begun = time.monotonic()
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    seconds = time.monotonic() - begun
    assert process.wait() == 0
    return seconds


def version_of(log: Path) -> int:
    """Return the schema of a log that a killed process has left, without a change to its files."""
    with closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def digest(log: Path) -> str:
    """Return a hash of every message in a log."""
    found = hashlib.sha256()
    for row in SqliteMessageReader(str(log)).messages():
        found.update(repr(row).encode())
    return found.hexdigest()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_sigkill_in_a_migration_loses_and_doubles_nothing(
    version: int, tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """2,000,000 messages and 5 rounds of 4 kills; in the short form 40,000 and 2 rounds."""
    count, rounds = (2_000_000, 5) if full else (40_000, 2)
    chance = random.Random(version)
    older = tmp_path / "older"
    make_older(older, version, count)
    whole = tmp_path / "whole"
    shutil.copy(older, whole)
    seconds = end(begin(whole))
    expected = digest(whole)
    in_copy = in_migration = after = 0
    for _ in range(rounds):
        log = tmp_path / "log"
        shutil.copy(older, log)
        copy = Path(f"{log}.schema-{version}")
        for _ in range(4):
            process = begin(log)
            time.sleep(seconds * chance.random() * chance.random())  # often early, because the copy is made once
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if not copy.exists():
                in_copy += 1
            elif version_of(log) == version:
                in_migration += 1
            else:
                after += 1
        end(begin(log))
        assert verify(str(log), lambda *_: None).messages == count
        assert digest(log) == expected
        assert verify(str(copy), lambda *_: None).messages == count
        assert version_of(copy) == version
        assert [each.name for each in tmp_path.glob("log.schema-*")] == [copy.name]
        store = SqliteStore(str(log))
        store.open()
        assert store.inbox("1").last > 0
        store.close()
        for each in tmp_path.glob("log*"):
            each.unlink()
    evidence.count(f"messages of schema {version}", count, 1)
    evidence.count("kills", in_copy + in_migration + after, 4 * rounds)
    if full:
        evidence.count("of them in the copy", in_copy, 1)
        evidence.count("of them in the migration", in_migration, 5 if version == 1 else 0)
    evidence.figure(f"the whole took {seconds:.1f} s")
