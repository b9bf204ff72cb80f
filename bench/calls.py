"""Count the calls that a message and a login make inside chatrelay, and how often they change the module.

    python -m bench.calls                    all
    python -m bench.calls message            or login
    python -m bench.calls v2                 a message of v2 between users who know each other
    python -m bench.calls --trace            print each call, too, indented under its caller
    python -m bench.calls --lines            count the lines of the modules instead
    python -m bench.calls --tree DIR         use another checkout of chatrelay

The relay runs in this process, on Twisted's reactor and with a TCP port. The clients are plain sockets in a thread, and
the site is another thread. `sys.setprofile` sees each call, in the reactor's thread and in the message log's.

A **call** is the start of a function whose source file is in the package chatrelay. A lambda is a function. What attrs
generates has no source file and does not count. A comprehension or a generator expression is a line of the function
around it and does not count, nor does a generator or a coroutine that resumes.

A **change of module** is a call into another module than the previous call in the same thread. The first call of a
thread counts as one. The number says how often a reader who follows the path has to open another file.

These steps are counted, each in a relay that has done the same before:

- message: a message-send-request between two connections that are logged in, from its first byte to the last byte of
  the delivery and of the answer, with the batch, its commit and the flush;
- message of v2: the same by v2, with another id in each run, between users who have written to each other before;
- handshake: from the TCP connection to the last byte of the response to the opening handshake;
- login: from the first byte of the auth-request on an open connection to the last byte of the auth-response. The
  session page is asked by a real HTTP request, on a connection that is kept. With `KnownSessions` of chatrelay.testing
  in its place, the verdict comes at once.

Calls immediately after the last byte count, too: a step ends when there was no call for `QUIET_SECONDS`. The relay's
periodic work may fall into a step. So each step runs several times, and the most frequent numbers are printed.
"""

from __future__ import annotations

import argparse
import inspect
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count as count_up
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from bench.instructions import CONTENT, ID, frame, frames_in, log_in, logged_in, logged_in_v2, opened, received, site
from bench.ports import free_port
from bench.servers import ROOT

RUNS = 9
"""The counted runs of each step."""

WARM_UP = 3
"""The runs before the counted ones."""

QUIET_SECONDS = 0.02
"""The time without a call after which a step is over."""

ROWS_OF_LINES = 5
"""The modules that are printed at each end of the table of lines."""

EXPRESSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
RESUMABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True)
class Call:
    """A call of a function.

    :ivar thread: the name of its thread.
    :ivar module: the dotted name of the function's module.
    :ivar function: the function's qualified name.
    :ivar depth: the number of calls around it.
    """

    thread: str
    module: str
    function: str
    depth: int


@dataclass(frozen=True)
class Step:
    """The calls of one run of a step.

    :ivar calls: in the order in which they began.
    """

    calls: tuple[Call, ...]

    @property
    def changes(self) -> int:
        """The number of calls that change the module."""
        return sum(is_change for _, is_change in self.marked())

    @property
    def modules(self) -> int:
        """The number of modules that are called."""
        return len({call.module for call in self.calls})

    @property
    def figures(self) -> tuple[int, int, int]:
        """The numbers of calls, changes of module, and modules."""
        return len(self.calls), self.changes, self.modules

    def marked(self) -> Iterator[tuple[Call, bool]]:
        """Yield each call, and whether it changes the module."""
        last: dict[str, str] = {}
        for call in self.calls:
            yield call, last.get(call.thread) != call.module
            last[call.thread] = call.module

    def trace(self) -> str:
        """Return the path, indented. An asterisk marks a change of module, and another thread has its name."""
        lines = []
        for call, is_change in self.marked():
            thread = "" if call.thread == threading.main_thread().name else f"   [{call.thread}]"
            lines.append(f"  {'*' if is_change else ' '} {'  ' * call.depth}{call.module}  {call.function}{thread}")
        return "\n".join(lines)


