"""What people are told of each other, by a real relay: receipts, marks on other devices, presence, typing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import v2
from tests.support.programs import RelayProcess, StartRelay
from tests.support.v2_client import Device

ALICE, BO = "alice-session", "bo-session"

LogIn = Callable[[RelayProcess, str], Device]


@pytest.fixture
def log_in() -> Iterator[LogIn]:
    """Return a function that connects a device of a user, by SESSID. It is disconnected at the end."""
    with ExitStack() as devices:

        def make(relay: RelayProcess, sessid: str) -> Device:
            device = Device(relay.url, sessid)
            devices.callback(device.disconnect)
            assert device.connect()["response"] is True
            return device

        yield make


def make_them_known(relay: RelayProcess, log_in: LogIn) -> None:
    """Have Alice and Bo write to each other."""
    alice, bo = log_in(relay, ALICE), log_in(relay, BO)
    assert alice.send(2)["value"] is True
    assert bo.send(1)["value"] is True
    alice.disconnect()
    bo.disconnect()


def hear(device: Device, kind: str) -> Any:
    """Return the next frame of a type; what comes before is kept."""
    while (frame := device.hear())["type"] != kind:
        pass
    return frame


def test_receipts_reach_the_sender_and_marks_the_other_devices(start_relay: StartRelay, log_in: LogIn) -> None:
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    make_them_known(relay, log_in)
    alice, phone = log_in(relay, ALICE), log_in(relay, ALICE)
    bo, bos_phone = log_in(relay, BO), log_in(relay, BO)
    assert alice.login["features"] == ["store", "receipts", "presence", "typing"]
    place = alice.send(2, "have you read this?")["n"]
    bo.catch_up(place)
    bo.say({"type": "received", "received": place})
    for device in (alice, phone):
        assert hear(device, "receipt") == {"type": "receipt", "with": "2", "received": place}
    bos_phone.catch_up(place)
    bos_phone.say({"type": "read", "with": 1, "read": place})
    for device in (alice, phone):
        assert hear(device, "receipt") == {"type": "receipt", "with": "2", "read": place}
    assert hear(bo, "read") == {"type": "read", "with": "1", "read": place}
    alice.say({"type": "typing", "touID": 2})
    for device in (bo, bos_phone):
        assert hear(device, "typing") == {"type": "typing", "fromuID": "1"}
    # After a restart, all that is still known.
    relay.process.terminate()
    assert relay.process.wait(30) is not None
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    alice, bo = log_in(relay, ALICE), log_in(relay, BO)
    (listed,) = alice.ask(v2.conversations())["conversations"]
    assert (listed["received"], listed["read"], listed["readByMe"], listed["unread"]) == (place, place, 0, 1)
    (listed,) = bo.ask(v2.conversations())["conversations"]
    assert (listed["readByMe"], listed["unread"]) == (place, 0)
    assert bo.ask(v2.history(1))["readByMe"] == place


def test_presence_is_told_and_last_seen_survives_a_restart(start_relay: StartRelay, log_in: LogIn) -> None:
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    make_them_known(relay, log_in)
    alice, bo = log_in(relay, ALICE), log_in(relay, BO)
    watch = {"type": "presence-request", "id": "p", "of": ["2", "chen", "nobody"]}
    assert alice.ask(watch) == {"id": "p", "value": True, "online": ["2"], "offline": {}}
    before = time.time()
    bo.disconnect()
    frame = hear(alice, "presence")
    passed = time.time() - before
    assert (frame["uID"], frame["online"]) == ("2", False)
    assert passed >= 4.9
    assert abs(frame["lastSeen"] / 1000 - before) < 2
    relay.process.terminate()
    assert relay.process.wait(30) is not None
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    alice = log_in(relay, ALICE)
    assert alice.ask(watch)["offline"] == {"2": frame["lastSeen"]}
    # Those who were there when the relay was stopped were last seen then.
    log_in(relay, BO)
    assert hear(alice, "presence") == {"type": "presence", "uID": "2", "online": True}
    stopped = time.time()
    relay.process.terminate()
    assert relay.process.wait(30) is not None
    relay = start_relay("--message-log", "sqlite:chatrelay.sqlite3")
    last_seen = log_in(relay, ALICE).ask(watch)["offline"]["2"]
    assert stopped - 1 < last_seen / 1000 < stopped + 15


def test_departure_before_a_kill_is_not_told_of_a_user_who_had_come_back(
    start_relay: StartRelay, log_in: LogIn
) -> None:
    options = ("--message-log", "sqlite:chatrelay.sqlite3", "--offline-messages", "4")
    relay = start_relay(*options)
    make_them_known(relay, log_in)
    alice, bo = log_in(relay, ALICE), log_in(relay, BO)
    for _ in range(4):
        # The marks of Bo's arrival are written with the first message at the latest.
        assert alice.send(2)["delivery"] == "delivered"
    relay.stop(signal.SIGKILL)
    bo.disconnect()
    relay = start_relay(*options)
    alice = log_in(relay, ALICE)
    assert alice.ask({"type": "presence-request", "id": "p", "of": ["2"]})["offline"] == {"2": None}
    # There is room again, for one message: the share of a sender.
    assert alice.send(2)["delivery"] == "stored"
    assert alice.send(2)["reason"] == "receiving-user-full"


def test_receipts_and_presence_can_be_switched_off(start_relay: StartRelay, log_in: LogIn) -> None:
    relay = start_relay("--message-log", "memory:", "--receipts", "off", "--presence", "off")
    make_them_known(relay, log_in)
    alice, bo = log_in(relay, ALICE), log_in(relay, BO)
    assert alice.login["features"] == ["store", "typing"]
    place = alice.send(2)["n"]
    bo.catch_up(place)
    bo.say({"type": "read", "with": 1, "read": place})
    assert bo.ask(v2.conversations())["conversations"][0]["unread"] == 0
    (listed,) = alice.ask(v2.conversations())["conversations"]
    assert "read" not in listed and "received" not in listed
    assert alice.ask({"type": "presence-request", "id": "p", "of": [2]}) == {
        "id": "p",
        "value": False,
        "reason": "invalid-request",
    }
