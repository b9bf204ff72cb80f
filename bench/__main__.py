"""The command line of the benchmark: `python -m bench`, or `make bench` and `make bench-quick`.

Progress goes to standard error, and the tables to standard output. With ``--json`` and ``--rst``, the results also go
to a JSON file and to a folder that the documentation includes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import measure, proc, report
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import SERVERS

QUICK_WARM_UP = 0.7
QUICK_WINDOW = 2.0


def chosen(arguments: argparse.Namespace) -> list[Scenario]:
    """Return the scenarios and servers that the command line chooses."""
    scenarios = [scenario for scenario in SCENARIOS if not arguments.scenario or scenario.name in arguments.scenario]
    if arguments.quick:
        scenarios = [
            replace(scenario, servers=scenario.quick_servers, warm_up=QUICK_WARM_UP, window=QUICK_WINDOW)
            for scenario in scenarios
            if scenario.quick
        ]
    if arguments.peer:
        scenarios = [
            replace(scenario, servers=tuple(name for name in scenario.servers if name in arguments.peer))
            for scenario in scenarios
        ]
    if arguments.window:
        scenarios = [replace(scenario, window=arguments.window) for scenario in scenarios]
    return [scenario for scenario in scenarios if scenario.servers]


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare chatrelay with other servers.")
    parser.add_argument("--quick", action="store_true", help="two scenarios, few peers, two rounds")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[scenario.name for scenario in SCENARIOS],
        help="only this scenario; may be repeated",
    )
    parser.add_argument("--peer", action="append", choices=list(SERVERS), help="only this server; may be repeated")
    parser.add_argument("--rounds", type=int, help="runs of each server (default: 5, quick: 2)")
    parser.add_argument("--window", type=float, help="measured seconds of each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--rst", type=Path, metavar="DIR", help="write tables and plots for the documentation")
    return parser


def main(command_line: list[str]) -> int:
    """Measure, print and write the results; return the exit status: 1 if a run failed."""
    arguments = options().parse_args(command_line)
    command = shlex.join(["python", "-m", "bench", *command_line])
    scenarios = chosen(arguments)
    if not scenarios:
        options().error("no chosen scenario has one of the chosen servers")
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    began = time.monotonic()

    def tell(line: str) -> None:
        seconds = int(time.monotonic() - began)
        print(f"[{seconds // 60:3}:{seconds % 60:02}] {line}", file=sys.stderr, flush=True)

    machine = proc.machine()
    missing: dict[str, str] = {}
    results: list[measure.Result] = []
    troubles: list[str] = []
    tables = []
    descriptors = measure.allow_descriptors()
    with measure.bench() as bench:
        if bench.server_core == bench.load_core:
            tell("only one core: server and load generator share it, so these figures can't be compared with others")
        machine["one fdatasync"] = proc.describe_sync(proc.sync_seconds(bench.folder))
        for line in machine.items():
            tell(": ".join(line))
        for scenario in scenarios:
            tell(f"{scenario.name}: {scenario.title}; {rounds} rounds of {scenario.window:g} s")
            possible = tuple(
                count for count in scenario.connections if count + measure.DESCRIPTORS_TO_SPARE <= descriptors
            )
            if possible != scenario.connections:
                tell(f"SKIPPED: more connections than {descriptors} open files allow: raise 'ulimit -n'")
            scenario = replace(scenario, connections=possible)
            servers = measure.ready(scenario.servers, tell, missing)
            found, failed = measure.rounds_of(bench, scenario, servers, rounds, tell)
            results += found
            troubles += failed
            tables.append((scenario, report.table(scenario, found)))
    for line in machine.items():
        print(": ".join(line))
    for _, table in tables:
        print("\n" + table.plain(), end="")
    for name, problem in missing.items():
        print(f"\nNOT MEASURED: {SERVERS[name].title}: {problem}")
    for trouble in troubles:
        print(f"\nFAILED: {trouble}")
    if arguments.json:
        document = report.as_json(machine, command, results, missing)
        arguments.json.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    if arguments.rst:
        write_documentation(arguments.rst, machine, command, tables, results, missing)
    return 1 if troubles else 0


def write_documentation(
    folder: Path,
    machine: dict[str, str],
    command: str,
    tables: list[tuple[Scenario, report.Table]],
    results: list[measure.Result],
    missing: dict[str, str],
) -> None:
    """Write the file that docs/benchmarks.rst includes, and its plots."""
    from bench.plots import plot

    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for scenario, table in tables:
        name = f"{scenario.name}.svg" if table.rows else None
        if name is not None:
            plot(scenario, results, folder / name)
        shown.append((table, name))
    text = report.page(machine, command, shown, missing, folder.name)
    (folder / "results.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
