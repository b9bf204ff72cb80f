"""What was acknowledged is in the log, whatever happens to the relay or to the disk.

Clients are asyncio programs on the library `websockets`; both sides keep
their own records, and the log is read by SQLite itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.end_to_end.programs import Client, RelayProcess, Site

ROUNDS = 20
SENDERS = 4
IN_FLIGHT = 16

LogIn = Callable[[str], Client]


class Records:
    """What the clients saw, over all rounds. A content names its sender and counts up."""

    def __init__(self) -> None:
        self.sent: dict[str, tuple[str, str]] = {}  # content -> (sender, recipient)
        self.outcomes: dict[str, tuple[bool, str | None]] = {}
        self.deliveries: list[tuple[int, str]] = []  # (number of the receiving connection, content)
        self.connections = 0


async def log_in(url: str, sessid: str) -> ClientConnection:
    """Connect and log in."""
    socket = await connect(url, compression=None, proxy=None).__aenter__()
    await socket.send(json.dumps({"type": "auth-request", "SESSID": sessid}))
    assert json.loads(await socket.recv()) == {"type": "auth-response", "response": True}
    return socket


async def receive(url: str, user: str, records: Records, flapping: random.Random | None) -> None:
    """Be a recipient until the relay is gone; one who flaps leaves and comes back now and then."""
    while True:
        try:
            socket = await log_in(url, user)
            records.connections += 1
            connection = records.connections
            leave_after = flapping.randint(20, 400) if flapping else None
            while leave_after is None or leave_after > 0:
                message = json.loads(await socket.recv())["message"]
                records.deliveries.append((connection, message["content"]))
                leave_after = leave_after and leave_after - 1
            await socket.close()
        except (ConnectionClosed, OSError, EOFError):
            return
        except Exception as error:
            if "handshake" in str(error) or "HTTP" in str(error) or "EOF" in str(error):
                return
            raise


async def send(url: str, user: str, round: int, records: Records, choose: random.Random) -> None:
    """Be a sender with some requests in flight, until the relay is gone."""
    socket = await log_in(url, user)
    room = asyncio.Semaphore(IN_FLIGHT)

    async def hear() -> None:
        async for frame in socket:
            response = json.loads(frame)["response"]
            content = response["id"]
            assert content not in records.outcomes, "C9: one answer per request"
            records.outcomes[content] = (response["value"], response.get("reason"))
            room.release()

    hearing = asyncio.create_task(hear())
    number = 0
    try:
        while not hearing.done():
            await asyncio.wait_for(room.acquire(), 2)
            number += 1
            to = choose.choice(["steady", "steady", "flapping", "nobody"])
            content = f"{user}/{round}/{number}"
            records.sent[content] = (user, to)
            message = {"timeStamp": number, "touID": to, "content": content}
            await socket.send(json.dumps({"type": "message-send-request", "id": content, "message": message}))
    except (ConnectionClosed, TimeoutError):
        pass
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)


async def load(relay: RelayProcess, round: int, records: Records, seconds: float) -> None:
    """Let everybody talk, kill the relay with no warning, and wait until everybody has noticed."""
    choose = random.Random(round)
    receivers = [
        asyncio.create_task(receive(relay.url, "steady", records, None)),
        asyncio.create_task(receive(relay.url, "flapping", records, random.Random(round))),
    ]
    await asyncio.sleep(0.1)
    senders = [
        asyncio.create_task(send(relay.url, f"sender{number}", round, records, choose)) for number in range(SENDERS)
    ]
    await asyncio.sleep(seconds)
    relay.process.send_signal(signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*receivers, *senders), 20)


def test_sigkill_under_load_loses_nothing_that_was_acknowledged(site: Site, tmp_path: Path) -> None:
    for user in ("steady", "flapping", *(f"sender{number}" for number in range(SENDERS))):
        site.users[user] = user
    records = Records()
    for round in range(ROUNDS):
        with RelayProcess(tmp_path, "--auth-url", site.url) as relay:
            asyncio.run(load(relay, round, records, random.Random(round).uniform(0.2, 0.5)))
            assert relay.wait() == -signal.SIGKILL
    check(records, tmp_path / "chatrelay.sqlite3")
    acknowledged = sum(value for value, _ in records.outcomes.values())
    refused = len(records.outcomes) - acknowledged
    print(f"{ROUNDS} kills, {len(records.sent)} sent, {acknowledged} acknowledged, {refused} refused")
    assert acknowledged > ROUNDS * 50
    assert refused > ROUNDS * 10


def check(records: Records, path: Path) -> None:
    """Hold both sides' records against the log and the promise."""
    with closing(sqlite3.connect(path)) as log:
        assert log.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = log.execute(
            "SELECT number, from_uid, to_uid, content, delivered FROM message ORDER BY number"
        ).fetchall()
        holes = log.execute(
            """WITH place AS (SELECT to_uid AS uid, to_place AS place FROM message
                              UNION SELECT from_uid, from_place FROM message)
               SELECT uid, count(*), max(place), (SELECT last_place FROM inbox WHERE inbox.uid = place.uid)
               FROM place GROUP BY uid"""
        ).fetchall()
    for uid, count, last, counter in holes:
        assert count == last == counter, f"the inbox of {uid} has holes"
    logged = [content for *_, content, _ in rows]
    delivered = {content for _, content in records.deliveries}
    marked_undelivered = {content for *_, content, was_delivered in rows if not was_delivered}
    in_log = set(logged)
    assert len(in_log) == len(logged), "C1: once"
    for content, (value, reason) in records.outcomes.items():
        if value:
            assert content in in_log and content not in marked_undelivered, (
                f"C1: {content} was acknowledged and is not in the log"
            )
        else:
            assert content not in delivered, f"C3: {content} was refused ({reason}) and delivered"
            assert content not in in_log or content in marked_undelivered, (
                f"C3: {content} was refused and is in the log"
            )
    assert delivered <= in_log, "C8: delivered, and not in the log"
    for *_, sender, recipient, content, _ in rows:
        assert records.sent[content] == (sender, recipient)
    assert in_order(logged), "the log keeps each sender's order"
    by_connection: dict[int, list[str]] = {}
    for connection, content in records.deliveries:
        by_connection.setdefault(connection, []).append(content)
    for contents in by_connection.values():
        assert in_order(contents), "C7: the order of a sender's messages"


