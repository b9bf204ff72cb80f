"""How much a client may send to a real relay; tests/unit/relay/test_session.py tests every limit exactly."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.client import Client
from tests.support.programs import StartRelay

BOTH_WAYS = pytest.mark.parametrize("fast_path", ["yes", "no"])

SLOW = ("--messages-per-second", "0.01", "--user-messages-per-second", "0.01")
"""The rate is too low to matter on any machine, so only the burst counts."""


def outcomes(client: Client, count: int, to: str | int = 1) -> list[str]:
    """Send this many messages, then read the answers; return "sent" or the reason of the refusal for each."""
    for number in range(count):
        client.send(to, "hej", id=number)
    answers: list[Any] = []
    while len(answers) < count:
        frame = client.hear()
        if frame["type"] == "send-request-response":
            answers.append(frame["response"])
    return [answer.get("reason", "sent") for answer in sorted(answers, key=lambda answer: answer["id"])]


@BOTH_WAYS
def test_30th_message_passes_and_31st_is_refused(start_relay: StartRelay, fast_path: str) -> None:
    relay = start_relay(*SLOW, "--fast-path", fast_path)
    with relay.client() as alice, relay.client() as bo:
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        assert outcomes(alice, 31) == ["sent"] * 30 + ["rate-limited"]
        assert outcomes(bo, 31) == ["sent"] * 30 + ["rate-limited"]


@BOTH_WAYS
def test_client_that_continues_above_the_limit_is_closed_and_others_are_not_delayed(
    start_relay: StartRelay, fast_path: str
) -> None:
    relay = start_relay(*SLOW, "--fast-path", fast_path)
    with relay.client() as alice, relay.client() as bo:
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        for number in range(91):
            alice.send(2, "hej", id=number)
        code, frames = alice.closed()
        assert code == 4503
        refused = [frame["response"] for frame in frames if not frame["response"]["value"]]
        assert {answer["reason"] for answer in refused} == {"rate-limited"}
        assert len(refused) == 61
        assert outcomes(bo, 30, 2)[-1] == "sent"


@BOTH_WAYS
def test_new_connection_of_a_user_has_the_limits_of_the_user(start_relay: StartRelay, fast_path: str) -> None:
    relay = start_relay(*SLOW, "--new-recipients-per-minute", "2", "--fast-path", fast_path)
    gone = "receiving-user-not-connected"
    # Two recipients are no longer new, a third is one too many; after that the 30 messages are used up.
    for to, expected in (("a", gone), ("b", gone), ("c", "rate-limited"), ("a", "rate-limited")):
        with relay.client() as alice:
            alice.log_in("alice-session")
            assert outcomes(alice, 10, to) == [expected] * 10
