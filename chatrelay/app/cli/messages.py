"""``chatrelay messages``: print the message log as JSON Lines, or follow it.

It only reads, whether a relay writes to the log or not. This module must not know how messages are found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from chatrelay.app import output
from chatrelay.app.cli import arguments, message_logs
from chatrelay.app.cli.terminal import complain, json_text, rfc3339
from chatrelay.interfaces import LogFollower, LogReader, LogReplaced
from chatrelay.messagelog import BadMessageLogURL, message_reader
from chatrelay.model import LoggedMessage, LogUnavailable, Selection

POLL_SECONDS = 0.2
"""The time between two looks for new messages."""

RETRY_SECONDS = 1.0
"""The time between two looks while the message log can't be read."""


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "messages",
        help="print the message log as JSON Lines, oldest first",
        description="Print the message log as JSON Lines, oldest first, whether the relay runs or not. The options "
        "choose messages; without any, all are printed.",
        epilog="example: chatrelay messages --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 --user 293482 "
        f"--since 2026-11-27 --limit 20 --follow. TIME is {arguments.TIME_HELP}. It is the time at which the relay "
        "received the message.",
    )
    message_logs.add_option(command)
    command.add_argument("--user", metavar="UID", type=arguments.uid, help="only messages from or to this user")
    command.add_argument(
        "--with", metavar="UID", type=arguments.uid, dest="peer", help="only those between --user and this user"
    )
    command.add_argument("--since", metavar="TIME", type=arguments.moment, help="only messages from this time on")
    command.add_argument("--until", metavar="TIME", type=arguments.moment, help="only messages before this time")
    command.add_argument(
        "--limit", metavar="N", type=arguments.count, help="only the last N; with --follow and 0, only new ones"
    )
    command.add_argument(
        "--follow", action="store_true", help="then print each new message, until Ctrl-C or the pipe closes"
    )
    command.set_defaults(run=run, usage_error=command.error)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status."""
    if options.peer is not None and options.user is None:
        options.usage_error("--with needs --user: the conversation is between the two")
    if options.follow and options.until is not None:
        options.usage_error("--follow never ends, so it can't be combined with --until")
    selection = Selection(options.user, options.peer, options.since, options.until)
    try:
        reader = message_reader(message_logs.url_of(options.message_log, "read"))
        with output.checked():
            if options.follow:
                follow(reader, selection, options.limit)
            for message in chosen(reader, selection, options.limit):
                print(json_line(message))
    except (BadMessageLogURL, LogUnavailable, LogReplaced) as error:
        complain(str(error))
        return 1
    return 0


def chosen(
    reader: LogReader, selection: Selection, limit: int | None, through: int | None = None
) -> Iterator[LoggedMessage]:
    """Yield the messages that are wanted, oldest first.

    :param limit: only so many of the last ones; None for all.
    :param through: the number of the last message that is wanted.
    """
    with closing(reader.messages(selection, through=through, newest_first=limit is not None)) as messages:
        yield from messages if limit is None else reversed(list(islice(messages, limit)))


def follow(
    reader: LogReader,
    selection: Selection,
    limit: int | None,
    wait: Callable[[float], object] = output.wait,
) -> None:
    """Print messages, and each new one, until `wait` raises an error.

    :param wait: waits for some seconds.
    :raises LogUnavailable: if the log can't be read at the start. Later, this is tried again.
    """
    with closing(reader.follower()) as follower:
        recent = set()  # the numbers of what was printed and the follower may return as well
        for message in chosen(reader, selection, limit, follower.through):
            print(json_line(message))
            if message.number >= follower.first:
                recent.add(message.number)
        failure = ""
        while True:
            with output.checked():  # a reader sees each message at once
                found, failure = _new_messages(follower, failure)
                for message in found:
                    if selection.has(message) and message.number not in recent:
                        print(json_line(message))
            if failure:
                wait(RETRY_SECONDS)
            elif not found:
                wait(POLL_SECONDS)


def _new_messages(follower: LogFollower, failure: str) -> tuple[list[LoggedMessage], str]:
    """Return new messages, and why the log can't be read; empty if it can.

    :param failure: why it could not be read before.
    """
    try:
        found = list(follower.new_messages())
    except LogUnavailable as error:
        if str(error) != failure:
            complain(f"{error}; waiting for it")
        return [], str(error)
    if failure:
        complain("the message log can be read again")
    return found, ""


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
