"""The message log in an SQLite file: its files, its schema, its store, the thread that writes, reading, and copies.

The names below are what other parts of chatrelay use. Everything else is for the modules of this package.
"""

from chatrelay.messagelog.sqlite.reader import SqliteMessageReader as SqliteMessageReader
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID as APPLICATION_ID
from chatrelay.messagelog.sqlite.schema import MIGRATIONS as MIGRATIONS
from chatrelay.messagelog.sqlite.store import BLOCK_SIZE as BLOCK_SIZE
from chatrelay.messagelog.sqlite.store import SqliteStore as SqliteStore
from chatrelay.messagelog.sqlite.writer import SqliteMessageLog as SqliteMessageLog
