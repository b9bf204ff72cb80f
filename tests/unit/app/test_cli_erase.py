"""``chatrelay erase``: what it asks, shows and returns. The reader and the eraser are those of a log in a file."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from chatrelay.app.cli.main import main
from chatrelay.messagelog.erasing import ErasureProgress
from chatrelay.messagelog.sqlite import SqliteEraser, SqliteMessageReader
from tests.support.sqlite_logs import fill

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a log with 70 messages, without a relay. User 1 wrote 10 of them, and 4 to user 1."""
    path = tmp_path / "log"
    fill(path, 70).close()
    return path


@pytest.fixture
def run(log: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command; it returns the status, what was printed, and the errors."""

    def run_it(*words: str, url: str | None = None) -> tuple[int, str, str]:
        try:
            status = main(["erase", "--message-log", url or f"sqlite:{log}", *words])
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_it


def left(log: Path, user: str) -> int:
    """Return how many messages a user has in a log."""
    return sum(user in (each.from_uid, each.to_uid) for each in SqliteMessageReader(str(log)).messages())


def test_messages_are_erased_and_counted(run: Run, log: Path) -> None:
    assert run("1", "--yes") == (0, "erased 10 messages: what 1 wrote\n", "")
    assert run("1", "--yes", "--json", "--received") == (
        0,
        json.dumps({"uID": "1", "received": True, "messages": 12, "copies": []}) + "\n",
        "",
    )
    assert left(log, "1") == 0
    assert run("1", "--yes") == (0, "erased 0 messages: what 1 wrote\n", "")


def test_nothing_is_erased_unless_the_person_agrees(run: Run, log: Path) -> None:
    before = left(log, "1")
    status, out, errors = run("1")
    assert (status, out) == (1, "")
    assert errors == "chatrelay: erase what 1 wrote with --yes: it can't be undone\n"
    with (
        patch("chatrelay.app.cli.erase.can_ask", return_value=True),
        patch("select.select", return_value=([0], [], [])),
        patch("sys.stdin") as stdin,
    ):
        stdin.readline.return_value = "n\n"
        status, out, errors = run("1", "--received")
        assert (status, out) == (1, "")
        assert errors == (
            "The inbox of 1 has 22 places. Erase what 1 wrote and received, for everybody? This can't be undone. "
            "[y/N] chatrelay: nothing was changed\n"
        )
        assert left(log, "1") == before
        stdin.readline.return_value = "y\n"
        assert run("1")[:2] == (0, "erased 10 messages: what 1 wrote\n")


def test_user_without_messages_is_reported(run: Run) -> None:
    assert run("nobody") == (0, "", 'chatrelay: the message log has no message of the user "nobody"\n')
    status, out, _ = run("nobody", "--json")
    assert (status, json.loads(out)["messages"]) == (0, 0)


def test_copies_that_keep_the_messages_are_named(run: Run, log: Path) -> None:
    copy = f"{log}.schema-3"
    Path(copy).touch()
    status, _, errors = run("1", "--yes")
    assert (status, errors) == (0, f"chatrelay: {copy} is a copy of the message log, which still has these messages\n")
    assert json.loads(run("1", "--yes", "--json")[1])["copies"] == [copy]


def test_wait_is_explained(run: Run) -> None:
    def erase(self: SqliteEraser, user: str, *, received: bool) -> Iterator[ErasureProgress]:
        for waits_for in ("", "the relay", "the relay", ""):
            yield ErasureProgress(1, 2, 1, waits_for=waits_for)

    with patch.object(SqliteEraser, "erase", erase):
        assert run("1", "--yes")[2] == "chatrelay: waiting for the relay\nchatrelay: the erasure goes on\n"


def test_interruption_says_that_the_erasure_goes_on(run: Run) -> None:
    def erase(self: SqliteEraser, user: str, *, received: bool) -> Iterator[ErasureProgress]:
        yield ErasureProgress(1, 2, 1)
        signal.raise_signal(signal.SIGINT)

    with patch.object(SqliteEraser, "erase", erase), patch("chatrelay.app.output.discard"):
        assert run("1", "--yes") == (
            130,
            "",
            "chatrelay: interrupted; a relay continues the erasure, or does so when it starts\n",
        )


@pytest.mark.parametrize("url", ["memory:", "none"])
def test_log_in_which_nothing_can_be_erased_is_refused(run: Run, url: str) -> None:
    status, _, errors = run("1", "--yes", url=url)
    assert status == 1
    assert errors.startswith(
        f"chatrelay: --message-log: a {url.rstrip(':')} message log can't be erased in from outside"
    )
