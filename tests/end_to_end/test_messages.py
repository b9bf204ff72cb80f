"""Messages between users who are logged in to a real relay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support import ROOT
from tests.support.client import Client
from tests.support.programs import RelayProcess, Site
from tests.support.v1 import DENIED

LogIn = Callable[[str], Client]


def test_message_is_delivered_acknowledged_and_logged(logged_in: LogIn, relay: RelayProcess) -> None:
    alice, bo = logged_in("alice-session"), logged_in("bo-session")
    alice.say(
        {
            "type": "message-send-request",
            "id": "21",
            "message": {"timeStamp": "23", "touID": "2", "content": "Hej", "fromuID": 99, "extra": 1},
            "extra": {"a": []},
        }
    )
    assert bo.hear() == {
        "type": "message",
        "message": {"timeStamp": "23", "fromuID": 1, "touID": "2", "content": "Hej"},
    }
    assert alice.hear() == {"type": "send-request-response", "response": {"id": "21", "value": True}}
    (row,) = messages(relay.folder)
    assert row.pop("receivedAt").endswith("Z")
    assert row == {"messageID": 1, "fromuID": "1", "touID": "2", "timeStamp": "23", "content": "Hej"}


def test_log_is_readable_after_the_relay_has_stopped(logged_in: LogIn, relay: RelayProcess) -> None:
    alice, bo = logged_in("alice-session"), logged_in("bo-session")
    for number in range(5):
        alice.send(2, f"message {number}", id=number, time_stamp=number)
        bo.hear()
        alice.hear()
    assert relay.stop() == -15
    rows = messages(relay.folder)
    assert [row["content"] for row in rows] == [f"message {number}" for number in range(5)]
    assert [row["timeStamp"] for row in rows] == list(range(5))
    assert [row["messageID"] for row in rows] == [1, 2, 3, 4, 5]


def test_visitor_without_a_login_receives_nothing(relay: RelayProcess, site: Site) -> None:
    with relay.client() as visitor, relay.client() as bo:
        bo.log_in("bo-session")
        visitor.send(2, "let me in")
        visitor.send("nobody", "let me in")
        visitor.say({"type": "message-send-request", "id": "1"})
        assert visitor.hears_nothing()
        assert bo.hears_nothing(0.01)
        assert visitor.log_in("stolen") == DENIED
        visitor.send(2, "let me in")
        assert visitor.hears_nothing()
    assert messages(relay.folder) == []


def test_sigterm_closes_with_4000_and_ends_as_twistd_ends(logged_in: LogIn, relay: RelayProcess) -> None:
    alice = logged_in("alice-session")
    relay.process.terminate()
    assert alice.closed() == (4000, [])
    assert relay.wait() == -15
    assert not [line for line in relay.output if "Traceback" in line]


def messages(folder: Path) -> list[dict[str, object]]:
    """Return what `chatrelay messages` prints of the log in a folder."""
    command = [sys.executable, "-m", "chatrelay.app.cli", "messages", "--message-log", "sqlite:chatrelay.sqlite3"]
    printed = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, encoding="utf-8"
    ).stdout
    return [json.loads(line) for line in printed.splitlines()]
