"""The fast path on real sockets: with it and without it, slow readers are closed and bursts are answered in order."""

from __future__ import annotations

import pytest

from tests.support.processes import resident
from tests.support.programs import HIGH_RATES, StartRelay

BOTH_WAYS = pytest.mark.parametrize("fast_path", ["yes", "no"])


@BOTH_WAYS
def test_client_that_does_not_read_is_closed_and_the_sender_is_refused(start_relay: StartRelay, fast_path: str) -> None:
    relay = start_relay(*HIGH_RATES, "--fast-path", fast_path)
    with relay.client() as alice, relay.client() as deaf, relay.client() as bo:
        alice.log_in("alice-session")
        deaf.log_in("chen-session")
        bo.log_in("bo-session")
        # The library reads a few messages ahead, and then stops.
        before = resident(relay.process.pid)
        content = "x" * 16_000
        accepted = 0
        for number in range(4000):
            alice.send("chen", content, id=number)
            if not alice.hear()["response"]["value"]:
                break
            accepted += 1
        else:
            raise AssertionError("64 MB were taken for a client that does not read")
        # The bytes in the kernel's buffers come on top of the budget of 1 MiB.
        assert accepted * len(content) > 1_000_000
        assert resident(relay.process.pid) - before < 10_000_000
        alice.send(2, "still here?", id="x")
        assert bo.hear()["message"]["content"] == "still here?"


def test_burst_in_one_piece_is_answered_in_order(start_relay: StartRelay) -> None:
    relay = start_relay(*HIGH_RATES)
    with relay.client() as alice, relay.client() as bo:
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        for number in range(500):
            alice.send(2, f"message {number}", id=number)
        assert [bo.hear()["message"]["content"] for _ in range(500)] == [f"message {number}" for number in range(500)]
        assert [alice.hear()["response"] for _ in range(500)] == [
            {"id": number, "value": True} for number in range(500)
        ]
