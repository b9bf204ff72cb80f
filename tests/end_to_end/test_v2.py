"""Version 2 against a real relay: what was missed, several devices, history, conversations, both versions at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support import v2
from tests.support.authorities import Authorities
from tests.support.postgres_server import shared_server
from tests.support.programs import HIGH_RATES, RelayProcess, StartRelay
from tests.support.v2_client import Device

LOGS = ("memory:", "sqlite:chatrelay.sqlite3", "postgresql:")
"""The message logs that number inboxes, as ``--message-log`` names them; for the last, with an empty database."""


class MakeDevice(Protocol):
    """Makes devices, which are disconnected at the end."""

    def __call__(self, sessid: str, connect: bool = True) -> Device: ...


@pytest.fixture(params=LOGS)
def relay(request: pytest.FixtureRequest, start_relay: StartRelay) -> RelayProcess:
    """Start a relay with a message log that numbers inboxes."""
    url = request.param
    if url == "postgresql:":
        server = shared_server()
        url = server.url(server.database(request.addfinalizer))
    return start_relay("--message-log", url)


@pytest.fixture
def device(relay: RelayProcess) -> Iterator[MakeDevice]:
    """Return a function that makes a device of a user, by SESSID."""
    with ExitStack() as devices:

        def make(sessid: str, connect: bool = True) -> Device:
            made = Device(relay.url, sessid)
            devices.callback(made.disconnect)
            if connect:
                assert made.connect()["response"] is True
            return made

        yield make


def contents(device: Device) -> list[Any]:
    """Return the contents that a device has, in order."""
    return [kept and kept["message"]["content"] for _, kept in sorted(device.inbox.items())]


def test_device_that_was_away_is_sent_what_it_missed(device: MakeDevice) -> None:
    alice, bo = device("alice-session"), device("bo-session")
    assert bo.send(1, "we know each other")["value"] is True
    alice.catch_up(1)
    assert alice.send(2, "one")["delivery"] == "delivered"
    bo.catch_up(2)
    bo.disconnect()
    for content in ("two", "three", "four"):
        assert alice.send("2", content)["delivery"] == "stored"
    answer = bo.connect()
    assert (answer["recovered"], answer["n"]) == (True, 5)
    bo.catch_up(5)
    assert contents(bo) == ["we know each other", "one", "two", "three", "four"]
    assert alice.send(2, "five")["delivery"] == "delivered"
    bo.catch_up(6)


def test_devices_of_both_users_have_equal_inboxes(device: MakeDevice) -> None:
    alices = [device("alice-session") for _ in range(2)]
    bos = [device("bo-session") for _ in range(2)]
    for number in range(10):
        for sender, to in ((alices[0], 2), (bos[1], 1), (alices[1], "2"), (bos[0], "1")):
            assert sender.send(to, f"{number} to {to}")["value"] is True
    assert alices[0].send(1, "to myself")["value"] is True
    for each, last in ((alices, 41), (bos, 40)):
        for one in each:
            one.catch_up(last)
        assert each[0].inbox == each[1].inbox
        assert list(each[0].inbox) == list(range(1, last + 1))
    assert contents(alices[0])[:-1] == contents(bos[0])


def test_history_and_conversations_have_what_devices_have(device: MakeDevice) -> None:
    alice, bo, chen = device("alice-session"), device("bo-session"), device("chen-session")
    for number in range(3):
        bo.send(1, f"bo {number}")
        chen.send(1, f"chen {number}")
        alice.send("chen", f"alice {number}")
    alice.catch_up(9)
    history = alice.ask(v2.history("chen", limit=4))
    assert [entry["n"] for entry in history["messages"]] == [9, 8, 6, 5]
    assert history["more"] is True
    for entry in history["messages"]:
        place = entry.pop("n")
        assert entry == alice.inbox[place]
    older = alice.ask(v2.history("chen", before=5))
    assert ([entry["n"] for entry in older["messages"]], older["more"]) == ([3, 2], False)
    listed = alice.ask(v2.conversations())["conversations"]
    assert [(each["with"], each["n"], each["unread"]) for each in listed] == [("chen", 9, 3), ("2", 7, 3)]
    assert bo.ask(v2.history("chen"))["messages"] == []


def test_both_versions_talk_to_each_other(device: MakeDevice, relay: RelayProcess) -> None:
    alice = device("alice-session")
    with closing(relay.client()) as bo:
        bo.log_in("bo-session")
        bo.send(1, "from v1", "21")
        assert bo.hear() == {"type": "send-request-response", "response": {"id": "21", "value": True}}
        assert alice.send(2, "from v2", time_stamp="23")["delivery"] == "delivered"
        inside = {"timeStamp": "23", "fromuID": 1, "touID": 2, "content": "from v2"}
        assert bo.hear() == {"type": "message", "message": inside}
        alice.disconnect()
        bo.send(1, "is refused", "22")
        assert bo.hear()["response"]["reason"] == "receiving-user-not-connected"
    assert alice.connect()["recovered"] is True
    assert contents(alice) == ["from v1", "from v2"]
    assert alice.send(2, "kept")["delivery"] == "stored"
    assert contents(alice) == ["from v1", "from v2", "kept"]


def test_message_that_is_sent_again_is_there_once(device: MakeDevice) -> None:
    alice = device("alice-session")
    request = v2.message(2, "once")
    first = alice.ask(request)
    alice.disconnect()
    alice.connect()
    assert alice.ask({**request, "again": True}) == first
    assert [entry["id"] for entry in alice.ask(v2.history(2))["messages"]] == [request["id"]]
    assert alice.place == 1


def test_client_is_told_when_to_come_back(device: MakeDevice, relay: RelayProcess) -> None:
    alice = device("alice-session")
    relay.process.terminate()
    notice = alice.hear()
    assert (notice["type"], notice["code"]) == ("closing", 4000)
    assert 1000 <= notice["retryAfter"] <= 2000
    assert alice.client is not None
    assert alice.client.closed() == (4000, [])


@pytest.mark.parametrize("fast_path", ["yes", "no"])
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_long_replay_reaches_a_client_that_reads_little_while_more_comes(
    start_relay: StartRelay, tmp_path: Path, over_tls: bool, fast_path: str
) -> None:
    authorities = Authorities(tmp_path / "authorities") if over_tls else None
    endpoint = "tcp:0:interface=127.0.0.1"
    if authorities is not None:
        endpoint = authorities.endpoint(authorities.issue("127.0.0.1"))
    relay = start_relay("--stranger-messages", "0", *HIGH_RATES, listen=endpoint, CHATRELAY_FAST_PATH=fast_path)
    options = {} if authorities is None else {"ssl": authorities.trusting()}
    url = f"{'ws' if authorities is None else 'wss'}://127.0.0.1:{relay.port}/"
    with ExitStack() as devices:
        alice, bo, other = (Device(url, f"{name}-session", **options) for name in ("alice", "bo", "bo"))
        for device in (alice, bo, other):
            devices.callback(device.disconnect)
        bo.connect()
        bo.disconnect()
        alice.connect()
        for number in range(200):
            alice.send(2, f"{number} " + "x" * 14_000)  # 2.8 MB, more than twice the budget of a client
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", relay.port))
        bo.options = {**options, "sock": narrow, "max_queue": 1}
        assert bo.connect()["recovered"] is True
        other.connect()
        for number in range(200, 300):
            alice.send(2, f"{number} " + "x" * 14_000)
        bo.catch_up(300)
        other.catch_up(300)
        assert [kept["message"]["content"].split()[0] for kept in bo.inbox.values()] == [str(n) for n in range(300)]
        assert list(other.inbox.values()) == list(bo.inbox.values())[200:]
