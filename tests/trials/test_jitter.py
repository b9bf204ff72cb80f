"""Nothing is missed, doubled or out of order on any device, while connections are cut and the relay is killed."""

from __future__ import annotations

import resource
from pathlib import Path

from tests.support.evidence import Evidence
from tests.trials import jitter


def test_every_device_has_each_accepted_message_once_in_order_over_cuts_and_kills(
    tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """1,000 users for 5 minutes; in the short form 40 for 16 s, on a slow disk, with more cuts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    jitter.over_cuts_and_kills(tmp_path, evidence, full)
