#!/bin/bash
# SQLite: after an upsert that updates, lastrowid names a row of another table
#
# Guess:     cursor.lastrowid after INSERT ... ON CONFLICT DO UPDATE is the id of the row that was inserted or updated.
# Behaviour: It is the id of the last row that this connection inserted, in whatever table and by whatever cursor. The same
#            holds for INSERT OR IGNORE and for a table WITHOUT ROWID. rowcount is 1 for the upsert, as for an insert.
# Matters:   A child row that is written with that id refers to the wrong parent, silently where one has that id. Use
#            RETURNING id.
# Seen:      updated the row with id 1; lastrowid 9, rowcount 1
#            ignored; lastrowid 9, rowcount 0
#            inserted WITHOUT ROWID; lastrowid 9, rowcount 1
#            RETURNING id: 1
# Versions:  SQLite 3.40.1, Python 3.11 (sqlite3)
# Checked:   2026-11-27
set -euo pipefail

timeout 60 "${PYTHON:-python3}" - <<'PYTHON'
import sqlite3
import sys

print("SQLite", sqlite3.sqlite_version)
connection = sqlite3.connect(":memory:")
connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
connection.execute("CREATE TABLE visit (id INTEGER PRIMARY KEY)")
connection.execute("CREATE TABLE word (word TEXT PRIMARY KEY) WITHOUT ROWID")
person = connection.execute("INSERT INTO person (name) VALUES ('Ada')").lastrowid
connection.executemany("INSERT INTO visit VALUES (?)", [(number,) for number in range(1, 9)])
connection.execute("INSERT INTO visit VALUES (9)")


def insert(statement):
    cursor = connection.cursor().execute(statement)
    return cursor.lastrowid, cursor.rowcount


UPSERT = "INSERT INTO person (name) VALUES ('Ada') ON CONFLICT (name) DO UPDATE SET name = excluded.name"
updated = insert(UPSERT)
ignored = insert("INSERT OR IGNORE INTO person (name) VALUES ('Ada')")
without_rowid = insert("INSERT INTO word VALUES ('hello')")
returned = connection.execute(UPSERT + " RETURNING id").fetchone()[0]
print("updated the row with id {}; lastrowid {}, rowcount {}".format(person, *updated))
print("ignored; lastrowid {}, rowcount {}".format(*ignored))
print("inserted WITHOUT ROWID; lastrowid {}, rowcount {}".format(*without_rowid))
print("RETURNING id:", returned)
if not ((person, returned) == (1, 1) and updated == (9, 1) and ignored == (9, 0) and without_rowid == (9, 1)):
    sys.exit("The behaviour has changed.")
PYTHON
