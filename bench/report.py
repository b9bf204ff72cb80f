"""Format results as tables, in plain text and in reStructuredText, and as JSON.

Pure: it gets values, and returns text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.measure import Figures, Result
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import SERVERS

SATURATED = 0.9
"""The share of its core below which a server was not kept busy."""


REMARKS = "remarks"
"""The head of the column about what a server does, or leaves out."""


@dataclass(frozen=True)
class Table:
    """A table: a title, column heads, and rows of texts.

    :ivar notes: sentences below it.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def plain(self) -> str:
        """Return the table for a terminal, with numbers right-aligned."""
        widths = [max(map(len, column)) for column in zip(self.heads, *self.rows, strict=True)]
        lines = [self.title, ""]
        for row in (self.heads, *self.rows):
            cells = [
                _aligned(cell, width, column) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)]) + "\n"

    def rst(self) -> str:
        """Return the table for the documentation, under its title as a heading."""
        lines = [".. list-table::", "   :header-rows: 1"]
        if self.heads[-1] == REMARKS:
            # One column has sentences, which would be too narrow in equal columns.
            lines.append(f"   :widths: 24{' 9' * (len(self.heads) - 3)} 31")
        lines.append("")
        for first, second, *others in (self.heads, *self.rows):
            # Server and version share a column, because the pages are narrow.
            lines += [f"   * - {_escaped(first)}", "", f"       {_escaped(second)}"]
            lines += [f"     - {_escaped(cell)}".rstrip() for cell in others]
        return "\n".join([*lines, "", *(f"{_escaped(note)}\n" for note in self.notes)])


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column and cell[:1].isdigit() else cell.ljust(width)


def _escaped(text: str) -> str:
    """Return a text with its markup escaped."""
    return "".join("\\" + character if character in "*`|_\\" else character for character in text)


def table(scenario: Scenario, results: Iterable[Result]) -> Table:
    """Return the table of a scenario, in the scenario's order of servers."""
    here = [result for result in results if result.scenario == scenario.name]
    here.sort(key=lambda result: (scenario.servers.index(result.server), result.connections))
    make = {"cost": _cost, "login": _cost, "growth": _growth, "idle": _idle, "latency": _latency}
    return make[scenario.kind](scenario, here)


def _cost(scenario: Scenario, results: list[Result]) -> Table:
    what = "login" if scenario.kind == "login" else "message"
    ours = next((result.figures.cost for result in results if result.server.startswith("chatrelay")), None)
    rows = []
    notes = []
    for result in results:
        server, figures = SERVERS[result.server], result.figures
        lowest, highest = (pick(run.cost for run in result.rounds) for pick in (min, max))
        rows.append(
            (
                server.title,
                result.version,
                _microseconds(figures.cost),
                f"{_microseconds(lowest)} to {_microseconds(highest)}",
                f"{figures.busy:.0%}",
                f"{figures.per_second:,.0f}",
                "" if ours is None else f"{figures.cost / ours:.2f}",
                server.remarks,
            )
        )
        if figures.busy < SATURATED:
            limit = (
                "which was the limit"
                if figures.load_busy >= SATURATED
                else "so something else held it up (other work on the machine?)"
            )
            notes.append(
                f"{server.title} was not saturated: it used {figures.busy:.0%} of its core, "
                f"the load generator {figures.load_busy:.0%} of its core, {limit}."
            )
    heads = ("server", "version", f"µs CPU a {what}", "rounds", "busy", f"{what}s/s", "of chatrelay's", REMARKS)
    return Table(scenario.title, heads, tuple(rows), tuple(notes))


def _growth(scenario: Scenario, results: list[Result]) -> Table:
    costs = {(result.server, result.connections): result.figures.cost for result in results}
    versions = {result.server: result.version for result in results}
    rows = []
    for name in (name for name in scenario.servers if name in versions):
        own = [costs.get((name, count)) for count in scenario.connections]
        first, last = own[0], own[-1]
        rows.append(
            (
                SERVERS[name].title,
                versions[name],
                *("" if cost is None else _microseconds(cost) for cost in own),
                "" if first is None or last is None else f"{last / first:.2f}",
            )
        )
    heads = ("server", "version", *(f"µs at {count:,}" for count in scenario.connections), "last to first")
    return Table(scenario.title, heads, tuple(rows))


