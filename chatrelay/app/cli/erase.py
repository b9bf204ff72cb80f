"""``chatrelay erase``: erase what a user wrote, for everybody.

It asks the person, and shows the progress. This module must not know how messages are erased, nor whether a relay runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from chatrelay.app.cli import arguments, message_logs
from chatrelay.app.cli.terminal import Progress, Refused, ask, can_ask, complain, json_text, show, show_json
from chatrelay.messagelog import message_eraser, message_reader
from chatrelay.messagelog.erasing import ErasureProgress


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "erase",
        help="erase what a user wrote, for everybody",
        description="Erase the content of all messages that a user wrote up to now, for everybody, whether the relay "
        "runs or not. The places of the messages stay, and are void. The devices of all users who had such a message "
        "are told to forget it. This can't be undone. Backups and other copies of the message log keep the messages.",
        epilog="example: chatrelay erase --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 293482",
    )
    message_logs.add_option(command)
    command.add_argument("uid", metavar="UID", type=arguments.uid, help="the user")
    command.add_argument("--received", action="store_true", help="erase what was sent to the user, too")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.add_argument("--json", action="store_true", help="print the result as a JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status."""
    user: str = options.uid
    received: bool = options.received
    has_begun = False

    def work(progress: Progress) -> None:
        nonlocal has_begun
        url = message_logs.url_of(options.message_log, "erased in")
        eraser = message_eraser(url)
        state = message_reader(url).inbox(user)
        name = json_text(user)[1:-1]
        what = f"what {name} wrote{' and received' if received else ''}"
        if not state.last:
            complain(f"the message log has no message of the user {json_text(user)}")
        elif not options.yes:
            if not can_ask():
                raise Refused(f"erase {what} with --yes: it can't be undone")
            ask(
                f"The inbox of {name} has {state.last:,} place{'s' if state.last != 1 else ''}. Erase {what}, for "
                "everybody? This can't be undone."
            )
        erased = ErasureProgress(0, 0, 0)
        waits_for = ""
        if state.last:
            has_begun = True
            for erased in eraser.erase(user, received=received):
                progress("erasing", erased.done, erased.total)
                if erased.waits_for != waits_for:
                    waits_for = erased.waits_for
                    progress.end()
                    complain(f"waiting for {waits_for}" if waits_for else "the erasure goes on")
        progress.end()
        if options.json:
            show_json({"uID": user, "received": received, "messages": erased.erased, "copies": list(eraser.copies)})
        elif state.last:
            show(f"erased {erased.erased:,} message{'s' if erased.erased != 1 else ''}: {what}")
        for copy in eraser.copies if erased.erased else ():
            complain(f"{copy} is a copy of the message log, which still has these messages")

    def outcome() -> str:
        return "a relay continues the erasure, or does so when it starts" if has_begun else "nothing was erased"

    return message_logs.run(work, outcome)
