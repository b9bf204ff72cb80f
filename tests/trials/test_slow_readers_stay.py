"""Clients that read slowly and keep their pace, over real sockets and over slow links."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.authorities import Authorities
from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.programs import HIGH_RATES, Site, StartRelay
from tests.support.readers import Reader, Sender, connection
from tests.trials.networks import ip

KIB = 1024
PACES = (7, 40, 100)
"""KiB a second."""

UNREAD = 700 * KIB
"""Bytes that each leaves unread: more than the kernels hold, less than unread-size."""

SIZE = 2000
"""Characters of each message."""

SMALL = 4096
"""Bytes of a small receive buffer."""

GROWN = 20 * KIB * KIB
"""Bytes that a client has read fast before it reads slowly: its receive buffer has grown as far as it may."""

CLONE_NEWNET = 0x40000000


def keep_behind(pairs: dict[str, tuple[Reader, Sender]], seconds: float) -> None:
    """Keep all these readers behind for this long, and check that none of them is closed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, (reader, sender) in pairs.items():
            unread = (sender.true + 1 - reader.messages) * (SIZE + 85)
            sender.send(min(50, max(0, UNREAD - unread) // (SIZE + 85)))
            assert reader.ended is None and sender.reason is None, f"{name} was closed: {reader.ended} {sender.reason}"
        time.sleep(0.02)


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_slow_readers_that_keep_their_pace_stay(
    start_relay: StartRelay, site: Site, tmp_path: Path, full: bool, evidence: Evidence, over_tls: bool
) -> None:
    """Readers of 7, 40 and 100 KiB/s with receive buffers of three sizes are kept behind for 180 s, 30 in the short form."""
    seconds = 180 if full else 30
    authorities = Authorities(tmp_path / "authorities") if over_tls else None
    trusting = None if authorities is None else authorities.trusting()
    endpoint = "tcp:0:interface=127.0.0.1"
    if authorities is not None:
        endpoint = authorities.endpoint(authorities.issue("127.0.0.1"))
    relay = start_relay("--message-log", "memory:", *HIGH_RATES, listen=endpoint)
    url = f"{'ws' if trusting is None else 'wss'}://127.0.0.1:{relay.port}/"
    pairs: dict[str, tuple[Reader, Sender]] = {}
    with ExitStack() as open_clients:
        for pace in PACES:
            for buffer in ("small", "usual", "grown") if full else ("small", "usual"):
                name = f"{buffer}-{pace}"
                site.users.update({name: name, f"to-{name}": f"to-{name}"})
                size = SMALL if buffer == "small" else 0
                reader = Reader(partial(connection, relay.port, receive_buffer=size), name, trusting)
                open_clients.callback(reader.close)
                client = open_clients.enter_context(Client(url, **({} if trusting is None else {"ssl": trusting})))
                client.log_in(f"to-{name}")
                pairs[name] = reader, Sender(client, name, SIZE)
        for name, (reader, sender) in pairs.items():
            pace = int(name.partition("-")[2]) * KIB
            if name.startswith("grown"):
                reader.keep_reading(pace, GROWN)
                while reader.read < GROWN:
                    sender.send(20)
            else:
                reader.keep_reading(pace)
        before = {name: reader.read for name, (reader, _) in pairs.items()}
        keep_behind(pairs, seconds)
        for name, (reader, _) in pairs.items():
            share = (reader.read - before[name]) / seconds / KIB / int(name.partition("-")[2])
            assert share > 0.7, f"{name} could read only {share:.0%} of its pace"
        evidence.count("slow readers that stayed", len(pairs), 6)
        evidence.figure(f"kept behind for {seconds} s, with answers to {sum(r.pings for r, _ in pairs.values())} pings")


@contextmanager
def slow_link(name: str, number: int, pace: int) -> Iterator[str]:
    """Make a network namespace whose link carries this many bytes a second towards it; yield the address of our end."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("ip and tc are not installed: apt-get install iproute2")
    if not ip("netns", "add", name):
        pytest.skip("needs the right to make a network namespace (run as root)")
    near, far = f"{name}a", f"{name}b"
    network = f"10.{100 + os.getpid() % 100}.78"  # another run at the same time has another one
    here, there = f"{network}.{number * 4 + 1}", f"{network}.{number * 4 + 2}"
    try:
        if not ip("link", "add", near, "type", "veth", "peer", "name", far):
            pytest.skip("needs the right to make a link between network namespaces (run as root, with veth)")
        assert ip("link", "set", far, "netns", name)
        assert ip("address", "add", f"{here}/30", "dev", near)
        assert ip("link", "set", near, "up")
        assert ip("-n", name, "address", "add", f"{there}/30", "dev", far)
        assert ip("-n", name, "link", "set", far, "up")
        shaped = ["tc", "qdisc", "add", "dev", near, "root", "tbf", "rate", f"{pace * 8}bit", "burst", "3000"]
        if subprocess.run([*shaped, "limit", "30000"], capture_output=True, check=False).returncode:
            pytest.skip("needs tc with the qdisc tbf")
        yield here
    finally:
        ip("link", "delete", near)
        ip("netns", "delete", name)


def connection_from(name: str, port: int, host: str) -> socket.socket:
    """Connect from a network namespace, in a thread; a socket stays in the namespace where it was made."""

    def connect() -> socket.socket:
        with open(f"/run/netns/{name}") as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
        return connection(port, host)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(connect).result()


def test_slow_links_that_keep_their_pace_stay(
    start_relay: StartRelay, site: Site, full: bool, evidence: Evidence
) -> None:
    """Clients behind links of 7, 40 and 100 KiB/s that read what comes are kept behind for 180 s, 30 in the short form."""
    seconds = 180 if full else 30
    relay = start_relay("--message-log", "memory:", *HIGH_RATES, listen="tcp:0")
    pairs: dict[str, tuple[Reader, Sender]] = {}
    with ExitStack() as links, ExitStack() as open_clients:
        for number, pace in enumerate(PACES):
            name = f"sl{os.getpid() % 100_000}n{number}"
            host = links.enter_context(slow_link(name, number, pace * KIB))
            site.users.update({name: name, f"to-{name}": f"to-{name}"})
            reader = Reader(partial(connection_from, name, relay.port, host), name)
            open_clients.callback(reader.close)
            client = open_clients.enter_context(relay.client())
            client.log_in(f"to-{name}")
            pairs[f"{pace} KiB/s"] = reader, Sender(client, name, SIZE)
            reader.keep_reading(10 * KIB * KIB)
        keep_behind(pairs, seconds)
        for pace, (reader, _) in zip(PACES, pairs.values(), strict=True):
            share = reader.read / seconds / KIB / pace
            assert 0.6 < share < 1.2, f"a link of {pace} KiB/s was used to {share:.0%}"
        evidence.count("clients behind slow links that stayed", len(pairs), len(PACES))
        evidence.figure(f"kept behind for {seconds} s, with answers to {sum(r.pings for r, _ in pairs.values())} pings")
