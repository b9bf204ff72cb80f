"""The `chatrelay` command, as far as it needs no message log."""

from __future__ import annotations

import json

import pytest

from chatrelay.cli import json_line, main
from chatrelay.messagelog.sqlite import LoggedMessage


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""  # standard output is for data
    assert "print the message log as JSON Lines" in said.err
    assert "twistd -n chatrelay --help" in said.err
    assert "error" not in said.err


def test_help_that_was_asked_for_is_no_misuse(capsys: pytest.CaptureFixture[str]) -> None:
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
    "character", [*"\x1b\x7f\x85\x9b\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
)
def test_what_a_terminal_would_act_on_is_escaped(character: str) -> None:
    content = f'hej{character}"gninrom doog'
    line = json_line(LoggedMessage(1, f"a{character}", f"b{character}", f"{character}", content, 0, delivered=True))
    assert character not in line
    assert json.loads(line)["content"] == content
    assert json.loads(line)["fromuID"] == f"a{character}"


@pytest.mark.parametrize("content", ["Grüße, Łódź", "مرحبا\u200f!", "👩\u200d🚀", "\xa0"])
def test_what_people_write_is_printed_as_it_is(content: str) -> None:
    assert content in json_line(LoggedMessage(1, "a", "b", "0", content, 0, delivered=True))
