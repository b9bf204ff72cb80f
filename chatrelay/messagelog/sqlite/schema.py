"""The tables of a message log in SQLite, and the migrations from older schemas.

It works on a connection that is passed in. This module must not know files or threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from chatrelay.model import LogUnavailable

APPLICATION_ID = 0x43524C59
"""Marks an SQLite file as a message log of chatrelay: "CRLY"."""

LOCK_WAIT_SECONDS = 2.0
"""How long SQLite waits for another program that holds the file locked."""

MAX_BLOCK_MESSAGES = 100
"""The most messages in a block. Larger blocks save no measurable time, and a read always takes a whole block."""

MAX_BLOCK_SIZE = 64 * 1024
"""The most characters in a block of more than one message. Otherwise a page of history, of which each message is in
another block of large ones, would make a read take fifty megabytes."""

MESSAGES_PER_REPORT = 10_000
"""The messages between two reports of a migration."""

INSERT_BLOCK = "INSERT INTO block (first_number, messages) VALUES (?, ?)"

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done, and how much there is to do."""

_encoder = msgspec.json.Encoder()

_V1 = """
CREATE TABLE message (
    number      INTEGER PRIMARY KEY,
    from_uid    TEXT NOT NULL,
    from_place  INTEGER NOT NULL,
    to_uid      TEXT NOT NULL,
    to_place    INTEGER NOT NULL,
    client_id   NOT NULL,  -- no declared type: text and integers stay what they are
    time_stamp  NOT NULL,
    content     TEXT NOT NULL,
    received_at INTEGER NOT NULL,  -- microseconds since 1970, UTC
    delivered   INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE inbox (uid TEXT PRIMARY KEY, last_place INTEGER NOT NULL) WITHOUT ROWID;
"""

# A message in a block is an array of eight values, in the order of the view's columns. JSON keeps text and
# integers apart.
_TO_V2 = """
ALTER TABLE message RENAME TO old_message;
CREATE TABLE block (first_number INTEGER PRIMARY KEY, messages TEXT NOT NULL);
CREATE TABLE undelivered (number INTEGER PRIMARY KEY);
"""
_V2 = """
INSERT INTO undelivered SELECT number FROM old_message WHERE NOT delivered;
CREATE TABLE saved_through (number INTEGER NOT NULL);
INSERT INTO saved_through SELECT coalesce(max(number), 0) FROM old_message;
DROP TABLE old_message;
CREATE VIEW message AS SELECT
    first_number + key AS number,
    json_extract(value, '$[0]') AS from_uid,
    json_extract(value, '$[1]') AS from_place,
    json_extract(value, '$[2]') AS to_uid,
    json_extract(value, '$[3]') AS to_place,
    json_extract(value, '$[4]') AS client_id,
    json_extract(value, '$[5]') AS time_stamp,
    json_extract(value, '$[6]') AS content,
    json_extract(value, '$[7]') AS received_at,
    first_number + key NOT IN (SELECT number FROM undelivered) AS delivered,
    first_number AS block  -- for WHERE clauses: it is the key
FROM block, json_each(messages);

ALTER TABLE inbox RENAME TO saved_inbox;
CREATE VIEW unsaved_inbox AS SELECT uid, max(place) AS last_place FROM (
    SELECT from_uid AS uid, from_place AS place FROM message WHERE block > (SELECT number FROM saved_through)
    UNION ALL SELECT to_uid, to_place FROM message WHERE block > (SELECT number FROM saved_through)
) GROUP BY uid;
CREATE VIEW inbox AS SELECT uid, max(last_place) AS last_place
FROM (SELECT uid, last_place FROM saved_inbox UNION ALL SELECT uid, last_place FROM unsaved_inbox) GROUP BY uid;
"""
_OLD_MESSAGES = """
SELECT number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at FROM old_message
ORDER BY number
"""

