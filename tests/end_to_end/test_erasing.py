"""``chatrelay erase`` beside a real relay: what devices are told, and what is left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import PATIENCE, v2
from tests.support.command_line import arguments
from tests.support.programs import StartRelay
from tests.support.v2_client import Device


def erase(log: Path, *words: str) -> dict[str, object]:
    """Run the command; return its result."""
    line, environment = arguments(("erase", log, "--yes", "--json", *words))
    found = subprocess.run(line, env=environment, capture_output=True, encoding="utf-8", timeout=4 * PATIENCE)
    assert (found.returncode, found.stderr) == (0, ""), found.stderr
    return dict(json.loads(found.stdout))


@contextmanager
def device_of(url: str, sessid: str) -> Iterator[Device]:
    """Make a device of a user, which is disconnected at the end."""
    device = Device(url, sessid)
    try:
        yield device
    finally:
        device.disconnect()


def test_live_devices_are_told_and_later_ones_find_nothing(start_relay: StartRelay, tmp_path: Path) -> None:
    log = tmp_path / "folder" / "log"
    log.parent.mkdir()
    relay = start_relay("--message-log", f"sqlite:{log}")
    with device_of(relay.url, "alice-session") as alice, device_of(relay.url, "bo-session") as bo:
        for each in (alice, bo):
            assert each.connect()["response"] is True
        for number in range(3):
            assert alice.send(2, f"<alice {number}>")["value"] is True
            assert bo.send(1, f"<bo {number}>")["value"] is True
        alice.catch_up(6)
        bo.catch_up(6)
        assert erase(log, "1")["messages"] == 3
        for device in (alice, bo):
            frame = device.hear()
            assert (frame["type"], frame["n"], frame["places"]) == ("erased", 7, [[1, 1], [3, 3], [5, 5]])
        assert bo.send(1, "still here")["n"] == 8
        alice.catch_up(8)
        for device, peer in ((alice, "2"), (bo, "1")):
            found = device.ask(v2.history(peer))
            assert [entry["message"]["content"] for entry in found["messages"]] == ["still here"] + [
                f"<bo {number}>" for number in (2, 1, 0)
            ]
            (listed,) = device.ask(v2.conversations())["conversations"]
            assert listed["n"] == 8
        assert not [each for each in log.parent.rglob("*") if each.is_file() and b"<alice " in each.read_bytes()]
        kept = bo.inbox
    relay.stop()
    relay = start_relay("--message-log", f"sqlite:{log}")
    with device_of(relay.url, "bo-session") as third:
        third.place, third.epoch = 0, bo.epoch
        assert third.connect()["recovered"] is True
        third.catch_up(8)
        assert third.inbox == kept
        assert sorted(place for place, what in third.inbox.items() if what is None) == [1, 3, 5, 7]
    relay.stop()
    assert erase(log, "2", "--received")["messages"] == 4  # without a relay
    assert not [each for each in log.parent.rglob("*") if each.is_file() and b"<bo " in each.read_bytes()]
