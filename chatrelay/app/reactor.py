"""The lean reactor: Twisted's epoll reactor without a logging context for every read.

It must not import anything of chatrelay, and nothing of chatrelay may depend on it. ``twistd
--reactor=chatrelay-epoll`` chooses it.

Twisted wraps each event of a descriptor in a logging context, so that messages of its old `log.msg` name the
connection. chatrelay does not use `log.msg`, and with one message per wake-up the wrapping is a large part of the cost
of a message. So `LeanEPollReactor` reads from readable descriptors directly. It also schedules by a monotonic clock,
because Twisted schedules by the wall clock. Everything else is as in `EPollReactor`.
"""

from __future__ import annotations

import time
from select import EPOLLIN
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log

EPOLL_REACTOR_NAMES = ("_disconnectSelectable", "_doReadOrWrite", "_poller", "_selectables", "doPoll")
"""The undocumented names of Twisted's reactor that are used or overridden here. A test checks them."""


class LeanEPollReactor(EPollReactor):
    """An `EPollReactor` that reads without a logging context and measures time by a monotonic clock."""

    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, up to `timeout` seconds (None: without a limit), and handle them."""
        selectables: dict[int, Any] = self._selectables
        for descriptor, event in self._poller.poll(timeout, max(1, len(selectables))):
            selectable = selectables.get(descriptor)
            if selectable is None:
                continue  # an earlier event has closed it
            if event == EPOLLIN:
                try:
                    why = selectable.doRead()
                # As in Twisted: any error is logged and closes only this connection.
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
