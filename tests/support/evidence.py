"""A plugin of pytest that collects what a trial did and found, and prints a table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Evidence:
    """What one trial did, and what it found."""

    trial: str
    counts: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def count(self, what: str, count: int, at_least: int) -> None:
        """Record how often something was done to the relay; fail below `at_least`, which would prove nothing."""
        self.counts.append(f"{count:,} {what}")
        assert count >= at_least, f"only {count:,} {what}: the trial proves nothing below {at_least:,}"

    def figure(self, text: str) -> None:
        """Record a measurement."""
        self.figures.append(text)

    def __str__(self) -> str:
        return f"{self.trial}: {', '.join(self.counts)}; {'; '.join(self.figures) or 'held'}"


EVIDENCE = "evidence"


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Iterator[Evidence]:
    """Collect what a trial counted and measured, for a line of the table at the end."""
    found = Evidence(request.node.name.removeprefix("test_"))
    yield found
    print(found)
    # Properties of a report reach the process that sums up, whichever process ran the test.
    request.node.user_properties.append((EVIDENCE, str(found)))
    assert found.counts, "a trial that counts nothing proves nothing: evidence.count(...)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ended = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown"
    ]
    lines = [text for report in ended for name, text in report.user_properties if name == EVIDENCE]
    if lines:
        terminalreporter.section(f"trials, {'in full' if config.getoption('full') else 'in their short form'}")
        for line in lines:
            terminalreporter.write_line(line)
