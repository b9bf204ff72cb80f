"""The load of v2 in the benchmarks: what the clients send, what they check, and what is replayed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bench import proc, replay
from bench.instructions import CONNECTIONS, IN_FLIGHT, MISSED, frames_in, messages_v2, site
from bench.instructions import returns as returns_one_by_one
from bench.load import CONTENT, Load, Plan, Trouble, masked
from bench.measure import cores
from bench.member_v2 import BusyV2, MemberV2, frames_of, message_id
from bench.ports import free_port
from bench.replay import REPLAYED, SCATTERED, SIDE_BY_SIDE, Replay, lines
from bench.servers import SERVERS, Place, process
from chatrelay.model import Message
from chatrelay.wire import v2
from tests.support.schema import V2, is_valid_request

AT = 1_700_000_000.0


def server_frame(payload: bytes) -> bytes:
    """Return a server's text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    return (bytes([0x81, size]) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")) + payload


class Transport:
    """Takes what a busy connection writes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.underlying_transport = self

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written.append(data)

    def set_protocol(self, protocol: object) -> None:
        """Nothing is read here."""


class LoadStandIn:
    """What a member needs of `bench.load.Load`."""

    def __init__(self, in_flight: int) -> None:
        self.plan = SimpleNamespace(in_flight=in_flight)
        self.sent = self.answers = self.deliveries = 0
        self.running = True
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        """Keep the reason."""
        self.failures.append(what)


@pytest.fixture
def load() -> LoadStandIn:
    """Return a load of two pending messages a connection."""
    return LoadStandIn(in_flight=2)


@pytest.fixture
def member(load: LoadStandIn, monkeypatch: pytest.MonkeyPatch) -> MemberV2:
    """Return a member that has logged in at place 4."""
    monkeypatch.setattr("asyncio.get_running_loop", lambda: SimpleNamespace(create_future=lambda: None))
    made = MemberV2(load, 0)  # type: ignore[arg-type]
    made.transport = Transport()  # type: ignore[assignment]
    assert made.meaning(b'{"type":"auth-response","response":true,"uID":"user-0","n":4}') == ("login", "")
    return made


def delivery(
    place: int, number: str = "7", content: str = CONTENT, sender: str = "user-1", to: str = "user-0"
) -> bytes:
    """Encode a message as the relay does."""
    return v2.delivery(Message(sender, to, message_id(number), number, content, AT, True), place)


def answer(place: int, number: str = "7", delivered: bool = True) -> bytes:
    """Encode an answer as the relay does."""
    return v2.accepted(message_id(number), place, 10**15, delivered)


def test_request_is_one_of_v2_with_an_id_of_its_own(member: MemberV2) -> None:
    requests = [json.loads(member.request(str(number))) for number in (0, 7, 10**11)]
    assert all(is_valid_request(request, V2) for request in requests)
    assert {len(request["id"]) for request in requests} == {36}
    assert len({request["id"] for request in requests}) == 3


def test_frames_of_the_relay_are_understood(member: MemberV2) -> None:
    assert member.meaning(answer(5, "0", delivered=False)) == ("answer", "0")
    assert member.meaning(delivery(6, "12")) == ("delivery", "12")
    assert member.meaning(answer(7, "10")) == ("answer", "10")
    assert member.meaning(v2.resume("token")) == ("", "")
    assert member.place == 7


def test_late_answer_is_taken_after_its_place_came_as_a_message(member: MemberV2) -> None:
    assert member.meaning(delivery(5, sender="user-0", to="user-1")) == ("", "")
    assert member.meaning(answer(5, delivered=False)) == ("answer", "7")
    assert member.place == 5


@pytest.mark.parametrize(
    "payload",
    [
        delivery(6),
        delivery(4),
        delivery(5, content="another"),
        delivery(5, sender="user-9"),
        delivery(5, to="user-9"),
        b'{"type":"send-request-response","response":{"id":"1","value":false,"reason":"busy"}}',
        b'{"type":"void","n":5}',
        b'{"type":"auth-response","response":false}',
    ],
)
def test_unexpected_frame_is_an_error(member: MemberV2, payload: bytes) -> None:
    with pytest.raises((Trouble, msgspec.ValidationError)):
        member.meaning(payload)


def test_answer_of_stored_is_an_error_once_the_other_user_is_known(member: MemberV2) -> None:
    member.meaning(answer(5, delivered=False))
    member.meaning(delivery(6))
    with pytest.raises(Trouble, match="known"):
        member.meaning(answer(7, delivered=False))


def test_busy_connection_sends_a_new_message_for_each_answer(member: MemberV2, load: LoadStandIn) -> None:
    busy = BusyV2(member)
    busy.begin()
    data = b"".join(map(server_frame, (answer(5, "0"), delivery(6, "0"), answer(7, "1"))))
    for part in (data[:10], data[10:]):
        busy.get_buffer(-1)[: len(part)] = part
        busy.buffer_updated(len(part))
    assert load.failures == []
    assert (load.sent, load.answers, load.deliveries) == (4, 2, 1)
    written = b"".join(member.transport.written)  # type: ignore[attr-defined]
    assert len(written) == 4 * len(masked(1, member.request("0")))
    load.running = False
    part = server_frame(answer(8, "2"))
    busy.get_buffer(-1)[: len(part)] = part
    busy.buffer_updated(len(part))
    assert (load.sent, load.answers) == (4, 3)


def test_busy_connection_reports_an_unexpected_frame(member: MemberV2, load: LoadStandIn) -> None:
    busy = BusyV2(member)
    part = server_frame(delivery(9))
    busy.get_buffer(-1)[: len(part)] = part
    busy.buffer_updated(len(part))
    assert "place 9 came after place 4" in load.failures[0]


def test_load_at_a_fixed_rate_waits_while_too_many_messages_are_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.load.MAX_PENDING", 5)
    sent: list[str] = []

    async def send() -> list[int]:
        load = Load(Plan("open", 0, 0, 1, rate=1e9))
        load.members = [SimpleNamespace(send_one=sent.append)]  # type: ignore[list-item]
        load.running = True
        sending = asyncio.ensure_future(load._send_at_rate())
        counts = []
        for answers in (0, 3, 8):
            load.answers = answers
            for _ in range(3):
                await asyncio.sleep(0.002)
            counts.append(len(sent))
        load.running = False
        await sending
        return counts

    assert asyncio.run(send()) == [5, 8, 13]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535])
def test_frames_are_found_wherever_the_reads_end(size: int) -> None:
    payloads = [b"x" * size, b"{}"]
    data = b"".join(map(server_frame, payloads))
    assert frames_of(data) == (payloads, b"")
    assert frames_of(data[:-1]) == (payloads[:1], data[-4:-1])
    one, other = socket.socketpair()
    with closing(one), closing(other):
        one.sendall(data)
        assert list(islice(frames_in(other), 2)) == payloads


def test_frame_of_another_kind_is_an_error() -> None:
    with pytest.raises(Trouble, match="0x88"):
        frames_of(b"\x88\x00")


def test_ended_connection_is_an_error() -> None:
    one, other = socket.socketpair()
    with closing(other):
        one.close()
        with pytest.raises(ConnectionError):
            next(frames_in(other))


def test_log_has_equally_many_messages_side_by_side_and_scattered() -> None:
    recipients = [message.to_uid for message in replay.messages(1_000, replayed=100)]
    assert len(recipients) == 1_000
    assert [number for number, user in enumerate(recipients) if user == SCATTERED] == list(range(0, 1_000, 10))
    near = [number for number, user in enumerate(recipients) if user == SIDE_BY_SIDE]
    assert len(near) == 100
    assert near[-1] - near[0] < 115


def test_ids_in_the_log_are_unique() -> None:
    assert len({message.client_id for message in replay.messages(300, replayed=100)}) == 300


def test_results_are_shown_in_words() -> None:
    runs = [Replay(REPLAYED * cost / 1e6, kib) for cost, kib in ((8.0, 2048), (10.0, 0), (12.0, 512))]
    near, scattered = lines({SIDE_BY_SIDE: runs, SCATTERED: runs[:1]}, 1_000_000)
    assert near == (
        "side by side: 10.0 µs CPU a message (8.0 to 12.0), 100,000 messages per CPU second; "
        "memory +2.0 MiB in the first replay, at most +0.5 MiB in a later one"
    )
    assert scattered.startswith("one in 100 of the log: 8.0 µs")


def test_cpu_time_and_peak_of_a_running_process_are_read() -> None:
    pid = os.getpid()
    before = proc.thread_seconds_of(pid)
    assert before > 0
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert proc.thread_seconds_of(pid) > before
    assert proc.peak_kib_of(pid) >= proc.resident_kib_of([pid]) > 0


@pytest.fixture
def small_replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replay few messages from a small log."""
    for name, value in {"REPLAYED": 200, "QUIET_SECONDS": 0.1}.items():
        monkeypatch.setattr(replay, name, value)
    messages = replay.messages
    monkeypatch.setattr(replay, "messages", lambda count: messages(count, replayed=200))
    yield


