"""The commands that read the message log, beside a relay that writes to it, with each store."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

import pytest

from tests.support import PATIENCE, ROOT
from tests.support.command_line import arguments, on_a_terminal
from tests.support.postgres_server import shared_server
from tests.support.programs import StartRelay
from tests.support.sqlite_logs import fill
from tests.support.v1 import ADMITTED

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a message log that does not exist yet."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'log'}"
        return
    try:
        server = shared_server()
    except SkipTest as reason:
        pytest.skip(str(reason))
    yield server.url(server.database(request.addfinalizer))


def line_of(command: str, url: str, *words: str) -> list[str]:
    """Return the command line of a command."""
    return [sys.executable, "-m", "chatrelay.app.cli", command, "--message-log", url, *words]


def ran(command: str, url: str, *words: str) -> list[str]:
    """Run a command that must succeed without an error message; return its lines."""
    found = subprocess.run(
        line_of(command, url, *words), env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=4 * PATIENCE
    )
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout.splitlines()


@contextmanager
def following(url: str, *words: str, errors: int | None = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Run ``chatrelay messages --follow``."""
    line = line_of("messages", url, "--follow", *words)
    with subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8") as process:
        try:
            yield process
        finally:
            process.kill()


def content(process: subprocess.Popen[str]) -> str:
    """Return the content of the next message that is printed."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE)[0], "nothing was printed"
    return str(json.loads(process.stdout.readline())["content"])


def test_commands_answer_beside_a_relay_and_without_one(url: str, start_relay: StartRelay) -> None:
    relay = start_relay("--message-log", url)
    with relay.client() as alice, relay.client() as bo, relay.client() as chen:
        for client, sessid in ((alice, "alice-session"), (bo, "bo-session"), (chen, "chen-session")):
            assert client.log_in(sessid) == ADMITTED
        alice.send(2, "first")
        assert bo.hear()
        assert alice.hear()
        with following(url, "--user", "1") as follower:
            assert content(follower) == "first"
            for number in range(3):
                alice.send("chen", f"to chen {number}")
                chen.hear()
                alice.hear()
                bo.send("chen", "of no interest")
                chen.hear()
                bo.hear()
                assert content(follower) == f"to chen {number}"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(PATIENCE) == 130
            assert (follower.stdout.read(), follower.stderr.read()) == ("", "")  # type: ignore[union-attr]

    def check() -> None:
        contents = [json.loads(line)["content"] for line in ran("messages", url, "--user", "1", "--with", "chen")]
        assert contents == ["to chen 0", "to chen 1", "to chen 2"]
        exported = [json.loads(line) for line in ran("export", url, "chen")]
        assert [each["place"] for each in exported] == [1, 2, 3, 4, 5, 6]
        shown = ran("inbox", url, "chen", "--after", "4")
        assert shown[0].startswith("inbox of chen: places 1 to 6, epoch ")
        assert [line.split()[0] for line in shown[-2:]] == ["5", "6"]
        state, *frames = map(json.loads, ran("inbox", url, "chen", "--json", "--limit", "2"))
        assert (state["last"], [frame["n"] for frame in frames]) == (6, [1, 2])

    check()
    relay.stop()
    check()


def test_following_ends_when_its_reader_has_gone_though_nothing_happens(url: str, start_relay: StartRelay) -> None:
    relay = start_relay("--message-log", url)
    with relay.client() as alice, following(url) as follower:
        assert alice.log_in("alice-session") == ADMITTED
        alice.send(1, "to myself")
        assert content(follower) == "to myself"
        assert follower.stdout is not None
        assert follower.stderr is not None
        follower.stdout.close()
        assert follower.wait(PATIENCE) == 0
        assert follower.stderr.read() == ""


def test_following_goes_on_across_a_restart_of_the_relay(url: str, start_relay: StartRelay) -> None:
    errors = subprocess.DEVNULL
    relay = start_relay("--message-log", url)
    with following(url, errors=errors) as follower:
        for number, sign in enumerate((signal.SIGKILL, signal.SIGTERM)):
            with relay.client() as alice:
                assert alice.log_in("alice-session") == ADMITTED
                alice.send(1, f"message {number}")
                assert content(follower) == f"message {number}"
            relay.stop(sign)
            relay = start_relay("--message-log", url)
        assert follower.poll() is None


def test_reading_needs_no_reactor(tmp_path: Path) -> None:
    fill(tmp_path / "log", 3).close()
    program = (
        "import sys; from chatrelay.app.cli.main import main\n"
        "for words in (['messages', '--user', '1'], ['inbox', '1'], ['export', '1']):\n"
        "    assert main([words[0], '--message-log', sys.argv[1], *words[1:]]) == 0\n"
        "assert 'twisted.internet.reactor' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program, f"sqlite:{tmp_path / 'log'}"], env=ENVIRONMENT, check=True, capture_output=True
    )


def test_export_shows_progress_on_a_terminal_and_erases_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fill(log, *[500] * 10).close()
    status, said = on_a_terminal("export", log, "1", "--output", tmp_path / "out")
    assert status == 0
    assert "\rexporting  0 %" in said
    last = said.rpartition("\r")[2]
    exported = (tmp_path / "out").read_bytes()
    lines = exported.count(b"\n")
    assert last == f"exported {lines:,} messages of the user 1 ({len(exported):,} bytes), to {tmp_path / 'out'}\n"


def test_interrupted_export_leaves_no_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fill(log, *[500] * 4).close()
    prelude = "import chatrelay.app.cli.export as e, os, signal\ne.json_line = lambda *_: os.kill(0, signal.SIGINT)"
    line, environment = arguments(("export", log, "1", "--output", tmp_path / "out"), prelude)
    ended = subprocess.run(
        line,
        env=environment,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=4 * PATIENCE,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "chatrelay: interrupted; no file was written\n"
    assert sorted(os.listdir(tmp_path)) == ["log", "log.lock"]
