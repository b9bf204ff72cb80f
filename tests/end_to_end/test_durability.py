"""A message log whose file is broken or locked, and the order of system calls.

tests/trials/test_durability.py tests kills and power cuts.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.client import Client
from tests.support.programs import RelayProcess, Site

LogIn = Callable[[str], Client]


# System calls ---------------------------------------------------------------

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")


@strace
def test_a_sync_precedes_the_answer_of_an_idle_relay(site: Site, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    under = ("strace", "-f", "-o", str(trace), "-s", "4096", "-e", "trace=fsync,fdatasync,sendto,write,writev,sendmsg")
    with RelayProcess(tmp_path, "--auth-url", site.url, under=under) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            for number in range(5):
                alice.send(2, f"content-{number}", id=f"answer-{number}")
                bo.hear()
                alice.hear()
        relay.stop()
    lines = trace.read_text().splitlines()
    before = 0
    for number in range(5):
        delivery = next(
            i for i, line in enumerate(lines) if f"content-{number}" in line and '\\"type\\":\\"message\\"' in line
        )
        answer = next(
            i for i, line in enumerate(lines) if f"answer-{number}" in line and "send-request-response" in line
        )
        synced = [
            i
            for i in range(before, delivery)
            if re.search(r"(fsync|fdatasync)\(.*= 0|<\.\.\. f(data)?sync resumed.*= 0", lines[i])
        ]
        assert synced, f"no sync between message {number - 1} and the delivery of message {number}"
        assert synced[-1] < delivery < answer
        before = answer


# A log that cannot be written -------------------------------------------------


def refused(client: Client, to: str | int, id: str) -> None:
    """Send a message, and expect `log-unavailable`."""
    client.send(to, f"content of {id}", id=id)
    assert client.hear()["response"] == {"id": id, "value": False, "reason": "log-unavailable"}


def accepted_within(seconds: float, client: Client, to: str | int, id: str) -> float:
    """Send until a message is accepted; return how long that took."""
    began = time.monotonic()
    attempt = 0
    while time.monotonic() - began < seconds:
        attempt += 1
        client.send(to, f"content of {id}", id=f"{id}-{attempt}")
        if client.hear()["response"]["value"]:
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(f"not accepted within {seconds} s")


def test_broken_log_file_is_logged_and_the_log_recovers(logged_in: LogIn, relay: RelayProcess) -> None:
    alice, bo = logged_in("alice-session"), logged_in("bo-session")
    path = relay.folder / "chatrelay.sqlite3"
    path.rename(path.with_suffix(".moved"))
    path.write_bytes(b"this is no database" * 1000)
    refused(alice, 2, "broken")
    refused(alice, 2, "still broken")
    relay.said(r"was removed, replaced or cut|cannot be written")
    assert bo.hears_nothing(0.1)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert accepted_within(5, alice, 2, "after") < 2
    assert bo.hear()["message"]["content"] == "content of after"


def test_log_locked_by_another_program_is_awaited_or_logged(logged_in: LogIn, relay: RelayProcess) -> None:
    alice, bo = logged_in("alice-session"), logged_in("bo-session")
    with closing(sqlite3.connect(relay.folder / "chatrelay.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        alice.send(2, "patience", id="patience")
        time.sleep(0.5)
        other.execute("ROLLBACK")
        assert bo.hear()["message"]["content"] == "patience"
        assert alice.hear()["response"]["value"] is True
        other.execute("BEGIN IMMEDIATE")
        refused(alice, 2, "too long")
        other.execute("ROLLBACK")
    assert accepted_within(5, alice, 2, "after") < 3
