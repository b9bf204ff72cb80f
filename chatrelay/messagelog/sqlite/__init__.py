"""The message log in an SQLite file: its files, schema, store and writing thread, and how to read, copy and restore it.

The relay uses the names below. The `chatrelay` command also uses `backup`, `restore` and `verify`, with the names and
errors of `files` and `opening`. Everything else is for this package only.
"""

from chatrelay.messagelog.sqlite.eraser import SqliteEraser as SqliteEraser
from chatrelay.messagelog.sqlite.reader import SqliteMessageReader as SqliteMessageReader
from chatrelay.messagelog.sqlite.schema import APPLICATION_ID as APPLICATION_ID
from chatrelay.messagelog.sqlite.schema import MAX_BLOCK_MESSAGES as MAX_BLOCK_MESSAGES
from chatrelay.messagelog.sqlite.schema import MIGRATIONS as MIGRATIONS
from chatrelay.messagelog.sqlite.store import SqliteStore as SqliteStore
from chatrelay.messagelog.sqlite.writer import SqliteMessageLog as SqliteMessageLog
