"""The relay on its lean reactor, as an operator chooses it, behaves as on Twisted's own."""

from __future__ import annotations

import subprocess
import sys

from tests.support.programs import HIGH_RATES, StartRelay

REACTOR = "chatrelay-epoll"


def test_lean_reactor_carries_messages_and_stops_cleanly(start_relay: StartRelay) -> None:
    relay = start_relay(*HIGH_RATES, reactor=REACTOR)
    with relay.client() as alice:
        assert alice.log_in("alice-session")["response"] is True
        with relay.client() as bo:
            assert bo.log_in("bo-session")["response"] is True
            for number in range(100):
                alice.send(2, str(number), id=number)
            assert [bo.hear()["message"]["content"] for _ in range(100)] == [str(number) for number in range(100)]
            assert [alice.hear()["response"] for _ in range(100)] == [
                {"id": number, "value": True} for number in range(100)
            ]
        alice.send(2, "nobody there", id="late")
        assert alice.hear()["response"] == {"id": "late", "value": False, "reason": "receiving-user-not-connected"}
        relay.process.terminate()
        assert alice.closed()[0] == 4000
    relay.wait()
    assert not [line for line in relay.output if "Traceback" in line]


def test_twistd_lists_the_lean_reactor() -> None:
    program = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
    listed = subprocess.run(
        [sys.executable, "-c", program, "--help-reactors"], capture_output=True, text=True, check=True
    )
    (line,) = [line for line in listed.stdout.splitlines() if REACTOR in line]
    assert "epoll reactor" in line
