"""``chatrelay restore``: replace the message log with a backup.

`chatrelay.messagelog.sqlite.restore` does it. This module asks the person, and reports the result.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from chatrelay.app.cli import message_logs
from chatrelay.app.cli.terminal import Progress, ask, can_ask, show, show_json
from chatrelay.messagelog.sqlite.backup import CopyFailed
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.messagelog.sqlite.opening import UnusableLog
from chatrelay.messagelog.sqlite.restore import restore
from chatrelay.messagelog.sqlite.verify import Contents
from chatrelay.permissions import user_name


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "restore",
        help="replace the message log with a backup, while no relay runs",
        description="Check a backup by reading a copy of it, and replace the message log with that copy. Stop the "
        "relay first. The old message log is kept under another name.",
        epilog="example: chatrelay restore --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 "
        "/var/backups/chatrelay.sqlite3",
    )
    message_logs.add_option(command)
    command.add_argument("backup", metavar="BACKUP", help="a file that chatrelay backup made, or another message log")
    command.add_argument("--yes", action="store_true", help="replace the message log if it exists, without asking")
    command.add_argument("--json", action="store_true", help="print the result as a JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status.

    :param ignore_signals: called just before the backup takes the place of the log.
    """

    def work(progress: Progress) -> None:
        log = LogFiles(message_logs.path_of(options.message_log, "restored")).path

        def confirm(new: Contents, old: Contents | UnusableLog) -> None:
            if options.yes:
                return
            exists = (
                f"{log} exists, and has {message_logs.described(old)}"
                if isinstance(old, Contents)
                else f"there is a file already, and {old}"
            )
            if not can_ask():
                raise CopyFailed(f"{exists}: replace it with --yes. The old file is kept under another name")
            ask(f"{exists}.\nReplace it with {message_logs.described(new)}? The old file is kept under another name.")

        restored = restore(
            log, options.backup, now=time.time(), confirm=confirm, report=progress, commit=ignore_signals
        )
        progress.end()
        if options.json:
            show_json({"messageLog": log, **message_logs.as_json(restored.contents), "kept": restored.kept})
        else:
            kept = f"; the old message log is kept as {restored.kept}" if restored.kept else ""
            owner = f"; it belongs to {user_name(os.stat(log).st_uid)}" if os.geteuid() == 0 else ""
            show(f"restored {message_logs.described(restored.contents)}, to {log}{kept}{owner}")

    return message_logs.run(work, "nothing was restored")
