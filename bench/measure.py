"""Run one server under one load, and run rounds in which the servers take turns.

Each run starts a new server on its core, and a new load generator on the other core beside the site. The runs of a
round follow each other, so that a disturbance of the machine affects all servers alike. The result of a server is the
median of the rounds.
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

from bench.ports import free_port
from bench.scenarios import Scenario
from bench.servers import ROOT, SERVERS, Failed, Missing, Place, Server, process

DESCRIPTORS_TO_SPARE = 500
"""The file descriptors that are kept for everything but connections."""


@dataclass(frozen=True)
class Figures:
    """The results of one run of a server, or the median of several.

    :ivar cost: CPU microseconds of the server per message (per login).
    :ivar busy: the share of its core that the server used, 0 to 1.
    :ivar load_busy: the share of its core that the load generator used, 0 to 1.
    :ivar per_second: messages (logins) a second.
    :ivar kib_per_connection: the memory of an idle connection, if it was measured.
    :ivar late: the seconds by which the latest hundredth of the messages was sent too late.
    :ivar latencies: evenly spaced quantiles of the seconds from sending to arrival, if they were measured.
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

    :ivar rounds: the figures of each round.
    """

    scenario: str
    server: str
    version: str
    connections: int
    rounds: tuple[Figures, ...]

    @property
    def figures(self) -> Figures:
        """The median of each figure over the rounds."""
        return middle(self.rounds)


def middle(rounds: tuple[Figures, ...]) -> Figures:
    """Return the median of each figure (and of each quantile) of several runs."""
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
    """Return the figures in the output of the load generator; see `bench.load.Sample`."""
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
    """The site, the certificates and the cores that all runs share. `bench` makes it."""

    def __init__(self, folder: Path, webserver: str) -> None:
        self.folder = folder
        self.webserver = webserver
        self.server_core, self.load_core = cores()
        self.private_key, self.certificate, self.authority = _certificates(folder)

    def run(self, server: Server, scenario: Scenario, connections: int) -> Figures:
        """Run one server under one load.

        :raises Failed: if the server or the load generator failed.
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
    """Provide what all runs share, during the block."""
    allow_descriptors()
    with ExitStack() as stack:
        # Synced files are written here. TMPDIR chooses the disk.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatrelay-bench-")))
        port = free_port()
        command = [sys.executable, "-m", "bench.webserver", str(port)]
        stack.enter_context(process(command, port, cores()[1], folder, "webserver"))
        yield Bench(folder, f"http://127.0.0.1:{port}/session")


def cores() -> tuple[int, int]:
    """Return the server's core and the load generator's core, which are the same on a machine with one core."""
    there = sorted(os.sched_getaffinity(0))
    return there[0], there[-1]


def allow_descriptors() -> int:
    """Raise the limit of open files for this process and its children as far as is allowed; return the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Return the files of a private key, of its certificate for 127.0.0.1, and of the authority."""
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
    """Run a scenario. In each round, every server has one run.

    :param servers: each with its version.
    :param tell: called with a line about each run.
    :returns: the results, and the errors.
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
    """Prepare servers. Report those that are not available once, and add them to `missing`."""
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
