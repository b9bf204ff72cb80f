"""``chatrelay backup``: copy the message log to a file.

`chatrelay.messagelog.sqlite.backup` copies. This module asks the person, and reports the result.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from chatrelay.app.cli import message_logs
from chatrelay.app.cli.terminal import Progress, ask, can_ask, show, show_json
from chatrelay.messagelog.sqlite.backup import back_up, resolve_destination


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "backup",
        help="copy the message log to a file, whether the relay runs or not",
        description="Copy the message log to a file, whether the relay runs or not, and check the copy by reading it. "
        "A backup that fails or is interrupted leaves no file of that name.",
        epilog="example: chatrelay backup --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 "
        "/var/backups/chatrelay.sqlite3",
    )
    message_logs.add_option(command)
    command.add_argument("destination", metavar="DESTINATION", help="the file to write; its mode is 0600")
    command.add_argument("--yes", action="store_true", help="replace DESTINATION if it exists, without asking")
    command.add_argument("--json", action="store_true", help="print the result as a JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status.

    :param ignore_signals: called just before the copy gets its name.
    """

    def work(progress: Progress) -> None:
        log = message_logs.path_of(options.message_log, "backed up")
        destination: str = options.destination
        replace: bool = options.yes
        target = resolve_destination(log, destination, replace=replace or can_ask())
        if not replace and os.path.exists(target):
            ask(f"{destination} exists. Replace it?")
            replace = True
        contents = back_up(log, destination, replace=replace, report=progress, commit=ignore_signals)
        progress.end()
        if options.json:
            show_json({"destination": target, **message_logs.as_json(contents)})
        else:
            show(f"backed up {message_logs.described(contents)}, to {target}")

    return message_logs.run(work, "no backup was made")