class Recorder:
    """Records the calls of a package's functions, in this thread and in those that start after `installed`.

    :param package: the package's folder.
    """

    def __init__(self, package: Path) -> None:
        self._root = f"{package.resolve().parent}/"
        self._folder = f"{package.resolve()}/"
        self._calls: list[Call] | None = None
        self._resumable: set[FrameType] = set()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Record the calls while the block runs."""
        before = sys.getprofile()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(None)

    def step(self, action: Callable[[], object], quiet: float = QUIET_SECONDS) -> Step:
        """Record the calls from the beginning of an action until there was no call for some time after it.

        :param quiet: that time, in seconds.
        """
        calls: list[Call] = []
        self._calls = calls
        try:
            action()
            seen = -1
            while seen != len(calls):
                seen = len(calls)
                time.sleep(quiet)
        finally:
            self._calls = None
            self._resumable.clear()
        return Step(tuple(calls))

    def _is_ours(self, frame: FrameType) -> bool:
        code = frame.f_code
        return code.co_filename.startswith(self._folder) and code.co_name not in EXPRESSIONS

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        calls = self._calls
        if event != "call" or calls is None or not self._is_ours(frame):
            return
        if frame.f_code.co_flags & RESUMABLE:
            if frame in self._resumable:
                return
            self._resumable.add(frame)
        depth, around = 0, frame.f_back
        while around is not None:
            depth += self._is_ours(around)
            around = around.f_back
        module = ".".join(Path(frame.f_code.co_filename.removeprefix(self._root)).with_suffix("").parts)
        function = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
        calls.append(Call(threading.current_thread().name, module.removesuffix(".__init__"), function, depth))


def most_frequent(steps: Iterable[Step]) -> tuple[Step, int]:
    """Return a run with the most frequent figures, and the number of runs that have them."""
    runs = list(steps)
    figures, count = Counter(step.figures for step in runs).most_common(1)[0]
    return next(step for step in runs if step.figures == figures), count


# A relay and its clients -----------------------------------------------------


def count_messages(recorder: Recorder, port: int) -> Iterator[tuple[str, list[Step]]]:
    """Send messages from one connection to another."""
    message = {"timeStamp": "0", "touID": "bob", "content": CONTENT}
    request = frame({"type": "message-send-request", "id": "0", "message": message})
    answer = b'{"type":"send-request-response","response":{"id":"0","value":true}}'
    delivery = b'{"type":"message","message":{"timeStamp":"0","fromuID":"alice","touID":"bob","content":"%b"}}'
    delivery %= CONTENT.encode()
    with closing(logged_in(port, "alice")) as alice, closing(logged_in(port, "bob")) as bob:

        def send() -> None:
            alice.sendall(request)
            for connection, expected in (alice, answer), (bob, delivery):
                head = 2 if len(expected) < 126 else 4
                data = received(connection, head + len(expected))
                if data[head:] != expected:
                    raise ConnectionError(f"the relay sent {data!r}")

        yield "message", [recorder.step(send) for _ in range(WARM_UP + RUNS)][WARM_UP:]


def count_messages_v2(recorder: Recorder, port: int) -> Iterator[tuple[str, list[Step]]]:
    """Send messages of v2 from one connection to another. They have written to each other before."""
    with closing(logged_in_v2(port, "alice")) as alice, closing(logged_in_v2(port, "bob")) as bob:
        received = {alice: frames_in(alice), bob: frames_in(bob)}
        numbers = count_up()

        def send(sender: socket.socket = alice, recipient: socket.socket = bob, to: str = "bob") -> None:
            message = {"timeStamp": "0", "touID": to, "content": CONTENT}
            sender.sendall(frame({"type": "message-send-request", "id": ID % next(numbers), "message": message}))
            answer, delivery = next(received[sender]), next(received[recipient])
            if b'"value":true' not in answer or not delivery.startswith(b'{"type":"message"'):
                raise ConnectionError(f"the relay sent {answer!r} and {delivery!r}")

        recorder.step(partial(send, bob, alice, "alice"))
        yield "message of v2", [recorder.step(send) for _ in range(WARM_UP + RUNS)][WARM_UP:]


def count_logins(recorder: Recorder, port: int) -> Iterator[tuple[str, list[Step]]]:
    """Connect, log in and disconnect, one client after the other."""
    handshakes, logins = [], []
    for _ in range(WARM_UP + RUNS):
        connections: list[socket.socket] = []
        handshakes.append(recorder.step(lambda add=connections.append: add(opened(port))))
        with closing(connections[0]) as connection:
            logins.append(recorder.step(partial(log_in, connection, "carol")))
        time.sleep(QUIET_SECONDS)  # the relay notices the disconnect
    yield "handshake", handshakes[WARM_UP:]
    yield "login", logins[WARM_UP:]


COUNTS = {"message": count_messages, "v2": count_messages_v2, "login": count_logins}


def count(chosen: Iterable[str], reactor: Any) -> list[tuple[str, list[Step]]]:
    """Run two relays in a reactor, and all steps with each.

    :param chosen: keys of `COUNTS`.
    :param reactor: runs until everything is counted, and can't run again.
    :returns: the name of each step, and its runs.
    """
    import chatrelay  # of the chosen tree
    from chatrelay.testing import KnownSessions

    recorder = Recorder(Path(chatrelay.__file__).parent)
    known = KnownSessions({name: name for name in ("alice", "bob", "carol")})
    found: list[tuple[str, list[Step]]] = []
    failures: list[Failure] = []
    relays = []

    def start(names: dict[str, str], message_log: str, auth_url: str | None) -> None:
        port = free_port()
        config = chatrelay.Config(
            listen=(f"tcp:{port}:interface=127.0.0.1",),
            auth_url=auth_url,
            message_log=message_log,
            messages_per_second=1000.0,
            message_burst=1000,
            user_messages_per_second=1000.0,
            ping_interval=3600.0,  # pings come at random times, and the clients do not expect any
        )
        relay = chatrelay.build(config, reactor, authenticator=None if auth_url else known)
        relay.startService()
        relays.append((relay, port, names))

    def drive() -> None:
        for what in chosen:
            for _, port, names in relays:
                found.extend((names[name], steps) for name, steps in COUNTS[what](recorder, port) if name in names)

    async def run() -> None:
        try:
            await deferToThread(drive)
        finally:
            for relay, _, _ in relays:
                await relay.stopService()

    def begin() -> None:
        Deferred.fromCoroutine(run()).addErrback(failures.append).addBoth(lambda _: reactor.stop())

    with site() as url, tempfile.TemporaryDirectory() as folder, recorder.installed():
        start(
            {
                "message": "message, log in SQLite",
                "message of v2": "message of v2, log in SQLite",
                "handshake": "handshake",
                "login": "login, session page",
            },
            f"sqlite:{folder}/messages.sqlite3",
            url,
        )
        start(
            {
                "message": "message, log in memory",
                "message of v2": "message of v2, log in memory",
                "login": "login, KnownSessions",
            },
            "memory:",
            None,
        )
        reactor.callWhenRunning(begin)
        reactor.run()
    for failure in failures:
        failure.raiseException()
    return found


def lines_of(package: Path) -> dict[str, int]:
    """Return the lines of each module of a package, by its path, the largest first."""
    counts = {
        str(path.relative_to(package.parent)): len(path.read_text("utf-8").splitlines())
        for path in package.rglob("*.py")
    }
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def table_of_lines(counts: dict[str, int]) -> str:
    """Return the largest modules, the smallest, and the median."""
    rows = [f"{lines:6,}  {module}" for module, lines in counts.items()]
    if len(rows) > 2 * ROWS_OF_LINES:
        rows[ROWS_OF_LINES:-ROWS_OF_LINES] = ["   ..."]
    total, median = sum(counts.values()), statistics.median(counts.values())
    return "\n".join([*rows, f"{len(counts)} modules, {total:,} lines, median {median:g}"])


def main(command_line: list[str]) -> int:
    """Count, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("what", nargs="*", metavar="message|v2|login")
    parser.add_argument("--trace", action="store_true", help="print each call, indented under its caller")
    parser.add_argument("--lines", action="store_true", help="count the lines of the modules instead")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout of chatrelay")
    arguments = parser.parse_args(command_line)
    chosen = arguments.what or list(COUNTS)
    if not set(COUNTS) >= set(chosen):
        parser.error("choose from " + ", ".join(COUNTS))
    if arguments.lines:
        print(table_of_lines(lines_of(arguments.tree.resolve() / "chatrelay")))
        return 0
    sys.path.insert(0, str(arguments.tree.resolve()))
    from twisted.internet import reactor

    for name, steps in count(dict.fromkeys(chosen), reactor):
        step, alike = most_frequent(steps)
        calls, changes, modules = step.figures
        runs = f"{alike} of {len(steps)} runs"
        print(f"{name}: {calls} calls, {changes} changes of module, {modules} modules ({runs})", flush=True)
        if arguments.trace:
            print(step.trace())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
