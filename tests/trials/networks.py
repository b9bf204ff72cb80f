"""Networks that a trial makes on this machine, by the program ``ip``."""

from __future__ import annotations

import subprocess


def ip(*words: str) -> bool:
    """Run the program of that name; whether it did as it was told."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0
