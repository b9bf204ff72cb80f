"""A message log whose files have several names, are moved or replaced, or have a failing file system, in a real
relay.
"""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE
from tests.support.client import Client
from tests.support.programs import RelayProcess, Site, follow, orphans
from tests.support.promise import read_log

LOG = "disk/log.sqlite3"
MESSAGE_LOG = ("--message-log", f"sqlite:{LOG}", "--ops-listen", "tcp:0")
MANY = ("--messages-per-second", "0", "--user-messages-per-second", "0")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The folder that the message log is in."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def talking(relay: RelayProcess) -> tuple[Client, Client]:
    """Log Alice and Bo in."""
    alice, bo = relay.client(), relay.client()
    alice.log_in("alice-session")
    bo.log_in("bo-session")
    return alice, bo


def send(alice: Client, content: str) -> Any:
    """Send a message to Bo; return the response."""
    alice.send(2, content, id=content)
    return alice.hear()["response"]


def readiness(relay: RelayProcess, status: int) -> float:
    """Wait until `/readyz` answers this; return how long that took, in seconds."""
    began = time.monotonic()
    while relay.ops("GET", "/readyz")[0] != status:
        assert time.monotonic() - began < PATIENCE, f"/readyz does not answer {status}"
        time.sleep(0.05)
    return time.monotonic() - began


def refusal(relay: RelayProcess) -> str:
    """Return why a relay did not start."""
    try:
        status = relay.wait()
    except subprocess.TimeoutExpired:
        relay.stop()
        raise AssertionError("it started:\n" + "\n".join(relay.output)) from None
    assert status == 1, status
    return "\n".join(relay.output)


# One log, several names -------------------------------------------------------


def start_second(folder: Path, site: Site, log: str) -> RelayProcess:
    """Start another relay."""
    return RelayProcess(folder, "--auth-url", site.url, "--message-log", f"sqlite:{log}")


def test_second_relay_behind_a_link_is_refused(start_relay: Any, site: Site, tmp_path: Path, disk: Path) -> None:
    (tmp_path / "link").symlink_to(LOG)
    for first, second in ((LOG, "link"), ("link", LOG)):
        relay = start_relay("--message-log", f"sqlite:{first}")
        assert "in use by another chatrelay" in refusal(start_second(tmp_path, site, second))
        relay.stop()


def test_second_relay_is_refused_after_the_lock_file_was_removed(
    start_relay: Any, site: Site, tmp_path: Path, disk: Path
) -> None:
    relay = start_relay(*MESSAGE_LOG)
    lock = Path(f"{tmp_path / LOG}.lock")
    lock.unlink()
    assert "in use by another chatrelay" in refusal(start_second(tmp_path, site, LOG))
    relay.said("was removed or replaced while the relay ran, and was made and locked again")
    assert "in use by another chatrelay" in refusal(start_second(tmp_path, site, LOG))


# Files that are moved and replaced -------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True])
def test_logged_command_reads_the_messages_of_a_log_that_was_moved(
    start_relay: Any, tmp_path: Path, disk: Path, killed: bool
) -> None:
    relay = start_relay(*MESSAGE_LOG, *MANY)
    alice, _ = talking(relay)
    contents = [f"content {number}" for number in range(300)]
    for content in contents:
        assert send(alice, content)["value"] is True
    if killed:
        relay.process.send_signal(signal.SIGKILL)
        relay.wait()
    (tmp_path / LOG).rename(disk / "log.sqlite3.1")
    if killed:
        relay = start_relay(*MESSAGE_LOG)
        alice, _ = talking(relay)
    else:
        relay.said("was removed, replaced or cut")
    line = relay.said("was renamed to")
    readiness(relay, 200)
    (command,) = orphans(relay)
    aside = re.search(r"was renamed to (\S+)\. To read", line)
    assert aside and re.fullmatch(r".*/log\.sqlite3-wal\.orphaned-\d{8}T\d{6}Z", aside[1]), line
    assert Path(aside[1]).exists()
    assert send(alice, "new")["value"] is True
    printed = follow(command)
    assert len(printed.splitlines()) == 300
    assert [row.content for row in read_log(disk / "log.sqlite3.1")] == contents
    relay.stop()
    assert [row.content for row in read_log(tmp_path / LOG)] == ["new"]


def test_backup_beside_an_old_write_ahead_log_is_refused_with_a_command(
    start_relay: Any, site: Site, tmp_path: Path, disk: Path
) -> None:
    relay = start_relay(*MESSAGE_LOG)
    alice, _ = talking(relay)
    log = tmp_path / LOG
    assert send(alice, "before")["value"] is True
    with closing(sqlite3.connect(log)) as source, closing(sqlite3.connect(disk / "backup")) as copy:
        source.backup(copy)
    assert send(alice, "after")["value"] is True
    relay.process.send_signal(signal.SIGKILL)
    relay.wait()
    shutil.copy(disk / "backup", log)
    why = refusal(start_second(tmp_path, site, LOG))
    assert "does not belong to the message log" in why
    read = subprocess.run(["sh", "-c", f"cat {log}-wal | wc -c"], capture_output=True, text=True)
    assert int(read.stdout) > 0
    found = re.search(r"set those messages aside: (.*?\))\. To keep", why)
    assert found, why
    follow(found[1])
    relay = start_relay(*MESSAGE_LOG)
    assert [row.content for row in read_log(log)] == ["before"]


# A file system that fails ------------------------------------------------------------------


def no_folder(disk: Path) -> None:
    """Cause ENOENT."""


def a_file_for_a_folder(disk: Path) -> None:
    """Cause ENOTDIR."""
    disk.touch()


def a_link_to_itself(disk: Path) -> None:
    """Cause ELOOP."""
    disk.symlink_to(disk.name)


def a_name_that_is_too_long(disk: Path) -> None:
    """Cause ENAMETOOLONG."""
    disk.symlink_to("x" * 255 + "/" + "x" * 256)


@pytest.mark.parametrize("fault", [no_folder, a_file_for_a_folder, a_link_to_itself, a_name_that_is_too_long])
def test_inaccessible_folder_is_logged_and_the_log_recovers(
    start_relay: Any, tmp_path: Path, disk: Path, fault: Callable[[Path], None]
) -> None:
    relay = start_relay(*MESSAGE_LOG)
    alice, bo = talking(relay)
    assert send(alice, "before")["value"] is True
    bo.hear()
    disk.rename(tmp_path / "away")
    fault(disk)
    readiness(relay, 503)  # though nobody sends
    for number in range(10):
        assert send(alice, f"refused {number}")["reason"] == "log-unavailable"
    assert bo.hears_nothing(0.1)
    time.sleep(1.2)  # while it is tried again and again
    told = [line for line in relay.output if "No message is delivered until it can be written" in line]
    assert 1 <= len(told) <= 2, told  # that the file has gone, and why there can't be another
    disk.unlink(missing_ok=True)
    (tmp_path / "away").rename(disk)
    relay.said("can be written again")
    readiness(relay, 200)
    assert send(alice, "after")["value"] is True
    relay.stop()
    assert [row.content for row in read_log(tmp_path / LOG)] == ["before", "after"]
    assert not [line for line in relay.output if "please report it" in line or "Traceback" in line]
