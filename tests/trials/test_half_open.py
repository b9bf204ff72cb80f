"""Half-open connections: the client is gone, and no packet reports it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.trials.networks import ip

USERS = 20

HERE, THERE = "10.213.77.1", "10.213.77.2"
"""Addresses of the two ends of a network that a trial makes."""


@contextmanager
def network(name: str) -> Iterator[None]:
    """Make a network namespace with a link to it; skip the trial where that is not permitted."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed: apt-get install iproute2")
    if not ip("netns", "add", name):
        pytest.skip("needs the right to make a network namespace (run as root)")
    near, far = f"{name}-a", f"{name}-b"
    try:
        if not ip("link", "add", near, "type", "veth", "peer", "name", far):
            pytest.skip("needs the right to make a link between network namespaces (run as root, with veth)")
        assert ip("link", "set", far, "netns", name)
        assert ip("address", "add", f"{HERE}/30", "dev", near)
        assert ip("link", "set", near, "up")
        assert ip("-n", name, "address", "add", f"{THERE}/30", "dev", far)
        assert ip("-n", name, "link", "set", far, "up")
        yield
    finally:
        ip("link", "delete", near)
        ip("netns", "delete", name)


@contextmanager
def users(relay: RelayProcess, host: str, sessids: list[str], *under: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program in which these users are logged in."""
    program = subprocess.Popen(
        [*under, sys.executable, "-m", "tests.trials.away", f"ws://{host}:{relay.port}/", *sessids],
        cwd=ROOT,
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None and program.stdout.readline() == "in\n"
        yield program
    finally:
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()


def ended(relay: RelayProcess, kind: str, by: str = "") -> int:
    """Return how many connections of these users the relay has ended."""
    return sum(bool(re.search(rf"connection of {kind}-\d+ from .* ended by {by}", line)) for line in list(relay.output))


def until_all_are_found(relay: RelayProcess, kind: str, limit: float) -> float:
    """Wait for the end of all these users' connections; return how long that took."""
    began = time.monotonic()
    while ended(relay, kind) < USERS:
        assert time.monotonic() < began + limit, f"{ended(relay, kind)} of {USERS} found in {limit} s"
        time.sleep(0.05)
    return time.monotonic() - began


@dataclass
class Half:
    """A relay, and users of whom some will be gone.

    :ivar limit: seconds within which their connections are to be found.
    """

    relay: RelayProcess
    site: Site
    limit: float

    def names(self, kind: str) -> list[str]:
        """Return users that the site knows."""
        names = [f"{kind}-{number}" for number in range(USERS)]
        self.site.users.update({name: name for name in names})
        return names

    def nobody_is_there(self, alice: Client, names: list[str]) -> None:
        """Check that messages to the first few of these are refused; more would exceed new-recipients-per-minute."""
        for name in names[:5]:
            alice.send(name, "And now?")
            assert alice.hear()["response"]["reason"] == "receiving-user-not-connected"

    def reached(self, alice: Client, names: list[str]) -> int:
        """Return how many of these can be sent a message."""
        count = 0
        for name in names:
            alice.send(name, "And you?")
            count += alice.hear()["response"]["value"] is True
        return count


@pytest.fixture
def half(start_relay: StartRelay, site: Site, full: bool) -> Half:
    """Start the relay: in full with the defaults, which find all within 40 s; in the short form it pings every
    second.
    """
    options, limit = ((), 40.0) if full else (("--ping-interval", "1", "--ping-timeout", "1"), PATIENCE)
    # unread-time closes nobody, so that the system has time to notice.
    return Half(start_relay(*options, "--unread-time", "60", listen="tcp:0"), site, limit)


def stopped_clients(half: Half, evidence: Evidence) -> None:
    """Stop the process of 20 users while 20 others stay; see `half` for the time it takes."""
    relay, stopped, staying = half.relay, half.names("stopped"), half.names("staying")
    with (
        users(relay, "127.0.0.1", staying),
        users(relay, "127.0.0.1", stopped) as process,
        relay.client() as alice,
    ):
        alice.log_in("alice-session")
        process.send_signal(signal.SIGSTOP)
        took = until_all_are_found(relay, "stopped", half.limit)
        evidence.count("stopped clients", ended(relay, "stopped", "the relay with 4004"), USERS)
        half.nobody_is_there(alice, stopped)
        evidence.count("who stayed", half.reached(alice, staying), USERS)
    evidence.figure(f"found within {took:.1f} s")


def links_taken_down(half: Half, evidence: Evidence) -> None:
    """Take the link of 20 users down while 20 others stay; see `half` for the time it takes."""
    relay, unlinked, staying = half.relay, half.names("unlinked"), half.names("staying")
    name = f"away{os.getpid() % 1_000_000}"  # with two characters more, the name of an interface has 15 at the most
    with (
        network(name),
        users(relay, "127.0.0.1", staying),
        users(relay, HERE, unlinked, "ip", "netns", "exec", name),
        relay.client() as alice,
    ):
        alice.log_in("alice-session")
        assert ip("-n", name, "link", "set", f"{name}-b", "down")
        # The system notices bytes that are never acknowledged; a client that is behind is not pinged before that.
        for _ in range(28):  # more than the kernel holds
            alice.send(unlinked[0], "Are you there? " * 1000)
            assert alice.hear()["response"]["value"] is True
        took = until_all_are_found(relay, "unlinked", half.limit)
        evidence.count("users whose link was taken down", ended(relay, "unlinked"), USERS)
        by_pings = ended(relay, "unlinked", "the relay with 4004")
        timed_out = r"the network with 1006 after \S+ s: timed out: nothing acknowledged for \d+ s$"
        evidence.count("given up by the system", ended(relay, "unlinked", timed_out), 1)
        assert by_pings + ended(relay, "unlinked", timed_out) == USERS
        half.nobody_is_there(alice, unlinked)
        evidence.count("who stayed", half.reached(alice, staying), USERS)
    evidence.figure(f"found within {took:.1f} s, {by_pings} by pings and the rest by the system")


@pytest.mark.parametrize("gone", [stopped_clients, links_taken_down])
def test_half_open_connections_are_closed(
    half: Half, evidence: Evidence, gone: Callable[[Half, Evidence], None]
) -> None:
    """Each case is a separate trial: where no network can be made, only the one with links is skipped."""
    gone(half, evidence)
