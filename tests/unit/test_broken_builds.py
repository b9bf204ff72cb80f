"""The broken builds and the model of the trials and fuzz tests replace names that the relay really has.

The trials and the fuzz tests show that each is caught (tests/trials/test_the_checkers.py, tests/fuzz/test_checker.py).
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.fuzz.broken import BROKEN
from tests.fuzz.scenarios import run
from tests.support import ROOT

BUILD_ALL = (
    "from tests.trials.broken import BUILDS\nfor name, build in BUILDS.items(): print(name, flush=True); build()"
)
"""Code for a separate process, because a build's replacements stay."""


def test_every_broken_build_replaces_existing_names() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", BUILD_ALL], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, f"the build {ran.stdout.splitlines()[-1:]} fails: {ran.stderr}"


def test_every_broken_relay_of_the_fuzz_tests_replaces_existing_names() -> None:
    for breaks in BROKEN.values():
        with breaks():
            pass


def test_scenarios_of_the_fuzz_tests_follow_the_model() -> None:
    assert run(first=0, count=5)["scenarios"] == 5
