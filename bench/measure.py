"""One server under one load, and rounds of that with the servers taking turns.

Each run is a server started afresh on its core, a load generator started
afresh on the other, and the webserver beside the load generator. The runs of
a round follow each other, so that what disturbs the machine for a while
disturbs all servers alike; of each server the median over the rounds counts.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.scenarios import Scenario
from bench.servers import ROOT, SERVERS, Failed, Missing, Place, Server, free_port, process

DESCRIPTORS_TO_SPARE = 500


@dataclass(frozen=True)
class Figures:
    """What one run of one server came to, or the median of several.

    :ivar cost: CPU microseconds of the server per message (per login).
    :ivar busy: how much of its core the server used, 0 to 1.
    :ivar load_busy: how much of its core the load generator used, 0 to 1.
    :ivar per_second: messages (logins) a second.
    :ivar kib_per_connection: what an idle connection takes, where that was measured.
    :ivar late: seconds by which the load generator was late with the latest hundredth of the messages.
    :ivar latencies: quantiles of seconds from sending to arrival, evenly spaced, where that was measured.
    """

    cost: float
    busy: float
    load_busy: float
    per_second: float
    kib_per_connection: float = 0.0
    late: float = 0.0
    latencies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """One server in one scenario.

    :ivar rounds: what each round found.
    """

    scenario: str
    server: str
    version: str
    connections: int
    rounds: tuple[Figures, ...]

    @property
    def figures(self) -> Figures:
        """The median of the rounds, figure by figure."""
        return middle(self.rounds)


def middle(rounds: tuple[Figures, ...]) -> Figures:
    """The median of several runs, figure by figure (and quantile by quantile)."""
    return Figures(
        cost=median(run.cost for run in rounds),
        busy=median(run.busy for run in rounds),
        load_busy=median(run.load_busy for run in rounds),
        per_second=median(run.per_second for run in rounds),
        kib_per_connection=median(run.kib_per_connection for run in rounds),
        late=median(run.late for run in rounds),
        latencies=tuple(median(same) for same in zip(*(run.latencies for run in rounds), strict=False)),
    )


def figures(sample: dict[str, object]) -> Figures:
    """Figures from what the load generator printed; see `bench.load.Sample`."""
    seconds, cpu, load_cpu, messages, kib, late = (
        float(sample[name])  # type: ignore[arg-type]
        for name in ("seconds", "cpu", "load_cpu", "messages", "kib_per_connection", "late")
    )
    latencies = sample["latencies"]
    assert isinstance(latencies, list)
    return Figures(
        cost=cpu / messages * 1e6 if messages else 0.0,
        busy=cpu / seconds,
        load_busy=load_cpu / seconds,
        per_second=messages / seconds,
        kib_per_connection=kib,
        late=late,
        latencies=tuple(latencies),
    )


class Bench:
    """The webserver, the certificates and the cores that all runs share. Made by `bench`."""

    def __init__(self, folder: Path, webserver: str) -> None:
        self.folder = folder
        self.webserver = webserver
        self.server_core, self.load_core = cores()
        self.private_key, self.certificate, self.authority = _certificates(folder)

    def run(self, server: Server, scenario: Scenario, connections: int) -> Figures:
        """Run one server under one load.

        :raises Failed: when either did not do what it should.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        place = Place(free_port(), folder, self.webserver, self.private_key, self.certificate)
        try:
            with process(server.command(place), place.port, self.server_core, folder, server.name) as pid:
                return figures(self._load(server, scenario, connections, place.port, pid))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _load(self, server: Server, scenario: Scenario, connections: int, port: int, pid: int) -> dict[str, object]:
        plan = {
            "kind": {"cost": "closed", "growth": "open", "latency": "open"}.get(scenario.kind, scenario.kind),
            "port": port,
            "pid": pid,
            "connections": connections,
            "in_flight": scenario.in_flight,
            "rate": scenario.rate,
            "dialect": server.dialect,
            "warm_up": scenario.warm_up,
            "window": scenario.window,
            "authority": str(self.authority) if server.tls else None,
        }
        command = ["taskset", "--cpu-list", str(self.load_core), sys.executable, "-m", "bench.load", json.dumps(plan)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scenario.window + 180)
        except subprocess.TimeoutExpired:
            raise Failed("the load generator did not end") from None
        try:
            sample: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise Failed(f"the load generator failed:\n{done.stderr[-2000:]}") from None
        if "trouble" in sample:
            raise Failed(str(sample["trouble"]))
        return sample


