"""Limits on connections to a real relay: in total, per address, per user. tests/unit tests each limit alone."""

from __future__ import annotations

import re
import resource
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from websockets.exceptions import InvalidStatus

from chatrelay.app.descriptors import MAX_DESCRIPTORS
from tests.support import eventually
from tests.support.client import Client
from tests.support.processes import descriptors
from tests.support.programs import RelayProcess, StartRelay, connected
from tests.support.v1 import ADMITTED

UNHURRIED = ("--handshake-timeout", "0", "--login-timeout", "0")
"""Options for a relay that is patient with silent clients, so that they stay on a slow machine, too."""


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Hold connections that stay open until the end."""
    with ExitStack() as held:
        yield held


def answer(relay: RelayProcess, address: str = "127.0.0.1") -> bytes:
    """Connect from an address and send a request; return everything received until the relay disconnects."""
    with connected(relay.port, address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        heard = b""
        while data := stranger.recv(4096):
            heard += data
        return heard


def test_descriptor_limit_is_raised_and_logged(start_relay: StartRelay) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = min(512, hard)
    relay = start_relay(under=("sh", "-c", f'ulimit -Sn {few}; exec "$@"', "sh"))
    most = descriptor_limit(relay.process.pid)
    assert most == min(hard, MAX_DESCRIPTORS) > few
    relay.said(rf"this process may open {most} files and sockets")


def descriptor_limit(pid: int) -> int:
    """Return the soft limit of a process, as the kernel reports it."""
    found = re.search(r"^Max open files +(\d+) ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_full_relay_refuses_connections_until_a_client_disconnects(start_relay: StartRelay, held: ExitStack) -> None:
    relay = start_relay("--connections", "3", *UNHURRIED)
    alice, bo = (held.enter_context(relay.client()) for _ in range(2))
    assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (ADMITTED, ADMITTED)
    stranger = held.enter_context(connected(relay.port))
    heard = answer(relay)
    assert heard.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 10\r\n" in heard
    before = descriptors(relay.process.pid)
    # A refused connection is not kept for long, though its client stays and says nothing.
    for _ in range(20):
        held.enter_context(connected(relay.port))
    eventually(lambda: descriptors(relay.process.pid) <= before)
    with pytest.raises(InvalidStatus) as refusal:
        relay.client()
    assert refusal.value.response.status_code == 503
    relay.said(r"connection from 127.0.0.1:\d+ refused: the relay is full \(connections 3\)")
    alice.send(2, "still here")
    assert bo.hear()["message"]["content"] == "still here"
    stranger.close()

    def lets_in() -> bool:
        try:
            chen = relay.client()
        except (InvalidStatus, OSError):
            return False
        return held.enter_context(chen).log_in("chen-session") == ADMITTED

    eventually(lets_in)


def test_full_relay_aborts_connections_over_tls(start_relay: StartRelay, tmp_path: Path) -> None:
    authorities = trustme.CA()
    leaf = authorities.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "tls.pem"))
    listen = "ssl:0:interface=127.0.0.1:privateKey=tls.pem:certKey=tls.pem"
    relay = start_relay("--connections", "1", *UNHURRIED, listen=listen)
    trusting = ssl.create_default_context()
    authorities.configure_trust(trusting)
    with connected(relay.port) as first, trusting.wrap_socket(first, server_hostname="127.0.0.1"):
        # It may be aborted before the client's own system has reported the connection.
        with pytest.raises(OSError), connected(relay.port) as second:
            trusting.wrap_socket(second, server_hostname="127.0.0.1")
        relay.said(r"refused: the relay is full \(connections 1\)")


def test_trusted_proxy_without_a_client_address_is_not_limited_and_is_logged_once(
    start_relay: StartRelay, held: ExitStack
) -> None:
    relay = start_relay("--trusted-proxy", "127.0.0.1", "--unauthenticated-per-address", "1", *UNHURRIED)
    for _ in range(3):
        held.enter_context(relay.client(sock=connected(relay.port)))
    relay.said("named no client, .* set X-Forwarded-For, and set --trusted-proxy 127.0.0.1 here")
    named = {"X-Forwarded-For": "192.0.2.1"}
    held.enter_context(relay.client(additional_headers=named, sock=connected(relay.port)))
    with pytest.raises(InvalidStatus):
        relay.client(additional_headers=named, sock=connected(relay.port))
    relay.stop()
    assert sum("named no client" in line for line in relay.output) == 1


def test_visitors_of_one_address_do_not_keep_others_out(start_relay: StartRelay, held: ExitStack) -> None:
    relay = start_relay(*UNHURRIED)
    strangers = [held.enter_context(connected(relay.port, "127.0.0.5")) for _ in range(100)]
    assert answer(relay, "127.0.0.5").startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    relay.said(r"connection from 127.0.0.5:\d+ refused: .* \(unauthenticated-per-address 100\)")
    alice = held.enter_context(relay.client(sock=connected(relay.port, "127.0.0.6")))
    assert alice.log_in("alice-session") == ADMITTED
    strangers[0].close()

    def lets_in() -> bool:
        try:
            bo = relay.client(sock=connected(relay.port, "127.0.0.5"))
        except (InvalidStatus, OSError):
            return False
        return held.enter_context(bo).log_in("bo-session") == ADMITTED

    eventually(lets_in)


def test_11th_connection_of_a_user_ends_the_oldest(start_relay: StartRelay, held: ExitStack) -> None:
    relay = start_relay()
    tabs: list[Client] = []
    for _ in range(11):
        tabs.append(held.enter_context(relay.client()))
        assert tabs[-1].log_in("alice-session") == ADMITTED
    assert tabs[0].closed() == (4504, [])
    with relay.client() as bo:
        assert bo.log_in("bo-session") == ADMITTED
        bo.send(1, "to all of them")
        assert [tab.hear()["message"]["content"] for tab in tabs[1:]] == ["to all of them"] * 10
    relay.said("connection of 1 from .* ended by the relay with 4504")
