"""Trial: thousands of scenarios on a clock that runs when it is told to, each from its seed."""

from __future__ import annotations

from tests.fuzz.scenarios import run
from tests.trials.conftest import Evidence

FULL, SHORT = 20_000, 200


def test_simulated_time(evidence: Evidence, full: bool) -> None:
    """Clients, a site and a log do in each scenario what they like, for minutes or hours; all that comes is checked.

    The short form has 200 scenarios, some ten seconds. One that fails names its seed and how to repeat it alone.
    """
    scenarios = FULL if full else SHORT
    counts = run(0, scenarios)
    evidence.count("scenarios", scenarios, at_least=SHORT)
    evidence.count("events", counts["events"], at_least=60 * scenarios)
    evidence.count("virtual hours", counts["virtual seconds"] // 3600, at_least=scenarios // 20)
    evidence.count("messages acknowledged", counts["answers true"], at_least=2 * scenarios)
    # Each of these must have been met so often, or nothing is known of it.
    for what, times in SEEN.items():
        assert counts[what] >= times, f"{what}: only {counts[what]} times in {scenarios} scenarios"
    codes = sorted(what.removeprefix("closed with ") for what in counts if what.startswith("closed with"))
    evidence.figure(f"every frame as the model has it; close codes met: {', '.join(codes)}, 4002")


SEEN = {
    "answers receiving-user-not-connected": 300,
    "answers rate-limited": 200,
    "answers log-unavailable": 30,
    "answers busy": 5,
    "messages of visitors": 300,
    "messages whose recipient vanished": 20,
    "sessions asked about again": 40,
    "logins that were revoked while the site was asked": 5,
    "slow readers closed": 10,
    "unusable frames": 100,
    "logins denied without asking": 5,
    "logins denied from memory": 8,
    "logins that waited for others of their address": 3,
    "slow readers closed by their time": 2,
    "connections that were closed when the time to stop was over": 1,
    **{
        f"closed with {code}": 2
        for code in (1000, 1002, 1007, 1009, 4000, 4001, 4004, 4500, 4501, 4502, 4503, 4504, 4505)
    },
}
