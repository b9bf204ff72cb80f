"""Power cuts change no epoch, and hide no backup that is put back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.evidence import Evidence
from tests.support.programs import Site
from tests.trials.durability import Stage
from tests.trials.lives import unsynced_notes_are_lost


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")
def test_power_cut_that_loses_unsynced_notes_changes_no_epoch_and_hides_no_backup(
    site: Site, tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """300 power cuts; in the short form 24."""
    unsynced_notes_are_lost(Stage(tmp_path, site), evidence, 300 if full else 24)
