"""Networks that a trial makes on this machine with the program ``ip``."""

from __future__ import annotations

import subprocess


def ip(*words: str) -> bool:
    """Run ``ip``; return whether it succeeded."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0
