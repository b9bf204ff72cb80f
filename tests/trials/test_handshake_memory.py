"""What 1,000 idle connections keep of their opening handshakes, in a relay of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.evidence import Evidence
from tests.support.frames import DEFLATE, handshake
from tests.support.large_handshakes import HANDSHAKES, PAGE
from tests.support.processes import resident
from tests.support.programs import RelayProcess, Site
from tests.trials.crowd import Crowd, address, opened

CONNECTIONS = 1000
FIRST = 100
"""Connections before the memory is read: Python has room for some from the beginning."""

MOST = 12
"""KiB that an idle connection may take."""

MOST_TIMES = 1.5
"""The KiB that it may take more than one with a plain handshake."""

COOKIE = "a session cookie of 4 KiB"

OPTIONS = (
    *("--unauthenticated-per-address", "0", "--login-timeout", "0", "--ping-interval", "0", "--message-log", "memory:"),
    *("--session-cookie", "sid", "--origin", "https://example.com"),
)

PROXY = b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 80\r\n"

EMBEDDED = """
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
from chatrelay import Config, build
from chatrelay.testing import KnownSessions

config = Config(
    listen=(), message_log="memory:", unauthenticated_per_address=0, login_timeout=0, ping_interval=0,
    session_cookie="sid", origin=("https://example.com",),
)
relay = build(config, reactor, authenticator=KnownSessions({}))
root = Resource()
root.putChild(b"chat", relay.websocket_resource())
relay.startService()
print(reactor.listenTCP(0, Site(root), interface="127.0.0.1").getHost().port, flush=True)
reactor.run()
"""
"""Another program, with the relay in its website."""

Started = tuple[int, int]
"""A relay's process and port."""


def kib(started: Started, before: bytes, whole: bytes) -> float:
    """Return the KiB that one of many idle connections takes after such a handshake."""
    pid, port = started
    with Crowd(port) as crowd:
        for number in range(FIRST):
            opened(crowd, address(number), before + whole)
        begun = resident(pid)
        for number in range(CONNECTIONS):
            opened(crowd, address(number), before + whole)
        time.sleep(0.3)  # until what is freed later is
        return (resident(pid) - begun) / CONNECTIONS / 1024


@pytest.mark.parametrize("where", ["plain", "compressed", "behind haproxy", "in a website"])
def test_open_connection_keeps_little_of_its_handshake(
    where: str, site: Site, tmp_path: Path, full: bool, evidence: Evidence
) -> None:
    """The short form has four kinds of handshake, the full one all of them."""

    @contextmanager
    def relay() -> Iterator[Started]:
        if where == "in a website":
            with subprocess.Popen([sys.executable, "-c", EMBEDDED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as it:
                assert it.stdout is not None
                try:
                    yield it.pid, int(it.stdout.readline())
                finally:
                    it.kill()
            return
        more = ("--compression", "yes") if where == "compressed" else ()
        listen = "haproxy:tcp:0:interface=127.0.0.1" if where == "behind haproxy" else "tcp:0:interface=127.0.0.1"
        with RelayProcess(tmp_path, "--auth-url", site.url, *OPTIONS, *more, listen=listen, measured=False) as process:
            yield process.pid, process.port

    path = "/chat" if where == "in a website" else ""
    offer = [DEFLATE] if where == "compressed" else []
    kinds = dict(HANDSHAKES) if full else {name: HANDSHAKES[name] for name in ("many headers", "many query parameters")}
    if where == "compressed":  # two headers of this name are refused
        kinds.pop("many extensions", None)
        kinds = {name: kind for name, kind in kinds.items() if not name.startswith("compressed")}
    kinds = {name: (target, [*headers, *offer]) for name, (target, headers) in kinds.items() if "origin" not in name}
    kinds[COOKIE] = ("/", [PAGE, "Cookie: sid=" + "x" * 4096 + "; b=" + "x" * 10_000, *offer])
    before = PROXY if where == "behind haproxy" else b""
    counted = 0
    taken: dict[str, float] = {}
    for name, (target, headers) in {"a plain one": ("/", offer), **kinds}.items():
        with relay() as started:
            taken[name] = kib(started, before, handshake(*headers, target=path + target))
        counted += CONNECTIONS
    evidence.count("idle connections", counted, CONNECTIONS * (1 + len(kinds)))
    evidence.figure("KiB each: " + ", ".join(f"{name} {size:.1f}" for name, size in taken.items()))
    plain = taken.pop("a plain one")
    assert max(taken.values()) <= MOST
    assert taken.pop(COOKIE) <= MOST_TIMES * plain + 4.2
    assert max(taken.values()) <= MOST_TIMES * plain
