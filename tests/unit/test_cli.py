"""The `chatrelay` command, as far as it needs no message log."""

from __future__ import annotations

import pytest

from chatrelay.cli import main


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
