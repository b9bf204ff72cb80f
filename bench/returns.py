"""Measure what it costs the relay when all clients of v2 come back after a restart, and how long that takes.

    python -m bench.returns                  10,000 clients from 100 addresses, 20 missed messages each
    python -m bench.returns --clients 1000   fewer clients

The log in SQLite is written without a relay: the messages that each client will have missed, in random order, so that
those of one client are far apart. The relay indexes the log. Then all clients log in, and the relay is restarted twice
with SIGTERM. The clients are told by ``closing`` when to come back. After the first restart they log in with their
resume tokens, after the second one only with their SESSIDs, about which the site is asked. Each says that the place 0
is its last, and is complete when it has all messages, each once and in order of their places.

The CPU time is the user and system time of the new process, from its start until the last client is complete. The site
takes 50 ms for an answer. It is in this process, as the clients are, and they use one core and the relay another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs

import uvloop

from bench import proc
from bench.instructions import CONTENT, ID, frame
from bench.measure import allow_descriptors, cores
from bench.ports import free_port
from bench.replay import BATCH, log_in, wait_until_quiet
from bench.returning import Crowd
from bench.servers import TWISTD, process
from bench.webserver import Questions, answer
from chatrelay.messagelog.sqlite.store import SqliteStore
from chatrelay.model import Message

OPTIONS = ("--login-timeout=60", "--handshake-timeout=60", "--unauthenticated=10000")
"""The options of the relay for so many clients; see docs/operating/limits.rst. All others are the defaults."""

ANSWER_SECONDS = 0.05
"""The seconds that the site takes for an answer."""

SENDERS = 1_000
"""The users who have sent the messages."""

LOGINS_AT_ONCE = 100
"""The first logins that are under way at once."""

PATIENCE = 300.0
"""The seconds in which all clients must be back."""


@dataclass(frozen=True)
class Return:
    """The return of all clients after one restart.

    :ivar what: how they logged in.
    :ivar clients: how many there are.
    :ivar cpu: CPU seconds of the relay until the last client was complete.
    :ivar start_cpu: the part of them that it used before it listened.
    :ivar seconds: from the start of the new relay until the last client was complete.
    :ivar since_stop: the same, from the SIGTERM to the old relay on.
    :ivar asked: the requests that the site got.
    :ivar at_once: the most requests that were pending at the site at once.
    :ivar setbacks: how often a client was refused or closed, and tried again.
    """

    what: str
    clients: int
    cpu: float
    start_cpu: float
    seconds: float
    since_stop: float
    asked: int
    at_once: int
    setbacks: dict[str, int]


class Site:
    """A site that answers each SESSID with itself as the uID, after a while, and counts.

    :ivar asked: the requests.
    :ivar at_once: the most requests that were pending at once.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()
        self._pending = 0

    def reset(self) -> None:
        """Count from now on."""
        self.asked = self.at_once = 0

    def begin(self, body: bytes) -> bool:
        """Note a request; return whether it counts. The relay's own request at its start does not."""
        if parse_qs(body.decode())["SESSID"][0].startswith("chatrelay-at-start-"):
            return False
        self.asked += 1
        self._pending += 1
        self.at_once = max(self.at_once, self._pending)
        return True

    def end(self) -> None:
        """Note that a request which counts is answered."""
        self._pending -= 1


class _SlowQuestions(Questions):
    """A connection on which a relay sends requests, which are answered after a while."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site

    def ask(self, body: bytes) -> None:
        """Answer a request later."""
        counts = self._site.begin(body)

        def respond() -> None:
            if counts:
                self._site.end()
            if not self.transport.is_closing():
                self.transport.write(answer(body))

        asyncio.get_running_loop().call_later(self._site.seconds, respond)


@asynccontextmanager
async def _listening(site: Site) -> AsyncIterator[str]:
    """Serve a site in this loop; yield the URL of its session page."""
    server = await asyncio.get_running_loop().create_server(lambda: _SlowQuestions(site), "127.0.0.1", 0, backlog=511)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/session"


class Missed:
    """The messages that the clients will have missed.

    :param clients: the number of clients.
    :param each: how many messages each of them misses.
    """

    def __init__(self, clients: int, each: int) -> None:
        choose = random.Random(1)
        self._orders = [choose.sample(range(clients), clients) for _ in range(each)]
        self._numbers = [{client: at for at, client in enumerate(order)} for order in self._orders]
        self._clients = clients

    def number(self, client: int, place: int) -> int:
        """Return the number of the message at a place of a client's inbox."""
        return (place - 1) * self._clients + self._numbers[place - 1][client]

    def messages(self) -> Iterator[Message]:
        """Yield all of them in the order of the log. Each client gets its next one before any gets the one after."""
        number = 0
        for order in self._orders:
            for client in order:
                sender = f"sender-{number % SENDERS}"
                yield Message(sender, f"user-{client}", ID % number, "0", CONTENT, 1.0e9 + number, True)
                number += 1

    def write(self, path: Path) -> None:
        """Write them to a message log in SQLite."""
        store = SqliteStore(str(path))
        store.open()
        rows = self.messages()
        while batch := list(islice(rows, BATCH)):
            store.append(batch)
        store.close()


