"""The message log in a PostgreSQL database: its connections, schema, store, writing thread and reading threads.

The relay uses the names below. Everything else is for this package only. It needs psycopg 3, which chatrelay installs
as its extra ``postgres``.
"""

from chatrelay.messagelog.postgres.inbox_reader import PostgresInboxReader as PostgresInboxReader
from chatrelay.messagelog.postgres.reader import PostgresMessageReader as PostgresMessageReader
from chatrelay.messagelog.postgres.store import PostgresStore as PostgresStore
from chatrelay.messagelog.postgres.writer import PostgresMessageLog as PostgresMessageLog
