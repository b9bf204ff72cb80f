"""Trial: thousands of scenarios on a clock that runs when it is told to, each from its seed."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from tests.fuzz.scenarios import spread
from tests.trials.conftest import Evidence

FULL = 20_000
LEAST, SECONDS = 200, 10.0
"""The short form: so many scenarios at least, and as many more as are begun in that time."""


def test_simulated_time(evidence: Evidence, full: bool) -> None:
    """Clients, a site and a log do in each scenario what they like, for minutes or hours; all that comes is checked.

    Each day has seeds of its own. The short form has what some ten seconds allow, 200 scenarios at least. One that fails
    names its seed and how to repeat it alone.
    """
    first = datetime.now(UTC).toordinal() * 100_000
    scenarios, counts = spread(first, FULL, *((FULL, math.inf) if full else (LEAST, SECONDS)))
    print(f"to repeat these: python -m tests.fuzz.scenarios {first} {scenarios}")
    evidence.count("scenarios", scenarios, at_least=FULL if full else LEAST)
    evidence.count("events", counts["events"], at_least=60 * scenarios)
    evidence.count("virtual hours", counts["virtual seconds"] // 3600, at_least=scenarios // 40)
    evidence.count("messages acknowledged", counts["answers true"], at_least=2 * scenarios)
    # Each of these must have been met so often, or nothing is known of it.
    for what, per_thousand in SEEN.items():
        times = asked_for(per_thousand * scenarios / 1000)
        assert counts[what] >= times, f"{what}: only {counts[what]} times, not {times}, in {scenarios} from {first} on"
    codes = sorted(what.removeprefix("closed with ") for what in counts if what.startswith("closed with"))
    evidence.figure(f"every frame as the model has it; first seed {first}; close codes met: {', '.join(codes)}")


def asked_for(usual: float) -> int:
    """How often at least something must be met that is met so often as a rule: a quarter, less what chance may take.

    What is rare is asked for by the full form only: in few scenarios it may be missing by chance.
    """
    return max(0, int(usual / 4 - 3 * math.sqrt(usual)))


SEEN = {
    "answers receiving-user-not-connected": 5676,
    "answers rate-limited": 8115,
    "answers log-unavailable": 727,
    "answers busy": 413,
    "messages of visitors": 5766,
    "messages whose recipient vanished": 836,
    "sessions asked about again": 833,
    "logins that were revoked while the site was asked": 153,
    "slow readers closed": 235,
    "unusable frames": 2236,
    "logins denied without asking": 70,
    "logins denied from memory": 97,
    "logins that waited for others of their address": 30,
    "slow readers closed by their time": 60,
    "connections that were closed when the time to stop was over": 31,
    "closed with 1000": 221,
    "closed with 1002": 263,
    "closed with 1003": 16,
    "closed with 1007": 24,
    "closed with 1009": 16,
    "closed with 4000": 1993,
    "closed with 4001": 716,
    "closed with 4002": 60,
    "closed with 4004": 103,
    "closed with 4500": 274,
    "closed with 4501": 218,
    "closed with 4502": 155,
    "closed with 4503": 33,
    "closed with 4504": 231,
    "closed with 4505": 607,
}
"""How often each was met in a thousand scenarios."""
