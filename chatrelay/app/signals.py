"""Signals of a relay under twistd from its first line of code on, and at its stop.

`chatrelay.app.twistd` and Twisted's reactor decide what a signal does to a relay that runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a relay."""

KEPT = (signal.SIGHUP, signal.SIGUSR1)
"""Signals that end a process unless it heeds them, and that tell a relay to do something."""

Handler = Callable[[int, FrameType | None], object] | int


class StartSignals:
    """Keeps the signals that come while a relay starts.

    :ivar has_begun: whether the process's signals are ours.
    :ivar has_terminal: whether the process was started from a terminal.
    :ivar came: the signals that came, oldest first.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.has_terminal = False
        self.came: list[int] = []

    def begin(self) -> None:
        """Keep SIGHUP and SIGUSR1 for later. Have SIGINT and SIGTERM end the process without a traceback.

        That may be at once, since there is no file yet that the process would leave behind. A signal that is ignored,
        as SIGINT in a job that a shell started in the background, stays so.
        """
        self.has_begun = True
        self.has_terminal = on_terminal()
        for number in KEPT:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self.keep)
        let_end()

    def hold(self) -> None:
        """Keep SIGINT and SIGTERM, too: from now on there are files that an orderly stop removes.

        A second one ends the process at once.
        """
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.keep)

    def hold_in_child(self) -> None:
        """Hold signals in what twistd forks off. The process that was called waits for that, and may be ended."""
        os.register_at_fork(after_in_child=self.hold)

    def keep(self, number: int, frame: FrameType | None = None) -> None:
        """Keep a signal: a handler for `signal.signal`."""
        if number in ENDING and any(kept in ENDING for kept in self.came):
            signal.signal(number, ending())
            os.kill(os.getpid(), number)
        self.came.append(number)

    def release(self, on_interrupt: Callable[[int, FrameType | None], object]) -> None:
        """Send the process the signals that were kept, as those who heed them are there now.

        :param on_interrupt: for SIGINT. (A reactor takes it only where Python's own handler is in place.)
        """
        if signal.getsignal(signal.SIGINT) == self.keep:
            signal.signal(signal.SIGINT, on_interrupt)
        came, self.came = self.came, []
        for number in came:
            os.kill(os.getpid(), number)


at_start = StartSignals()
"""Those of this process: they begin before there is anything that they could be handed to."""


def let_end() -> None:
    """Have SIGINT and SIGTERM end the process at once, unless it ignores them."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ending())


def ending() -> Handler:
    """What to hand to `signal.signal` for a signal that is to end the process."""
    # Linux drops the default action for a process with the number 1, the first of a container.
    return signal.SIG_DFL if os.getpid() != 1 else lambda number, frame: os._exit(128 + number)


def on_terminal() -> bool:
    """Whether standard input is a terminal; one that was closed is none."""
    try:
        return os.isatty(0)
    except OSError:  # there is no standard input
        return False