# A message whose client id is unique among its sender's messages has a ninth value, 1. So a message of a v1 sender
# takes no byte more.
_V3 = """
DROP VIEW message;
CREATE VIEW message AS SELECT
    first_number + key AS number,
    json_extract(value, '$[0]') AS from_uid,
    json_extract(value, '$[1]') AS from_place,
    json_extract(value, '$[2]') AS to_uid,
    json_extract(value, '$[3]') AS to_place,
    json_extract(value, '$[4]') AS client_id,
    json_extract(value, '$[5]') AS time_stamp,
    json_extract(value, '$[6]') AS content,
    json_extract(value, '$[7]') AS received_at,
    CASE json_extract(value, '$[8]') WHEN 1 THEN json_extract(value, '$[4]') END AS unique_id,
    first_number + key NOT IN (SELECT number FROM undelivered) AS delivered,
    first_number AS block  -- for WHERE clauses: it is the key
FROM block, json_each(messages);
CREATE TABLE mark (  -- kind: a chatrelay.model.MarkKind
    user TEXT NOT NULL, kind INTEGER NOT NULL, peer TEXT NOT NULL, value INTEGER NOT NULL,
    PRIMARY KEY (user, kind, peer)
) WITHOUT ROWID;
CREATE TABLE life (epoch TEXT NOT NULL, opening TEXT NOT NULL);
"""

# The ninth value of an array says what it is: `chatrelay.messagelog.sqlite.blocks.Kind`. The view "entry" shows all of
# them, and the view "message" those that are messages.
_V4 = """
DROP VIEW inbox;
DROP VIEW unsaved_inbox;
DROP VIEW message;
ALTER TABLE saved_inbox ADD COLUMN first_place INTEGER NOT NULL DEFAULT 1;  -- the first place that is kept
CREATE VIEW entry AS SELECT
    first_number + key AS number,
    json_extract(value, '$[0]') AS from_uid,
    json_extract(value, '$[1]') AS from_place,
    json_extract(value, '$[2]') AS to_uid,
    json_extract(value, '$[3]') AS to_place,
    json_extract(value, '$[4]') AS client_id,
    json_extract(value, '$[5]') AS time_stamp,
    json_extract(value, '$[6]') AS content,
    json_extract(value, '$[7]') AS received_at,
    coalesce(json_extract(value, '$[8]'), 0) AS kind,
    first_number AS block  -- for WHERE clauses: it is the key
FROM block, json_each(messages);
CREATE VIEW message AS SELECT
    number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at,
    CASE kind WHEN 1 THEN client_id END AS unique_id,
    number NOT IN (SELECT number FROM undelivered) AS delivered,
    block
FROM entry WHERE kind < 2;
CREATE VIEW unsaved_inbox AS SELECT uid, max(place) AS last_place FROM (
    SELECT from_uid AS uid, from_place AS place FROM entry WHERE block > (SELECT number FROM saved_through)
    UNION ALL SELECT to_uid, to_place FROM entry WHERE block > (SELECT number FROM saved_through)
) GROUP BY uid;
CREATE VIEW inbox AS SELECT uid, max(last_place) AS last_place, max(first_place) AS first_place FROM (
    SELECT uid, last_place, first_place FROM saved_inbox UNION ALL SELECT uid, last_place, 1 FROM unsaved_inbox
) GROUP BY uid;
CREATE TABLE erasure (  -- what is to be erased, and how far that is; a row is deleted some time after its end
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL,
    received INTEGER NOT NULL,  -- 1: what the user received, too
    requested_at INTEGER NOT NULL,  -- microseconds since 1970, UTC
    through INTEGER NOT NULL,  -- the last message that may be erased
    done INTEGER NOT NULL DEFAULT 0,  -- the last message that was examined
    erased INTEGER NOT NULL DEFAULT 0,  -- how many messages were erased
    finished INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE erased_place (  -- what was erased, and its users are not told of yet
    uid TEXT NOT NULL, first_place INTEGER NOT NULL, last_place INTEGER NOT NULL, PRIMARY KEY (uid, first_place)
) WITHOUT ROWID;
"""


