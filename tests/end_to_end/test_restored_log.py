"""Clients of v2 forget what they have when an earlier copy of the message log is put in its place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import v2
from tests.support.programs import RelayProcess, StartRelay
from tests.support.v2_client import Device

LOG_LOST = 4005


@pytest.fixture
def devices() -> Iterator[ExitStack]:
    """Disconnect the devices at the end."""
    with ExitStack() as stack:
        yield stack


def log_in(relay: RelayProcess, sessid: str, devices: ExitStack) -> Device:
    """Connect a device."""
    device = Device(relay.url, sessid)
    devices.callback(device.disconnect)
    assert device.connect()["response"] is True
    return device


def come_back(device: Device) -> None:
    """Log in again with what the device has of the old log; check that it has to forget that."""
    old = device.epoch
    device.disconnect()
    answer = device.connect()
    assert answer["response"] is True and answer["recovered"] is False
    assert answer["epoch"] != old and device.inbox == {}
    assert answer["n"] == device.place == 1


def test_copy_that_replaces_the_log_closes_with_4005_and_is_not_recovered(
    start_relay: StartRelay, tmp_path: Path, devices: ExitStack
) -> None:
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    log = relay.folder / "chatrelay.sqlite3"
    alice, idle = log_in(relay, "alice-session", devices), log_in(relay, "bo-session", devices)
    assert alice.send(2, "in the copy")["n"] == 1
    relay.process.terminate()
    assert relay.process.wait(30) is not None
    copy = tmp_path / "copy"
    shutil.copy(log, copy)
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    for device in (alice, idle):
        device.url = relay.url
        device.disconnect()
        assert device.connect()["recovered"] is True
    assert [alice.send(2, "lost")["n"] for _ in range(3)] == [2, 3, 4]
    idle.catch_up(4)
    for suffix in ("-wal", "-shm"):
        Path(f"{log}{suffix}").unlink()
    copy.replace(log)  # while the relay runs
    for device in (alice, idle):  # without a message
        assert device.client is not None
        assert device.client.closed()[0] == LOG_LOST
        come_back(device)
    place = alice.send(2, "new at a place of the old log")["n"]
    assert place == 2
    idle.catch_up(2)
    assert idle.inbox[2]["message"]["content"] == "new at a place of the old log"
    (listed,) = idle.ask(v2.conversations())["conversations"]
    assert (listed["n"], listed["unread"]) == (2, 2)
