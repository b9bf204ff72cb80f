"""Measure the message log in PostgreSQL: `python -m bench.postgres URL`.

The database must be empty, and the server on this machine: its CPU time is read from /proc. Batches are written by the
store that the relay uses, one after the other, so the rate is that of one relay. Then the reads of v2 are timed, in a
log that has all those messages.
"""

from __future__ import annotations

import argparse
import random
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from bench import proc
from bench.report import Table
from chatrelay.messagelog.postgres import PostgresStore, queries
from chatrelay.messagelog.postgres.address import Address, parse
from chatrelay.messagelog.postgres.connection import Connection
from chatrelay.messagelog.postgres.store import SESSION
from chatrelay.model import Conversation, Message

BATCHES = (1, 10, 100, 500)
USERS = 1000
SECONDS = 3.0
"""The time in which batches of one size are written."""

READS = 500
"""How often each read is timed."""

CONTENT = "forty bytes, as in the other benchmarks."


def messages(users: int, unique: bool, seed: int = 1) -> Iterator[Message]:
    """Return messages between random users.

    :param unique: whether they have unique ids, as those of v2.
    """
    choose = random.Random(seed)
    number = 0
    while True:
        number += 1
        sender, recipient = choose.randrange(users), choose.randrange(users)
        identity = f"{seed:x}-{number:032x}" if unique else str(number)
        yield Message(str(sender), str(recipient), identity, number, CONTENT, time.time(), unique)


class Server:
    """The CPU time of a server on this machine."""

    def __init__(self, connection: Connection) -> None:
        backend = int(connection.query("SELECT pg_backend_pid()")[0][0] or 0)
        stat = (proc.PROC / str(backend) / "stat").read_text()
        self._server = int(stat.rpartition(")")[2].split()[1])

    def cpu_seconds(self) -> float:
        """Return what its processes have used. Those that ended count for their parent, which waited for them."""
        return proc.cpu_seconds_of(proc.process_and_descendants(self._server))


def write(address: Address, batch: int, made: Iterator[Message], seconds: float) -> tuple[int, float, float]:
    """Write batches; return the number of messages, the CPU seconds of this thread, and the seconds it took."""
    store = PostgresStore(address)
    store.open()
    count, cpu, taken = 0, 0.0, 0.0
    while taken < seconds:
        these = list(islice(made, batch))
        cpu_before, before = time.thread_time(), time.perf_counter()
        store.append(these)
        cpu += time.thread_time() - cpu_before
        taken += time.perf_counter() - before
        count += batch
    store.close()
    return count, cpu, taken


def measure_writing(
    address: Address, batches: Sequence[int], users: int, writers: int, unique: bool, seconds: float
) -> Table:
    """Write with some writers at once, with each batch size; return a line for each."""
    connection = Connection(address)
    server = Server(connection)
    rows = []
    for batch in batches:
        found: list[tuple[int, float, float]] = []

        def run(writer: int, batch: int = batch, found: list[tuple[int, float, float]] = found) -> None:
            made = messages(users, unique, int(time.time() * 1000) * 10 + writer)
            found.append(write(address, batch, made, seconds))

        before = server.cpu_seconds()
        threads = [threading.Thread(target=run, args=(writer,)) for writer in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count = sum(each for each, _, _ in found)
        rows.append(
            (
                f"{batch}",
                f"{sum(cpu for _, cpu, _ in found) / count * 1e6:.1f}",
                f"{(server.cpu_seconds() - before) / count * 1e6:.1f}",
                f"{sum(each / taken for each, _, taken in found):,.0f}",
            )
        )
    connection.close()
    kind = "v2" if unique else "v1"
    title = f"{users:,} users, {writers} writer{'s' if writers > 1 else ''}, messages of {kind}"
    return Table(title, ("messages in a batch", "µs client", "µs server", "messages/s"), tuple(rows))


def measure_reads(address: Address, users: int, count: int) -> Table:
    """Time each read for random users."""
    connection = Connection(address)
    connection.run(SESSION)
    end = queries.END - 1
    choose = random.Random(2)
    reads: dict[str, Callable[[str, str], object]] = {
        "a page of 100 entries": lambda user, _: queries.entries(connection, user, 0, end, 100, 65536),
        "a page of 50 of a conversation": lambda user, peer: queries.history(
            connection, user, peer, None, None, end, 50, 262_144
        ),
        "50 conversations": lambda user, _: queries.conversations(connection, user, None, end, 50, 262_144),
        "acquaintance": lambda user, peer: queries.has_written(connection, user, peer),
        "the marks of a conversation": lambda user, peer: queries.progress(
            connection, user, [Conversation(peer)], end, 100
        ),
        "a unique id that is not there": lambda user, peer: queries.find(connection, user, peer, 0),
    }
    rows = []
    for name, read in reads.items():
        taken = []
        for _ in range(count):
            user, peer = str(choose.randrange(users)), str(choose.randrange(users))
            before = time.perf_counter()
            read(user, peer)
            taken.append(time.perf_counter() - before)
        ordered = sorted(taken)
        rows.append((name, f"{statistics.median(taken) * 1e3:.2f}", f"{ordered[int(0.99 * count)] * 1e3:.2f}"))
    connection.close()
    return Table("milliseconds of a read", ("read", "p50", "p99"), tuple(rows))


def measure_size(address: Address) -> Table:
    """Return the bytes that a message takes in each table, with its indexes."""
    connection = Connection(address)
    (count,) = connection.query("SELECT count(*) FROM chatrelay.message")[0]
    sizes = connection.query(
        "SELECT relname, pg_table_size(relid), pg_indexes_size(relid) FROM pg_statio_user_tables "
        "WHERE schemaname = 'chatrelay' AND pg_total_relation_size(relid) > 1000000 ORDER BY 2 DESC"
    )
    connection.close()
    total = int(count or 1)
    rows = tuple(
        ((name or b"").decode(), *(f"{int(size or 0) / total:.0f}" for size in values)) for name, *values in sizes
    )
    return Table(f"bytes a message, of {total:,}", ("table", "rows", "indexes"), rows)


def main(command_line: Sequence[str]) -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.postgres", description="Measure the message log in PostgreSQL."
    )
    parser.add_argument("url", help="an empty database on this machine, such as postgresql:///bench?user=postgres")
    parser.add_argument("--batch", type=int, action="append", help=f"messages in a batch (default: {BATCHES})")
    parser.add_argument("--users", type=int, default=USERS, help=f"how many users (default: {USERS})")
    parser.add_argument("--writers", type=int, default=1, help="how many write at once (default: 1)")
    parser.add_argument("--v1", action="store_true", help="messages without unique ids")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each batch size (default: {SECONDS})")
    parser.add_argument("--reads", type=int, default=READS, help=f"of each kind (default: {READS})")
    arguments = parser.parse_args(command_line)
    address = parse(arguments.url)
    machine = proc.machine()
    tables = [
        measure_writing(
            address,
            arguments.batch or BATCHES,
            arguments.users,
            arguments.writers,
            not arguments.v1,
            arguments.seconds,
        ),
        measure_reads(address, arguments.users, arguments.reads),
        measure_size(address),
    ]
    for line in machine.items():
        print(": ".join(line))
    print("by: " + shlex.join(["python", "-m", "bench.postgres", *command_line]))
    for table in tables:
        print("\n" + table.plain(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
