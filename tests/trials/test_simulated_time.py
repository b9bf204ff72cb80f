"""Trial: thousands of scenarios on a clock that runs when it is told to, each from its seed."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime

from tests.fuzz.scenarios import spread
from tests.trials.conftest import Evidence

FULL = 20_000
SHORT = 1000


def test_simulated_time(evidence: Evidence, full: bool) -> None:
    """Clients, a site and a log do in each scenario what they like, for minutes or hours; all that comes is checked.

    Each day has seeds of its own. The short form has 1,000 of the 20,000 scenarios. One that fails names its seed and how
    to repeat it alone.
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


def asked_for(usual: float) -> int:
    """How often at least something must be met that is met so often as a rule: a quarter, less what chance may take.

    What is rare is asked for by the full form only: in few scenarios it may be missing by chance.
    """
    return max(0, int(usual / 4 - 3 * math.sqrt(usual)))


SEEN = {
    "answers receiving-user-not-connected": 3410,
    "answers rate-limited": 4075,
    "answers log-unavailable": 300,
    "answers busy": 204,
    "messages of visitors": 3044,
    "messages whose recipient vanished": 400,
    "sessions asked about again": 373,
    "logins that were revoked while the site was asked": 83,
    "slow readers closed": 113,
    "unusable frames": 1266,
    "members who asked too often": 145,
    "logins denied without asking": 35,
    "logins denied from memory": 53,
    "logins that waited for others of their address": 14,
    "slow readers closed by their time": 28,
    "connections that were closed when the time to stop was over": 15,
    "closed with 1000": 124,
    "closed with 1002": 140,
    "closed with 1003": 10,
    "closed with 1007": 13,
    "closed with 1009": 12,
    "closed with 4000": 2186,
    "closed with 4001": 306,
    "closed with 4002": 28,
    "closed with 4004": 47,
    "closed with 4500": 183,
    "closed with 4501": 112,
    "closed with 4502": 88,
    "closed with 4503": 30,
    "closed with 4504": 102,
    "closed with 4505": 347,
}
"""How often each was met in a thousand scenarios."""
