"""Print to a standard output that may be closed, on a full disk, or a pipe without a reader.

This module decides what happens if printing fails. It must not know what is printed.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class NotWrittenError(Exception):
    """Standard output can't be written. The text gives the cause."""


@contextmanager
def checked() -> Iterator[None]:
    """Flush what was printed in this context, so that an error is raised here. At exit, Python would print a traceback.

    :raises BrokenPipeError: if the reader has gone, as ``head`` does. Call `discard` then.
    :raises NotWrittenError: if standard output can't be written.
    """
    if sys.stdout is None:
        raise NotWrittenError("standard output is closed")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise NotWrittenError(f"standard output cannot be written: {error.strerror}") from error


def wait(seconds: float) -> None:
    """Wait, and notice meanwhile if the reader has gone.

    :raises BrokenPipeError: if the reader has gone.
    """
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(seconds * 1000)):
        raise BrokenPipeError


def discard() -> None:
    """Discard what is still to be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_and_exit(text: str) -> NoReturn:
    """Print a text, and end the program.

    :raises SystemExit: always, with a sentence if standard output can't be written.
    """
    try:
        with checked():
            print(text)
    except BrokenPipeError:
        discard()
    except NotWrittenError as error:
        raise SystemExit(f"chatrelay: {error}") from error
    raise SystemExit(0)
