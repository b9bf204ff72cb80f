"""A relay with ``--keep``: what its clients and its commands see of a message log with old messages."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatrelay.messagelog.postgres import PostgresStore
from chatrelay.messagelog.postgres.address import parse
from chatrelay.messagelog.sqlite import SqliteStore
from tests.support import v2
from tests.support.message_logs import message
from tests.support.postgres_server import shared_server
from tests.support.programs import RelayProcess, StartRelay
from tests.support.v2_client import Device

OLD = 5
"""How many messages are years old."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a message log with old messages between Alice (1) and Bo (2)."""
    store: Any
    if request.param == "sqlite":
        found, store = f"sqlite:{tmp_path / 'log'}", SqliteStore(str(tmp_path / "log"))
    else:
        server = shared_server()
        found = server.url(server.database(request.addfinalizer))
        store = PostgresStore(parse(found))
    store.open()
    with closing(store):
        store.append([message(f"old {number}", 1 + number % 2, 2 - number % 2) for number in range(OLD)])
    return found


def history(device: Device) -> list[Any]:
    """Return the places and contents of the conversation of Alice and Bo."""
    found = device.ask(v2.history("1"))["messages"]
    return [(each["n"], each["message"]["content"]) for each in found]


def came_back(relay: RelayProcess, last: Device, place: int) -> dict[str, Any]:
    """Return the answer to a device that comes back with a place."""
    back = Device(relay.url, "bo-session")
    back.epoch, back.place = last.epoch, place
    answer = back.connect()
    if answer.get("recovered"):
        back.catch_up(answer["n"])
    back.disconnect()
    return answer


def test_old_messages_are_deleted_and_clients_go_on_from_the_places_that_they_have(
    url: str, start_relay: StartRelay
) -> None:
    with start_relay("--message-log", url) as relay:
        alice, bo = Device(relay.url, "alice-session"), Device(relay.url, "bo-session")
        assert (alice.connect()["first"], bo.connect()["first"]) == (1, 1)
        assert alice.send(2, "new")["n"] == OLD + 1
        bo.catch_up(OLD + 1)
        assert len(history(bo)) == OLD + 1
        alice.disconnect()
        bo.disconnect()
    for run in range(2):
        with start_relay("--message-log", url, "--keep", "365d") as relay:
            if not run:
                relay.said(rf"deleted {OLD} messages that were older than keep \(31536000 s\)")
            for place, is_recovered in ((OLD - 1, False), (OLD, True), (OLD + 1, True)):
                answer = came_back(relay, bo, place)
                assert (answer["first"], answer["n"], answer["recovered"]) == (OLD + 1, OLD + 1, is_recovered), place
                assert answer["epoch"] == bo.epoch
            bo.url = relay.url
            bo.connect()
            assert history(bo) == [(OLD + 1, "new")]
            found = bo.ask(v2.conversations())["conversations"]
            assert [(each["with"], each["n"], each["unread"]) for each in found] == [("1", OLD + 1, 1)]
            bo.disconnect()
    with start_relay("--message-log", url, "--keep", "365d") as relay:
        alice.url = relay.url
        alice.connect()
        assert alice.send(2, "next")["n"] == OLD + 2
        alice.disconnect()
    command = [sys.executable, "-m", "chatrelay.app.cli", "inbox", "--message-log", url, "2", "--json"]
    printed = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout
    state, *frames = map(json.loads, printed.splitlines())
    assert (state["first"], state["last"]) == (OLD + 1, OLD + 2)
    assert [frame["n"] for frame in frames] == [OLD + 1, OLD + 2]
