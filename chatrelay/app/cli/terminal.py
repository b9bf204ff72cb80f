"""The terminal of a command: a line of progress, questions, signals, results and errors.

This module must not know any command, nor the message log.
"""

from __future__ import annotations

import json
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TextIO

from chatrelay.app import output

# JSON allows these characters unescaped, and a terminal or a program that reads lines would act on them: C1 controls,
# line separators, and what overrides, embeds or isolates the direction of the text after it (UAX #9, sections 2.1 to
# 2.5), with which one part of a line can look like another.
_CONTROLS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SIGNAL_SECONDS = 0.2
"""The longest delay of a signal while a question waits for its answer."""


class Interrupted(BaseException):
    """A signal that asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class Refused(Exception):
    """The person did not agree. The text gives the consequence."""


@contextmanager
def signals_raise() -> Iterator[Callable[[], None]]:
    """Make the signals that end a process raise `Interrupted`, so that a command can clean up.

    Yields a function that makes the process ignore them. Call it before a step that can't be undone.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def raise_it(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as nohup sets it, or a shell for a program in the background
                signal.signal(number, raise_it)
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """The progress of a command: one line on a terminal, nothing elsewhere.

    :param monotonic: a monotonic clock, in seconds.
    """

    MIN_SECONDS = 0.1
    """The least time between two changes of the line."""

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
            self._next = now + self.MIN_SECONDS
            self._write(f"{what} {min(99, done * 100 // max(1, total)):2} %")

    def end(self) -> None:
        """Remove the line."""
        if self._width:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, line: str) -> None:
        self._stream.write(f"\r{line:{self._width}}")
        self._stream.flush()
        self._width = len(line)


def can_ask() -> bool:
    """Return whether there is a person to ask."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> None:
    """Ask a person.

    :raises Refused: if the answer is not yes.
    """
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    # A signal just before a read would not interrupt the read, so wait in short steps.
    while not select.select([sys.stdin], [], [], _SIGNAL_SECONDS)[0]:
        pass
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was changed")


def show(line: str) -> None:
    """Print a result. If standard output is closed, print nothing, because the command has succeeded."""
    if sys.stdout is not None:
        with output.checked():
            print(line.encode("utf-8", "backslashreplace").decode())


def show_json(value: object) -> None:
    """Print a result as JSON, for a program."""
    show(json.dumps(value))


def complain(text: str) -> None:
    """Print an error on standard error."""
    print(f"chatrelay: {text}", file=sys.stderr)


def json_text(value: object) -> str:
    """Return JSON on one line, without characters that a terminal acts on."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def rfc3339(microseconds: int) -> str:
    """Return a moment, in microseconds since 1970 UTC, as RFC 3339 writes it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")
