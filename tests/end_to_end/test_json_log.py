"""`--log-format json` of a real twistd: every line is one object, whatever untrusted clients send."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support import PATIENCE, eventually
from tests.support.authorities import Authorities
from tests.support.client import SocketClient
from tests.support.frames import BINARY, HANDSHAKE, close_frame, frame, handshake
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED

HOSTILE = 'https://x"}\n{"level":"critical","text":"forged"}\x1b[2J\x85\u2028\\'
"""An origin such as no browser sends."""


def events_of(lines: list[str]) -> list[dict[str, Any]]:
    """Return the logged events; check that every line is JSON with the documented keys."""
    events = []
    for line in lines:
        assert line.isascii() and line.isprintable(), line
        event = json.loads(line)
        assert set(event) - {"traceback"} == {"time", "level", "namespace", "format", "text", "fields"}, line
        assert event["level"] in ("debug", "info", "warn", "error", "critical")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["time"])
        events.append(event)
    return events


def the_event(events: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """Return the only event with this text."""
    (found,) = [event for event in events if text in event["text"]]
    return found


def test_json_log_has_hostile_text_inside_strings_only(start_relay: StartRelay, site: Site) -> None:
    relay = start_relay("--log-format", "json", "--origin", "https://example.com")
    with socket.create_connection(("127.0.0.1", relay.port)) as stranger:
        origin = HOSTILE.replace("\n", "\x0b")  # a line break is refused before
        stranger.sendall(handshake(f"Origin: {origin}"))
        assert stranger.recv(1000).startswith(b"HTTP/1.1 403")
    with pytest.raises(InvalidStatus):
        relay.client(subprotocols=["nonsense"])
    site.answer = lambda request: request.reply(200, HOSTILE.encode())
    with relay.client() as alice:
        assert alice.log_in("alice-session")["reason"] == "webserver-unavailable"
    site.answer = None
    with relay.client() as bo:
        assert bo.log_in("bo-session")["response"] is True
    relay.said("connection of")
    assert relay.stop() == -signal.SIGTERM

    # Every line is JSON, even the first, which is logged before twistd has read its options.
    events = events_of(relay.output)
    assert the_event(events, "listens on")["namespace"] == "chatrelay.app"
    assert the_event(events, "chatrelay has stopped")
    refused = the_event(events, "was refused; this origin can't be allowed")
    assert refused["level"] == "warn"
    assert refused["fields"]["origin"].startswith('https://x"}\\x0b{"level":"critical","text":"forged"}\\x1b[2J')
    assert refused["format"] == "a page from origin {origin} was refused; {remedy} (logged once for each origin)"
    assert the_event(events, "refused with 400")["fields"]["code"] == 400
    assert "forged" in the_event(events, "could not be asked")["fields"]["what"]
    end = the_event(events, "connection of 2 from 127.0.0.1")["fields"]
    assert (end["uid"], end["by"], end["code"]) == (2, "client", 1000)
    assert [event for event in events if event["level"] == "critical"] == []
    assert "alice-session" not in "".join(relay.output)
    began = datetime.fromisoformat(events[0]["time"])
    assert abs((datetime.now(UTC) - began).total_seconds()) < 10 * PATIENCE


def test_json_log_goes_to_the_logfile_of_twistd(tmp_path: Path, site: Site) -> None:
    relay = RelayProcess(
        tmp_path, "--auth-url", site.url, "--log-format", "json", twistd=("--logfile", "relay.log"), measured=False
    )
    log = tmp_path / "relay.log"
    eventually(lambda: log.exists() and "listens on" in log.read_text())
    relay.stop()
    events = events_of((tmp_path / "relay.log").read_text("ascii").splitlines())
    assert the_event(events, "starting up")
    assert the_event(events, "chatrelay has stopped")
    assert relay.output == []


def test_failed_start_is_logged_as_json_once_twistd_logs(tmp_path: Path, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        relay = RelayProcess(tmp_path, "--auth-url", site.url, "--log-format", "json", listen=endpoint)
        assert relay.wait() == 1
    event = events_of(relay.output)[-1]
    assert (event["namespace"], event["level"]) == ("stderr", "error")
    assert "Address already in use" in event["text"]


# One event for the end of each connection ----------------------------------------------

PLACES = 40
"""The most connections of one address that are not logged in."""


class Stranger(SocketClient):
    """A connection, byte by byte.

    :param port: of the relay.
    :param address: where it comes from.
    :param trusting: a client's settings for TLS.
    :param others: the names of connections that were there; the kernel may give the port of one that is gone again.
    """

    def __init__(self, port: int, address: str, trusting: ssl.SSLContext, others: Container[str] = ()) -> None:
        while True:
            made = socket.socket()
            made.bind((address, 0))
            if "{}:{}".format(*made.getsockname()) not in others:
                break
            made.close()
        super().__init__(made)
        self.socket.connect(("127.0.0.1", port))
        self._trusting = trusting

    def ask(self, data: bytes, answer: bytes) -> Stranger:
        """Send bytes; check that the answer contains a text."""
        assert answer in self.write(data).receive()
        return self

    def shake(self, header: str, status: bytes) -> Stranger:
        """Send a handshake with one more header, which is refused."""
        return self.ask(handshake(header), b"HTTP/1.1 " + status)

    def member(self) -> Stranger:
        """Do the handshake and log in."""
        assert self.open().log_in("chen-session") == ADMITTED
        return self

    def speak_tls(self) -> Stranger:
        """Begin TLS, which nobody will close properly."""
        self.socket = self._trusting.wrap_socket(self.socket, server_hostname="127.0.0.1")
        return self

    def trust_others(self) -> Stranger:
        """Begin TLS, and refuse the certificate because other authorities are trusted."""
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(self.socket, server_hostname="127.0.0.1")
        return self

    def hear_out(self) -> None:
        """Read what the relay sends, unless that was done, and disconnect."""
        with suppress(OSError):
            self.socket.recv(65536)
        self.socket.close()


@dataclass
class Kind:
    """Connections that end in the same way.

    :ivar doing: what each does; it stays where that says nothing of its end.
    :ivar end: of each end, its phase, who closed, the code, and the beginning of the reason.
    :ivar count: how many there are, at once.
    """

    doing: Callable[[Stranger], object]
    end: tuple[str, str, int, str]
    count: int = 1
    tls: bool = False


FIN, RST, CUT_OFF = "closed without a close frame", "reset by peer", "TLS: cut off without a goodbye"
TAKEN_FOR_FIN = "client", FIN
"""As what Twisted takes one reset in some hundreds, where epoll has it before the kernel is done with the connection."""

GOODBYE = close_frame()

SILENT = Kind(lambda one: one, ("handshake", "relay", 1006, "no handshake in time"), PLACES)
AT_THE_DOOR = Kind(
    lambda one: one.ask(b"GET / HTTP/1.1\r\n", b"HTTP/1.1 429"),
    ("connection", "relay", 429, "too many connections from this address"),
    30,
)
KINDS = (
    SILENT,
    AT_THE_DOOR,  # from the address of the silent
    Kind(
        lambda one: one.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 426"),
        ("handshake", "relay", 426, "HTTP Upgrade header missing"),
        30,
    ),
    Kind(
        lambda one: one.shake("Sec-WebSocket-Protocol: nonsense", b"400"),
        ("handshake", "relay", 400, "no offered subprotocol is spoken here"),
    ),
    Kind(
        lambda one: one.shake("Origin: https://evil.test", b"403"),
        ("handshake", "relay", 403, "pages of this origin may not connect"),
        30,
    ),
    Kind(lambda one: one.write(b"GET / ").close(), ("handshake", "client", 1006, FIN)),
    Kind(lambda one: one.write(b"GET / ").reset(), ("handshake", "network", 1006, RST)),
    Kind(lambda one: one.open(), ("visitor", "relay", 4001, "not logged in in time"), 30),
    Kind(lambda one: one.open().write(GOODBYE), ("visitor", "client", 1000, "it closed")),
    Kind(lambda one: one.open().close(), ("visitor", "client", 1006, FIN)),
    Kind(lambda one: one.open().reset(), ("visitor", "network", 1006, RST), 30),
    Kind(lambda one: one.member().write(GOODBYE), ("user", "client", 1000, "it closed"), 30),
    Kind(lambda one: one.member().close(), ("user", "client", 1006, FIN)),
    Kind(lambda one: one.member().reset(), ("user", "network", 1006, RST), 30),
    Kind(
        lambda one: one.member().write(frame(b"x", BINARY)), ("user", "relay", 1003, "binary messages are not accepted")
    ),
    Kind(lambda one: one.write(HANDSHAKE), ("handshake", "network", 1006, "TLS: http request"), tls=True),
    Kind(lambda one: one.trust_others(), ("handshake", "network", 1006, "TLS: tlsv1 alert unknown ca"), tls=True),
    Kind(lambda one: one.close(), ("handshake", "network", 1006, CUT_OFF), tls=True),
    Kind(lambda one: one.speak_tls().member().close(), ("user", "network", 1006, CUT_OFF), tls=True),
    Kind(lambda one: one.speak_tls().member().write(GOODBYE), ("user", "client", 1000, "it closed"), tls=True),
)

STAYING = (
    Kind(lambda one: one, ("handshake", "relay", 1006, "the relay is stopping")),
    Kind(lambda one: one.open(), ("visitor", "relay", 4000, "the relay is stopping")),
    Kind(lambda one: one.member(), ("user", "relay", 4000, "the relay is stopping"), 30),
)
"""Clients that are connected when the relay stops, and do not answer its close frame."""


def test_end_of_each_connection_is_one_event(start_relay: StartRelay, tmp_path: Path) -> None:
    authorities = Authorities(tmp_path / "authorities")
    relay = start_relay(
        *("--log-format", "json", "--origin", "https://example.com", "--message-log", "none"),
        *("--handshake-timeout", "5", "--login-timeout", "5", "--unauthenticated-per-address", str(PLACES)),
        *("--connections-per-user", "0", "--drain-time", "0.5", "--ping-interval", "0"),
        *("--listen", authorities.endpoint(authorities.issue("127.0.0.1"))),
    )
    found = re.search(r"starting on (\d+)", relay.said(r"ChatFactory.* \(TLS\) starting on "))
    assert found
    ports = {False: relay.port, True: int(found[1])}
    addresses = {id(kind): f"127.0.1.{number}" for number, kind in enumerate((*KINDS, *STAYING), 1)}
    addresses[id(AT_THE_DOOR)] = addresses[id(SILENT)]
    everybody: dict[str, Kind] = {}
    trusting = authorities.trusting()
    with ExitStack() as there:

        def come(kinds: tuple[Kind, ...]) -> Iterator[Stranger]:
            for kind in kinds:
                for _ in range(kind.count):
                    one = Stranger(ports[kind.tls], addresses[id(kind)], trusting, everybody)
                    everybody["{}:{}".format(*one.socket.getsockname())] = kind
                    there.callback(one.close)
                    kind.doing(one)
                    yield one

        for one in list(come(KINDS)):
            one.hear_out()
        relay.said('"phase":', times=len(everybody))
        list(come(STAYING))
        # The relay has accepted them all: it takes them in the order in which they came, and the last has logged in.
        assert relay.stop() == -signal.SIGTERM
    events = [event for event in events_of(relay.output) if "phase" in event["fields"]]
    ends = {event["fields"]["peer"]: event["fields"] for event in events}
    assert len(events) == len(ends) == len(everybody)
    resets: list[bool] = []
    for peer, kind in everybody.items():
        fields = ends[peer]
        phase, by, code, reason = kind.end
        if reason == RST:
            resets.append(fields["by"] == "client")
            if resets[-1]:
                by, reason = TAKEN_FOR_FIN
        assert (fields["phase"], fields["by"], fields["code"]) == (phase, by, code), fields
        assert fields["reason"].startswith(reason), fields
        assert fields.get("uid") == ("chen" if phase == "user" else None)
        assert 0 <= fields["seconds"] < 4 * PATIENCE
    assert resets.count(True) < len(resets) / 10
    assert {event["level"] for event in events} == {"info"}
    assert "too many log messages" not in "".join(relay.output)
    assert "chen-session" not in "".join(relay.output)