def _idle(scenario: Scenario, results: list[Result]) -> Table:
    rows = tuple(
        (
            SERVERS[result.server].title,
            result.version,
            f"{result.figures.kib_per_connection:.1f}",
            f"{result.figures.busy:.2%}",
        )
        for result in results
    )
    return Table(
        f"{scenario.connections[0]:,} {scenario.title}",
        ("server", "version", "KiB RSS a connection", "core used while idle"),
        rows,
    )


def _latency(scenario: Scenario, results: list[Result]) -> Table:
    rows = []
    for result in results:
        latencies = result.figures.latencies
        shown = [_milliseconds(quantile(latencies, share)) for share in (0.5, 0.9, 0.99, 0.999, 1.0)]
        shown.append(_milliseconds(result.figures.late))
        rows.append((SERVERS[result.server].title, result.version, *shown, SERVERS[result.server].remarks))
    heads = ("server", "version", "median ms", "p90", "p99", "p99.9", "worst", "load p99 late", REMARKS)
    return Table(scenario.title, heads, tuple(rows))


def quantile(ordered: tuple[float, ...], share: float) -> float:
    """Return the value below which a share of evenly spaced, ordered quantiles lies."""
    return ordered[round(share * (len(ordered) - 1))]


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def as_json(machine: Mapping[str, str], command: str, results: Iterable[Result], missing: Mapping[str, str]) -> Any:
    """Return all results for `json.dump`, with latencies only for the scenarios that measure them."""
    about_latency = {scenario.name for scenario in SCENARIOS if scenario.kind == "latency"}

    def values(result: Result, run: Figures) -> dict[str, Any]:
        kept = asdict(run)
        # Rounded to microseconds, because there are thousands.
        kept["latencies"] = [round(each, 6) for each in run.latencies] if result.scenario in about_latency else []
        return kept

    return {
        "machine": dict(machine),
        "command": command,
        "missing": dict(missing),
        "results": [
            {
                "scenario": result.scenario,
                "server": result.server,
                "version": result.version,
                "connections": result.connections,
                "rounds": [values(result, run) for run in result.rounds],
            }
            for result in results
        ],
    }


def from_json(document: Any) -> list[Result]:
    """Return the results in a value that `as_json` made."""

    def run(values: dict[str, Any]) -> Figures:
        return Figures(**{**values, "latencies": tuple(values["latencies"])})

    return [
        Result(each["scenario"], each["server"], each["version"], each["connections"], tuple(map(run, each["rounds"])))
        for each in document["results"]
    ]


def page(
    machine: Mapping[str, str],
    command: str,
    tables: Iterable[tuple[Table, str | None]],
    missing: Mapping[str, str],
    folder: str,
) -> str:
    """Return the text that docs/benchmarks.rst includes: machine and command, then each table with its plot.

    :param tables: each with the file name of its plot, or None.
    :param folder: where the plots are, as seen from the page that includes this.
    """
    parts = [".. Written by python -m bench; do not edit.\n", "Taken on\n" + "--------\n"]
    parts.append("\n".join(f"- {_escaped(name)}: {_escaped(value)}" for name, value in machine.items()))
    parts.append(f"- by ``{command}``\n")
    for name, problem in missing.items():
        parts.append(f"- without {_escaped(SERVERS[name].title)}: {_escaped(problem)}\n")
    for made, plot in tables:
        title = _escaped(made.title[:1].upper() + made.title[1:])
        parts.append(f"{title}\n{'-' * len(title)}\n")
        if plot is not None:
            parts.append(f".. image:: {folder}/{plot}\n   :alt: The table below as a plot.\n")
        parts.append(made.rst())
    return "\n".join(parts)
