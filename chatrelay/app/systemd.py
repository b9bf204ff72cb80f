"""What systemd is told of its service: that it is ready, that it is alive, that it stops.

It is a datagram of a line or two to the socket that systemd names in the
environment (sd_notify(3)); where it names none, there is nobody to tell.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from twisted.logger import Logger

log = Logger("chatrelay.app")

READY = "READY=1"
ALIVE = "WATCHDOG=1"
STOPPING = "STOPPING=1"

MICROSECONDS = 1_000_000
"""In a second; systemd counts in them."""


class Supervisor:
    """The systemd that started this process.

    :param address: of its socket: a path, or ``@`` and a name in the abstract namespace.
    :param watchdog: seconds without a sign of life after which systemd ends the service; 0 for never.
    """

    def __init__(self, address: str, watchdog: float) -> None:
        self.watchdog = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, what: str) -> None:
        """Tell it something. What it does not take at once is not said, for the relay waits for nobody."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
                to_systemd.setblocking(False)
                to_systemd.sendto(what.encode("ascii"), self._address)
        except OSError as error:
            log.warn("systemd could not be told {what}: {error}", what=what, error=error)


def supervisor(environment: Mapping[str, str], pid: int) -> Supervisor | None:
    """Who is to be told about this process.

    :param environment: with ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``, where systemd has set them.
    :param pid: of this process, as the environment may have been another's.
    :returns: None for nobody.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    is_meant = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
    watchdog = int(microseconds) / MICROSECONDS if microseconds.isdecimal() and is_meant else 0.0
    return Supervisor(address, watchdog)
