"""What a client has left unread, counted on real sockets: in the process and in the kernel."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support import PATIENCE
from tests.support.authorities import Authorities
from tests.support.client import Client
from tests.support.programs import HIGH_RATES, Site, StartRelay
from tests.support.readers import Reader, Sender, connection

SMALL = 4096
"""Bytes of a receive buffer that is known; the kernel doubles them."""

KIB = 1024

ONE = 14_000
"""Characters of each message."""


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("unread_size", [1024 * 1024, 128 * 1024, 65536])
@pytest.mark.parametrize("at_once", [1, 50])
def test_acknowledged_unread_bytes_stay_within_unread_size_plus_the_client_kernel(
    start_relay: StartRelay, tmp_path: Path, site: Site, over_tls: bool, unread_size: int, at_once: int
) -> None:
    authorities = Authorities(tmp_path / "authorities") if over_tls else None
    endpoint = "tcp:0:interface=127.0.0.1"
    if authorities is not None:
        endpoint = authorities.endpoint(authorities.issue("127.0.0.1"))
    relay = start_relay(*("--message-log", "memory:", "--unread-size", str(unread_size), *HIGH_RATES), listen=endpoint)
    trusting = None if authorities is None else authorities.trusting()
    with ExitStack() as open_clients:
        bo = Reader(partial(connection, relay.port, receive_buffer=SMALL), "bo-session", trusting)
        open_clients.callback(bo.close)
        url = f"{'ws' if trusting is None else 'wss'}://127.0.0.1:{relay.port}/"
        alice = open_clients.enter_context(Client(url, **({} if trusting is None else {"ssl": trusting})))
        alice.log_in("alice-session")
        before = bo.read + bo.in_kernel
        sender = Sender(alice, 2, ONE)
        sender.send(1000, at_once)
        acknowledged_by_its_kernel = bo.read + bo.in_kernel - before
    assert sender.reason == "receiving-user-not-connected"
    message = {"timeStamp": "0", "fromuID": 1, "touID": 2, "content": "x" * ONE}
    size = len(json.dumps({"type": "message", "message": message}, separators=(",", ":"))) + 4
    unacknowledged = sender.true * size - acknowledged_by_its_kernel
    assert unacknowledged <= unread_size + size
    assert unacknowledged >= unread_size // 2, "the client was closed long before its budget was spent"


def test_slow_reader_has_time_to_reach_its_ping(start_relay: StartRelay) -> None:
    relay = start_relay(
        *("--message-log", "memory:", "--ping-interval", "1", "--ping-timeout", "1", *HIGH_RATES),
    )
    with ExitStack() as open_clients:
        alice = open_clients.enter_context(relay.client())
        alice.log_in("alice-session")
        bo = Reader(partial(connection, relay.port), "bo-session")  # the last one: it answers no ping before it reads
        open_clients.callback(bo.close)
        sender = Sender(alice, 2, ONE)
        sender.send(14)  # about 200 KB, which its kernel takes: it is not behind
        bo.keep_reading(40 * KIB)
        until = time.monotonic() + 2 * PATIENCE
        while bo.messages < 1 + sender.true and bo.ended is None and time.monotonic() < until:
            time.sleep(0.05)
        assert (bo.messages, bo.ended) == (1 + sender.true, None)
        assert bo.pings < 3, "it read faster than it should"