def in_order(contents: list[str]) -> bool:
    """Whether each sender's messages stand in the order they were sent."""
    last: dict[str, tuple[int, int]] = {}
    for content in contents:
        sender, round, number = content.split("/")
        place = (int(round), int(number))
        if place <= last.get(sender, (-1, -1)):
            return False
        last[sender] = place
    return True


def test_the_check_can_fail(tmp_path: Path) -> None:
    """The checker is checked: each promise broken on purpose makes it fail."""
    from chatrelay.interfaces import Message
    from chatrelay.messagelog.sqlite import SqliteStore

    def checked(**changes: Any) -> None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite3"
        store = SqliteStore(str(path))
        store.open()
        store.append([Message("a", "b", c, 1, c, 0) for c in changes.get("logged", ["a/0/1", "a/0/2"])])
        store.mark_undelivered(changes.get("marked", []))
        store.close()
        records = Records()
        records.sent = {f"a/0/{number}": ("a", "b") for number in range(9)}
        records.outcomes = dict.fromkeys(changes.get("acknowledged", ["a/0/1", "a/0/2"]), (True, None))
        records.outcomes.update((c, (False, "busy")) for c in changes.get("refused", []))
        records.deliveries = [(1, c) for c in changes.get("delivered", ["a/0/1", "a/0/2"])]
        check(records, path)

    checked()
    checked(refused=["a/0/3"], logged=["a/0/1", "a/0/2", "a/0/3"], marked=[3])
    for broken in (
        {"acknowledged": ["a/0/1", "a/0/3"]},
        {"marked": [1]},
        {"logged": ["a/0/1", "a/0/1", "a/0/2"]},
        {"logged": ["a/0/2", "a/0/1"]},
        {"delivered": ["a/0/2", "a/0/1"]},
        {"delivered": ["a/0/1", "a/0/2", "a/0/3"]},
        {"refused": ["a/0/3"], "logged": ["a/0/1", "a/0/2", "a/0/3"]},
        {"refused": ["a/0/3"], "delivered": ["a/0/3"], "logged": ["a/0/1", "a/0/2", "a/0/3"], "marked": [3]},
    ):
        with pytest.raises(AssertionError):
            checked(**broken)


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
    with RelayProcess(tmp_path, "--auth-url", site.url, "--message-log", f"sqlite:{path}") as relay:
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
    with RelayProcess(tmp_path, "--auth-url", site.url, under=under) as relay:
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
    with RelayProcess(tmp_path, "--auth-url", site.url, under=under) as relay:
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
