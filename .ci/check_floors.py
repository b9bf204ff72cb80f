"""
Check that tests/floors.txt has exactly the lowest versions that setup.cfg admits.

    python .ci/check_floors.py              before anything is installed: do the two files agree?
    python .ci/check_floors.py --installed  in an environment: does it have those versions?

Needs the packaging library.
"""

from __future__ import annotations

import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def bound(line: str, operator: str) -> tuple[str, Version]:
    requirement = Requirement(line)
    bounds = [each.version for each in requirement.specifier if each.operator == operator]
    if len(bounds) != 1:
        raise SystemExit(f"wants exactly one {operator}: {line}")
    return requirement.name, Version(bounds[0])


def lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def main(installed: bool) -> int:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = lines(setup["options"]["install_requires"]) + lines(setup["options.extras_require"]["postgres"])
    stated = dict(bound(line, ">=") for line in required)
    floors = dict(bound(line, "==") for line in lines((ROOT / "tests" / "floors.txt").read_text()))
    faults = [
        f"{name}: setup.cfg says {stated.get(name)}, tests/floors.txt says {floors.get(name)}"
        for name in sorted(stated.keys() | floors.keys())
        if stated.get(name) != floors.get(name)
    ]
    if installed:
        faults += [
            f"{name}: {version(name)} is installed, not {floor}"
            for name, floor in floors.items()
            if Version(version(name)) != floor
        ]
    print("\n".join(faults) or ", ".join(f"{name} {floor}" for name, floor in floors.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main("--installed" in sys.argv[1:]))
