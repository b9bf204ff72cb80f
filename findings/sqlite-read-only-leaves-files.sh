#!/bin/bash
# SQLite: a connection that may only read makes files beside a WAL database, and leaves them
#
# Guess:     A connection opened with mode=ro writes nothing into the folder, or removes what it made when it is closed.
# Behaviour: It makes an empty -wal and a -shm of 32 KiB, which stay when it is closed, although it was the only one. A
#            connection with mode=rw that reads the same makes both, too, and removes them.
# Matters:   Looking into a database that nobody has open leaves two files beside it. They belong to the user who looked, which
#            may be root. A program that is to leave nothing opens it with mode=rw and PRAGMA query_only=ON.
# Seen:      before: database; while mode=ro reads: database database-shm database-wal; after: the same three
#            before: database; while mode=rw reads: database database-shm database-wal; after: database
# Versions:  SQLite 3.40.1, Python 3.11 (sqlite3)
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

timeout 60 "${PYTHON:-python3}" - "$folder" <<'PYTHON'
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

print("SQLite", sqlite3.sqlite_version)


def look(mode):
    """Give the names of the files before, while and after a connection reads."""
    folder = Path(sys.argv[1], mode)
    folder.mkdir()
    path = folder / "database"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE message (text TEXT)")
    seen = [sorted(os.listdir(folder))]
    with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True)) as connection:
        connection.execute("SELECT * FROM message").fetchall()
        seen.append(sorted(os.listdir(folder)))
    seen.append(sorted(os.listdir(folder)))
    before, reading, after = (" ".join(names) for names in seen)
    print(f"before: {before}; while mode={mode} reads: {reading}; after: {after}")
    return seen


alone = ["database"]
all_three = ["database", "database-shm", "database-wal"]
if (look("ro"), look("rw")) != ([alone, all_three, all_three], [alone, all_three, alone]):
    sys.exit("The behaviour has changed.")
PYTHON
