"""``chatrelay inbox``: show what a device of a user would be sent.

It only reads, whether a relay writes to the log or not. This module must not know how entries are found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Any

from chatrelay.app import output
from chatrelay.app.cli import arguments, message_logs
from chatrelay.app.cli.columns import Table, cut
from chatrelay.app.cli.terminal import complain, json_text, rfc3339
from chatrelay.messagelog import BadMessageLogURL, message_reader
from chatrelay.model import InboxEntry, InboxState, LogUnavailable
from chatrelay.wire import v2

DEFAULT_LIMIT = 100


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "inbox",
        help="show what a device of a user would be sent",
        description="Show a user's inbox, whether the relay runs or not: its places, how far the user's devices have "
        "received it, and what a device that has everything up to a place would be sent after it (dialect v2).",
        epilog="example: chatrelay inbox --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 293482 --after 41",
    )
    message_logs.add_option(command)
    command.add_argument("uid", metavar="UID", type=arguments.uid, help="the user")
    command.add_argument(
        "--after", metavar="N", type=arguments.count, default=0, help="the last place that the device has [default: 0]"
    )
    command.add_argument(
        "--limit",
        metavar="N",
        type=arguments.count,
        default=DEFAULT_LIMIT,
        help=f"show at most N places [default: {DEFAULT_LIMIT}]",
    )
    command.add_argument(
        "--json", action="store_true", help="print JSON Lines: the inbox, then the frames that the device would be sent"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    """Run the command; return its exit status."""
    user: str = options.uid
    try:
        reader = message_reader(message_logs.url_of(options.message_log, "read"))
        epoch, state = reader.epoch(), reader.inbox(user)
        after = max(options.after, state.first - 1)
        through = min(state.last, after + options.limit)
        with output.checked(), closing(reader.entries(user, after, through)) as entries:
            if options.json:
                print(json_text(header(user, epoch, state)))
                for frame in frames(entries):
                    print(json_text(json.loads(frame)))
            else:
                for line in described(user, epoch, state):
                    print(line)
                _print_table(entries)
                if after < through < state.last:
                    print(f"\n{places(through + 1, state.last)} not shown: --after {through}")
    except (BadMessageLogURL, LogUnavailable) as error:
        complain(str(error))
        return 1
    if options.after > state.last or options.after < state.first - 1:
        reason = f"the last place is {state.last}" if options.after > state.last else f"the first is {state.first}"
        complain(f"a device that has place {options.after} would be sent nothing, and told recovered:false: {reason}")
    return 0


def header(user: str, epoch: str, state: InboxState) -> dict[str, object]:
    """Return an inbox for a program."""
    return {
        "uID": user,
        "epoch": epoch,
        "first": state.first,
        "last": state.last,
        "received": state.received,
        "leftAt": state.left_at,
        "lastSeen": None if state.last_seen is None else rfc3339(state.last_seen * 1000),
    }


def described(user: str, epoch: str, state: InboxState) -> Iterator[str]:
    """Yield an inbox for a person, a line each."""
    name = json_text(user)[1:-1]
    if state.last < state.first:
        gone = f" any more: the last place was {state.last}" if state.last else ""
        yield f"inbox of {name}: no messages{gone}"
    else:
        yield f"inbox of {name}: {places(state.first, state.last)}, epoch {json_text(epoch)[1:-1]}"
    yield f"received:  {f'up to place {state.received}' if state.received else 'nothing by a device that says so'}"
    if state.last_seen is None:
        yield "last seen: not known"
    else:
        at = "" if state.left_at is None else f", when the last place was {state.left_at}"
        yield f"last seen: {_short_time(state.last_seen * 1000)} UTC{at}"


def frames(entries: Iterable[InboxEntry]) -> Iterator[bytes]:
    """Yield entries as the frames that a device is sent. Neighbouring void places are one frame."""
    for first, entry in _merged(entries):
        if entry.message is not None:
            yield v2.delivery(entry.message, entry.place)
        elif entry.erased:
            yield v2.erased(entry.place, entry.erased)
        else:
            yield v2.void(first, entry.place)


def rows(entries: Iterable[InboxEntry]) -> Iterator[tuple[str, ...]]:
    """Yield entries as rows of a table."""
    for first, entry in _merged(entries):
        place = str(entry.place) if first == entry.place else f"{first}-{entry.place}"
        if entry.message is not None:
            each = entry.message
            users = (json_text(each.from_uid)[1:-1], json_text(each.to_uid)[1:-1])
            yield (place, _short_time(each.received_at), *users, json_text(each.content))
        elif entry.erased:
            ranges = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in entry.erased)
            yield (place, "", "", "", f"erased: {ranges}")
        else:
            yield (place, "", "", "", "void")


def _print_table(entries: Iterable[InboxEntry]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in Table(("place", "time (UTC)", "from", "to", "content"), right={0}).lines(rows(entries)):
        print(line if width is None else cut(line, width))


def _merged(entries: Iterable[InboxEntry]) -> Iterator[tuple[int, InboxEntry]]:
    """Yield entries, each with its place, and of void neighbours the last with the place of the first."""
    for is_void, group in groupby(entries, lambda entry: entry.message is None and not entry.erased):
        if is_void:
            voids = list(group)
            yield voids[0].place, voids[-1]
        else:
            yield from ((entry.place, entry) for entry in group)


def places(first: int, last: int) -> str:
    """Return a range of places for a person."""
    return f"place {first}" if first == last else f"places {first} to {last}"


def _short_time(microseconds: int) -> str:
    """Return a time in UTC, to the millisecond."""
    return rfc3339(microseconds)[:23].replace("T", " ")
