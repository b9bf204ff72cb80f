#!/bin/bash
# psycopg: with autocommit, a SELECT * that ran six times fails on its connection once a column has been added
#
# Guess:     Adding a column does not disturb programs that read the table. At worst one query fails, and a retry succeeds.
# Behaviour: psycopg prepares a statement when it runs for the sixth time on a connection. PostgreSQL does not let a prepared
#            statement return other columns than before. psycopg forgets its prepared statements after a rollback, an ALTER or
#            a DROP on the same connection, but not after an error. With autocommit there is no rollback, so each retry fails.
# Matters:   Tests and young connections pass. After a migration, the old connections of a program that uses autocommit fail
#            at the queries that run often. Name the columns, or connect with prepare_threshold=None.
# Seen:      5 SELECTs, ALTER TABLE, 3 SELECTs: 2 columns, 2 columns, 2 columns
#            6 SELECTs, ALTER TABLE, 3 SELECTs: FeatureNotSupported, FeatureNotSupported, FeatureNotSupported
#            3 SELECTs on a new connection: 2 columns, 2 columns, 2 columns
#            6 SELECTs, ALTER TABLE, 3 SELECTs, prepare_threshold=None: 2 columns, 2 columns, 2 columns
#            6 SELECTs, ALTER TABLE, 3 SELECTs, in transactions: FeatureNotSupported, 2 columns, 2 columns
# Versions:  psycopg 3.3.9, PostgreSQL 15.18, Python 3.11
# Needs:     PostgreSQL's server programs (Debian: postgresql) and, as root, its user postgres
# Checked:   2026-11-28
set -euo pipefail
programs=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1 || true)
if ! [ -x "$programs/initdb" ]; then
    echo "PostgreSQL's initdb is missing." >&2
    exit 2
fi
as_user=()
if [ "$(id -u)" = 0 ]; then as_user=(runuser -u postgres --); fi

folder=$(mktemp -d)
stop() {
    "${as_user[@]}" "$programs/pg_ctl" stop -D "$folder/data" -m immediate >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9'

chmod 755 "$folder"
mkdir "$folder/data"
if [ "$(id -u)" = 0 ]; then chown postgres "$folder/data"; fi
cd "$folder"
"${as_user[@]}" "$programs/initdb" --auth trust --username tester --no-sync "$folder/data" >/dev/null
"${as_user[@]}" "$programs/pg_ctl" start -w -t 60 -D "$folder/data" -l "$folder/data/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$folder/data'" >/dev/null

timeout 60 "$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import contextlib
import sys

import psycopg

SELECT = "SELECT * FROM numbers"


def connect(autocommit=True, **arguments):
    return psycopg.connect(host=sys.argv[1], user="tester", dbname="postgres", autocommit=autocommit, **arguments)


def outcome(connection):
    try:
        with connection.transaction() if not connection.autocommit else contextlib.nullcontext():
            return f"{len(connection.execute(SELECT).fetchone())} columns"
    except psycopg.Error as error:
        return type(error).__name__


def after_alter(reader, selects):
    """Return the outcome of three SELECTs after a column was added by another connection."""
    with connect() as owner:
        owner.execute("DROP TABLE IF EXISTS numbers")
        owner.execute("CREATE TABLE numbers (number integer)")
        owner.execute("INSERT INTO numbers VALUES (1)")
        for _ in range(selects):
            outcome(reader)
        owner.execute("ALTER TABLE numbers ADD COLUMN note text")
    return ", ".join(outcome(reader) for _ in range(3))


found = {}
with connect() as reader:
    found["5 SELECTs, ALTER TABLE, 3 SELECTs"] = after_alter(reader, 5)
with connect() as reader:
    found["6 SELECTs, ALTER TABLE, 3 SELECTs"] = after_alter(reader, 6)
with connect() as reader:
    found["3 SELECTs on a new connection"] = ", ".join(outcome(reader) for _ in range(3))
with connect(prepare_threshold=None) as reader:
    found["6 SELECTs, ALTER TABLE, 3 SELECTs, prepare_threshold=None"] = after_alter(reader, 6)
with connect(autocommit=False) as reader:
    found["6 SELECTs, ALTER TABLE, 3 SELECTs, in transactions"] = after_alter(reader, 6)

for name, result in found.items():
    print(f"{name}: {result}")
works, fails = ", ".join(["2 columns"] * 3), ", ".join(["FeatureNotSupported"] * 3)
if list(found.values()) != [works, fails, works, works, "FeatureNotSupported, 2 columns, 2 columns"]:
    sys.exit("The behaviour has changed.")
PYTHON
