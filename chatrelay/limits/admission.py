"""Who may connect: how many connections there may be, in all and of one address, and how many not logged in.

Pure: it counts, and says which limit is reached. Who asks refuses.

A connection counts from when it is accepted until its TCP connection is gone,
for until then it has a file descriptor; as one that is not logged in, until
it is. What is refused counts nowhere.
"""

from __future__ import annotations

from http import HTTPStatus

import attrs

RETRY_AFTER = 10
"""Seconds after which who was refused may come again: by then those who do not log in are gone."""


@attrs.frozen
class Full:
    """A limit is reached.

    :ivar option: its name.
    :ivar most: its value.
    :ivar status: what a refused handshake is answered with.
    :ivar why: of which there are as many as there may be, for whoever is refused.
    """

    option: str
    most: int
    status: int
    why: str


class Visit:
    """What one connection is counted as.

    :ivar address: under which it is counted (`chatrelay.limits.addresses.address_key`);
        None where it has none, or none is known.
    :ivar logged_in: whether it is logged in.
    """

    __slots__ = ("address", "logged_in")

    def __init__(self) -> None:
        self.address: str | None = None
        self.logged_in = False


class _OfAddress:
    """Counts by address, where there is a limit."""

    __slots__ = ("_counts", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, int] = {}

    def is_full(self, address: str) -> bool:
        return bool(self._most) and self._counts.get(address, 0) >= self._most

    def add(self, address: str) -> None:
        if self._most:
            self._counts[address] = self._counts.get(address, 0) + 1

    def remove(self, address: str) -> None:
        if self._most:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def __len__(self) -> int:
        return len(self._counts)


class Admission:
    """Counts connections, and refuses those beyond the limits.

    Each limit is a number of connections; 0 means no limit.

    :param connections: in all.
    :param connections_per_address: from one address.
    :param unauthenticated: not logged in, in all.
    :param unauthenticated_per_address: not logged in, from one address.
    :ivar most: how many there may be.
    :ivar connections: how many there are.
    :ivar unauthenticated: how many of them are not logged in.
    """

    def __init__(
        self, connections: int, connections_per_address: int, unauthenticated: int, unauthenticated_per_address: int
    ) -> None:
        self.most = connections
        self.connections = 0
        self.unauthenticated = 0
        self._of_address = _OfAddress(connections_per_address)
        self._unauthenticated_of_address = _OfAddress(unauthenticated_per_address)
        full, too_many = HTTPStatus.SERVICE_UNAVAILABLE.value, HTTPStatus.TOO_MANY_REQUESTS.value
        self._full = Full("connections", connections, full, "the relay is full")
        self._unauthenticated_full = Full(
            "unauthenticated", unauthenticated, full, "too many connections are not logged in yet"
        )
        self._address_full = Full(
            "connections-per-address",
            connections_per_address,
            too_many,
            "there are too many connections from this address",
        )
        self._unauthenticated_address_full = Full(
            "unauthenticated-per-address",
            unauthenticated_per_address,
            too_many,
            "too many connections from this address are not logged in yet",
        )

    def enter(self, address: str | None) -> Visit | Full:
        """A connection was accepted; count it, or say why not.

        :param address: under which it is counted; None where that is not known, or it has none.
        """
        for count, full in ((self.connections, self._full), (self.unauthenticated, self._unauthenticated_full)):
            if 0 < full.most <= count:
                return full
        visit = Visit()
        refusal = self.locate(visit, address)
        if refusal is not None:
            return refusal
        self.connections += 1
        self.unauthenticated += 1
        return visit

    def locate(self, visit: Visit, address: str | None) -> Full | None:
        """The address of a connection that is not logged in became known; count it there, or say why not."""
        if address is None or visit.address is not None:
            return None
        if self._of_address.is_full(address):
            return self._address_full
        if self._unauthenticated_of_address.is_full(address):
            return self._unauthenticated_address_full
        visit.address = address
        self._of_address.add(address)
        self._unauthenticated_of_address.add(address)
        return None

    def logged_in(self, visit: Visit) -> None:
        """A connection is logged in; nothing happens where it was."""
        if not visit.logged_in:
            visit.logged_in = True
            self.unauthenticated -= 1
            if visit.address is not None:
                self._unauthenticated_of_address.remove(visit.address)

    def left(self, visit: Visit) -> None:
        """A connection is gone."""
        self.logged_in(visit)  # as far as the counts go: it is no longer one that is not
        self.connections -= 1
        if visit.address is not None:
            self._of_address.remove(visit.address)

    def addresses(self) -> int:
        """How many addresses are remembered."""
        return len(self._of_address) + len(self._unauthenticated_of_address)
