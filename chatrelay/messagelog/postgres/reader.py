"""Read a whole message log in PostgreSQL, whether a relay writes to it or not.

It reads in one transaction, so it sees one state of the log. This module never writes.
"""

from __future__ import annotations

from collections.abc import Generator

from chatrelay.messagelog.postgres import queries, schema
from chatrelay.messagelog.postgres.address import parse
from chatrelay.messagelog.postgres.connection import Connection
from chatrelay.messagelog.postgres.failures import explained
from chatrelay.messagelog.postgres.store import SESSION
from chatrelay.model import LoggedMessage, LogUnavailable

MESSAGES_PER_READ = 500
"""The messages that are read at once, each of at most 16 KiB. So a reader needs at most 8 MiB."""


class PostgresMessageReader:
    """The `chatrelay.interfaces.MessageReader` of a message log in PostgreSQL.

    :param url: ``postgresql://…``.
    :raises chatrelay.messagelog.postgres.address.BadAddress: if the URL can't be used.
    """

    def __init__(self, url: str) -> None:
        self._address = parse(url)

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every committed message, by number.

        Each writer takes numbers in the order in which it writes, so with several relays a message may have a smaller
        number than one that was committed before it.

        :raises LogUnavailable: if the log can't be read; the text is a sentence with the remedy.
        """
        with explained(self._address, "read"):
            connection = Connection(self._address)
            try:
                connection.run(SESSION)
                if schema.version_of(connection) < len(schema.MIGRATIONS):
                    raise LogUnavailable(
                        "there is no message log of this version in the database: start the relay once, or check the "
                        "database in the URL"
                    )
                connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                last = 0
                while found := queries.messages(connection, last, MESSAGES_PER_READ):
                    yield from found
                    last = found[-1].number
            finally:
                connection.close()
