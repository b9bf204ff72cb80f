"""A message that is sent again is there once, although the relay was killed between its commit and its answer."""

from __future__ import annotations

from pathlib import Path

from tests.support.evidence import Evidence
from tests.support.programs import Site
from tests.trials import again
from tests.trials.durability import Stage


def test_message_that_is_sent_again_is_there_once_after_kills(
    site: Site, tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """The statements 1 to 4 of v2 hold over 200 kills; in the short form over 8."""
    again.killed_between_commit_and_answer(Stage(tmp_path, site), evidence, kills=200 if full else 8)
