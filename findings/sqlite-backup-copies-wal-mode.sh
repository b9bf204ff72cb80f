#!/bin/bash
# SQLite: a finished backup of a WAL database cannot be read from a read-only folder
#
# Guess:     Connection.backup() writes one complete file, and that file opens read-only wherever it can be read.
# Behaviour: The backup is complete, but bytes 18 and 19 of its header still say WAL. A reader of a WAL database needs a
#            -shm file beside it, so opening the backup fails in a folder that the reader may not write to, with mode=ro,
#            too. VACUUM INTO writes a file without the mark, which opens.
# Matters:   A backup that was checked where it was made fails to open at the restore: on read-only media or for another
#            user. Use VACUUM INTO, or run PRAGMA journal_mode=DELETE on the copy. immutable=1 reads it, too.
# Seen:      backup: mark 2 2, plain OperationalError, mode=ro OperationalError, immutable=1 hello
#            VACUUM INTO: mark 1 1, plain hello, mode=ro hello, immutable=1 hello
#            backup, then journal_mode=DELETE: mark 1 1, plain hello, mode=ro hello, immutable=1 hello
# Versions:  SQLite 3.40.1, Python 3.11 (sqlite3)
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT

timeout 60 "${PYTHON:-python3}" - "$folder" <<'PYTHON'
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

print("SQLite", sqlite3.sqlite_version)
folder = Path(sys.argv[1])
copies = folder / "copies"
copies.mkdir()
folder.chmod(0o755)


def read(path, parameters):
    """Give the message in the database, or the name of the error."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}{parameters}", uri=True)) as connection:
            return connection.execute("SELECT text FROM message").fetchone()[0]
    except sqlite3.OperationalError as error:
        return type(error).__name__


with closing(sqlite3.connect(folder / "live")) as live:
    live.execute("PRAGMA journal_mode=WAL")
    live.execute("CREATE TABLE message (text TEXT)")
    with live:
        live.execute("INSERT INTO message VALUES ('hello')")
    for name in ("backup", "switched"):
        with closing(sqlite3.connect(copies / name)) as copy:
            live.backup(copy)
            if name == "switched":
                copy.execute("PRAGMA journal_mode=DELETE")
    live.execute("VACUUM INTO ?", (str(copies / "vacuumed"),))

for path in copies.iterdir():
    path.chmod(0o444)
copies.chmod(0o555)
user = os.geteuid()
if user == 0:  # The permissions do not bind root.
    os.seteuid(65534)
found = {}
for name, title in (
    ("backup", "backup"), ("vacuumed", "VACUUM INTO"), ("switched", "backup, then journal_mode=DELETE")
):
    path = copies / name
    mark = tuple(path.read_bytes()[18:20])
    found[name] = (mark, read(path, ""), read(path, "?mode=ro"), read(path, "?immutable=1"))
    print("{}: mark {} {}, plain {}, mode=ro {}, immutable=1 {}".format(title, *mark, *found[name][1:]))
os.seteuid(user)
readable = ((1, 1), "hello", "hello", "hello")
if found != {
    "backup": ((2, 2), "OperationalError", "OperationalError", "hello"), "vacuumed": readable, "switched": readable
}:
    sys.exit("The behaviour has changed.")
PYTHON
