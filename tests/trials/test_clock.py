"""The machine's clock is set while the relay runs."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.programs import Site, StartRelay

USERS = 50
HOUR = 3600
SETTINGS = (HOUR, -HOUR, 0, -HOUR, HOUR, 0)
"""The offsets to which the clock is set in turn, in seconds from the real time. The short form has the first three."""

LOGIN_TIMEOUT = 1.0
RATE = 2.0
"""Messages a second that may be sent."""

PRELOAD = 'for library in /usr/lib/*/faketime/libfaketimeMT.so.1; do LD_PRELOAD=$library exec "$@"; done'


def answered(client: Client, user: str = "sender") -> bool:
    """Send a message to oneself; return whether it was within the limits."""
    client.send(user, "hej")
    while True:
        frame = client.hear()
        if frame["type"] == "send-request-response":
            return bool(frame["response"]["value"])


def test_set_clock_changes_no_deadline(
    start_relay: StartRelay, site: Site, full: bool, tmp_path: Path, evidence: Evidence
) -> None:
    """Set the clock by an hour three times (in full, six): no client is closed, and every limit stays the same."""
    if shutil.which("faketime") is None:
        pytest.skip("there is no faketime on PATH (Debian: faketime)")
    clock = tmp_path / "clock"

    def set_clock(seconds: int) -> None:
        new = tmp_path / "new"
        new.write_text(f"{seconds:+d}\n")
        new.replace(clock)

    set_clock(0)
    relay = start_relay(
        *("--login-timeout", f"{LOGIN_TIMEOUT}", "--ping-interval", "0.5", "--ping-timeout", "10"),
        *("--messages-per-second", f"{RATE}", "--message-burst", "20", "--user-messages-per-second", "0"),
        *("--new-recipients-per-minute", "0", "--log-level", "debug"),
        under=("sh", "-c", PRELOAD, "sh"),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    sessids = [f"user-{number}" for number in range(USERS)]
    site.users.update({sessid: sessid for sessid in (*sessids, "sender")})
    clients: dict[str, Client] = {}
    with ExitStack() as connected:
        for sessid in sessids:
            clients[sessid] = connected.enter_context(relay.client())
            assert clients[sessid].log_in(sessid)["response"] is True
        sender = connected.enter_context(relay.client())
        sender.log_in("sender")
        settings = SETTINGS if full else SETTINGS[:3]
        seen = []
        for offset in settings:
            while answered(sender):  # until the burst is used up
                pass
            used_up = time.monotonic()
            set_clock(offset)

            # A visitor has exactly login-timeout.
            with relay.client() as visitor:
                opened = time.monotonic()
                with pytest.raises(ConnectionClosed) as closed:
                    visitor.socket.recv(30)
                took = time.monotonic() - opened
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 4001
                assert took > 0.8 * LOGIN_TIMEOUT

            # The limit gives neither a new burst nor less than its rate.
            sent = sum(answered(sender) for _ in range(20))
            assert 1 <= sent <= 1 + RATE * (time.monotonic() - used_up)

            # The clock was really set, as what is written down shows.
            last = relay.said(" with 4001 ", times=len(seen) + 1)
            stamp = datetime.fromisoformat(re.match(r"\S+", last)[0]).timestamp()  # type: ignore[index]
            seen.append(stamp - datetime.now(UTC).timestamp())
            assert abs(seen[-1] - offset) < 60, last
            evidence.figure(f"at {offset:+d} s a login had {took:.2f} s")
        # Everybody is there still, and was not asked about again.
        stayed = sum(answered(client, sessid) for sessid, client in clients.items())
    jumps = sum(abs(after - before) > HOUR / 2 for before, after in pairwise([0, *seen]))
    evidence.count("settings of the clock that its log shows", jumps, len(settings))
    evidence.count("users who stayed", stayed, USERS)
    assert len(site.asked) == len(set(site.asked)) == USERS + 1
