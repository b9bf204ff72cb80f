"""The `chatrelay` command: its help, its errors and its results."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from chatrelay.app.cli.main import main
from chatrelay.app.cli.messages import json_line
from chatrelay.messagelog.sqlite import MIGRATIONS, SqliteStore
from chatrelay.model import LoggedMessage, Message
from tests.support import ROOT


def test_no_command_prints_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""  # standard output is for data
    assert "print the message log as JSON Lines" in said.err
    assert "copy the message log to a file, whether the relay runs or not" in said.err
    assert "replace the message log with a backup" in " ".join(said.err.split())
    assert "twistd -n chatrelay --help" in " ".join(said.err.split())
    assert "error" not in said.err


def test_help_option_prints_the_help_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "print the message log as JSON Lines" in capsys.readouterr().out


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["mesages"])
    assert end.value.code == 2
    assert "'mesages'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("mesages", "(choose from .*); did you mean messages?"),
        ("serve", "(choose from .*): to run a relay, use twistd -n chatrelay"),
        ("messages --mesage-log=x", "unrecognized arguments: --mesage-log=x; did you mean --message-log?"),
        ("messages sqlite:log", "unrecognized arguments: sqlite:log; did you mean --message-log sqlite:log?"),
    ],
)
def test_misspelled_command_line_gets_a_suggestion(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    pattern = re.escape(says).replace(r"\.\*", ".*")
    assert re.search(f"{pattern}$", capsys.readouterr().err.strip())


@pytest.mark.parametrize("command", ["messages", "backup", "restore"])
def test_bad_message_log_in_the_environment_names_the_variable(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATRELAY_MESSAGE_LOG", "x.db")
    assert main([command, *([] if command == "messages" else ["file"])]) == 1
    assert capsys.readouterr().err.startswith("chatrelay: CHATRELAY_MESSAGE_LOG: 'x.db' is not a message log: ")


@pytest.mark.parametrize(
    "character", [*"\x1b\x7f\x85\x9b\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
)
def test_control_character_is_escaped(character: str) -> None:
    content = f'hej{character}"gninrom doog'
    line = json_line(LoggedMessage(1, f"a{character}", f"b{character}", f"{character}", content, 0, delivered=True))
    assert character not in line
    assert json.loads(line)["content"] == content
    assert json.loads(line)["fromuID"] == f"a{character}"


@pytest.mark.parametrize("content", ["Grüße, Łódź", "مرحبا\u200f!", "👩\u200d🚀", "\xa0"])
def test_printable_text_is_not_escaped(content: str) -> None:
    assert content in json_line(LoggedMessage(1, "a", "b", "0", content, 0, delivered=True))


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_help_of_a_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"example: chatrelay {command} --message-log sqlite:/" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("command", "done"), [("backup", "backed up"), ("restore", "restored")])
def test_files_are_not_for_a_message_log_in_postgresql(
    command: str, done: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--message-log", "postgresql://user:s3cret@host/database", "file"]) == 1
    assert (
        capsys.readouterr().err == f"chatrelay: --message-log: a message log in PostgreSQL can't be {done} by this "
        "command: use pg_dump and pg_restore\n"
    )


@pytest.mark.parametrize(("command", "done"), [("messages", "read"), ("backup", "backed up"), ("restore", "restored")])
@pytest.mark.parametrize("url", ["memory:", "none"])
def test_message_log_without_a_file_is_refused(
    command: str, done: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [command, "--message-log", url, *([] if command == "messages" else ["file"])]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        said.err
        == f"chatrelay: --message-log: a {url.rstrip(':')} message log can't be {done} from outside the relay\n"
    )


@pytest.mark.parametrize("command", ["messages", "backup", "restore"])
@pytest.mark.parametrize("url", ["sqlite:log", "sqlite:/nonexistent/log"])
def test_relative_path_without_a_working_directory_is_refused(
    command: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "getcwd", gone)
    file = str(tmp_path / "file") if url == "sqlite:log" else "file"
    arguments = [command, "--message-log", url, *([] if command == "messages" else [file])]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("chatrelay: ")
    assert said.err.count("\n") == 1
    assert ("the working directory is gone" in said.err) == (url == "sqlite:log")
    assert "standard output" not in said.err


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_missing_file_argument_exits_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command])
    assert end.value.code == 2
    assert "the following arguments are required" in capsys.readouterr().err


def test_result_is_printed_as_one_line_or_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, backup = tmp_path / "log", tmp_path / "backup"
    store = SqliteStore(str(log))
    store.open()
    store.append([Message(1, 2, "id", "23", "hej", 1_700_000_000.5)])
    store.close()
    url = f"sqlite:{log}"
    assert main(["backup", "--message-log", url, str(backup)]) == 0
    size = backup.stat().st_size
    last = "the last one at 2023-11-14T22:13:20.500000Z"
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"backed up 1 message ({size // 1024} KiB), {last}, to {backup}\n", "")
    assert main(["restore", "--yes", "--json", "--message-log", url, str(backup)]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told.pop("kept").startswith(f"{log}.replaced-")
    assert (told, said.err) == (
        {
            "messageLog": str(log),
            "messages": 1,
            "lastReceivedAt": "2023-11-14T22:13:20.500000Z",
            "schema": len(MIGRATIONS),
            "bytes": size,
        },
        "",
    )
    assert main(["restore", "--message-log", f"sqlite:{tmp_path / 'new'}", str(backup)]) == 0
    assert capsys.readouterr().out.startswith(f"restored 1 message ({size // 1024} KiB), {last}, to {tmp_path / 'new'}")


def test_full_disk_of_standard_output_is_one_sentence(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "log"))
    store.open()
    for count in (1, 500):  # found when it ends, and while it prints
        store.append([Message(1, 2, "id", "23", "hej", 1_700_000_000.5)] * count)
        command = [sys.executable, "-m", "chatrelay.app.cli", "messages", "--message-log", f"sqlite:{tmp_path / 'log'}"]
        with open("/dev/full", "wb") as full:
            ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert ran.stderr == "chatrelay: standard output cannot be written: No space left on device\n"
        assert ran.returncode == 1
    store.close()


def test_damaged_message_log_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    store = SqliteStore(str(log))
    store.open()
    store.append([Message(1, 2, "id", "23", "hej", 1_700_000_000.5)])
    store.close()
    with closing(sqlite3.connect(log, isolation_level=None)) as connection:
        connection.execute("UPDATE block SET first_number = 2")
    assert main(["backup", "--message-log", f"sqlite:{log}", str(tmp_path / "backup")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"chatrelay: what was copied from {log} is damaged: "
        "message 1 is missing, the next one is 2; no backup was made\n"
    )
