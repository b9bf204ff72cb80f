"""`--log-format json` of a real twistd: every line is one object, whatever strangers send."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.end_to_end.programs import PATIENCE, RelayProcess, Site

StartRelay = Callable[..., RelayProcess]

HOSTILE = 'https://x"}\n{"level":"critical","text":"forged"}\x1b[2J\x85\u2028\\'
"""An origin such as no browser sends."""


def events_of(lines: list[str]) -> list[dict[str, Any]]:
    """What was logged; every line must be JSON, and hold what the documentation says."""
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
    """The one event that says so."""
    (found,) = [event for event in events if text in event["text"]]
    return found


def test_every_line_is_json_and_what_strangers_send_is_inside_a_string(start_relay: StartRelay, site: Site) -> None:
    relay = start_relay("--log-format", "json", "--origin", "https://example.com")
    with socket.create_connection(("127.0.0.1", relay.port)) as stranger:
        stranger.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: "
            + HOSTILE.encode()
            + b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
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

    # From the very first line, before twistd had read its options; nothing of it is text.
    events = events_of(relay.output)
    assert the_event(events, "listens on")["namespace"] == "chatrelay.service.ChatRelayService"
    assert the_event(events, "chatrelay has stopped")
    refused = the_event(events, "was refused; that is no origin")
    assert refused["level"] == "warn"
    assert refused["fields"]["origin"].startswith('https://x"}\\n{"level":"critical","text":"forged"}\\x1b[2J')
    assert refused["format"] == "a page of origin {origin} was refused; {remedy} (told once for each origin)"
    assert the_event(events, "refused with 400")["fields"]["code"] == 400
    assert "forged" in the_event(events, "could not be asked")["fields"]["what"]
    end = the_event(events, "connection of 2 from 127.0.0.1")["fields"]
    assert (end["uid"], end["by"], end["code"]) == (2, "client", 1000)
    assert [event for event in events if event["level"] == "critical"] == []
    assert "alice-session" not in "".join(relay.output)
    began = datetime.fromisoformat(events[0]["time"])
    assert abs((datetime.now(UTC) - began).total_seconds()) < 10 * PATIENCE


def test_it_goes_to_twistds_logfile(tmp_path: Path, site: Site) -> None:
    relay = RelayProcess(
        tmp_path, "--auth-url", site.url, "--log-format", "json", twistd=("--logfile", "relay.log"), measured=False
    )
    until = time.monotonic() + PATIENCE
    while "listens on" not in ((tmp_path / "relay.log").read_text() if (tmp_path / "relay.log").exists() else ""):
        assert time.monotonic() < until, relay.output
        time.sleep(0.02)
    relay.stop()
    events = events_of((tmp_path / "relay.log").read_text("ascii").splitlines())
    assert the_event(events, "starting up")
    assert the_event(events, "chatrelay has stopped")
    assert relay.output == []


def test_a_relay_that_cannot_start_says_so_in_json_once_twistd_logs(tmp_path: Path, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        relay = RelayProcess(tmp_path, "--auth-url", site.url, "--log-format", "json", listen=endpoint)
        assert relay.wait() == 1
    event = events_of(relay.output)[-1]
    assert (event["namespace"], event["level"]) == ("stderr", "error")
    assert "Address already in use" in event["text"]
