"""
Compare a wheel with the checkout it was built from.

setup.cfg names the packages and their data files one by one, and a forgotten one breaks only the installed program. So
the wheel must have all files of chatrelay/ and twisted/plugins/, and no others.

    python .ci/check_wheel.py dist/chatrelay-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
MADE_BY_RUNNING = ("__pycache__", "dropin.cache")


def in_checkout() -> set[str]:
    files = [path for folder in ("chatrelay", "twisted") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {
        path.relative_to(ROOT).as_posix() for path in files if not any(name in path.parts for name in MADE_BY_RUNNING)
    }


def main(wheel: str) -> int:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(
            archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        )
    packaged = {name for name in names if ".dist-info/" not in name and not name.endswith("/")}
    expected = in_checkout()
    faults = [f"not in the wheel: {name}" for name in sorted(expected - packaged)]
    faults += [f"should not be in the wheel: {name}" for name in sorted(packaged - expected)]
    if "twisted/plugins/chatrelay_plugin.py" not in packaged:
        faults.append("the wheel has no twistd plugin")
    if metadata["License-Expression"] != "MIT":
        faults.append(f"the licence is {metadata['License-Expression']!r}, not the SPDX expression MIT")
    if not metadata.get_payload():
        faults.append("the wheel has no long description")
    print("\n".join(faults) or f"{wheel}: {len(packaged)} files, as in the checkout")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
