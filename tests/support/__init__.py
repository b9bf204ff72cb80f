"""What several folders of tests share: the client's side of the wire, and the programs around a relay.

No module here imports a test, and none of the client modules (`frames`, `v1`, `client`) imports chatrelay: the checks
must not repeat a mistake of the relay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as not happening."""


def eventually(condition: Callable[[], object], what: str = "", seconds: float = PATIENCE, pause: float = 0.02) -> None:
    """Wait until a condition holds.

    :param what: the message if it does not.
    :param seconds: how long to wait.
    :param pause: seconds between two looks.
    :raises AssertionError: where it does not hold in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what or f"not within {seconds:g} s"
        time.sleep(pause)
