"""The fast path on real sockets: with it and without it, slow readers are cut and nobody waits behind a burst."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.programs import RelayProcess

StartRelay = Callable[..., RelayProcess]
BOTH_WAYS = pytest.mark.parametrize("fast_path", ["yes", "no"])


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@BOTH_WAYS
def test_a_client_that_does_not_read_is_cut_and_the_sender_told(start_relay: StartRelay, fast_path: str) -> None:
    relay = start_relay("--fast-path", fast_path)
    with relay.client() as alice, relay.client() as deaf, relay.client() as bo:
        alice.log_in("alice-session")
        deaf.log_in("chen-session")
        bo.log_in("bo-session")
        # The library reads a few messages ahead, and then no more.
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
        # What the kernel's buffers took comes on top of the budget of 1 MiB.
        assert accepted * len(content) > 1_000_000
        assert resident(relay.process.pid) - before < 10_000_000
        alice.send(2, "still here?", id="x")
        assert bo.hear()["message"]["content"] == "still here?"


@BOTH_WAYS
def test_nobody_waits_behind_a_burst(start_relay: StartRelay, fast_path: str) -> None:
    relay = start_relay("--fast-path", fast_path, "--message-log", "none")
    with relay.client() as alice, relay.client() as bo:
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        waits: list[float] = []
        over = threading.Event()

        def talk_to_oneself() -> None:
            while not over.is_set():
                began = time.monotonic()
                bo.send(2, "note")
                bo.hear()
                bo.hear()
                waits.append(time.monotonic() - began)

        talking = threading.Thread(target=talk_to_oneself)
        talking.start()
        burst = 3000
        for number in range(burst):
            alice.send("nobody", "", id=number)
        answers = [alice.hear()["response"]["id"] for _ in range(burst)]
        over.set()
        talking.join(10)
        assert answers == list(range(burst))
        assert len(waits) > 5
        assert max(waits) < 1


def test_a_burst_in_one_piece_is_answered_in_order(start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.client() as alice, relay.client() as bo:
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        for number in range(500):
            alice.send(2, f"message {number}", id=number)
        assert [bo.hear()["message"]["content"] for _ in range(500)] == [f"message {number}" for number in range(500)]
        assert [alice.hear()["response"] for _ in range(500)] == [
            {"id": number, "value": True} for number in range(500)
        ]
