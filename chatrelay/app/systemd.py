"""Notify systemd that its service is ready, alive, or stopping (sd_notify(3)).

A notification is a datagram of one line to the socket that systemd names in the environment. This module decides only
how to send one, not when.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from twisted.logger import Logger

log = Logger("chatrelay.app")

READY = "READY=1"
ALIVE = "WATCHDOG=1"
STOPPING = "STOPPING=1"
MORE_TIME = "EXTEND_TIMEOUT_USEC=600000000"
"""For a start that takes long: systemd waits 10 minutes more, from when it gets this."""

MICROSECONDS = 1_000_000
"""Microseconds in a second. systemd gives times in microseconds."""


class Supervisor:
    """The systemd that started this process.

    :param address: the address of its socket: a path, or ``@`` and a name in the abstract namespace.
    :param watchdog: seconds without a notification after which systemd ends the service; 0 for never.
    """

    def __init__(self, address: str, watchdog: float) -> None:
        self.watchdog = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def notify(self, state: str) -> None:
        """Send a state without waiting. A failure is logged, and the notification is lost.

        :param state: `READY`, `ALIVE`, `STOPPING` or `MORE_TIME`.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
                to_systemd.setblocking(False)
                to_systemd.sendto(state.encode("ascii"), self._address)
        except OSError as error:
            log.warn("systemd could not be notified of {state}: {error}", state=state, error=error)


def supervisor(environment: Mapping[str, str], pid: int) -> Supervisor | None:
    """Return the systemd that this process must notify; None if there is none.

    :param environment: with ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``, if systemd has set them.
    :param pid: the number of this process. The watchdog variables may have been set for another process.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
    watchdog = int(microseconds) / MICROSECONDS if microseconds.isdecimal() and is_ours else 0.0
    return Supervisor(address, watchdog)
