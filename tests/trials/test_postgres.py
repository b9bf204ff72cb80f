"""Trials of the message log in PostgreSQL: a full disk, and many commits that are cut at random moments."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatrelay.interfaces import CommitUnknown
from chatrelay.messagelog.postgres import PostgresMessageReader, PostgresStore
from chatrelay.messagelog.postgres.address import parse
from chatrelay.model import LogUnavailable
from tests.support.message_logs import message
from tests.support.postgres_server import PostgresServer, shared_server
from tests.support.tcp_proxy import Fault, Proxy

SECONDS = {False: 4.0, True: 60.0}
"""How long commits are cut, in short and in full."""


@pytest.fixture
def server() -> PostgresServer:
    """Return a PostgreSQL server."""
    return shared_server()


@pytest.fixture
def database(server: PostgresServer, request: pytest.FixtureRequest) -> str:
    """Return the name of an empty database."""
    return server.database(request.addfinalizer)


@pytest.fixture
def small_disk(server: PostgresServer) -> Iterator[Path]:
    """Return a folder of the server's with 4 MiB of space."""
    folder = server.folder / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can make a small disk")
    try:
        shutil.chown(folder, Path(server.data).owner())
        folder.chmod(0o700)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_full_disk_is_named_and_the_log_goes_on_when_there_is_space(
    server: PostgresServer, database: str, small_disk: Path
) -> None:
    url = server.url(database)
    store = PostgresStore(parse(url))
    store.open()
    server.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    try:
        server.execute("ALTER TABLE chatrelay.message SET TABLESPACE small", database)
        written = 0
        with pytest.raises(LogUnavailable, match="the server's disk is full: free some space there"):
            for _ in range(200):
                written += len(store.append([message(random.randbytes(700).hex()) for _ in range(20)]))
        assert written > 100
        for _ in range(3):
            store.open()
            with pytest.raises(LogUnavailable, match="disk is full"):
                store.append([message(random.randbytes(700).hex()) for _ in range(20)])
        server.execute("ALTER TABLE chatrelay.message SET TABLESPACE pg_default", database)
        store.open()
        last = message("after")
        store.append([last])
        assert last.to_place == written + 1
        store.close()
        found = list(PostgresMessageReader(url).messages())
        assert [each.to_place for each in found] == list(range(1, written + 2))
    finally:
        server.execute("DROP SCHEMA chatrelay CASCADE", database)
        server.execute("DROP TABLESPACE small")


def test_each_commit_that_is_cut_is_found_out(server: PostgresServer, database: str, full: bool) -> None:
    choose = random.Random(7)
    proxy = Proxy(server.port)
    store = PostgresStore(parse(server.url(database, port=proxy.port)))
    store.open()
    told: dict[str, bool] = {}
    places: dict[str, tuple[int, int]] = {}
    outcomes = {True: 0, False: 0}
    until = time.monotonic() + SECONDS[full]
    number = 0
    while time.monotonic() < until:
        number += 1
        batch = [
            message(f"{number} {index}", choose.randrange(5), choose.randrange(5), unique_id=f"id-{number}-{index}")
            for index in range(choose.randrange(1, 30))
        ]
        proxy.set_fault(choose.choice([Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.HOLD_REQUEST]))
        with pytest.raises(CommitUnknown):
            store.append(batch)
        store.open()
        ((_, is_committed),) = store.take_settled()
        outcomes[is_committed] += 1
        proxy.release()
        told.update({each.content: is_committed for each in batch})
        if is_committed:
            places.update({each.content: (each.from_place, each.to_place) for each in batch})
    store.close()
    proxy.close()
    server.end_sessions(database)
    found = list(PostgresMessageReader(server.url(database)).messages())
    assert sorted(each.content for each in found) == sorted(content for content, was in told.items() if was)
    assert {each.content: (each.from_place, each.to_place) for each in found} == places
    assert min(outcomes.values()) > 10, outcomes
    for user in map(str, range(5)):
        taken = {each.from_place for each in found if each.from_uid == user}
        taken |= {each.to_place for each in found if each.to_uid == user}
        assert taken == set(range(1, len(taken) + 1))
