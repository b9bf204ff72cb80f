"""``chatrelay export``: write the messages of a user as JSON Lines.

It only reads the message log, whether a relay writes to it or not. This module must not know how messages are found.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from chatrelay.app import output
from chatrelay.app.cli import arguments, message_logs
from chatrelay.app.cli.terminal import Progress, ask, can_ask, complain, json_text, rfc3339, show, show_json
from chatrelay.interfaces import LogReader
from chatrelay.messagelog import SQLITE, message_reader, sqlite_path
from chatrelay.messagelog.sqlite.backup import put_in_place, resolve_destination, unfinished_copy, write_errors
from chatrelay.model import LoggedMessage, Selection


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "export",
        help="write all messages of a user as JSON Lines",
        description="Write all messages that a user sent or received as JSON Lines, oldest first, whether the relay "
        "runs or not. An export to a file that fails or is interrupted leaves no file of that name.",
        epilog="example: chatrelay export --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 293482 "
        "--output 293482.jsonl",
    )
    message_logs.add_option(command)
    command.add_argument("uid", metavar="UID", type=arguments.uid, help="the user")
    command.add_argument(
        "--output", metavar="FILE", help="the file to write; its mode is 0600 [default: standard output]"
    )
    command.add_argument("--yes", action="store_true", help="replace FILE if it exists, without asking")
    command.add_argument("--json", action="store_true", help="with --output: print the result as a JSON object")
    command.set_defaults(run=run, usage_error=command.error)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status.

    :param ignore_signals: called just before the file gets its name.
    """
    user: str = options.uid
    destination: str | None = options.output
    if destination is None and (options.json or options.yes):
        options.usage_error(f"{'--json' if options.json else '--yes'} needs --output")

    def work(progress: Progress) -> None:
        url = message_logs.url_of(options.message_log, "read")
        reader = message_reader(url)
        if destination is None:
            with output.checked():
                # On a terminal, the line of progress would stand among the messages.
                count = _print(_lines(reader, user, None if sys.stdout.isatty() else progress))
            progress.end()
            if not count:
                complain(f"the message log has no message of the user {json_text(user)}")
            return
        replace: bool = options.yes
        target = resolve_destination(
            sqlite_path(url) if url.startswith(SQLITE) else None, destination, replace=replace or can_ask()
        )
        if not replace and os.path.exists(target):
            ask(f"{destination} exists. Replace it?")
            replace = True
        count, size = _write(_lines(reader, user, progress), target, replace, ignore_signals)
        progress.end()
        if options.json:
            show_json({"output": target, "uID": user, "messages": count, "bytes": size})
        else:
            messages = f"{count:,} message{'s' if count != 1 else ''}"
            show(f"exported {messages} of the user {json_text(user)[1:-1]} ({size:,} bytes), to {target}")

    return message_logs.run(work, "no file was written" if destination else "the export is not complete")


def json_line(message: LoggedMessage, user: str) -> str:
    """Return one message of a user as a line of JSON."""
    line: dict[str, object] = {
        "place": message.from_place if message.from_uid == user else message.to_place,
        "messageID": message.number,
        "fromuID": message.from_uid,
        "touID": message.to_uid,
        "timeStamp": message.time_stamp,
        "content": message.content,
        "receivedAt": rfc3339(message.received_at),
    }
    if message.unique_id is not None:
        line["id"] = message.unique_id
    if not message.delivered:
        line["delivered"] = False
    return json_text(line)


def _lines(reader: LogReader, user: str, progress: Progress | None) -> Generator[str, None, None]:
    """Yield the lines of an export."""
    last = reader.inbox(user).last
    with closing(reader.messages(Selection(user))) as messages:
        for done, message in enumerate(messages):
            yield json_line(message, user)
            if progress is not None:
                progress("exporting", done, last)


def _print(lines: Generator[str, None, None]) -> int:
    """Print lines; return how many."""
    count = 0
    with closing(lines):
        for line in lines:
            print(line)
            count += 1
    return count


def _write(
    lines: Generator[str, None, None], target: str, replace: bool, commit: Callable[[], None]
) -> tuple[int, int]:
    """Write lines to a file, which gets its name when it is complete; return how many lines and bytes.

    :param commit: called when the file is complete. Nothing may interrupt the steps after it.
    """
    count = 0
    with closing(lines), unfinished_copy(target) as unfinished:
        with write_errors(unfinished.path), open(os.dup(unfinished.descriptor), "w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        commit()
        put_in_place(unfinished, target, replace=replace)
    return count, size
