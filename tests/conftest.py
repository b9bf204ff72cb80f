"""
What every test run shares: the order of the kinds of test, and the list of what was skipped.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

pytest_plugins = ["tests.support.evidence"]

BROWSER_TESTS = Path(__file__).parent / "browser"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run the trials and fuzz in full, for many minutes (make trials)"
    )


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """
    Whether this is `make trials`, and a trial is to be run in full, a fuzzer for long.
    """
    return bool(request.config.getoption("full"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Trial's TestCases first, the browser last, everything else between, each in the order it had.

    From the first plain function on, pytest-twisted keeps the reactor running in a greenlet until the session ends. A
    TestCase spins the reactor itself, which fails while the reactor runs. Playwright does the same with an asyncio
    loop, and no other loop can run after that.
    """

    def turn(item: pytest.Item) -> int:
        if issubclass(getattr(item, "cls", None) or object, SynchronousTestCase):
            return 0
        return 2 if item.path.is_relative_to(BROWSER_TESTS) else 1

    items.sort(key=turn)


@pytest.fixture(autouse=True)
def folder_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Trial's TestCases make their files in the working directory, which under trial is one for that purpose.
    """
    if not issubclass(request.cls or object, SynchronousTestCase):
        yield
        return
    before = Path.cwd()
    os.chdir(request.getfixturevalue("tmp_path"))
    yield
    os.chdir(before)


def skips_are_failures() -> bool:
    """
    Whether skips are failures: in CI, or with CHATRELAY_NO_SKIPS=1; CHATRELAY_NO_SKIPS=0 prevents it in CI.
    """
    asked = os.environ.get("CHATRELAY_NO_SKIPS", "")
    return asked == "1" if asked else os.environ.get("CI") == "true"


def skipped_by_reason(config: pytest.Config) -> dict[str, list[str]]:
    """
    The names of the skipped tests, and of modules skipped whole, under the reason each gave.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found: dict[str, list[str]] = defaultdict(list)
    if reporter is not None:
        for report in reporter.stats.get("skipped", []):
            # (file, line, "Skipped: reason")
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            found[str(reason).removeprefix("Skipped: ")].append(report.nodeid)
    return found


# First of all, so that whoever looks at the exit status later sees this one.
@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if skips_are_failures() and session.exitstatus == 0 and skipped_by_reason(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# Last of all, so that it stands right above pytest's closing line.
@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = skipped_by_reason(config)
    if not skipped:
        return
    count = sum(map(len, skipped.values()))
    failure = skips_are_failures()
    colour = {"red": True} if failure else {"yellow": True}
    terminalreporter.section(f"NOT TESTED: {count} skipped", bold=True, **colour)
    for reason, names in sorted(skipped.items()):
        terminalreporter.write_line(f"because {reason}:", **colour)
        for name in names:
            terminalreporter.write_line(f"    {name}")
    if failure:
        terminalreporter.write_line(
            "Nothing may be skipped here (CI, or CHATRELAY_NO_SKIPS=1): this run FAILED.", **colour
        )
