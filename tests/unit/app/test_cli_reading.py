"""The commands that choose messages, show an inbox, export and follow: their options, results and errors."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from chatrelay.app.cli import arguments
from chatrelay.app.cli.columns import Table, cut, width
from chatrelay.app.cli.inbox import described, frames, rows
from chatrelay.app.cli.main import OPTIONS, main
from chatrelay.app.cli.messages import follow
from chatrelay.interfaces import LogReplaced
from chatrelay.messagelog import message_reader
from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.model import InboxEntry, InboxState, LoggedMessage, LogUnavailable, Mark, MarkKind, Message, Selection

Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Return the URL of a log with six messages, two of them undelivered, whose relay does not run."""
    store = SqliteStore(str(tmp_path / "log"))
    store.open()

    def sent(sender: str, recipient: str, content: str, second: float, unique_id: str = "") -> Message:
        at = 1_764_271_000 + second
        return Message(sender, recipient, unique_id or "1", "23", content, at, has_unique_id=bool(unique_id))

    store.append(
        [
            sent("7", "8", "one", 0.123, "0b9d-0001"),
            sent("8", "7", "two\n\x1b[31m", 1),
            sent("8", "9", "three", 2),
            sent("8", "7", "lost", 3),
            sent("8", "7", "lost", 4),
            sent("7", "7", "six 你好", 5, "0b9d-0002"),
        ]
    )
    store.mark_undelivered([4, 5])
    store.add_marks(
        [
            Mark("7", MarkKind.RECEIVED, "", 2),
            Mark("7", MarkKind.LEFT_AT, "", 3),
            Mark("7", MarkKind.LAST_SEEN, "", 1_764_271_003_500),
        ]
    )
    store.write_marks()
    store.close()
    return f"sqlite:{tmp_path / 'log'}"


