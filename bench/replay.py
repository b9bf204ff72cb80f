"""Measure what it costs the relay to replay stored messages to a client of v2 that comes back.

    python -m bench.replay                      a log of a million messages, five replays of each kind
    python -m bench.replay --messages 10000000  a longer log

The log in SQLite is written without a relay. In its middle, 10,000 messages to one user lie side by side. Another user
receives one in so many messages that these are 10,000, too. The relay indexes the log first. Then a client of one of
the two users logs in with the place 0 as its last, reads all 10,000 messages as fast as it can, checks that their
places are in order, and disconnects; the two users take turns. The CPU time is that of all threads of the relay, from
the login to the last message, the login included. The memory is the peak of the resident memory during a replay, less
the resident memory before it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from bench import proc
from bench.instructions import CONTENT, HANDSHAKE_V2, ID, frame, frames_in, opened, site
from bench.measure import cores
from bench.ports import free_port
from bench.servers import SERVERS, Place, process
from chatrelay.messagelog.sqlite.store import SqliteStore
from chatrelay.model import Message

REPLAYED = 10_000
"""The messages that are replayed: as many as the relay replays by default."""

USERS = 1_000
"""The users who exchange the other messages."""

BATCH = 100
SIDE_BY_SIDE, SCATTERED = "side by side", "scattered"
"""The users to whom is replayed."""

QUIET_SECONDS, QUIET_LOOKS = 1.0, 3
QUIET_SHARE = 0.02
"""A relay that uses less of its core, for so many looks at such intervals, has indexed everything."""


@dataclass(frozen=True)
class Replay:
    """One replay.

    :ivar cpu: CPU seconds of the relay.
    :ivar kib: how much more memory it had at its peak than before.
    """

    cpu: float
    kib: int


def messages(count: int, replayed: int = REPLAYED) -> Iterator[Message]:
    """Yield the messages of a log: those to `SIDE_BY_SIDE` in the middle, and those to `SCATTERED` evenly.

    :param count: of all messages; a multiple of `replayed`, and at least three times as many.
    """
    choose = random.Random(1)
    share, middle = count // replayed, count // 2
    side_by_side = scattered = 0
    for number in range(count):
        sender, recipient = f"user-{choose.randrange(USERS)}", f"user-{choose.randrange(USERS)}"
        if number % share == 0:
            recipient = SCATTERED
            scattered += 1
        elif number >= middle and side_by_side < replayed:
            recipient = SIDE_BY_SIDE
            side_by_side += 1
        yield Message(sender, recipient, ID % number, "0", CONTENT, 1.0e9 + number, True)


def write_log(path: Path, count: int) -> None:
    """Write a log of so many messages."""
    store = SqliteStore(str(path))
    store.open()
    rows = messages(count)
    while batch := list(islice(rows, BATCH)):
        store.append(batch)
    store.close()


def log_in(port: int, user: str, after: dict[str, object] | None) -> tuple[socket.socket, Iterator[bytes]]:
    """Log in by v2; return the connection, and what it receives, the answer first."""
    connection = opened(port, HANDSHAKE_V2)
    request = {"type": "auth-request", "SESSID": user}
    connection.sendall(frame(request if after is None else {**request, "after": after}))
    return connection, frames_in(connection)


def wait_until_quiet(pid: int) -> None:
    """Wait until a relay does next to nothing, for several looks in a row."""
    quiet = 0
    while quiet < QUIET_LOOKS:
        before = proc.thread_seconds_of(pid)
        time.sleep(QUIET_SECONDS)
        share = (proc.thread_seconds_of(pid) - before) / QUIET_SECONDS
        quiet = quiet + 1 if share <= QUIET_SHARE else 0


def replay(port: int, pid: int, user: str, epoch: str) -> Replay:
    """Replay all messages to one user.

    :raises RuntimeError: if a place is missing.
    """
    proc.reset_peak(pid)
    kib, cpu = proc.resident_kib_of([pid]), proc.thread_seconds_of(pid)
    connection, frames = log_in(port, user, {"epoch": epoch, "n": 0})
    with closing(connection):
        answer = json.loads(next(frames))
        places = []
        while len(places) < REPLAYED:
            places.append(next(frames))
        used = proc.thread_seconds_of(pid) - cpu
        peak = proc.peak_kib_of(pid)
    if answer.get("recovered") is not True or [json.loads(each)["n"] for each in places] != list(
        range(1, REPLAYED + 1)
    ):
        raise RuntimeError(f"not replayed in order after {answer!r}")
    return Replay(used, peak - kib)


def measure(count: int, rounds: int) -> dict[str, list[Replay]]:
    """Replay to both users in turns, `rounds` times each, from a log of `count` messages."""
    found: dict[str, list[Replay]] = {SIDE_BY_SIDE: [], SCATTERED: []}
    with tempfile.TemporaryDirectory(prefix="chatrelay-bench-") as name, site() as url:
        folder = Path(name)
        place = Place(free_port(), folder, url, folder / "none", folder / "none")
        write_log(folder / "messages.sqlite3", count)
        server = SERVERS["chatrelay-v2"]
        with process(server.command(place), place.port, cores()[0], folder, server.name) as pid:
            connection, frames = log_in(place.port, "nobody", None)
            with closing(connection):
                epoch = json.loads(next(frames))["epoch"]
                connection.sendall(frame({"type": "conversations-request", "id": "1"}))  # the index begins with a read
                next(frames)
                wait_until_quiet(pid)
                for _ in range(rounds):
                    for user, replays in found.items():
                        replays.append(replay(place.port, pid, user, epoch))
                        time.sleep(QUIET_SECONDS / 2)
    return found


def lines(found: dict[str, list[Replay]], count: int) -> list[str]:
    """Return the results in words."""
    said = []
    for user, replays in found.items():
        costs = sorted(each.cpu / REPLAYED * 1e6 for each in replays)
        middle = median(costs)
        where = user if user == SIDE_BY_SIDE else f"one in {count // REPLAYED:,} of the log"
        later = max((each.kib for each in replays[1:]), default=0)
        said.append(
            f"{where}: {middle:.1f} µs CPU a message ({costs[0]:.1f} to {costs[-1]:.1f}), {1e6 / middle:,.0f} messages "
            f"per CPU second; memory +{replays[0].kib / 1024:.1f} MiB in the first replay, "
            f"at most +{later / 1024:.1f} MiB in a later one"
        )
    return said


def main(command_line: list[str]) -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="in the log (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="replays of each kind (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    if arguments.messages < 3 * REPLAYED or arguments.messages % REPLAYED or arguments.rounds < 1:
        parser.error(
            f"--messages must be a multiple of {REPLAYED:,}, from {3 * REPLAYED:,} on, and --rounds at least 1"
        )
    for line in lines(measure(arguments.messages, arguments.rounds), arguments.messages):
        print(line)
    print("load average:", " ".join(f"{load:.1f}" for load in os.getloadavg()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
