"""Limits on connections, in all and from one address, with separate limits for those that are not logged in.

Pure: it counts, and returns the limit that is reached. The caller refuses the connection. `chatrelay.auth.login` limits
the connections of one user.

A connection counts from when it is accepted until its TCP connection is gone, because until then it has a file
descriptor. It counts as not logged in until it is logged in. A connection that is refused does not count.
"""

from __future__ import annotations

import attrs

RETRY_AFTER = 10
"""Seconds after which a refused client may try again: by then, clients that do not log in have been closed."""


@attrs.frozen
class LimitReached:
    """The limit for which a connection is refused.

    :ivar option: the name of the option.
    :ivar limit: its value, a number of connections.
    :ivar is_per_address: whether it limits the connections from one address, and not all of them.
    :ivar why: the reason, for the client.
    """

    option: str
    limit: int
    is_per_address: bool
    why: str


class Slot:
    """One connection, as it is counted.

    :ivar address: the address under which it is counted (`chatrelay.limits.addresses.address_key`); None if it has
        none, or none is known.
    :ivar logged_in: whether it is logged in.
    """

    __slots__ = ("address", "logged_in")

    def __init__(self) -> None:
        self.address: str | None = None
        self.logged_in = False


class _AddressCounts:
    """Counts of connections by address, kept only if there is a limit."""

    __slots__ = ("_counts", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}

    def is_full(self, address: str) -> bool:
        return bool(self._limit) and self._counts.get(address, 0) >= self._limit

    def add(self, address: str) -> None:
        if self._limit:
            self._counts[address] = self._counts.get(address, 0) + 1

    def remove(self, address: str) -> None:
        if self._limit:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def __len__(self) -> int:
        return len(self._counts)


class Admission:
    """Counts connections, and refuses one that would exceed a limit.

    Each limit is a number of connections; 0 means no limit.

    :param connections: the limit for all connections together.
    :param connections_per_address: the limit for one address.
    :param unauthenticated: the limit for all connections that are not logged in.
    :param unauthenticated_per_address: the limit for those from one address.
    :ivar max_connections: how many there may be in all.
    :ivar connections: how many there are.
    :ivar unauthenticated: how many of them are not logged in.
    """

    def __init__(
        self, connections: int, connections_per_address: int, unauthenticated: int, unauthenticated_per_address: int
    ) -> None:
        self.max_connections = connections
        self.connections = 0
        self.unauthenticated = 0
        self._by_address = _AddressCounts(connections_per_address)
        self._unauthenticated_by_address = _AddressCounts(unauthenticated_per_address)
        self._full = LimitReached("connections", connections, False, "the relay is full")
        self._unauthenticated_full = LimitReached(
            "unauthenticated", unauthenticated, False, "too many connections are not logged in yet"
        )
        self._address_full = LimitReached(
            "connections-per-address",
            connections_per_address,
            True,
            "there are too many connections from this address",
        )
        self._unauthenticated_address_full = LimitReached(
            "unauthenticated-per-address",
            unauthenticated_per_address,
            True,
            "too many connections from this address are not logged in yet",
        )

    def admit(self, address: str | None) -> Slot | LimitReached:
        """Count a connection that was accepted, or return the limit that it would exceed.

        :param address: the address under which to count it; None if it has none, or none is known.
        """
        for count, full in ((self.connections, self._full), (self.unauthenticated, self._unauthenticated_full)):
            if 0 < full.limit <= count:
                return full
        slot = Slot()
        refusal = self.locate(slot, address)
        if refusal is not None:
            return refusal
        self.connections += 1
        self.unauthenticated += 1
        return slot

    def locate(self, slot: Slot, address: str | None) -> LimitReached | None:
        """Count a connection under an address that became known, or return the limit that it would exceed.

        The connection must not be logged in yet.
        """
        if address is None or slot.address is not None:
            return None
        if self._by_address.is_full(address):
            return self._address_full
        if self._unauthenticated_by_address.is_full(address):
            return self._unauthenticated_address_full
        slot.address = address
        self._by_address.add(address)
        self._unauthenticated_by_address.add(address)
        return None

    def authenticated(self, slot: Slot) -> None:
        """Count a connection as logged in. Later calls change nothing."""
        if not slot.logged_in:
            slot.logged_in = True
            self.unauthenticated -= 1
            if slot.address is not None:
                self._unauthenticated_by_address.remove(slot.address)

    def disconnected(self, slot: Slot) -> None:
        """Stop counting a connection."""
        self.authenticated(slot)  # takes it out of the count of connections that are not logged in
        self.connections -= 1
        if slot.address is not None:
            self._by_address.remove(slot.address)

    def addresses(self) -> int:
        """Return how many counts of addresses are kept."""
        return len(self._by_address) + len(self._unauthenticated_by_address)