@contextmanager
def bench() -> Iterator[Bench]:
    """What all runs share, while the block runs."""
    allow_descriptors()
    with ExitStack() as stack:
        # Where files go that are to be synced: TMPDIR chooses the disk.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatrelay-bench-")))
        port = free_port()
        command = [sys.executable, "-m", "bench.webserver", str(port)]
        stack.enter_context(process(command, port, cores()[1], folder, "webserver"))
        yield Bench(folder, f"http://127.0.0.1:{port}/session")


def cores() -> tuple[int, int]:
    """The server's core and the load generator's; the same one where there is only one."""
    there = sorted(os.sched_getaffinity(0))
    return there[0], there[-1]


def allow_descriptors() -> int:
    """Allow this process and those it starts as many open files as they may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A private key, a certificate for 127.0.0.1, and the authority that vouches for it."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    names = (folder / "key.pem", folder / "certificate.pem", folder / "authority.pem")
    issued.private_key_pem.write_to_path(str(names[0]))
    issued.cert_chain_pems[0].write_to_path(str(names[1]))
    authority.cert_pem.write_to_path(str(names[2]))
    return names


def rounds_of(
    bench: Bench, scenario: Scenario, servers: list[tuple[Server, str]], rounds: int, tell: Callable[[str], None]
) -> tuple[list[Result], list[str]]:
    """Run a scenario: its servers take turns, `rounds` times.

    :param servers: each with its version.
    :param tell: called with a line on each run.
    :returns: the results, and what went wrong.
    """
    found: dict[tuple[str, int], list[Figures]] = {}
    troubles = []
    given_up: set[tuple[str, int]] = set()
    for turn in range(1, rounds + 1):
        for server, _ in servers:
            for connections in scenario.connections:
                key = (server.name, connections)
                if key in given_up:
                    continue
                try:
                    run = bench.run(server, scenario, connections)
                except Failed as failure:
                    given_up.add(key)
                    troubles.append(f"{server.title} failed in {scenario.name} ({connections}): {failure}")
                    tell(f"FAILED: {troubles[-1]}")
                    continue
                found.setdefault(key, []).append(run)
                tell(f"{turn}/{rounds}  {server.title:32} {_in_short(scenario, connections, run)}")
    versions = {server.name: version for server, version in servers}
    results = [
        Result(scenario.name, name, versions[name], connections, tuple(runs))
        for (name, connections), runs in found.items()
        if (name, connections) not in given_up
    ]
    return results, troubles


def _in_short(scenario: Scenario, connections: int, run: Figures) -> str:
    if scenario.kind == "idle":
        return f"{run.kib_per_connection:6.1f} KiB a connection"
    if scenario.kind == "latency":
        p99 = run.latencies[int(len(run.latencies) * 0.99)]
        return f"p99 {p99 * 1000:.2f} ms (load generator late by {run.late * 1000:.2f} ms)"
    number = f"{connections:6} connections" if scenario.kind == "growth" else ""
    what = "login" if scenario.kind == "login" else "message"
    cost = f"{number}{run.cost:8.1f} µs a {what}"
    return f"{cost}, {run.per_second:8,.0f}/s, busy {run.busy:4.0%}, load {run.load_busy:4.0%}"


def ready(names: tuple[str, ...], tell: Callable[[str], None], missing: dict[str, str]) -> list[tuple[Server, str]]:
    """Prepare servers; those that can't be had are told of once and noted in `missing`."""
    there = []
    for name in names:
        if name in missing:
            continue
        server = SERVERS[name]
        try:
            version = server.version()
            server.prepare()
        except Missing as problem:
            missing[name] = str(problem)
            tell(f"SKIPPED: {server.title}: {problem}")
        else:
            there.append((server, version))
    return there