@pytest.mark.usefixtures("small_replays")
def test_real_relay_replays_all_to_both_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["--messages", "800", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "side by side: " in said
    assert "one in 4 of the log: " in said


class _Relay:
    """A process that can be stopped and continued, as `subprocess.Popen` can."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._pid, number)


def test_load_of_which_instructions_are_counted_ends_with_users_who_know_each_other(tmp_path: Path) -> None:
    with site() as url:
        place = Place(free_port(), tmp_path, url, tmp_path / "none", tmp_path / "none")
        with process(SERVERS["chatrelay-v2"].command(place), place.port, cores()[0], tmp_path, "relay") as pid:
            messages_v2(_Relay(pid), place.port, 2)  # type: ignore[arg-type]
    text = sqlite3.connect(tmp_path / "messages.sqlite3").execute("SELECT count(*) FROM message").fetchone()
    assert text == (2 * CONNECTIONS * IN_FLIGHT,)


def test_returns_of_which_instructions_are_counted_go_by_token(tmp_path: Path) -> None:
    with site() as url:
        place = Place(free_port(), tmp_path, url, tmp_path / "none", tmp_path / "none")
        with process(SERVERS["chatrelay-v2"].command(place), place.port, cores()[0], tmp_path, "relay") as pid:
            returns_one_by_one(_Relay(pid), place.port, 3)  # type: ignore[arg-type]
    count = sqlite3.connect(tmp_path / "messages.sqlite3").execute("SELECT count(*) FROM message").fetchone()
    assert count == (CONNECTIONS * MISSED // 2,)


@pytest.mark.parametrize("arguments", [["--messages", "10000"], ["--messages", "30001"], ["--rounds", "0"]])
def test_unusable_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    with pytest.raises(SystemExit):
        replay.main(arguments)
    assert "--messages must be" in capsys.readouterr().err
