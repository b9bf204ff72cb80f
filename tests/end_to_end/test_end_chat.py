"""The programs examples/end_chat.* quote a relay that refuses to end a chat."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from examples import end_chat
from tests.support import ROOT
from tests.support.programs import StartRelay

PHP = "require 'examples/php/end_chat.php'; end_chat(1);"


@pytest.mark.parametrize(
    ("options", "words"), [((), "started without a token"), (("--ops-token-file", "token"), "Authorization: Bearer")]
)
def test_refused_revocation_is_reported_with_its_reason(
    start_relay: StartRelay,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
) -> None:
    (tmp_path / "token").write_text("x" * 32)
    (tmp_path / "other").write_text("y" * 32)
    relay = start_relay("--ops-listen", "tcp:0:interface=127.0.0.1", *options)
    port = relay.ops_port
    if not options:
        relay.said("/v1/revoke needs --ops-token-file")
    monkeypatch.setattr(end_chat, "OPS", ("127.0.0.1", port))
    monkeypatch.setattr(end_chat, "TOKEN_FILE", str(tmp_path / "other"))
    with caplog.at_level(logging.ERROR):
        end_chat.end_chat(1)
    (said,) = caplog.messages
    assert "could not end the chat of user 1: the relay answered 40" in said
    assert words in said and "ops-token-file" in said

    if (php := shutil.which("php")) is None:
        pytest.skip("php is missing (on Debian: apt install php-cli)")
    environment = {"CHATRELAY_OPS": f"http://127.0.0.1:{port}", "CHATRELAY_OPS_TOKEN_FILE": str(tmp_path / "other")}
    done = subprocess.run([php, "-r", PHP], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert "could not end the chat of user 1: HTTP/1.1 40" in done.stderr
    assert words in done.stderr and "ops-token-file" in done.stderr
