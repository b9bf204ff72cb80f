"""Standard output that may be a pipe whose reader has seen enough, a full disk, or closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class NotWrittenError(Exception):
    """Standard output can't be written; the text is a sentence that says why."""


@contextmanager
def checked() -> Iterator[None]:
    """Print, and find out here whether it could be: at exit, Python would print a traceback.

    :raises BrokenPipeError: where the reader has gone, as ``head`` does. Call `discard` then.
    :raises NotWrittenError: where it can't be written.
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


def discard() -> None:
    """Let what is still to be printed go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
