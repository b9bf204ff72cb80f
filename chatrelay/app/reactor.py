"""The lean reactor: Twisted's epoll reactor without a logging context for every read.

Twisted wraps each event of a descriptor in a logging context, so that what is
logged with its old `log.msg` names the connection. Nothing of chatrelay's
does, and with one message per wake-up that wrapping is a good part of what a
message costs. `LeanEPollReactor` reads plainly readable descriptors directly;
every other event is as in `EPollReactor`, and so is all else, but for the
time: Twisted schedules by the wall clock, this by one that only goes forward.

Chosen with ``twistd --reactor=chatrelay-epoll``. It must know nothing of
chatrelay, and chatrelay nothing of it.
"""

from __future__ import annotations

import time
from select import EPOLLIN
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log

EPOLL_REACTOR_NAMES = ("_disconnectSelectable", "_doReadOrWrite", "_poller", "_selectables", "doPoll")
"""What we use or override of Twisted's reactor that is not promised; a test looks them up."""


class LeanEPollReactor(EPollReactor):
    """`EPollReactor` whose plain reads are not wrapped in a logging context, and whose time nobody sets."""

    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Twisted: wait for events at most `timeout` seconds (None: for ever), and do what they ask for."""
        selectables: dict[int, Any] = self._selectables
        for descriptor, event in self._poller.poll(timeout, max(1, len(selectables))):
            selectable = selectables.get(descriptor)
            if selectable is None:
                continue  # closed by what an event before this one did
            if event == EPOLLIN:
                try:
                    why = selectable.doRead()
                # As in Twisted: whatever it is, it ends this one connection, and is told.
                except BaseException as error:
                    log.err()
                    why = error
                if why:
                    self._disconnectSelectable(selectable, why, True)
            else:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    doIteration = doPoll


def install() -> None:
    """Make this the reactor of the process; `twistd --reactor` calls it."""
    installReactor(LeanEPollReactor())
