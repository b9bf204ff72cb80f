"""What was acknowledged is in the log, whatever happens to the relay or to the disk; the log is read by SQLite itself."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.programs import HIGH_RATES, Client, RelayProcess, Site
from tests.end_to_end.promise import Trial, read_log
from tests.end_to_end.saturation import SATURATED, Crowd, Part

ROUNDS = 20

LogIn = Callable[[str], Client]


def test_sigkill_at_full_load_loses_nothing_that_was_acknowledged(site: Site, tmp_path: Path) -> None:
    trial = Trial()
    pressures = []
    for round in range(ROUNDS):
        relay = RelayProcess(tmp_path, "--auth-url", site.url, *HIGH_RATES, measured=False)
        with relay, Crowd(relay, site, f"{round}.") as crowd:
            crowd.fill(others=["flapping"])
            crowd.join("flapping", Part(leaves_after=200), connections=2)
            crowd.begin()
            # By what it has answered, not by the clock: a slow machine is killed as far in as a fast one.
            pressures.append(crowd.press(0.05, answers=random.Random(round).randrange(200, 1000)))
            relay.process.send_signal(signal.SIGKILL)
            crowd.hear_to_the_end()
            assert relay.wait() == -signal.SIGKILL
            trial.add(crowd.accounts(), settled=False)
    print(*pressures, trial, sep="\n")
    trial.check_log(read_log(tmp_path / "chatrelay.sqlite3"))
    assert statistics.median(pressure.busy for pressure in pressures) > SATURATED
    assert trial.counts["acknowledged"] > ROUNDS * 50
    assert trial.counts["refused"] > ROUNDS * 10
    assert trial.counts["unanswered"] > ROUNDS * 10  # or the relay was killed at its ease


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
        os.kill(child_of(relay.process.pid), signal.SIGTERM)
        relay.wait()
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


def child_of(pid: int) -> int:
    """The one child of a process; strace runs the relay as its own."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


# A log that cannot be written -------------------------------------------------


def refused(client: Client, to: str | int, id: str) -> None:
    """Send, and expect `log-unavailable`."""
    client.send(to, f"content of {id}", id=id)
    assert client.hear()["response"] == {"id": id, "value": False, "reason": "log-unavailable"}


def accepted_within(seconds: float, client: Client, to: str | int, id: str) -> float:
    """Send again and again until it is accepted; return how long that took."""
    began = time.monotonic()
    attempt = 0
    while time.monotonic() - began < seconds:
        attempt += 1
        client.send(to, f"content of {id}", id=f"{id}-{attempt}")
        if client.hear()["response"]["value"]:
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(f"not accepted within {seconds} s")


def rows(path: Path) -> list[tuple[str, int]]:
    """The log's contents, and whether they were delivered."""
    with closing(sqlite3.connect(path)) as log:
        return log.execute("SELECT content, delivered FROM message ORDER BY number").fetchall()


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


def test_a_full_disk_is_told_and_recovered_from(site: Site, small_disk: Path, tmp_path: Path) -> None:
    path = small_disk / "log.sqlite3"
    with RelayProcess(tmp_path, "--auth-url", site.url, "--message-log", f"sqlite:{path}", *HIGH_RATES) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            alice.send(2, "before", id="before")
            assert bo.hear()["message"]["content"] == "before"
            assert alice.hear()["response"]["value"] is True
            ballast = small_disk / "ballast"
            fill(ballast)
            for attempt in range(200):  # until what SQLite had reserved is used up
                alice.send(2, "x" * 4000, id=f"fill-{attempt}")
                response = alice.hear()["response"]
                if not response["value"]:
                    break
                bo.hear()
            assert response["reason"] == "log-unavailable"
            relay.said(r"the message log .* cannot be written")
            assert bo.hears_nothing(0.1)
            ballast.unlink()
            assert accepted_within(5, alice, 2, "after") < 2
            assert bo.hear()["message"]["content"] == "content of after"
        relay.said(r"can be written again")
    contents = rows(path)
    assert ("content of after", 1) in contents
    assert [delivered for content, delivered in contents if content == "before"] == [1]


def fill(path: Path) -> None:
    """Use up what room there is."""
    with path.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                file.write(b"\\0" * size)
            except OSError:
                size //= 2


def test_a_broken_file_is_told_and_recovered_from(logged_in: LogIn, relay: RelayProcess) -> None:
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


def test_a_log_locked_by_another_program_is_waited_for_or_told(logged_in: LogIn, relay: RelayProcess) -> None:
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


@strace
def test_a_sync_that_fails_is_never_acknowledged(site: Site, tmp_path: Path) -> None:
    # Every third sync fails. SQLite has then written the batch and can't say
    # whether it is on the disk: it must be refused, and marked if it is there.
    under = ("strace", "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=20+3")
    outcomes: dict[str, bool] = {}
    with RelayProcess(tmp_path, "--auth-url", site.url, *HIGH_RATES, under=under) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            for number in range(40):
                alice.send(2, f"content {number}", id=number)
                response = alice.hear()["response"]
                outcomes[f"content {number}"] = response["value"]
                if not response["value"]:
                    assert response["reason"] == "log-unavailable"
                    time.sleep(0.2)
            delivered = []
            while True:
                try:
                    delivered.append(bo.hear(0.3)["message"]["content"])
                except TimeoutError:
                    break
        relay.said(r"the message log .* cannot be written")
        os.kill(child_of(relay.process.pid), signal.SIGTERM)
        relay.wait()
    accepted = [content for content, value in outcomes.items() if value]
    assert delivered == accepted
    assert len(accepted) > 5
    assert len(accepted) < 40
    logged = rows(tmp_path / "chatrelay.sqlite3")
    assert [content for content, was_delivered in logged if was_delivered] == accepted


@strace
def test_a_file_system_that_turned_read_only_is_told_and_recovered_from(site: Site, tmp_path: Path) -> None:
    # As a kernel does that met errors on a disk: what was open stays open, and no write succeeds.
    under = ("strace", "-f", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EROFS:when=80..90")
    with RelayProcess(tmp_path, "--auth-url", site.url, *HIGH_RATES, under=under) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            refusals = 0
            accepted = []
            for number in range(40):
                alice.send(2, f"content {number}", id=number)
                response = alice.hear()["response"]
                if response["value"]:
                    accepted.append(f"content {number}")
                    assert bo.hear()["message"]["content"] == f"content {number}"
                else:
                    assert response["reason"] == "log-unavailable"
                    refusals += 1
                    time.sleep(0.1)
            assert refusals > 0
            assert accepted_within(10, alice, 2, "after") < 10
            assert bo.hear()["message"]["content"] == "content of after"
        relay.said(r"the message log .* cannot be written")
        relay.said(r"can be written again")
        os.kill(child_of(relay.process.pid), signal.SIGTERM)
        relay.wait()
    logged = rows(tmp_path / "chatrelay.sqlite3")
    assert [content for content, was_delivered in logged if was_delivered] == [*accepted, "content of after"]
