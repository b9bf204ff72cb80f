"""The example that ends a user's chat from a site: a logout always succeeds, even if the chat can't be ended."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

import pytest

from examples import end_chat

USER = UUID("5f1c0f5e-8d5c-4a57-9a3c-5a8f0d5f4c11")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Return what a site asks the ops endpoint of a relay."""
    bodies: list[object] = []

    class Ops(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    token = tmp_path / "ops-token"
    token.write_text("x" * 64 + "\n")
    monkeypatch.setattr(end_chat, "TOKEN_FILE", str(token))
    with HTTPServer(("127.0.0.1", 0), Ops) as server:
        monkeypatch.setattr(end_chat, "OPS", server.server_address)
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield bodies
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize(("uid", "sent"), [(7, 7), ("7", "7"), (USER, str(USER))])
def test_uid_is_sent_as_the_session_page_answers_it(
    asked: list[object], uid: int | str | UUID, sent: int | str
) -> None:
    end_chat.end_chat(uid)
    assert asked == [{"uID": sent}]


@pytest.mark.parametrize("token", [b"\xff" * 64, b"x" * 32 + b"\n" + b"x" * 32, None])
def test_token_that_cannot_be_sent_is_logged_and_raises_nothing(
    asked: list[object], caplog: pytest.LogCaptureFixture, token: bytes | None
) -> None:
    if token is None:
        Path(end_chat.TOKEN_FILE).unlink()
    else:
        Path(end_chat.TOKEN_FILE).write_bytes(token)
    with caplog.at_level(logging.ERROR):
        end_chat.end_chat(7)
    assert asked == []
    (line,) = caplog.messages
    assert line.startswith("could not end the chat of user 7")
    assert "xxxx" not in line
