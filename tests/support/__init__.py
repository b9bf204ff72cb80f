"""What several folders of tests share: the client's side of the wire, and the programs around a relay.

No module here imports a test, and none of the client modules (`frames`, `v1`, `client`) imports chatrelay: the checks
must not repeat a mistake of the relay.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as not happening."""
