"""A process erases in a message log while it writes to it, and is killed at any moment, again and again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from chatrelay.messagelog.sqlite import SqliteEraser, SqliteMessageReader, SqliteStore
from chatrelay.messagelog.sqlite.verify import verify
from chatrelay.model import InboxEntry, Message
from tests.support.evidence import Evidence

USERS = 8

ERASE = """
import sys
from chatrelay.messagelog.sqlite import SqliteStore, erasure
from chatrelay.model import Message
erasure.BLOCKS_PER_PART, erasure.RANGES_PER_PART, erasure.RANGES_PER_NOTICE = 2, 40, 20
store = SqliteStore(sys.argv[1])
store.open()
print("begins", store.is_erasing, flush=True)
number = 0
while store.is_erasing:
    store.erase()
    store.append([Message("0", str(number % 8), "x", "x", "<new>", 1_800_000_000.0)])
    number += 1
print("done", flush=True)
store.close()
"""


def fill(log: Path, count: int) -> None:
    """Make a message log, and ask for an erasure of what user 0 wrote, which is not begun."""
    store = SqliteStore(str(log))
    store.open()
    chance = random.Random(count)
    for _ in range(0, count, 50):
        users = [(chance.randrange(USERS), chance.randrange(USERS)) for _ in range(50)]
        store.append([Message(a, b, "x", "x", f"<by {a}>", 1_700_000_000.0) for a, b in users])
    asking = SqliteEraser(str(log)).erase("0", received=False)
    next(asking)  # the store that is open has the lock, so this only asks
    asking.close()
    store.close()


def entries(log: Path, user: str) -> list[InboxEntry]:
    """Return a user's inbox."""
    reader = SqliteMessageReader(str(log))
    return list(reader.entries(user, 0, reader.inbox(user).last))


def check(log: Path, is_finished: bool) -> int:
    """Check every inbox; return how many notices there are."""
    notices = 0
    for user in map(str, range(USERS)):
        inbox = entries(log, user)
        void = [entry.place for entry in inbox if entry.message is None and not entry.erased]
        told = [place for entry in inbox for low, high in entry.erased for place in range(low, high + 1)]
        assert len(told) == len(set(told)), f"{user} was told of a place twice"
        assert set(told) <= set(void), f"{user} was told of what is not erased"
        notices += sum(bool(entry.erased) for entry in inbox)
        if is_finished:
            assert told == void, f"{user} was not told of all"
            assert not [entry for entry in inbox if entry.message and entry.message.content == "<by 0>"]
    return notices


def test_sigkill_in_an_erasure_tells_of_no_more_and_no_less_than_is_erased(
    tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """8 rounds of 25 kills, in the short form 1 round of 6; messages of the same user are written meanwhile, and stay."""
    rounds, kills = (8, 25) if full else (1, 6)
    chance = random.Random(7)
    in_erasure = notices = 0
    for number in range(rounds):
        log = tmp_path / f"log{number}"
        fill(log, 6_000 if full else 3_000)
        for _ in range(kills):
            process = subprocess.Popen([sys.executable, "-c", ERASE, str(log)], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            in_erasure += process.stdout.readline() == "begins True\n"
            time.sleep(0.03 * chance.random())
            process.send_signal(signal.SIGKILL)
            process.communicate()
            check(log, is_finished=False)
        process = subprocess.Popen([sys.executable, "-c", ERASE, str(log)], stdout=subprocess.PIPE, text=True)
        assert process.communicate()[0].endswith("done\n")
        notices += check(log, is_finished=True)
        verify(str(log), lambda *_: None)
        assert not Path(f"{log}-wal").exists()
        assert b"<by 0>" not in log.read_bytes()
    evidence.count("kills in an erasure", in_erasure, rounds)
    evidence.count("notices", notices, 10)
