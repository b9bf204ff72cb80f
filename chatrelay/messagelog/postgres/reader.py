"""The reader of a message log in PostgreSQL for another process than the relay, whether a relay writes to it or not.

What one method reads is read in one transaction, so it is one state of the log. This module never writes, and must not
know how messages are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

from chatrelay.interfaces import ALL_MESSAGES, LogReplaced
from chatrelay.messagelog.postgres import queries, schema, search
from chatrelay.messagelog.postgres.address import Address, parse
from chatrelay.messagelog.postgres.connection import Connection
from chatrelay.messagelog.postgres.failures import explained
from chatrelay.messagelog.postgres.gaps import Gaps
from chatrelay.messagelog.postgres.store import SESSION
from chatrelay.model import InboxEntry, InboxState, LoggedMessage, LogUnavailable, Selection

RECENT_NUMBERS = 10_000
"""How many of the last numbers a follower looks at when it begins: any that is missing may still come."""


class PostgresMessageReader:
    """The `chatrelay.interfaces.LogReader` of a message log in PostgreSQL.

    :param url: ``postgresql://…``.
    :raises chatrelay.messagelog.postgres.address.BadAddress: if the URL can't be used.
    """

    def __init__(self, url: str) -> None:
        self._address = parse(url)

    def messages(
        self, selection: Selection = ALL_MESSAGES, *, through: int | None = None, newest_first: bool = False
    ) -> Generator[LoggedMessage, None, None]:
        """Yield the committed messages that are wanted, by number.

        Each writer takes numbers in the order in which it writes, so with several relays a message may have a smaller
        number than one that was committed before it.

        :raises LogUnavailable: if the log can't be read; the text is a sentence with the remedy.
        """
        with self._reading() as connection:
            yield from search.messages(connection, selection, through=through, newest_first=newest_first)

    def epoch(self) -> str:
        """Return the log's epoch."""
        with self._reading() as connection:
            return queries.epoch(connection)

    def inbox(self, user: str) -> InboxState:
        """Return a user's inbox."""
        with self._reading() as connection:
            return queries.inbox(connection, user)

    def entries(self, user: str, after: int, through: int) -> Generator[InboxEntry, None, None]:
        """Yield the entries of some places."""
        with self._reading() as connection:
            yield from search.entries(connection, user, after, through)

    def follower(self) -> PostgresLogFollower:
        """Return what reads the messages that are committed from now on."""
        return PostgresLogFollower(self._address)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Connect, and begin a transaction.

        :raises LogUnavailable: if the log can't be read, at once or later in the block.
        """
        with explained(self._address, "read"):
            connection = _connected(self._address)
            try:
                connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield connection
            finally:
                connection.close()


class PostgresLogFollower:
    """Reads what is added to a message log: `chatrelay.interfaces.LogFollower`. It connects again when it must.

    :param monotonic: a monotonic clock, in seconds.
    :raises LogUnavailable: if the log can't be read; the text is a sentence with the remedy.
    """

    def __init__(self, address: Address, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._monotonic = monotonic
        self._connection: Connection | None = None
        with self._reading() as connection:
            self._epoch = queries.epoch(connection)
            _, self.through = search.first_and_last(connection)
            recent = range(max(0, self.through - RECENT_NUMBERS) + 1, self.through + 1)
            present = search.numbers_between(connection, recent.start - 1, self.through)
        self.first = recent.start
        self._gaps = Gaps(self.through)
        self._gaps.add((number for number in recent if number not in present), monotonic())

    def new_messages(self) -> Sequence[LoggedMessage]:
        """Return messages that were committed since the last call."""
        now = self._monotonic()
        with self._reading() as connection:
            epoch = queries.epoch(connection)
            # The first relay that opens a log gives it an epoch.
            if self._epoch and epoch != self._epoch:
                raise LogReplaced(
                    f"{self._address.name} is another message log now, or an earlier copy: run this command again"
                )
            self._epoch = epoch
            found = search.new_messages(
                connection, self._gaps.through, self._gaps.missing(now), search.MESSAGES_PER_READ
            )
        self._gaps.seen((message.number for message in found), now)
        return found

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with explained(self._address, "read"):
            try:
                if self._connection is None:
                    self._connection = _connected(self._address)
                yield self._connection
            except BaseException:
                self.close()
                raise


def _connected(address: Address) -> Connection:
    """Connect to a message log of this version.

    :raises LogUnavailable: if it is none; the text is the reason with the remedy.
    """
    connection = Connection(address)
    try:
        connection.run(SESSION)
        if schema.version_of(connection) < len(schema.MIGRATIONS):
            raise LogUnavailable(
                "there is no message log of this version in the database: start the relay once, or check the database "
                "in the URL"
            )
    except BaseException:
        connection.close()
        raise
    return connection
