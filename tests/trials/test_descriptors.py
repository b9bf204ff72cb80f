"""File descriptors run out: there are 256, and 400 clients connect."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from bench.proc import cpu_seconds_of
from tests.support import PATIENCE, v1
from tests.support.authorities import Authorities
from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.frames import HANDSHAKE, frame
from tests.support.processes import descriptors
from tests.support.programs import HIGH_RATES, RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED
from tests.trials.crowd import Crowd, address

DESCRIPTORS = 256
CONNECTS = 400
SPARE = 20
"""Descriptors that must be left for the message log and the session page."""

MEMBERS = 40
"""The number of connecting clients that are users and log in."""

FEW_DESCRIPTORS = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh")


def cpu_share(pid: int, seconds: float = 2.0) -> float:
    """Return the share of one processor that a process uses for a while."""
    before, begun = cpu_seconds_of([pid]), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds_of([pid]) - before) / (time.monotonic() - begun)


def recovered(relay: RelayProcess) -> float:
    """Return the seconds until a new user can log in."""
    begun = time.monotonic()
    while time.monotonic() - begun < 10:
        try:
            with relay.client() as chen:
                assert chen.log_in("chen-session") == ADMITTED
                return time.monotonic() - begun
        except (OSError, EOFError, InvalidStatus):  # refused
            time.sleep(0.05)
    raise AssertionError("nobody could log in for 10 s after the crowd had gone")


def chat(alice: Client, bo: Client, number: int) -> None:
    """Check that a message arrives and is acknowledged."""
    alice.send(2, f"message {number}", id=number)
    assert bo.hear()["message"]["content"] == f"message {number}"
    assert alice.hear()["response"] == {"id": number, "value": True}


def crowd_in(crowd: Crowd, silent: bool = False) -> None:
    """Connect many: a tenth log in, a tenth complete the handshake, the others (or all) are silent; ten per address."""
    for number in range(CONNECTS):
        says = {0: HANDSHAKE + frame(v1.encoded(v1.login(f"member-{number // 10}"))), 1: HANDSHAKE}.get(
            number % 10, b""
        )
        crowd.connect(address(number // 10), b"" if silent else says)


@pytest.fixture
def members(site: Site) -> None:
    """Add users to the site besides the usual three."""
    site.users |= {f"member-{number}": f"member {number}" for number in range(MEMBERS)}


@pytest.mark.parametrize("endpoint", ["tcp", "tls", "unix"])
def test_used_up_descriptors_leave_the_relay_working(
    endpoint: str,
    start_relay: StartRelay,
    members: None,
    tmp_path: Path,
    authorities: Authorities,
    evidence: Evidence,
) -> None:
    """Without a limit of connections all descriptors are used: connected users stay, new ones are refused."""
    listen = {
        "tcp": "tcp:0:interface=127.0.0.1",
        "tls": authorities.endpoint(authorities.issue("127.0.0.1")),
        "unix": f"unix:{tmp_path / 'relay.socket'}",
    }[endpoint]
    relay = start_relay(
        *("--listen", "tcp:0:interface=127.0.0.1", "--handshake-timeout", "60", "--connections", "0", *HIGH_RATES),
        listen=listen,
        under=FEW_DESCRIPTORS,
    )
    pid = relay.process.pid
    relay.port = int(relay.said(r"ChatFactory starting on \d+").split()[-1])
    target: int | str = relay.port
    if endpoint == "tls":
        target = int(relay.said(r"\(TLS\) starting on ").split()[-1])
    elif endpoint == "unix":
        target = str(tmp_path / "relay.socket")
    with relay.client() as alice, relay.client() as bo, Crowd(target) as crowd:
        assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (ADMITTED, ADMITTED)
        crowd_in(crowd, silent=endpoint == "tls")
        evidence.count("connects", len(crowd.sockets), CONNECTS)
        relay.said("EMFILE encountered")
        share = cpu_share(pid)
        most = descriptors(pid)
        for number in range(20):
            chat(alice, bo, number)
        crowd.leave()
        again = recovered(relay)
        chat(alice, bo, 200)
    evidence.figure(f"CPU {share:.0%}, {most} of {DESCRIPTORS} descriptors taken, logins {again:.2f} s after they left")
    assert most > DESCRIPTORS - 10
    assert share < 0.5
    relay.stop()
    assert "Traceback" not in "\n".join(relay.output)


def test_connections_leave_descriptors_in_reserve(start_relay: StartRelay, members: None, evidence: Evidence) -> None:
    """With the default limit of connections, descriptors remain for the log and the session page."""
    relay = start_relay("--handshake-timeout", "60", *HIGH_RATES, under=FEW_DESCRIPTORS)
    pid = relay.process.pid
    with relay.client() as alice, relay.client() as bo, relay.client() as chen, Crowd(relay.port) as crowd:
        assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (ADMITTED, ADMITTED)
        crowd_in(crowd)
        evidence.count("connects", len(crowd.sockets), CONNECTS)
        relay.said(r"refused: the relay is full \(connections \d+\)")
        assert chen.log_in("chen-session") == ADMITTED  # the session page can be asked
        # Refused connections are closed one after another: on a busy machine some are still open.
        until = time.monotonic() + PATIENCE
        while (taken := descriptors(pid)) >= DESCRIPTORS - SPARE and time.monotonic() < until:
            time.sleep(0.05)
        assert taken < DESCRIPTORS - SPARE
        for number in range(20):
            chat(alice, bo, number)
        crowd.leave()
        chen.close()
        again = recovered(relay)
    evidence.figure(f"{taken} of {DESCRIPTORS} descriptors taken, logins {again:.2f} s after they left")
    relay.stop()
    # Twisted accepts a hundred and more at once, before the first that is refused is closed: so it may meet the limit for
    # that moment (EMFILE), in which nothing else asks for a descriptor.
    assert "Traceback" not in "\n".join(relay.output)
