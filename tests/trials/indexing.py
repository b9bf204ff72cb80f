"""A process that writes a message log and its index until it is killed: `python -m tests.trials.indexing PATH SEED`.

The runs of the index have few messages and the pauses are short, so a kill falls into every step.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

from chatrelay.messagelog.sqlite import SqliteStore, inbox_reader, index
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.model import Message

MESSAGES_PER_RUN = 40
USERS = 30


class Nobody:
    """A reactor whose calls nobody waits for."""

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        """Do nothing."""


def small_index(path: str) -> Index:
    """Return an index with small runs."""
    index.RUNS_PER_MERGE = 3
    return Index(path, messages_per_run=MESSAGES_PER_RUN)


def batch(choose: random.Random) -> list[Message]:
    """Return a few messages between a few users, some with a unique id."""
    users = [str(choose.randrange(USERS)) for _ in range(2 * choose.randint(1, 30))]
    return [
        Message(sender, recipient, f"unique-{choose.random()}", 1, "x" * choose.randrange(60), time.time(), True)
        for sender, recipient in zip(users[::2], users[1::2], strict=True)
    ]


def main(path: str, seed: str) -> None:
    """Write until the process is killed."""
    inbox_reader.INDEX_SECONDS = inbox_reader.PAUSE_SECONDS = 0.0005
    choose = random.Random(seed)
    reader = inbox_reader.SqliteInboxReader(Nobody(), small_index)  # type: ignore[arg-type]
    store = SqliteStore(path, committed=reader.committed)
    store.open()
    reader.opened(path, "epoch")
    print("open", flush=True)
    while True:
        store.append(batch(choose))
        reader.has_written("1", "2")


if __name__ == "__main__":
    main(*sys.argv[1:])
