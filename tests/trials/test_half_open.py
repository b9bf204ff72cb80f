"""Half-open connections: the client's side is gone, and nobody says so."""

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

from tests.end_to_end.programs import PATIENCE, ROOT, RelayProcess, Site
from tests.trials.conftest import Evidence

USERS = 20

HERE, THERE = "10.213.77.1", "10.213.77.2"
"""Addresses of the two ends of a network that a trial makes."""


def ip(*words: str) -> bool:
    """Run the program of that name; whether it did as it was told."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@contextmanager
def network(name: str) -> Iterator[bool]:
    """A network namespace with a link to it; whether we may make one."""
    made = shutil.which("ip") is not None and ip("netns", "add", name)
    near, far = f"{name}-a", f"{name}-b"
    try:
        yield (
            made
            and ip("link", "add", near, "type", "veth", "peer", "name", far)
            and ip("link", "set", far, "netns", name)
            and ip("address", "add", f"{HERE}/30", "dev", near)
            and ip("link", "set", near, "up")
            and ip("-n", name, "address", "add", f"{THERE}/30", "dev", far)
            and ip("-n", name, "link", "set", far, "up")
        )
    finally:
        if made:
            ip("link", "delete", near)
            ip("netns", "delete", name)


@contextmanager
def users(relay: RelayProcess, host: str, sessids: list[str], *under: str) -> Iterator[subprocess.Popen[str]]:
    """A program in which these are logged in."""
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
    """How many connections of these users the relay has found to be at their end."""
    return sum(bool(re.search(rf"connection of {kind}-\d+ from .* ended by {by}", line)) for line in list(relay.output))


def until_all_are_found(relay: RelayProcess, kind: str, limit: float) -> float:
    """Wait for the end of all these users' connections; return for how long."""
    began = time.monotonic()
    while ended(relay, kind) < USERS:
        assert time.monotonic() < began + limit, f"{ended(relay, kind)} of {USERS} found in {limit} s"
        time.sleep(0.05)
    return time.monotonic() - began


def test_half_open_connections(
    start_relay: Callable[..., RelayProcess], site: Site, full: bool, evidence: Evidence
) -> None:
    """20 users' link is taken down, 20 more have their process stopped, and 20 stay.

    In full with the defaults: all are found within 40 s. The short form pings every second, for a second.
    """
    options, limit = ((), 40.0) if full else (("--ping-interval", "1", "--ping-timeout", "1"), PATIENCE)
    relay = start_relay(*options, listen="tcp:0")
    names = {kind: [f"{kind}-{number}" for number in range(USERS)] for kind in ("unlinked", "stopped", "staying")}
    for sessids in names.values():
        site.users.update({sessid: sessid for sessid in sessids})
    name = f"away{os.getpid() % 1_000_000}"  # with two characters more, the name of an interface has 15 at the most
    with (
        network(name) as may_make_one,
        users(relay, "127.0.0.1", names["staying"]),
        users(relay, "127.0.0.1", names["stopped"]) as stopped,
        relay.client() as alice,
    ):
        alice.log_in("alice-session")
        if may_make_one:
            with users(relay, HERE, names["unlinked"], "ip", "netns", "exec", name):
                assert ip("-n", name, "link", "set", f"{name}-b", "down")
                # What is never acknowledged: the system notices, or a ping before it.
                alice.send(names["unlinked"][0], "Are you there?")
                assert alice.hear()["response"]["value"] is True
                took = until_all_are_found(relay, "unlinked", limit)
            evidence.count("users whose link was taken down", ended(relay, "unlinked"), USERS)
            by_pings = ended(relay, "unlinked", "the relay with 4004")
            evidence.figure(f"found within {took:.1f} s, {by_pings} by pings and the rest by the system")
        else:
            evidence.figure("no link was taken down: there is no right to make a network here")
        stopped.send_signal(signal.SIGSTOP)
        took = until_all_are_found(relay, "stopped", limit)
        evidence.count("stopped clients", ended(relay, "stopped", "the relay with 4004"), USERS)
        evidence.figure(f"found within {took:.1f} s")
        for kind in ("unlinked", "stopped"):
            alice.send(names[kind][0], "And now?")
            assert alice.hear()["response"]["reason"] == "receiving-user-not-connected"
        for user in names["staying"]:
            alice.send(user, "And you?")
            assert alice.hear()["response"]["value"] is True
        evidence.count("who stayed", len(names["staying"]), USERS)
