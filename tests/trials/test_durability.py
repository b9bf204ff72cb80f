"""Acknowledged messages are in the log, whatever happens to the relay, the disk or the machine.

SQLite itself reads the log. strace, where it is needed, is Debian's, and runs the relay as its child.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.evidence import Evidence
from tests.support.programs import Site
from tests.trials import durability
from tests.trials.durability import Stage

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")


@pytest.fixture
def stage(site: Site, tmp_path: Path) -> Stage:
    """A folder for a relay, and a site."""
    return Stage(tmp_path, site)


def test_sigkill_under_load_loses_no_acknowledged_message(stage: Stage, evidence: Evidence, full: bool) -> None:
    """C1, C7, C8 and C9 hold over 100 kills; in the short form over 6."""
    durability.killed_under_load(stage, evidence, rounds=100 if full else 6)


def test_sigkill_under_load_behind_a_link_loses_no_acknowledged_message(
    stage: Stage, evidence: Evidence, full: bool
) -> None:
    """The same with a message log that is a symbolic link: 30 kills; in the short form 3."""
    durability.killed_under_load_behind_a_link(stage, evidence, rounds=30 if full else 3)


def test_log_rotated_under_load_loses_no_acknowledged_message(stage: Stage, evidence: Evidence, full: bool) -> None:
    """C1 and C8 hold over all files together, where the log is moved away 90 times; in the short form 6 times."""
    durability.rotated_under_load(stage, evidence, rounds=30 if full else 2)


def test_removed_write_ahead_log_loses_no_later_message(stage: Stage, evidence: Evidence, full: bool) -> None:
    """30 are deleted; in the short form 2."""
    durability.a_write_ahead_log_is_removed_under_load(stage, evidence, rounds=30 if full else 2)


@strace
def test_file_system_errors_refuse_messages_and_the_log_recovers(stage: Stage, evidence: Evidence) -> None:
    """In one form."""
    durability.errors_of_the_file_system(stage, evidence)


def test_start_with_a_long_write_ahead_log_takes_little_memory(stage: Stage, evidence: Evidence, full: bool) -> None:
    """1.5 GB; in the short form 250 MB."""
    durability.a_start_with_a_long_write_ahead_log(stage, evidence, 1_500_000_000 if full else 250_000_000)


@strace
def test_sync_precedes_every_answer_under_load(stage: Stage, evidence: Evidence, full: bool) -> None:
    """20,000 answers; in the short form 2,000."""
    durability.a_sync_precedes_every_answer(stage, evidence, answers=20_000 if full else 2_000)


@strace
def test_power_cut_that_loses_unsynced_writes_loses_no_acknowledged_message(
    stage: Stage, evidence: Evidence, full: bool
) -> None:
    """1,000 power cuts, after 20 of which a relay continues; in the short form 60, and 2."""
    cuts, recoveries = (1000, 20) if full else (60, 2)
    durability.unsynced_writes_are_lost(stage, evidence, cuts, recoveries)


@strace
@pytest.mark.parametrize("failing", ["14", "14..15"])
def test_power_cut_after_failed_syncs_loses_no_acknowledged_message(
    stage: Stage, evidence: Evidence, full: bool, failing: str
) -> None:
    """The same where one sync or two failed before: 100 power cuts; in the short form 20."""
    cuts = 100 if full else 20
    durability.unsynced_writes_are_lost(stage, evidence, cuts, 1, f"fdatasync:error=EIO:when={failing}")


@strace
def test_failed_sync_under_load_refuses_its_batch(stage: Stage, evidence: Evidence) -> None:
    """In one form."""
    durability.one_sync_fails_under_load(stage, evidence)


@strace
def test_slow_disk_at_saturation_refuses_with_busy(stage: Stage, evidence: Evidence) -> None:
    """In one form."""
    durability.a_slow_disk_at_saturation(stage, evidence)


@strace
def test_repeatedly_failing_syncs_acknowledge_nothing(stage: Stage, evidence: Evidence, full: bool) -> None:
    """200 messages; in the short form 40."""
    durability.syncs_fail_again_and_again(stage, evidence, messages=200 if full else 40)


def test_full_disk_refuses_messages_and_the_log_recovers(stage: Stage, evidence: Evidence, small_disk: Path) -> None:
    """In one form."""
    durability.a_full_disk(stage, evidence, small_disk)


@strace
def test_read_only_disk_refuses_messages_and_the_log_recovers(stage: Stage, evidence: Evidence) -> None:
    """In one form."""
    durability.a_disk_that_turned_read_only(stage, evidence)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system (run as root): {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
