"""The `chatrelay` command, for people.

    chatrelay messages --message-log sqlite:chatrelay.sqlite3
    chatrelay backup --message-log sqlite:chatrelay.sqlite3 /var/backups/chatrelay.sqlite3
    chatrelay restore --message-log sqlite:chatrelay.sqlite3 /var/backups/chatrelay.sqlite3

The relay itself is run by twistd. What this command prints on standard output
is data; what it has to say about it goes to standard error.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import NoReturn, TextIO

import chatrelay
from chatrelay.app import output
from chatrelay.messagelog import SQLITE, BadMessageLogURL, check_url, sqlite_path
from chatrelay.messagelog.sqlite import LoggedMessage, read_messages
from chatrelay.messagelog.sqlite.backup import NotDone, back_up, checked_destination
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.messagelog.sqlite.reading import Damaged, NotUsable
from chatrelay.messagelog.sqlite.restore import restore
from chatrelay.messagelog.sqlite.verify import Contents
from chatrelay.model import LogUnavailable
from chatrelay.permissions import user_name

# What JSON lets stand, and a terminal or a reader of lines would act on: C1 controls, line separators, and what
# overrides, embeds or isolates the direction of the text after it (UAX #9, sections 2.1 to 2.5), which would have one
# part of a line pass for another.
_CONTROLS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


VARIABLE = "CHATRELAY_MESSAGE_LOG"

MESSAGE_LOG = "sqlite:chatrelay.sqlite3"
"""The message log, where neither the command line nor the environment names one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 1 not done, 2 misused, 128 and more ended by a signal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # JSON Lines are UTF-8, whatever the terminal's locale
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        if options is None:
            return 2
        with _signals_raise() as ignore_signals:
            status: int = options.run(options, ignore_signals)
        return status
    except BrokenPipeError:
        output.discard()  # the reader (head, a pager) has seen enough
        return 0
    except output.NotWrittenError as error:
        print(f"chatrelay: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        if sys.stdout is not None:
            output.discard()  # nobody may be there to read it, and Python would wait
        return 128 + interrupted.signal


def _parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Parse the command line.

    :returns: None where there is no command, and its help was printed.
    :raises SystemExit: where help was asked for, or what was given is no command.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        if not end.code and sys.stdout is not None:
            with output.checked():  # the help
                pass
        raise
    if "run" not in options:  # whoever types that wants to know what there is
        parser.print_help(sys.stderr)
        return None
    return options


class _Parser(argparse.ArgumentParser):
    """A parser that says what was meant, where that can be told."""

    def error(self, message: str) -> NoReturn:
        """Print a mistake, and end."""
        super().error(message + self._hint(message))

    def _hint(self, message: str) -> str:
        if (command := re.search(r"invalid choice: '(\S+)' \(choose from (.*)\)$", message)) is not None:
            if command[1] in ("serve", "run", "start"):
                return ": the relay itself is run by: twistd -n chatrelay"
            return _did_you_mean(command[1], re.findall(r"\w+", command[2]))
        if (unknown := re.match(r"unrecognized arguments: (\S+)", message)) is not None:
            if unknown[1].startswith(SQLITE):
                return f"; did you mean --message-log {unknown[1]}?"
            return _did_you_mean(unknown[1].partition("=")[0], _OPTIONS)
        return ""


_OPTIONS = ("--message-log", "--yes", "--json", "--help")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    meant = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {meant[0]}?" if meant else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="chatrelay", description="Look after a chatrelay. The relay itself is run by: twistd -n chatrelay --help"
    )
    parser.add_argument("--version", action="version", version=f"chatrelay {chatrelay.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    messages = commands.add_parser(
        "messages",
        help="print the message log as JSON Lines, oldest first",
        description="Print the message log as JSON Lines, oldest first, while the relay runs or not.",
    )
    _add_message_log(messages)
    messages.set_defaults(run=_messages)
    backup = commands.add_parser(
        "backup",
        help="copy the message log to a file, while the relay runs or not",
        description="Copy the message log to a file, while the relay runs or not, and check the copy by reading it. "
        "A backup that fails or is interrupted leaves no file of that name.",
        epilog="example: chatrelay backup --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 "
        "/var/backups/chatrelay.sqlite3",
    )
    _add_message_log(backup)
    backup.add_argument("destination", metavar="DESTINATION", help="the file to make; its mode is 0600")
    backup.add_argument("--yes", action="store_true", help="replace DESTINATION where it exists, without asking")
    backup.set_defaults(run=_back_up)
    restore = commands.add_parser(
        "restore",
        help="put a backup in the place of the message log, while no relay runs",
        description="Check a backup by reading a copy of it, and put that copy in the place of the message log. Stop "
        "the relay first. The message log that was there is kept under another name.",
        epilog="example: chatrelay restore --message-log sqlite:/var/lib/chatrelay/messages.sqlite3 "
        "/var/backups/chatrelay.sqlite3",
    )
    _add_message_log(restore)
    restore.add_argument("backup", metavar="BACKUP", help="a file that chatrelay backup made, or another message log")
    restore.add_argument("--yes", action="store_true", help="replace the message log where it exists, without asking")
    restore.set_defaults(run=_restore)
    for command in (backup, restore):
        command.add_argument("--json", action="store_true", help="print what was done as a JSON object")
    return parser


