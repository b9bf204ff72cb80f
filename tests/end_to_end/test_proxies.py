"""Clients behind proxies: a real haproxy that speaks the PROXY protocol. nginx is in test_deploy.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.end_to_end.programs import PATIENCE, Client, RelayProcess, Site, connected
from tests.end_to_end.test_deploy import free_port

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is missing (on Debian: apt install haproxy)")

YES = {"type": "auth-response", "response": True}

StartProxy = Callable[[RelayProcess, str], int]


@pytest.fixture
def start_haproxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Starts haproxy in front of a relay, with an option for how it says whom it speaks for; the port."""
    with ExitStack() as running:

        def start(relay: RelayProcess, sending: str) -> int:
            port = free_port()
            (tmp_path / "haproxy.cfg").write_text(
                "listen chat\n"
                "    mode tcp\n"
                f"    bind 127.0.0.1:{port}\n"
                "    timeout connect 5s\n"
                "    timeout client  1h\n"
                "    timeout server  1h\n"
                f"    server relay 127.0.0.1:{relay.port} {sending}\n"
            )
            assert HAPROXY is not None
            process = running.enter_context(subprocess.Popen([HAPROXY, "-db", "-f", tmp_path / "haproxy.cfg"]))
            running.callback(process.kill)
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    connected(port).close()
                    return port
                except ConnectionRefusedError:
                    assert process.poll() is None and time.monotonic() < until, "haproxy has not started"
                    time.sleep(0.02)

        yield start


@pytest.mark.parametrize("sending", ["send-proxy", "send-proxy-v2"])
def test_haproxy_says_whom_a_connection_is_from(
    start_haproxy: StartProxy, site: Site, tmp_path: Path, sending: str
) -> None:
    options = ("--auth-url", site.url, "--connections-per-address", "2")
    with RelayProcess(tmp_path, *options, listen="haproxy:tcp:0:interface=127.0.0.1") as relay:
        port = start_haproxy(relay, sending)

        def client(address: str) -> Client:
            return Client(f"ws://127.0.0.1:{port}/", sock=connected(port, address))

        with client("127.0.0.5") as alice, client("127.0.0.5") as bo:
            assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (YES, YES)
            with pytest.raises(InvalidStatus) as refusal:
                client("127.0.0.5")
            assert refusal.value.response.status_code == 429
            relay.said(r"handshake from 127.0.0.5:\d+ refused with 429: .* \(connections-per-address 2\)")
            with client("127.0.0.6") as chen:
                assert chen.log_in("chen-session") == YES
                chen.send(1, "hej")
                assert alice.hear()["message"]["content"] == "hej"
        relay.said(r"connection of chen from 127.0.0.6:\d+ ended by the client")
