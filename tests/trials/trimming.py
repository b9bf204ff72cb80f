"""A process that writes a message log and deletes from it until it is killed: `python -m tests.trials.trimming PATH SEED`.

It prints the number of the last message after each commit, and "deletes" before each step of deleting. Slices and runs of the index are small, so a kill falls into
every step.
"""

from __future__ import annotations

import random
import sys

from chatrelay.messagelog.sqlite import SqliteStore, inbox_reader, store, trimming
from chatrelay.model import Mark, MarkKind
from tests.trials.indexing import Nobody, batch, small_index

KEPT = 60
"""The messages that are usually kept."""


def main(path: str, seed: str) -> None:
    """Write and delete until the process is killed."""
    inbox_reader.INDEX_SECONDS = inbox_reader.PAUSE_SECONDS = 0.0005
    store.MESSAGES_PER_SAVE = 50
    trimming.MAX_MESSAGES = 30
    choose = random.Random(seed)
    log = SqliteStore(path)
    log.open()
    reader = inbox_reader.SqliteInboxReader(Nobody(), small_index)  # type: ignore[arg-type]
    reader.opened(path, "epoch")
    while True:
        messages = batch(choose)
        for each in messages:
            each.received_at = float(log._last_number + 1)
        print(log.append(messages)[-1], flush=True)
        reader.has_written("1", "2")
        user, peer = choose.choice(messages).from_uid, choose.choice(messages).to_uid
        log.add_marks([Mark(str(user), MarkKind.READ, str(peer), log.inbox(str(user)).last)])
        kept = 0 if choose.random() < 0.05 else KEPT
        count = 1
        while count and choose.random() < 0.9:
            print("deletes", flush=True)
            count = log.trim((log._last_number - kept + 1) * 1_000_000)


if __name__ == "__main__":
    main(*sys.argv[1:])
