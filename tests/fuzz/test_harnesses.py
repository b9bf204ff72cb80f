"""atheris on the wire and on the frame fast path finds no error in a number of runs, and finds a planted one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS, FULL_SECONDS = 3, 60
"""The most seconds that each may take; and the seconds that it takes in full, with `make trials`."""

# In SECONDS, and in longer so many times as many. Below this they have looked at little more than the seeds; an idle
# machine does ten times as many in that time.
AT_LEAST = {"wire": 3000, "wire_v2": 3000, "frames": 120}
RUNS = {"wire": 100_000, "wire_v2": 100_000, "frames": 5000}

PATIENCE = 120
"""Seconds beyond its time in which a harness must have ended, on a busy machine."""


def run(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a harness in a separate process; it writes what it finds to a folder."""
    pytest.importorskip("atheris", reason="atheris is not installed: it has no wheel for this Python or machine")
    command = [sys.executable, "-m", "tests.fuzz", name, f"-artifact_prefix={folder}/", *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=FULL_SECONDS + PATIENCE
    )


@pytest.mark.parametrize("name", sorted(RUNS))
def test_fuzzing_finds_no_error(name: str, tmp_path: Path, full: bool) -> None:
    limits = [f"-max_total_time={FULL_SECONDS}"]
    if not full:
        limits = [f"-atheris_runs={RUNS[name]}", f"-max_total_time={SECONDS}"]
    ran = run(name, tmp_path, *limits)
    assert ran.returncode == 0, (
        f"{ran.stdout}{ran.stderr}\nto repeat it: python -m tests.fuzz {name} {tmp_path}/crash-…"
    )
    done = re.search(
        r"^Done (\d+) runs? in (\d+) second|^Done (\d+) in (\d+) second", ran.stdout + ran.stderr, re.MULTILINE
    )
    assert done is not None, ran.stderr
    executions = int(done[1] or done[3])
    print(f"{name}: {executions} executions in {done[2] or done[4]} s")
    assert executions >= AT_LEAST[name] * (FULL_SECONDS // SECONDS if full else 1)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_planted_error_is_found_and_is_repeatable(name: str, tmp_path: Path) -> None:
    # By chance it may take a second or twenty; with this seed it takes few.
    ran = run(name, tmp_path, "--planted", "-max_total_time=60", "-seed=2")
    assert ran.returncode != 0 and "AssertionError" in ran.stdout + ran.stderr, ran.stderr[-2000:]
    (crash,) = tmp_path.glob("crash-*")
    assert run(name, tmp_path, "--planted", str(crash)).returncode != 0
    assert run(name, tmp_path, str(crash)).returncode == 0