def _add_message_log(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--message-log",
        metavar="URL",
        help=f"the relay's message log, sqlite:PATH [default: ${VARIABLE}, else {MESSAGE_LOG}]",
    )


def _path(url: str | None, verb: str) -> str:
    """The path of a message log's file.

    :param url: of the command line; None for the one in the environment, or else the default.
    :param verb: what is to be done with it.
    :raises BadMessageLogURL: where it is in no file. The text names where it was set.
    """
    place = VARIABLE if url is None else "--message-log"
    chosen = os.environ.get(VARIABLE, MESSAGE_LOG) if url is None else url
    try:
        check_url(chosen)
        if not chosen.startswith(SQLITE):
            raise BadMessageLogURL(f"a {chosen.rstrip(':')} message log can't be {verb} from outside the relay")
    except BadMessageLogURL as error:
        raise BadMessageLogURL(f"{place}: {error}") from None
    return sqlite_path(chosen)


def _messages(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    try:
        with output.checked(), closing(read_messages(_path(options.message_log, "read"))) as messages:
            for message in messages:
                print(json_line(message))
    except (BadMessageLogURL, LogUnavailable) as error:
        print(f"chatrelay: {error}", file=sys.stderr)
        return 1
    return 0


# Backing up and restoring ----------------------------------------------------


def _back_up(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    def work(progress: Progress) -> None:
        log = _path(options.message_log, "backed up")
        destination: str = options.destination
        replace: bool = options.yes
        target = checked_destination(log, destination, replace=replace or _is_asked())
        if not replace and os.path.exists(target):
            _ask(f"{destination} exists. Replace it?")
            replace = True
        contents = back_up(log, destination, replace=replace, report=progress, commit=ignore_signals)
        progress.end()
        if options.json:
            _print_json({"destination": target, **_as_json(contents)})
        else:
            _print(f"backed up {_described(contents)}, to {target}")

    return _run(work, "no backup was made")


def _restore(options: argparse.Namespace, ignore_signals: Callable[[], None]) -> int:
    def work(progress: Progress) -> None:
        log = LogFiles(_path(options.message_log, "restored")).path

        def confirm(new: Contents, old: Contents | NotUsable) -> None:
            if options.yes:
                return
            exists = (
                f"{log} exists, and holds {_described(old)}"
                if isinstance(old, Contents)
                else f"there is a file already, and {old}"
            )
            if not _is_asked():
                raise NotDone(f"{exists}: replace it with --yes, which keeps it under another name")
            _ask(f"{exists}.\nReplace it by {_described(new)}? What is there is kept under another name.")

        restored = restore(
            log, options.backup, now=time.time(), confirm=confirm, report=progress, commit=ignore_signals
        )
        progress.end()
        if options.json:
            _print_json({"messageLog": log, **_as_json(restored.contents), "kept": restored.kept})
        else:
            kept = f"; what was there is kept as {restored.kept}" if restored.kept else ""
            owner = f"; it belongs to {user_name(os.stat(log).st_uid)}" if os.geteuid() == 0 else ""
            _print(f"restored {_described(restored.contents)}, to {log}{kept}{owner}")

    return _run(work, "nothing was restored")


def _run(work: Callable[[Progress], None], outcome: str) -> int:
    """Run a command that can be interrupted until it commits; return its exit status.

    :param outcome: what an interruption comes to.
    """
    progress = Progress(sys.stderr, time.monotonic)
    try:
        work(progress)
    except (BadMessageLogURL, LogUnavailable, NotDone, NotUsable) as error:
        progress.end()
        end = f"; {outcome}" if isinstance(error, Damaged) else ""
        print(f"chatrelay: {error}{end}", file=sys.stderr)
        return 1
    except Interrupted:
        progress.end()
        print(f"chatrelay: interrupted; {outcome}", file=sys.stderr)
        raise
    return 0


class Interrupted(BaseException):
    """A signal that asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def _signals_raise() -> Iterator[Callable[[], None]]:
    """Let signals that end a process raise `Interrupted`, so that nothing half done is left.

    What is yielded has them ignored: for the moment when what was done is put in its place, and cannot be taken back.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def raise_it(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as nohup has it, or a shell for what it runs in the background
                signal.signal(number, raise_it)
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """How far a command has come: one line on a terminal, nothing elsewhere.

    :param monotonic: seconds that only go forward.
    """

    SECONDS = 0.1
    """How often the line changes, at most."""

    def __init__(self, stream: TextIO, monotonic: Callable[[], float]) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._is_shown = stream.isatty()
        self._next = 0.0
        self._width = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how much of something is done."""
        now = self._monotonic()
        if self._is_shown and now >= self._next:
            self._next = now + self.SECONDS
            self._write(f"{what} {min(99, done * 100 // max(1, total)):2} %")

    def end(self) -> None:
        """Take the line away."""
        if self._width:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, line: str) -> None:
        self._stream.write(f"\r{line:{self._width}}")
        self._stream.flush()
        self._width = len(line)


_SIGNAL_SECONDS = 0.2
"""How long a signal waits to be noticed, at most, while an answer is waited for."""


def _is_asked() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _ask(question: str) -> None:
    """Ask a person.

    :raises NotDone: where the answer is not yes.
    """
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    # A signal that comes just before a read begins does not end the read.
    while not select.select([sys.stdin], [], [], _SIGNAL_SECONDS)[0]:
        pass
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotDone("nothing was changed")


def _print(line: str) -> None:
    """Print what was done. Where nobody listens, it was done all the same."""
    if sys.stdout is not None:
        with output.checked():
            print(line.encode("utf-8", "backslashreplace").decode())


def _print_json(value: object) -> None:
    _print(json.dumps(value))


def _as_json(contents: Contents) -> dict[str, object]:
    received_at = contents.last_received_at
    return {
        "messages": contents.messages,
        "lastReceivedAt": None if received_at is None else rfc3339(received_at),
        "schema": contents.schema,
        "bytes": contents.size,
    }


def _described(contents: Contents) -> str:
    """What a message log holds, in words."""
    last = "" if contents.last_received_at is None else f", the last one of {rfc3339(contents.last_received_at)}"
    mib = contents.size / 1024**2
    size = f"{mib:,.1f} MiB" if mib >= 1 else f"{mib * 1024:,.0f} KiB"
    return f"{contents.messages:,} message{'s' if contents.messages != 1 else ''} ({size}){last}"


# Printing --------------------------------------------------------------------


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
