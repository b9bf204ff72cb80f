"""Thousands of scenarios on a clock that the trial moves, each determined by its seed."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from tests.fuzz.scenarios import spread
from tests.fuzz.seen import SEEN, asked_for
from tests.support.evidence import Evidence

FULL = 20_000
SHORT = 1000


def test_simulated_time_follows_the_model(evidence: Evidence, full: bool) -> None:
    """In each scenario clients, a site and a log act at random for minutes or hours, and every effect is checked.

    Each day has its own seeds. The short form has 1,000 of the 20,000 scenarios. One that fails names its seed and the
    command that repeats it alone.
    """
    first = datetime.now(UTC).toordinal() * 100_000
    scenarios = FULL if full else SHORT
    print(f"to repeat these: python -m tests.fuzz.scenarios {first} {scenarios}")
    began = time.monotonic()
    counts = spread(first, scenarios)
    took = time.monotonic() - began
    evidence.count("scenarios", counts["scenarios"], at_least=scenarios)
    evidence.count("events", counts["events"], at_least=50 * scenarios)
    evidence.count("virtual hours", counts["virtual seconds"] // 3600, at_least=scenarios // 40)
    evidence.count("messages acknowledged", counts["answers true"], at_least=2 * scenarios)
    # Each of these must have been met so often, or nothing is known of it.
    for what, per_thousand in SEEN.items():
        times = asked_for(per_thousand * scenarios / 1000)
        assert counts[what] >= times, f"{what}: only {counts[what]} times, not {times}, in {scenarios} from {first} on"
    codes = sorted(what.removeprefix("closed with ") for what in counts if what.startswith("closed with"))
    evidence.figure(
        f"{took:.0f} s, every frame as the model has it; first seed {first}; close codes met: {', '.join(codes)}"
    )