@pytest.fixture
def run(log: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command; it returns the status, the printed lines and the errors."""

    def run_it(command: str, *words: str) -> tuple[int, list[str], str]:
        try:
            status = main([command, "--message-log", log, *words])
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run_it


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("", [1, 2, 3, 4, 5, 6]),
        ("--user 7", [1, 2, 4, 5, 6]),
        ("--user 9", [3]),
        ("--user nobody", []),
        ("--user 7 --with 8", [1, 2, 4, 5]),
        ("--user 7 --with 7", [6]),
        ("--limit 2", [5, 6]),
        ("--limit 0", []),
        ("--user 8 --limit 2", [4, 5]),
        ("--since 2025-11-27T19:16:42Z", [3, 4, 5, 6]),
        ("--since 2025-11-27T20:16:42.000001+01:00", [4, 5, 6]),
        ("--until 2025-11-27T19:16:42Z", [1, 2]),
        ("--since 2025-11-27 --until 2025-11-28", [1, 2, 3, 4, 5, 6]),
        ("--since 2025-11-28", []),
        ("--user 7 --since 2025-11-27T19:16:41Z --until 2025-11-27T19:16:44Z --limit 1", [4]),
    ],
)
def test_options_choose_messages(words: str, numbers: list[int], run: Run) -> None:
    status, lines, errors = run("messages", *words.split())
    assert (status, errors) == (0, "")
    assert [json.loads(line)["messageID"] for line in lines] == numbers


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("messages", "--with 7", "--with needs --user: the conversation is between the two"),
        ("messages", "--follow --until 2025-11-28", "--follow never ends, so it can't be combined with --until"),
        ("messages", "--since yesterday", "argument --since: 'yesterday' is not a date (2026-11-27: 00:00 UTC) or a "),
        ("messages", "--until 2025-11-27T10:00", "'2025-11-27T10:00' has no zone: append Z for UTC, or an offset"),
        ("messages", "--limit -1", "argument --limit: '-1' must be a whole number ≥ 0"),
        ("messages", "--limit ten", "argument --limit: 'ten' must be a whole number ≥ 0"),
        ("messages", "--user \x1b", "'\\x1b' is not a uID: give 1 to 64 printable characters"),
        ("messages", "--folow", "unrecognized arguments: --folow; did you mean --follow?"),
        ("inbox", "", "the following arguments are required: UID"),
        ("inbox", "7 --after x", "argument --after: 'x' must be a whole number ≥ 0"),
        ("export", "7 --json", "--json needs --output"),
        ("export", "7 --yes", "--yes needs --output"),
    ],
)
def test_unusable_command_line_is_explained(command: str, words: str, says: str, run: Run) -> None:
    status, lines, errors = run(command, *words.split(" ") if words else [])
    assert (status, lines) == (2, [])
    assert says in " ".join(errors.split())
    assert "\x1b" not in errors


def test_moments_are_read_as_iso_8601() -> None:
    second = 1_764_201_600
    for text in ("2025-11-27", "2025-11-27T00:00Z", "2025-11-27T01:00:00+01:00", "2025-11-26 19:00:00.000000-05:00"):
        assert arguments.moment(text) == second * 1_000_000, text
    assert arguments.moment("1969-12-31T23:59:59.999999Z") == -1
    for text in ("", "27.11.2025", "2025-13-01", "now", "1764201600.5", "2025-11-27T24:01Z"):
        with pytest.raises(argparse.ArgumentTypeError):
            arguments.moment(text)


def test_inbox_is_shown_as_a_table(run: Run) -> None:
    status, lines, errors = run("inbox", "7")
    assert (status, errors) == (0, "")
    epoch = lines[0].partition("epoch ")[2]
    assert len(epoch) == 12
    assert lines == [
        f"inbox of 7: places 1 to 5, epoch {epoch}",
        "received:  up to place 2",
        "last seen: 2025-11-27 19:16:43.500 UTC, when the last place was 3",
        "",
        "PLACE  TIME (UTC)               FROM  TO  CONTENT",
        '    1  2025-11-27 19:16:40.123  7     8   "one"',
        '    2  2025-11-27 19:16:41.000  8     7   "two\\n\\u001b[31m"',
        "  3-4                                     void",
        '    5  2025-11-27 19:16:45.000  7     7   "six 你好"',
    ]


def test_inbox_is_shown_from_a_place_on_and_says_what_follows(run: Run) -> None:
    _, lines, _ = run("inbox", "7", "--after", "1", "--limit", "1")
    assert [line.split()[0] for line in lines[5:6]] == ["2"]
    assert lines[-1] == "places 3 to 5 not shown: --after 2"
    _, lines, _ = run("inbox", "7", "--after", "4")
    assert lines[-1].startswith("    5  ")
    assert len(lines) == 6
    _, lines, _ = run("inbox", "7", "--limit", "0")
    assert len(lines) == 3


def test_inbox_beyond_the_last_place_says_what_the_device_is_told(run: Run) -> None:
    status, lines, errors = run("inbox", "7", "--after", "6")
    assert (status, len(lines)) == (0, 3)
    assert errors == (
        "chatrelay: a device that has place 6 would be sent nothing, and told recovered:false: the last place is 5\n"
    )
    assert run("inbox", "7", "--after", "5")[2] == ""


def test_inbox_of_a_user_without_messages_is_empty(run: Run) -> None:
    status, lines, errors = run("inbox", "nobody")
    assert (status, errors) == (0, "")
    assert lines == [
        "inbox of nobody: no messages",
        "received:  nothing by a device that says so",
        "last seen: not known",
    ]


def test_inbox_for_a_program_is_its_state_and_the_frames(run: Run) -> None:
    status, lines, errors = run("inbox", "7", "--json")
    assert (status, errors) == (0, "")
    state, *sent = map(json.loads, lines)
    assert state.pop("epoch")
    assert state == {
        "uID": "7",
        "first": 1,
        "last": 5,
        "received": 2,
        "leftAt": 3,
        "lastSeen": "2025-11-27T19:16:43.500000Z",
    }
    assert sent[0] == {
        "type": "message",
        "n": 1,
        "at": 1764271000123,
        "id": "0b9d-0001",
        "message": {"timeStamp": "23", "fromuID": "7", "touID": "8", "content": "one"},
    }
    assert sent[2] == {"type": "void", "from": 3, "n": 4}
    assert [frame["n"] for frame in sent] == [1, 2, 4, 5]
    assert "\x1b" not in "".join(lines)


def test_trimmed_and_erased_places_are_shown() -> None:
    entries = [InboxEntry(41), InboxEntry(42, erased=((3, 17), (40, 40))), InboxEntry(43)]
    assert [(row[0], row[-1]) for row in rows(entries)] == [("41", "void"), ("42", "erased: 3-17, 40"), ("43", "void")]
    assert [json.loads(frame) for frame in frames(entries)] == [
        {"type": "void", "n": 41},
        {"type": "erased", "n": 42, "places": [[3, 17], [40, 40]]},
        {"type": "void", "n": 43},
    ]
    assert next(described("7", "e", InboxState(41, 41))) == "inbox of 7: place 41, epoch e"
    assert next(described("7", "e", InboxState(42, 41))) == "inbox of 7: no messages any more: the last place was 41"


EXPORTED = {
    "place": 1,
    "messageID": 1,
    "fromuID": "7",
    "touID": "8",
    "timeStamp": "23",
    "content": "one",
    "receivedAt": "2025-11-27T19:16:40.123000Z",
    "id": "0b9d-0001",
}


def test_export_prints_every_message_of_the_user(run: Run) -> None:
    status, lines, errors = run("export", "7")
    assert (status, errors) == (0, "")
    found = [json.loads(line) for line in lines]
    assert found[0] == EXPORTED
    assert [(each["place"], each["messageID"]) for each in found] == [(1, 1), (2, 2), (3, 4), (4, 5), (5, 6)]
    assert [each.get("delivered") for each in found] == [None, None, False, False, None]
    assert "id" not in found[1]
    assert "\x1b" not in "".join(lines)


def test_export_of_a_user_without_messages_says_so(run: Run) -> None:
    assert run("export", "nobody") == (0, [], 'chatrelay: the message log has no message of the user "nobody"\n')


def test_export_to_a_file_is_private_and_replaces_nothing_unasked(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "7.jsonl"
    status, lines, errors = run("export", "7", "--output", str(target))
    size = target.stat().st_size
    assert (status, lines, errors) == (0, [f"exported 5 messages of the user 7 ({size:,} bytes), to {target}"], "")
    assert json.loads(target.read_text().splitlines()[0]) == EXPORTED
    assert target.stat().st_mode & 0o777 == 0o600
    status, lines, errors = run("export", "8", "--output", str(target))
    assert (status, lines) == (1, [])
    assert errors == f"chatrelay: {target} exists: name another destination, or replace it with --yes\n"
    assert target.stat().st_size == size
    status, lines, _ = run("export", "9", "--output", str(target), "--yes", "--json")
    assert json.loads(lines[0]) == {
        "output": str(target),
        "uID": "9",
        "messages": 1,
        "bytes": target.stat().st_size,
    }
    assert sorted(os.listdir(tmp_path)) == ["7.jsonl", "log", "log.lock"]


@pytest.mark.parametrize("name", ["log", "log-wal", "log.lock"])
def test_export_does_not_write_over_the_message_log(name: str, run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "log").read_bytes()
    status, _, errors = run("export", "7", "--yes", "--output", str(tmp_path / name))
    assert status == 1
    assert "belongs to the message log itself" in errors
    assert (tmp_path / "log").read_bytes() == before


def test_export_that_fails_leaves_no_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: LoggedMessage, __: str) -> str:
        raise LogUnavailable("the disk fails")

    monkeypatch.setattr("chatrelay.app.cli.export.json_line", fail)
    status, lines, errors = run("export", "7", "--output", str(tmp_path / "out"))
    assert (status, lines, errors) == (1, [], "chatrelay: the disk fails\n")
    assert sorted(os.listdir(tmp_path)) == ["log", "log.lock"]


@pytest.mark.parametrize("command", ["messages", "inbox", "export"])
def test_missing_message_log_is_one_sentence(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [] if command == "messages" else ["7"]
    assert main([command, "--message-log", f"sqlite:{tmp_path / 'none'}", *words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"chatrelay: there is no message log at {tmp_path / 'none'}; name another file with --message-log sqlite:PATH\n"
    )


@pytest.mark.parametrize("command", ["messages", "inbox", "export"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"example: chatrelay {command} --message-log sqlite:/" in " ".join(capsys.readouterr().out.split())


def test_options_of_all_commands_are_known_for_suggestions(capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for command in (["messages"], ["inbox"], ["export"], ["backup"], ["restore"], ["erase"], []):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        found |= set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert found == set(OPTIONS)


# Following ---------------------------------------------------------------------


class Ended(Exception):
    """The test has seen enough."""


def followed(
    log: str, steps: Sequence[Callable[[], object]], selection: Selection, limit: int | None = None
) -> list[float]:
    """Follow a log, and do one step in each wait; return how long each was."""
    waits = []
    left = list(steps)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if not left:
            raise Ended
        left.pop(0)()

    with pytest.raises(Ended):
        follow(message_reader(log), selection, limit, wait)
    return waits


@pytest.mark.parametrize(("limit", "first"), [(None, [1, 2, 4, 5, 6]), (1, [6]), (0, [])])
def test_new_messages_of_the_user_follow_the_old_ones(
    limit: int | None, first: list[int], log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(log.removeprefix("sqlite:"))
    store.open()
    seen: list[list[int]] = []

    def look() -> None:
        printed = capsys.readouterr().out.splitlines()
        seen.append([json.loads(line)["messageID"] for line in printed])
        store.append([Message("8", "9", "1", "1", "x", 1.0), Message("7", "9", "1", "1", "y", 1.0)])

    followed(log, [look, look, look], Selection("7"), limit)
    store.close()
    assert seen == [first, [8], [10]]


def test_following_waits_for_a_log_that_cannot_be_read(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = log.removeprefix("sqlite:")
    waits = followed(
        log,
        [lambda: os.rename(path, f"{path}.away"), lambda: None, lambda: os.rename(f"{path}.away", path)],
        Selection("9"),
    )
    said = capsys.readouterr()
    assert [json.loads(line)["messageID"] for line in said.out.splitlines()] == [3]
    assert said.err == (
        f"chatrelay: there is no message log at {path}; name another file with --message-log sqlite:PATH; waiting for it"
        "\nchatrelay: the message log can be read again\n"
    )
    assert waits[1] > waits[0]


def test_following_ends_if_another_log_is_in_its_place(log: str) -> None:
    path = log.removeprefix("sqlite:")

    def replace() -> None:
        os.unlink(path)
        os.unlink(f"{path}.lock")
        store = SqliteStore(path)
        store.open()
        store.close()

    with pytest.raises(LogReplaced):
        followed(log, [replace, lambda: None], Selection())


class LateReader:
    """A log to which a message is committed between the start of following and the read of the old messages."""

    through = 3
    first = 1
    message = LoggedMessage(2, "7", "8", "1", "late", 0, delivered=True)

    def follower(self) -> LateReader:
        return self

    def messages(self, *_: object, **__: object) -> Generator[LoggedMessage, None, None]:
        yield self.message

    def new_messages(self) -> list[LoggedMessage]:
        return [self.message]

    def close(self) -> None:
        pass


def test_message_that_is_committed_late_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    reader: Any = LateReader()
    times = iter(range(3))

    def checked() -> AbstractContextManager[None]:
        if next(times, None) is None:
            raise Ended
        return nullcontext()

    with patch("chatrelay.app.cli.messages.output.checked", checked), pytest.raises(Ended):
        follow(reader, Selection(), None)
    assert len(capsys.readouterr().out.splitlines()) == 1


# Columns -----------------------------------------------------------------------


def test_columns_are_as_wide_as_what_a_terminal_shows() -> None:
    assert [width(text) for text in ("abc", "你好", "e\u0301", "a\u200db")] == [3, 4, 1, 2]
    assert list(Table(("a", "b"), right={0}).lines([("1", "x"), ("你好", "y")])) == [
        "",
        "   A  B",
        "   1  x",
        "你好  y",
    ]
    assert list(Table(("a", "b")).lines([])) == []


def test_long_line_is_cut_with_an_ellipsis() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("你好你好", 6) == "你好…"