def _pack_messages(connection: sqlite3.Connection, report: Progress) -> None:
    """Move the messages from one row each into blocks."""
    for statement in _statements(_TO_V2):
        connection.execute(statement)
    (total,) = connection.execute("SELECT coalesce(max(number), 0) FROM old_message").fetchone()
    first, block, done = 0, list[Any](), 0
    for number, *row in connection.execute(_OLD_MESSAGES):
        if len(block) == MAX_BLOCK_MESSAGES or number != first + len(block):
            if block:
                connection.execute(INSERT_BLOCK, (first, json_text(block)))
            first, block = number, []
            if number - done >= MESSAGES_PER_REPORT:
                done = number
                report("packing the messages", done, total)
        block.append(row)
    if block:
        connection.execute(INSERT_BLOCK, (first, json_text(block)))
    for statement in _statements(_V2):
        connection.execute(statement)


Step = str | Callable[[sqlite3.Connection, Progress], None]
"""What brings a schema to the next one, in a transaction: SQL, or a function."""

MIGRATIONS: tuple[Step, ...] = (_V1, _pack_messages, _V3, _V4)
"""The steps from an empty file to the present schema. The version of a schema is the number of steps taken."""

FIRST_WITH_BLOCKS = 2
"""The first version whose messages are in blocks."""

FIRST_WITH_ENTRIES = 4
"""The first version with the view "entry": what is in a block need not be a message."""


def other_program_text(path: str) -> str:
    """Return the error message for an SQLite file that is not a message log."""
    return f"the SQLite file {path} belongs to another program: name another file with --message-log"


def not_a_database_text(path: str) -> str:
    """Return the error message for a file that is not an SQLite file."""
    return f"{path} is not a message log, but a file of another kind: name another file with --message-log"


def check(connection: sqlite3.Connection, migrations: tuple[Step, ...], path: str) -> int:
    """Check that a file is a message log that this version can write; return the version of its schema.

    :param path: the path of the file, for error messages.
    :returns: 0 for an empty file.
    :raises LogUnavailable: if it is not one. The text has the remedy.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and tables:
        raise LogUnavailable(other_program_text(path))
    if version > len(migrations):
        raise LogUnavailable(
            f"the message log {path} was made by a newer chatrelay (schema {version}, this one knows "
            f"{len(migrations)}): upgrade chatrelay, or name another file with --message-log"
        )
    return int(version)


def migrate(
    connection: sqlite3.Connection, version: int, migrations: tuple[Step, ...], report: Progress = lambda *_: None
) -> None:
    """Bring a file to the present schema, in one transaction.

    A process that was killed between two steps would leave a schema that no chatrelay has used, and the next start
    would copy that, too.

    :param version: the version of the schema that the file has.
    :param report: called now and then during a step that takes long.
    """
    connection.execute("BEGIN IMMEDIATE")
    for step in migrations[version:]:
        if isinstance(step, str):
            for statement in _statements(step):
                connection.execute(statement)
        else:
            step(connection, report)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(migrations)}")
    connection.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script. `sqlite3.Connection.executescript` would commit the transaction first."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def blocks_of(first: int, rows: Sequence[object]) -> Iterator[tuple[int, str]]:
    """Yield the first number and the text of each block for some messages.

    :param first: the number of the first message.
    """
    for start in range(0, len(rows), MAX_BLOCK_MESSAGES):
        yield from _blocks(first + start, rows[start : start + MAX_BLOCK_MESSAGES])


def _blocks(first: int, rows: Sequence[object]) -> Iterator[tuple[int, str]]:
    text = json_text(rows)
    if len(text) <= MAX_BLOCK_SIZE or len(rows) == 1:
        yield first, text
    else:
        half = len(rows) // 2
        yield from _blocks(first, rows[:half])
        yield from _blocks(first + half, rows[half:])


def json_text(value: object) -> str:
    """Return a value as the text of JSON, as it is in a block."""
    return _encoder.encode(value).decode()
