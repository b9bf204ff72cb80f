"""All of the Autobahn test suite's cases but the slow ones on performance, with the fast path and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.programs import ROOT

PERFORMANCE = "9.*"
COMPRESSION = ("12.", "13.")  # which the relay does not take up
FEWEST_CASES = 240
ACCEPTABLE = {"OK", "NON-STRICT", "INFORMATIONAL"}


@pytest.mark.parametrize("options", [[], ["--no-fast-path"]], ids=["fast path", "no fast path"])
def test_every_case_passes(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "tests.conformance.echo", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().rpartition(" ")[2].strip()
            kosoku = Path(sys.executable).with_name("kosoku")
            cases_of = [kosoku, "-m", "fuzzingclient", "-x", PERFORMANCE, "-o", "reports"]
            # Its exit status counts what is not implemented as a failure; the report tells them apart.
            subprocess.run(
                [*cases_of, f"127.0.0.1:{port}"], cwd=tmp_path, check=False, timeout=300, stdout=subprocess.DEVNULL
            )
        finally:
            server.terminate()
    (cases,) = json.loads((tmp_path / "reports" / "index.json").read_text()).values()
    assert len(cases) >= FEWEST_CASES
    failed = {
        name: case
        for name, case in cases.items()
        if not (
            case["behavior"] in ACCEPTABLE or (case["behavior"] == "UNIMPLEMENTED" and name.startswith(COMPRESSION))
        )
        or case["behaviorClose"] not in ACCEPTABLE
    }
    assert failed == {}
