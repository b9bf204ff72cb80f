"""Handle the signals that a relay under twistd receives while it starts and while it stops.

While the relay runs, `chatrelay.app.process` and Twisted's reactor handle them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a relay."""

KEPT = (signal.SIGHUP, signal.SIGUSR1)
"""Signals that make a running relay reload or rotate something, and end a process that does not handle them."""

Handler = Callable[[int, FrameType | None], object] | int


class StartSignals:
    """Keeps the signals that the process receives while a relay starts.

    :ivar has_begun: whether `begin` was called.
    :ivar has_terminal: whether the process was started from a terminal.
    :ivar received: the kept signals, oldest first.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.has_terminal = False
        self.received: list[int] = []

    def begin(self) -> None:
        """Keep SIGHUP and SIGUSR1 for later. Let SIGINT and SIGTERM end the process at once, without a traceback.

        The process has made no file yet that an orderly stop would remove. A signal that is ignored stays ignored, such
        as SIGINT in a background job of a shell.
        """
        self.has_begun = True
        self.has_terminal = on_terminal()
        for number in KEPT:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self.keep)
        let_end()

    def hold(self) -> None:
        """Keep SIGINT and SIGTERM, too, because from now on there are files that an orderly stop removes.

        A second SIGINT or SIGTERM ends the process at once.
        """
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.keep)

    def hold_in_child(self) -> None:
        """Call `hold` in the process that twistd forks. Its parent only waits, and a signal may end it."""
        os.register_at_fork(after_in_child=self.hold)

    def keep(self, number: int, frame: FrameType | None = None) -> None:
        """Keep a signal: a handler for `signal.signal`."""
        if number in ENDING and any(kept in ENDING for kept in self.received):
            signal.signal(number, ending())
            os.kill(os.getpid(), number)
        self.received.append(number)

    def release(self, on_interrupt: Callable[[int, FrameType | None], object]) -> None:
        """Send the kept signals to the process again, now that their handlers are installed.

        :param on_interrupt: handles SIGINT. (A reactor installs its own only in the place of Python's handler.)
        """
        if signal.getsignal(signal.SIGINT) == self.keep:
            signal.signal(signal.SIGINT, on_interrupt)
        received, self.received = self.received, []
        for number in received:
            os.kill(os.getpid(), number)


at_start = StartSignals()
"""The signals of this process. It is global because `begin` is called before any other object exists."""


def let_end() -> None:
    """Let SIGINT and SIGTERM end the process at once, unless it ignores them."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ending())


def ending() -> Handler:
    """Return the handler for a signal that must end the process."""
    # Linux has no default action for the process with number 1, which is the first process of a container.
    return signal.SIG_DFL if os.getpid() != 1 else lambda number, frame: os._exit(128 + number)


def on_terminal() -> bool:
    """Return whether standard input is a terminal. A terminal that was closed does not count."""
    try:
        return os.isatty(0)
    except OSError:  # there is no standard input
        return False
