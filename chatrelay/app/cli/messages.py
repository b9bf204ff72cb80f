"""``chatrelay messages``: print the message log as JSON Lines.

It only reads, whether a relay writes to the log or not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from typing import Any

from chatrelay.app import output
from chatrelay.app.cli import message_logs
from chatrelay.app.cli.terminal import complain, json_text, rfc3339
from chatrelay.messagelog import BadMessageLogURL, message_reader
from chatrelay.model import LoggedMessage, LogUnavailable


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "messages",
        help="print the message log as JSON Lines, oldest first",
        description="Print the message log as JSON Lines, oldest first, whether the relay runs or not.",
    )
    message_logs.add_option(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status."""
    try:
        reader = message_reader(message_logs.url_of(options.message_log, "read"))
        with output.checked(), closing(reader.messages()) as messages:
            for message in messages:
                print(json_line(message))
    except (BadMessageLogURL, LogUnavailable) as error:
        complain(str(error))
        return 1
    return 0


def json_line(message: LoggedMessage) -> str:
    """Return one message of the log as a line of JSON."""
    line: dict[str, object] = {
        "messageID": message.number,
        "fromuID": message.from_uid,
        "touID": message.to_uid,
        "timeStamp": message.time_stamp,
        "content": message.content,
        "receivedAt": rfc3339(message.received_at),
    }
    if not message.delivered:
        line["delivered"] = False
    return json_text(line)