class Restarted:
    """A relay that is restarted: the same port, log and key file, and each time a new process.

    :param core: where it runs.
    :ivar pid: the present process.
    """

    def __init__(self, folder: Path, url: str, core: int) -> None:
        self.port = free_port()
        self.pid = 0
        self.start_cpu = 0.0
        self._folder = folder
        self._core = core
        options = (
            f"--auth-url={url}",
            f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=4096",
            f"--message-log=sqlite:{folder / 'messages.sqlite3'}",
            f"--resume-key-file={folder / 'resume.key'}",
            *OPTIONS,
        )
        self._command = [sys.executable, "-c", TWISTD, "--nodaemon", "--pidfile=", "chatrelay", *options]
        self._running = ExitStack()

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        running = process(self._command, self.port, self._core, self._folder, "relay", patience=PATIENCE / 3)
        self.pid = await asyncio.to_thread(self._running.enter_context, running)
        self.start_cpu = self.cpu()

    async def stop(self) -> None:
        """End it with SIGTERM, and wait until it has ended."""
        await asyncio.to_thread(self._running.close)

    def cpu(self) -> float:
        """Return the CPU seconds that the present process has used."""
        return proc.cpu_seconds_of([self.pid])

    def index_log(self) -> None:
        """Wait until it has indexed the log. Only another thread than that of the site may call this."""
        connection, frames = log_in(self.port, "nobody", None)
        with closing(connection):
            next(frames)
            connection.sendall(frame({"type": "conversations-request", "id": "1"}))  # the index begins with a read
            next(frames)
            wait_until_quiet(self.pid)


async def one_return(what: str, relay: Restarted, site: Site, crowd: Crowd, with_tokens: bool) -> Return:
    """Restart the relay, and wait until all clients are back.

    :raises RuntimeError: if a client got something wrong.
    :raises TimeoutError: if it takes too long.
    """
    end: list[tuple[float, float]] = []
    crowd.on_complete = lambda: end.append((time.monotonic(), relay.cpu()))
    await asyncio.wait_for(crowd.all_logged_in(), PATIENCE)
    back = crowd.expect_return(with_tokens)
    stopped_at = time.monotonic()
    await relay.stop()
    site.reset()
    begun = time.monotonic()
    await relay.start()
    start_cpu = relay.start_cpu
    await asyncio.wait_for(back, PATIENCE)
    (at, cpu) = end[0]
    if crowd.wrong:
        raise RuntimeError(f"{len(crowd.wrong)} times something was wrong; first: {crowd.wrong[:3]}")
    return Return(
        what,
        len(crowd.clients),
        cpu,
        start_cpu,
        at - begun,
        at - stopped_at,
        site.asked,
        site.at_once,
        dict(crowd.setbacks),
    )


async def measure(clients: int, addresses: int, missed: int, core: int) -> list[Return]:
    """Let the clients come back with tokens, and without.

    :param core: where the relay runs.
    """
    site, missing = Site(ANSWER_SECONDS), Missed(clients, missed)
    with tempfile.TemporaryDirectory(prefix="chatrelay-bench-") as name:
        folder = Path(name)
        missing.write(folder / "messages.sqlite3")
        async with _listening(site) as url:
            relay = Restarted(folder, url, core)
            crowd = Crowd(relay.port, clients, missed, addresses, missing.number)
            try:
                await relay.start()
                await asyncio.to_thread(relay.index_log)
                await crowd.log_in(LOGINS_AT_ONCE)
                found = [
                    await one_return("with resume tokens", relay, site, crowd, True),
                    await one_return("without", relay, site, crowd, False),
                ]
            finally:
                crowd.leave()
                await relay.stop()
    return found


def lines(found: list[Return]) -> list[str]:
    """Return the results in words."""
    return [
        f"{each.what}: {each.clients:,} clients complete after {each.seconds:.1f} s ({each.since_stop:.1f} s after the "
        f"SIGTERM); relay {each.cpu / each.clients * 1e3:.2f} ms CPU a return ({each.cpu:.1f} s in all, "
        f"{each.start_cpu:.1f} s until it listened); site asked {each.asked:,} times, at most {each.at_once} at once; "
        f"setbacks: {each.setbacks or 'none'}"
        for each in found
    ]


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Run this process on one core during the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main(command_line: list[str]) -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.returns", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=10_000, help="clients that return (default: %(default)s)")
    parser.add_argument("--addresses", type=int, default=100, help="addresses they come from (default: %(default)s)")
    parser.add_argument("--missed", type=int, default=20, help="messages that each has missed (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    if min(arguments.clients, arguments.addresses, arguments.missed) < 1:
        parser.error("the numbers must be at least 1")
    allow_descriptors()
    relay_core, load_core = cores()
    with _on_core(load_core):
        found = uvloop.run(measure(arguments.clients, arguments.addresses, arguments.missed, relay_core))
    for line in lines(found):
        print(line)
    print("relay options:", *OPTIONS)
    print("load average:", " ".join(f"{load:.1f}" for load in os.getloadavg()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
