"""Clients that stay after they were refused, closed halfway or stopped reading hold no descriptor longer than 5 s.

All of them connect to one relay at once, over TCP and over TLS, with its default time limits. The descriptors that it
holds are counted by the kernel (/proc), not by the relay.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pytest

from tests.support.authorities import Authorities
from tests.support.client import Client, SocketClient
from tests.support.frames import BINARY, CLOSE, frame
from tests.support.programs import HIGH_RATES, StartRelay
from tests.support.readers import connection
from tests.support.v1 import ADMITTED

LONGEST = 5.0
"""Seconds that the relay may hold the descriptor of such a client."""

MOMENT = 3.0
"""Seconds that a busy machine may need for the check, after the handshake-timeout of clients without a handshake."""


def peers_held(pid: int, port: int) -> set[tuple[int, int]]:
    """Return the connections for which a process holds descriptors, as (its own port, the remote port).

    A remote port alone is not unique: the kernel may use the same one for connections to two ports.
    """
    held = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            held.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    connections = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.partition(":")[2], 16) for address in fields[1:3])
        if local == port and remote and f"socket:[{fields[9]}]" in held:
            connections.add((port, remote))
    return connections


class Peer(SocketClient):
    """A client that can do anything with each layer: WebSocket, TLS, TCP.

    :param context: how TLS is spoken; None for plain TCP.
    """

    def __init__(self, port: int, context: ssl.SSLContext | None, narrow: bool = False) -> None:
        super().__init__(connection(port, receive_buffer=4096 if narrow else 0), context)
        self.addresses: tuple[int, int] = (port, self.socket.getsockname()[1])

    def say_hello(self, size: int | None = None) -> Peer:
        """Send the first message of a TLS handshake, or its first bytes."""
        assert self._tls is not None
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.socket.sendall(self._tls_out.read()[:size])
        return self

    def websocket(self) -> Peer:
        """Do an opening handshake, over TLS if the peer uses it."""
        return self.start_tls().open()

    def frame(self, opcode: int, payload: bytes) -> Peer:
        """Send a frame."""
        return self.write(frame(payload, opcode))

    def member(self, sessid: str = "chen-session") -> Peer:
        """Do an opening handshake, and log in."""
        assert self.websocket().log_in(sessid) == ADMITTED
        return self

    def half_close(self) -> None:
        """End our half of the TCP connection, without closing TLS."""
        self.socket.shutdown(socket.SHUT_WR)

    def close_notify(self) -> None:
        """End our half of TLS (RFC 8446, section 6.1), and leave TCP open."""
        assert self._tls is not None
        with pytest.raises((ssl.SSLWantReadError, ssl.SSLSyscallError)):
            self._tls.unwrap()
        self._flush_tls()


def refused(peer: Peer) -> Peer:
    """Connect without a WebSocket handshake, and get an HTTP error."""
    return peer.start_tls().write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


# The actions of a client, up to the moment from which it holds a descriptor for nothing.
STAYING: dict[str, Callable[[Peer], object]] = {
    "is silent": lambda peer: None,
    "sends half a request": lambda peer: peer.start_tls().write(b"GET / HTTP/1.1\r\n"),
    "is refused": refused,
    "is refused and talks on": lambda peer: refused(peer).write(b"x" * 10_000),
    "half-closes in the handshake": lambda peer: peer.start_tls().write(b"GET / HTTP/1.1\r\n").half_close(),
    "half-closes when refused": lambda peer: refused(peer).half_close(),
    "half-closes when open": lambda peer: peer.websocket().half_close(),
    "half-closes when logged in": lambda peer: peer.member().half_close(),
    "closes and stays": lambda peer: peer.websocket().frame(CLOSE, b""),
    "closes and half-closes": lambda peer: peer.websocket().frame(CLOSE, b"").half_close(),
    "is closed and does not answer": lambda peer: peer.websocket().frame(BINARY, b"x"),
    "is closed and half-closes": lambda peer: peer.websocket().frame(BINARY, b"x").half_close(),
    "half a frame, and half-closes": lambda peer: peer.websocket().write(frame(b"x" * 4096)[:3]).half_close(),
}
STAYING_WITH_TLS: dict[str, Callable[[Peer], object]] = {
    "says what is no TLS": lambda peer: peer.socket.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "stalls in its hello": lambda peer: peer.say_hello(50),
    "stalls after its hello": lambda peer: peer.say_hello(),
    "half-closes after its hello": lambda peer: peer.say_hello().half_close(),
    "does TLS and no more": lambda peer: peer.start_tls(),
    "ends TLS at once": lambda peer: peer.start_tls().close_notify(),
    "ends TLS in the handshake": lambda peer: peer.start_tls().write(b"GET / HTTP/1.1\r\n").close_notify(),
    "ends TLS when refused": lambda peer: refused(peer).close_notify(),
    "ends TLS when open": lambda peer: peer.websocket().close_notify(),
    "ends TLS when logged in": lambda peer: peer.member().close_notify(),
    "ends TLS when it closes": lambda peer: peer.websocket().frame(CLOSE, b"").close_notify(),
    "spoils a record": lambda peer: peer.websocket().socket.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32),
}

SAY_NOTHING = {
    "is silent",
    "sends half a request",
    "stalls in its hello",
    "stalls after its hello",
    "does TLS and no more",
}
"""Clients of which the relay notices only after their handshake-timeout, 5 s, that they stay."""

# The same of a user to whom more was sent than the kernel takes.
UNREAD: dict[str, Callable[[Peer], object]] = {
    "half-closes with much unread": lambda peer: peer.half_close(),
    "closes with much unread": lambda peer: peer.frame(CLOSE, b""),
}
UNREAD_WITH_TLS: dict[str, Callable[[Peer], object]] = {
    "ends TLS with much unread": lambda peer: peer.close_notify(),
    "spoils a record with much unread": lambda peer: peer.socket.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32),
}


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    """Make connections that stay until the end of the test."""
    with ExitStack() as open_sockets:

        def connect(*arguments: object, **keywords: bool) -> Peer:
            peer = Peer(*arguments, **keywords)  # type: ignore[arg-type]
            open_sockets.enter_context(peer.socket)
            return peer

        yield connect


@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_closed_client_may_stay_for_closing_timeout(
    start_relay: StartRelay, peers: Callable[..., Peer], seconds: float
) -> None:
    relay = start_relay("--message-log", "none", "--closing-timeout", f"{seconds:g}")
    peer = peers(relay.port, None).websocket()
    began = time.monotonic()
    assert peer.frame(BINARY, b"x").hear() == 1003
    with pytest.raises((EOFError, ConnectionResetError)):
        peer.receive()
    assert time.monotonic() - began >= seconds  # and no longer than PATIENCE, even with 0


def test_client_that_stays_holds_no_descriptor_longer_than_5_s(
    start_relay: StartRelay, authorities: Authorities, peers: Callable[..., Peer]
) -> None:
    # The limit of unread bytes is so high that it closes nobody.
    relay = start_relay(
        *("--message-log", "none", "--unread-size", "100000000", *HIGH_RATES),
        *("--listen", authorities.endpoint(authorities.issue("127.0.0.1"))),
    )
    tcp, tls = (int(relay.said(rf"ChatFactory{kind} starting on ").split()[-1]) for kind in ("", r" \(TLS\)"))
    trusting = authorities.trusting()

    def cases(
        of_both: dict[str, Callable[[Peer], object]], of_tls: dict[str, Callable[[Peer], object]], **keywords: bool
    ) -> Iterator[tuple[str, Peer, Callable[[Peer], object]]]:
        for name, stay in of_both.items():
            yield f"TCP: {name}", peers(tcp, None, **keywords), stay
        for name, stay in (of_both | of_tls).items():
            yield f"TLS: {name}", peers(tls, trusting, **keywords), stay

    def held() -> set[tuple[int, int]]:
        return peers_held(relay.process.pid, tcp) | peers_held(relay.process.pid, tls)

    with Client(f"ws://127.0.0.1:{tcp}/") as bo:
        assert bo.log_in("bo-session")["response"]
        unread = list(cases(UNREAD, UNREAD_WITH_TLS, narrow=True))
        for _, peer, _ in unread:
            peer.member("alice-session")
        for number in range(600):  # 9.6 MB to each; the kernel takes 4 to 6, unless it was set otherwise
            bo.send(1, "x" * 16_000, id=number)
        assert all(bo.hear()["response"]["value"] for _ in range(600))
        assert {peer.addresses for _, peer, _ in unread} <= held()

        begun: dict[str, tuple[tuple[int, int], float]] = {}
        for name, peer, stay in chain(cases(STAYING, STAYING_WITH_TLS), unread):
            stay(peer)
            begun[name] = (peer.addresses, time.monotonic())
        took: dict[str, float] = {}
        until = time.monotonic() + LONGEST + MOMENT
        while len(took) < len(begun) and time.monotonic() < until:
            there, now = held(), time.monotonic()
            took |= {name: now - at for name, (one, at) in begun.items() if one not in there and name not in took}
            time.sleep(0.05)
        print(*(f"{seconds:6.2f} s: {name}" for name, seconds in took.items()), sep="\n")
        assert set(begun) - set(took) == set()
        silent = {name for name in took if name.partition(": ")[2] in SAY_NOTHING}
        assert len(silent) == len(SAY_NOTHING) + 2  # two of them over TCP, too
        assert {name for name, seconds in took.items() if name not in silent and seconds > LONGEST} == set()
        bo.send(2, "well")
        assert bo.hear()["message"]["content"] == "well"
    relay.stop()
    said = "\n".join(relay.output)
    assert "Traceback" not in said
    assert "error]" not in said  # what anybody can cause is none of the relay's
