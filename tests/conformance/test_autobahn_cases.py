"""All of the Autobahn test suite's cases but the slow ones on performance, with the fast path and without it.

Of the cases on compression, most of which are slow, one of each section is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

PERFORMANCE = "9.*"
COMPRESSION = ("12.", "13.")  # which the relay does not take up unless asked
COMPRESSED_CASES = ("12.*.4", "13.*.4")  # 1,000 messages of 1 KiB each, by each way to negotiate and each kind of text
SECTIONS_ON_COMPRESSION = 12
FEWEST_CASES = 240
ACCEPTABLE = {"OK", "NON-STRICT", "INFORMATIONAL"}


def results(folder: Path, server_options: list[str], *selection: str) -> dict[str, dict[str, Any]]:
    """Run cases against the echo server; return what came of each, by its number."""
    command = [sys.executable, "-m", "tests.conformance.echo", "--port", "0", *server_options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().rpartition(" ")[2].strip()
            kosoku = Path(sys.executable).with_name("kosoku")
            cases_of = [kosoku, "-m", "fuzzingclient", *selection, "-o", "reports"]
            # Its exit status counts an unimplemented feature as a failure; the report distinguishes them.
            subprocess.run(
                [*cases_of, f"127.0.0.1:{port}"], cwd=folder, check=False, timeout=300, stdout=subprocess.DEVNULL
            )
        finally:
            server.terminate()
    (cases,) = json.loads((folder / "reports" / "index.json").read_text()).values()
    return dict(cases)


@pytest.mark.parametrize("options", [[], ["--no-fast-path"]], ids=["fast path", "no fast path"])
def test_every_autobahn_case_passes(tmp_path: Path, options: list[str]) -> None:
    cases = results(tmp_path, options, "-x", PERFORMANCE)
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


def test_every_autobahn_case_on_compression_passes(tmp_path: Path) -> None:
    selection = (word for cases in COMPRESSED_CASES for word in ("-i", cases))
    cases = results(tmp_path, ["--compression"], *selection)
    assert len(cases) >= SECTIONS_ON_COMPRESSION
    assert {name: case for name, case in cases.items() if {case["behavior"], case["behaviorClose"]} != {"OK"}} == {}
