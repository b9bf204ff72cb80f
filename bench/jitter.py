"""Compare what arrives while connections are cut and the server is killed: chatrelay v2 and v1, and Socket.IO.

    python -m bench.jitter                          1,000 users for 5 minutes, each server; takes half an hour
    python -m bench.jitter --users 40 --seconds 20  a short form
    python -m bench.jitter --peer v2                one server only; may be repeated

`tests.trials.jitter` has the plan, the clients and the count; docs/benchmarks.rst explains what is measured. Every
server gets the same plan by the same seed. The devices of chatrelay v2 are also compared with the message log; if one
differs, the program ends with an error. Everything runs on 127.0.0.1, clients and server on the cores that there are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import proc
from bench.ports import free_port
from bench.servers import BENCH, PATIENCE, SERVERS, Failed, Missing, node_version, npm_install, wait_for
from tests.trials import jitter
from tests.trials.durability import LOG
from tests.trials.jitter import Plan, RelayServer, Server, Shares
from tests.trials.jitter_devices import Device, DeviceOfSocketIO, DeviceOfV1, DeviceOfV2
from tests.trials.webserver import SeparateSite

GUESTS = 10
"""Of how many pairs there is one that also speaks version 1, with chatrelay v2."""

DESCRIPTORS_TO_SPARE = 500


class NodeServer:
    """Socket.IO in Node.

    :param recovers: whether connection state recovery is on.
    """

    def __init__(self, folder: Path, recovers: bool) -> None:
        self.port = free_port()
        self._folder = folder
        self._recovers = recovers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = str(BENCH / "peers" / "socket_io.cjs")
        output = self._folder / "output"
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                ["node", program, str(self.port), "yes" if self._recovers else "no"],
                env={**os.environ, "NODE_ENV": "production"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._process, self.port, output)

    def stop(self, sign: int) -> None:
        assert self._process is not None
        self._process.send_signal(sign)
        self._process.wait(PATIENCE)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    :ivar version: returns the version of the server.
    """

    title: str
    dialect: type[Device]
    version: Callable[[], str]
    recovers: bool | None = None

    def run(self, plan: Plan) -> Result:
        """Run the plan against the server. Progress goes to standard error.

        :raises AssertionError: if a client failed, or a device of v2 has not exactly what it must have.
        """
        with tempfile.TemporaryDirectory(prefix="chatrelay-jitter-") as name, SeparateSite(0.0) as site:
            folder = Path(name)
            server: Server
            if self.recovers is None:
                server = RelayServer(folder, site.url, free_port())
            else:
                server = NodeServer(folder, self.recovers)
            before = os.getloadavg()[0]
            done = jitter.run(plan, server, self.dialect, self._tell)
            assert not done.ledger.wrong, "\n".join(done.ledger.wrong)
            if self.dialect is DeviceOfV2:
                jitter.check(done, folder / LOG)
            return Result(
                self.title, self.version(), jitter.shares(done), dict(done.ledger.counts), (before, os.getloadavg()[0])
            )

    def _tell(self, progress: str) -> None:
        print(f"{self.title}: {progress}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Result:
    """What was found for a row.

    :ivar counts: what was done, and how often.
    :ivar load: the load average of the machine, before and after.
    """

    title: str
    version: str
    shares: Shares
    counts: dict[str, int]
    load: tuple[float, float]


def _socket_io_version() -> str:
    return node_version("socket.io")


ROWS = {
    "v2": Row("chatrelay v2", DeviceOfV2, SERVERS["chatrelay-log"].version),
    "v1": Row("chatrelay v1", DeviceOfV1, SERVERS["chatrelay-log"].version),
    "socket.io": Row("Socket.IO", DeviceOfSocketIO, _socket_io_version, recovers=False),
    "socket.io-recovery": Row(
        "Socket.IO, connection state recovery", DeviceOfSocketIO, _socket_io_version, recovers=True
    ),
}


def line(result: Result) -> str:
    """Return what was found for a row, for people."""
    found = result.shares

    def percent(count: int, of: int) -> str:
        return f"{100 * count / of:.2f} %" if of else "-"

    parts = {
        "written": f"{found.written:,}",
        "accepted": percent(found.accepted, found.written),
        "refused": percent(found.refused, found.written),
        "unknown": percent(found.unknown, found.written),
        "of accepted, on each device: once": percent(found.once, found.expected),
        "lost": percent(found.lost, found.expected),
        "doubled": percent(found.doubled, found.expected),
        "out of order": percent(found.late, found.expected),
        "of all, on both devices once": percent(found.of_all, found.written),
        "users with equal devices": percent(found.equal, found.users),
        "p50": f"{found.p50:.3f} s",
        "p99": f"{found.p99:.2f} s",
        "longest": f"{found.longest:.1f} s",
    }
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(result.counts.items()))
    load = f"load average {result.load[0]:.1f} before, {result.load[1]:.1f} after"
    figures = "; ".join(f"{name} {value}" for name, value in parts.items())
    return f"{result.title} ({result.version}): {figures}\n    {counts}; {load}"


def main(command_line: list[str]) -> int:
    """Run the plan against the servers, and print what was found; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.jitter", description="Compare what arrives over cut connections."
    )
    parser.add_argument("--peer", action="append", choices=list(ROWS), help="run only this server; may be repeated")
    parser.add_argument("--users", type=int, default=jitter.FULL.users, help="an even number (default: 1000)")
    parser.add_argument("--seconds", type=float, default=jitter.FULL.seconds, help="how long they write (300)")
    parser.add_argument("--seed", type=int, default=jitter.FULL.seed)
    parser.add_argument("--noticed", action="store_true", help="let the server notice every cut at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    arguments = parser.parse_args(command_line)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 5 * arguments.users + DESCRIPTORS_TO_SPARE:
        parser.error(f"{arguments.users} users need more than {hard} open files: raise 'ulimit -n'")
    for each in proc.machine().items():
        print(": ".join(each), flush=True)
    status = 0
    results = []
    for name in arguments.peer or ROWS:
        row = ROWS[name]
        guests = GUESTS if name == "v2" else 0
        plan = Plan(arguments.users, arguments.seconds, arguments.seed, guests=guests, noticed=arguments.noticed)
        try:
            if row.recovers is not None:
                npm_install()
            results.append(row.run(plan))
        except Missing as missing:
            print(f"NOT MEASURED: {row.title}: {missing}", flush=True)
            status = 1
        except (Failed, AssertionError) as failure:
            print(f"FAILED: {row.title}: {failure}", flush=True)
            status = 1
        else:
            print(line(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results]) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
