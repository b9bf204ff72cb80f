"""Draw results as an SVG file for each scenario: bars for cost, lines for growth, curves for latencies.

This module measures nothing and calculates no figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from bench.measure import Result
from bench.scenarios import Scenario
from bench.servers import SERVERS

OURS = "#b0413e"
OTHERS = "#8a99a8"


def plot(scenario: Scenario, results: list[Result], path: Path) -> None:
    """Draw a scenario's results into an SVG file."""
    # The same results make the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": scenario.name, "svg.fonttype": "none", "font.size": 9})
    from matplotlib.figure import Figure

    here = [result for result in results if result.scenario == scenario.name]
    here.sort(key=lambda result: (scenario.servers.index(result.server), result.connections))
    figure = Figure(figsize=(8.0, 0.9 + 0.34 * len(here) if scenario.kind in _BARS else 4.2), layout="constrained")
    axes: Any = figure.subplots()
    if scenario.kind in _BARS:
        _bars(axes, scenario, here)
    elif scenario.kind == "growth":
        _lines(axes, here)
    else:
        _distribution(axes, here)
    axes.set_title(scenario.title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


_BARS = {"cost": "µs CPU a message", "login": "µs CPU a login", "idle": "KiB RSS a connection"}


def _line(server: str) -> dict[str, Any]:
    """Return the style of a server's line. The lines of chatrelay stand out and differ from each other."""
    if not server.startswith("chatrelay"):
        return {}
    return {"color": OURS, "linewidth": 2.2, "linestyle": "--" if "lean" in server else "-"}


def _colour(name: str) -> str:
    return OURS if name.startswith("chatrelay") else OTHERS


def _bars(axes: Any, scenario: Scenario, results: list[Result]) -> None:
    values = [
        result.figures.kib_per_connection if scenario.kind == "idle" else result.figures.cost for result in results
    ]
    titles = [SERVERS[result.server].title for result in results]
    bars = axes.barh(titles, values, color=[_colour(result.server) for result in results])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(_BARS[scenario.kind])


def _lines(axes: Any, results: list[Result]) -> None:
    for name in dict.fromkeys(result.server for result in results):
        own = [(result.connections, result.figures.cost) for result in results if result.server == name]
        style = _line(name)
        axes.plot(*zip(*own, strict=True), marker="o", label=SERVERS[name].title, **style)
    axes.set_xscale("log")
    counts = sorted({result.connections for result in results})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("connections")
    axes.set_ylabel("µs CPU a message")
    axes.legend(frameon=False)


def _distribution(axes: Any, results: list[Result]) -> None:
    """Draw, for each share of the slowest messages, their lowest latency. The axis spreads out the slowest ones."""
    for result in results:
        latencies = result.figures.latencies
        slower = [1 - place / len(latencies) for place in range(len(latencies))]
        style = _line(result.server)
        axes.plot(slower, [1000 * latency for latency in latencies], label=SERVERS[result.server].title, **style)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_yscale("log")
    shares = (1.0, 0.5, 0.1, 0.01, 0.001)
    axes.set_xticks(shares, [f"{share:.4g}".rstrip("0").rstrip(".") if share < 1 else "all" for share in shares])
    axes.set_xlabel("share of the messages that took at least as long")
    axes.set_ylabel("ms from sending to arrival")
    axes.legend(frameon=False)
