"""A message costs much less than in stock Autobahn: the one figure of the benchmark that every test run checks.

The figure is a ratio and not a time. Both servers are measured alternately on the same machine, so a slow or busy machine
slows both down, and the margin is wide.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("picows", reason="the load generator needs picows: pip install picows", exc_type=ImportError)
pytest.importorskip("uvloop", reason="the load generator needs uvloop: pip install uvloop", exc_type=ImportError)

from bench.measure import bench
from bench.scenarios import SCENARIOS
from bench.servers import SERVERS

MOST = 0.4
"""chatrelay's CPU per message, as a share of stock Autobahn's. It is about 0.15 where all is well, and 0.7 without the fast path."""

ROUNDS = 2


@pytest.mark.alone
def test_message_costs_much_less_than_in_stock_autobahn() -> None:
    (scenario,) = (replace(each, warm_up=0.5, window=1.5) for each in SCENARIOS if each.name == "64x8")
    with bench() as running:
        rounds = [
            [running.run(SERVERS[name], scenario, scenario.connections[0]).cost for name in ("chatrelay", "autobahn")]
            for _ in range(ROUNDS)
        ]
    ours, stock = (min(costs) for costs in zip(*rounds, strict=True))
    assert ours <= MOST * stock, f"{ours:.1f} µs a message; stock Autobahn {stock:.1f} µs (alternating: {rounds})"
