"""The clients that come back in the benchmark of returns: what they notice, and a whole run with a few of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("uvloop", reason="the clients of the benchmark need uvloop: pip install uvloop")

from bench import replay, returns
from bench.instructions import CONTENT, ID
from bench.returning import FIRST_WAIT, Client, Crowd
from bench.returns import Missed, Return, lines
from chatrelay.model import Message
from chatrelay.wire import codes, v2

LOGGED_IN = b'{"type":"auth-response","response":true,"n":3,"epoch":"e","recovered":true,"resume":"t"}'
MISSED = Missed(clients=5, each=3)


def delivery(client: int, place: int, number: int | None = None) -> bytes:
    """Encode a missed message as the relay does."""
    number = MISSED.number(client, place) if number is None else number
    return v2.delivery(Message("sender-1", f"user-{client}", ID % number, "0", CONTENT, 1.0, True), place)


@pytest.fixture
def complete() -> list[str]:
    """Return a list that has an entry for each client that is complete."""
    return []


@pytest.fixture
def client(complete: list[str]) -> Client:
    """Return a client that has missed three messages and is expected back."""
    crowd = Crowd(port=0, count=5, missed=3, addresses=2, number=MISSED.number)
    made = crowd.clients[2]
    made.expect_return(lambda: complete.append(made.uid))
    return made


def test_every_client_misses_equally_many_messages_one_in_each_round() -> None:
    messages = list(MISSED.messages())
    assert [message.client_id for message in messages] == [ID % number for number in range(15)]
    for client in range(5):
        numbers = [number for number, message in enumerate(messages) if message.to_uid == f"user-{client}"]
        assert numbers == [MISSED.number(client, place) for place in (1, 2, 3)]
        assert [number // 5 for number in numbers] == [0, 1, 2]


def test_clients_are_spread_over_the_addresses() -> None:
    crowd = Crowd(port=0, count=600, missed=1, addresses=300, number=MISSED.number)
    addresses = [client._address for client in crowd.clients]
    assert len(set(addresses)) == 300
    assert addresses[-1] == "127.1.1.43"


def test_client_is_complete_with_all_messages_in_order(client: Client, complete: list[str]) -> None:
    for place in (1, 2):
        client.received(delivery(2, place))
    assert complete == []
    client.received(delivery(2, 3))
    assert (complete, client.crowd.wrong) == (["user-2"], [])


@pytest.mark.parametrize(
    "payloads",
    [
        [delivery(2, 2)],
        [delivery(2, 1), delivery(2, 1)],
        [delivery(2, 1), delivery(2, 2, MISSED.number(2, 3))],
        [delivery(3, 1, MISSED.number(2, 1))],
        [delivery(2, 1).replace(b"xxx", b"xyx", 1)],
        [v2.void(1, 1)],
        [b'{"type":"error","reason":"invalid-json","detail":""}'],
    ],
)
def test_anything_else_is_wrong(client: Client, payloads: list[bytes]) -> None:
    for payload in payloads:
        client.received(payload)
    assert len(client.crowd.wrong) == 1


def test_message_after_the_last_one_is_wrong(client: Client) -> None:
    for place in (1, 2, 3):
        client.received(delivery(2, place))
    client.received(v2.delivery(Message("a", "user-2", ID % 0, "0", CONTENT, 1.0, True), 4))
    assert len(client.crowd.wrong) == 1


def test_client_takes_the_wait_and_the_token_of_the_closing(client: Client) -> None:
    client.received(v2.closing(codes.STOPPING, 1.5, "token"))
    assert (client._retry_after, client._token) == (1.5, "token")


def test_client_that_is_closed_after_its_return_comes_back_for_the_rest(client: Client) -> None:
    client.received(v2.closing(codes.STOPPING, 1.5, "token"))
    waits: list[float] = []

    async def be_closed_twice() -> None:
        client.received(LOGGED_IN)
        client.disconnected(4000)
        client.received(LOGGED_IN)
        client.received(delivery(2, 1))
        client.disconnected(4002)
        await asyncio.sleep(0)

    with patch.object(Client, "_come_back", lambda self, wait: record(waits, wait)):
        asyncio.run(be_closed_twice())
    assert waits == [1.5, FIRST_WAIT]
    assert client._place == 1
    assert (dict(client.crowd.setbacks), client.crowd.wrong) == ({"closed with 4002 after the login": 1}, [])


async def record(waits: list[float], wait: float) -> None:
    """Note a wait."""
    waits.append(wait)


def test_client_whose_login_was_refused_tries_again_only_once(client: Client) -> None:
    client._is_away = True
    client.received(b'{"type":"auth-response","response":false,"reason":"webserver-unavailable"}')
    with patch.object(Client, "_come_back", side_effect=AssertionError):
        client.disconnected(None)
    assert (client._place, client.crowd.wrong) == (0, [])


def test_client_that_must_not_come_back_is_wrong(client: Client) -> None:
    async def be_replaced() -> None:
        client.received(LOGGED_IN)
        client.disconnected(4506)
        await asyncio.sleep(0)

    with patch.object(Client, "_come_back", lambda self, wait: record([], wait)):
        asyncio.run(be_replaced())
    assert client.crowd.wrong == ["user-2: closed with 4506"]


def test_results_are_shown_in_words() -> None:
    found = Return("with resume tokens", 1000, 1.2, 0.5, 6.0, 9.0, 0, 0, {"closed with 4001": 2})
    (line,) = lines([found])
    assert "1,000 clients complete after 6.0 s (9.0 s after the SIGTERM); relay 1.20 ms CPU a return" in line
    assert "site asked 0 times, at most 0 at once; setbacks: {'closed with 4001': 2}" in line


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Return]]:
    """Wait for the index for a shorter time; return the list that gets the results."""
    found: list[Return] = []

    def keep(results: list[Return]) -> list[str]:
        found.extend(results)
        return lines(results)

    monkeypatch.setattr(replay, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(returns, "lines", keep)
    yield found


def test_clients_return_to_a_real_relay_with_and_without_tokens(
    quick: list[Return], capsys: pytest.CaptureFixture[Any]
) -> None:
    assert returns.main(["--clients", "60", "--addresses", "3"]) == 0
    with_tokens, without = quick
    assert (with_tokens.asked, without.asked) == (0, 60)
    assert 1 <= without.at_once <= 32
    assert with_tokens.cpu > with_tokens.start_cpu > 0
    assert "with resume tokens: 60 clients complete" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--clients", "0"], ["--addresses", "0"], ["--missed", "-1"]])
def test_unusable_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    with pytest.raises(SystemExit):
        returns.main(arguments)
    assert "at least 1" in capsys.readouterr().err
