"""Run a harness of atheris: ``python -m tests.fuzz wire -max_total_time=60``; see `tests.fuzz.harness`.

With ``--planted`` there is an error that must be found. ``python -m tests.fuzz cost`` needs no atheris: it is
`tests.fuzz.cost`, which searches for expensive bytes.
"""

from __future__ import annotations

import sys
from importlib import import_module
from unittest.mock import patch

name, *arguments = sys.argv[1:]
if name == "cost":
    sys.exit(import_module("tests.fuzz.cost").main(arguments))

import atheris  # noqa: E402  # where it is needed

FUZZED_PACKAGE = "chatrelay.wire"
"""What all harnesses call."""

# The fuzzed code must be imported here for the first time; otherwise its coverage is not recorded.
assert FUZZED_PACKAGE not in sys.modules
with atheris.instrument_imports(include=[FUZZED_PACKAGE]):
    fuzzed = import_module(f"tests.fuzz.{name}").FUZZED
assert FUZZED_PACKAGE in sys.modules
if "--planted" in arguments:
    arguments.remove("--planted")
    patch(*fuzzed.planted).start()
fuzzed.run(arguments)
