"""The `chatrelay` command, for people.

    chatrelay messages --message-log sqlite:chatrelay.sqlite3

The relay itself is run by twistd. What this command prints on standard output
is data; what it has to say about it goes to standard error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import chatrelay
from chatrelay.interfaces import LogUnavailable
from chatrelay.messagelog import SQLITE, BadMessageLogURL, check_url, sqlite_path
from chatrelay.messagelog.sqlite import LoggedMessage, read_messages

# What JSON lets stand, and a terminal or a reader of lines would act on: C1 controls, line separators, and what
# overrides, embeds or isolates the direction of the text after it (UAX #9, sections 2.1 to 2.5), which would have one
# part of a line pass for another.
_CONTROLS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 1 it could not, 2 misused."""
    parser = argparse.ArgumentParser(
        prog="chatrelay", description="Look after a chatrelay. The relay itself is run by: twistd -n chatrelay --help"
    )
    parser.add_argument("--version", action="version", version=f"chatrelay {chatrelay.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    messages = commands.add_parser(
        "messages",
        help="print the message log as JSON Lines, oldest first",
        description="Print the message log as JSON Lines, oldest first, while the relay runs or not.",
    )
    messages.add_argument(
        "--message-log",
        metavar="URL",
        default=os.environ.get("CHATRELAY_MESSAGE_LOG", "sqlite:chatrelay.sqlite3"),
        help="the relay's message log, sqlite:PATH [default: $CHATRELAY_MESSAGE_LOG, else sqlite:chatrelay.sqlite3]",
    )
    messages.set_defaults(run=_messages)
    options = parser.parse_args(arguments)
    if "run" not in options:  # no command: whoever types that wants to know what there is
        parser.print_help(sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # JSON Lines are UTF-8, whatever the terminal's locale
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, a pager) has seen enough. Python would complain
        # when it flushes standard output at exit, so that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _messages(options: argparse.Namespace) -> int:
    url: str = options.message_log
    try:
        check_url(url)
        if not url.startswith(SQLITE):
            raise BadMessageLogURL(f"a {url.rstrip(':')} message log can't be read from outside the relay")
        for message in read_messages(sqlite_path(url)):
            print(json_line(message))
    except (BadMessageLogURL, LogUnavailable) as error:
        print(f"chatrelay: {error}", file=sys.stderr)
        return 1
    return 0


def json_line(message: LoggedMessage) -> str:
    """One row of the log as the JSON Lines of `chatrelay messages` have it."""
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
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(line, ensure_ascii=False))


def rfc3339(microseconds: int) -> str:
    """A moment, in microseconds since 1970 UTC, as RFC 3339 writes it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    sys.exit(main())
