"""The command line of `chatrelay`: its commands, its exit status, and a suggestion for a mistyped command.

    chatrelay messages --message-log sqlite:chatrelay.sqlite3
    chatrelay inbox --message-log sqlite:chatrelay.sqlite3 293482
    chatrelay export --message-log sqlite:chatrelay.sqlite3 293482
    chatrelay backup --message-log sqlite:chatrelay.sqlite3 /var/backups/chatrelay.sqlite3
    chatrelay restore --message-log sqlite:chatrelay.sqlite3 /var/backups/chatrelay.sqlite3
    chatrelay erase --message-log sqlite:chatrelay.sqlite3 293482

Each command is in its own module. This module must not know how a command works.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import chatrelay
from chatrelay.app import output
from chatrelay.app.cli import backup, erase, export, inbox, messages, restore
from chatrelay.app.cli.terminal import Interrupted, complain, signals_raise
from chatrelay.messagelog import SQLITE

OPTIONS = (
    *("--message-log", "--yes", "--json", "--help", "--user", "--with", "--since", "--until", "--limit", "--follow"),
    *("--after", "--output", "--received", "--version"),
)
"""The options of all commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0 done, 1 failed, 2 wrong command line, 128 and more ended by a signal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # JSON Lines are UTF-8, whatever the terminal's locale
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        if options is None:
            return 2
        with signals_raise() as ignore_signals:
            status: int = options.run(options, ignore_signals)
        return status
    except BrokenPipeError:
        output.discard()  # the reader (head, a pager) has seen enough
        return 0
    except output.NotWrittenError as error:
        complain(str(error))
        return 1
    except Interrupted as interrupted:
        if sys.stdout is not None:
            output.discard()  # the reader may be gone, and Python would wait for it
        return 128 + interrupted.signal


def _parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Parse the command line.

    :returns: None if there is no command. Then the help was printed.
    :raises SystemExit: if help was asked for, or the command line is not valid.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        if not end.code and sys.stdout is not None:
            with output.checked():  # the help
                pass
        raise
    if "run" not in options:
        parser.print_help(sys.stderr)
        return None
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="chatrelay",
        description="Read, back up and restore the message log of a relay, and erase what a user wrote in it. To run "
        "a relay: twistd -n chatrelay --help",
    )
    parser.add_argument("--version", action="version", version=f"chatrelay {chatrelay.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (messages, inbox, export, backup, restore, erase):
        command.add_command(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors have a suggestion, if there is one."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and end."""
        super().error(message + _hint(message))


def _hint(message: str) -> str:
    if (command := re.search(r"invalid choice: '(\S+)' \(choose from (.*)\)$", message)) is not None:
        if command[1] in ("serve", "run", "start"):
            return ": to run a relay, use twistd -n chatrelay"
        return _did_you_mean(command[1], re.findall(r"\w+", command[2]))
    if (unknown := re.match(r"unrecognized arguments: (\S+)", message)) is not None:
        if unknown[1].startswith(SQLITE):
            return f"; did you mean --message-log {unknown[1]}?"
        return _did_you_mean(unknown[1].partition("=")[0], OPTIONS)
    return ""


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    meant = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {meant[0]}?" if meant else ""
