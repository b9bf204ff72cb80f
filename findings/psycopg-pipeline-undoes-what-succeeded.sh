#!/bin/bash
# psycopg: with autocommit, a failing statement in a pipeline undoes the ones before it
#
# Guess:     With autocommit=True each statement is committed on its own. A pipeline saves round trips and changes nothing else.
# Behaviour: PostgreSQL runs everything up to the next Sync as one transaction, and a pipeline sends a Sync at its end. If the
#            third INSERT fails, the first two are undone, too. executemany() uses a pipeline, so the same applies to it.
# Matters:   A queue worker or an importer that counts on "what succeeded stays" loses rows that it believes to be there. Call
#            pipeline.sync() after each statement that is to stay, or rely on all or nothing.
# Seen:      execute(), three INSERTs, the third fails: UniqueViolation, rows 1 2
#            in a pipeline: UniqueViolation, rows none
#            in a pipeline with sync() after each: UniqueViolation, rows 1 2
#            executemany(): UniqueViolation, rows none
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
import sys

import psycopg

INSERT = "INSERT INTO numbers VALUES (%s)"
VALUES = [(1,), (2,), (2,)]

with psycopg.connect(host=sys.argv[1], user="tester", dbname="postgres", autocommit=True) as connection:
    connection.execute("CREATE TABLE numbers (number integer PRIMARY KEY)")

    def one_by_one():
        for value in VALUES:
            connection.execute(INSERT, value)

    def in_a_pipeline():
        with connection.pipeline():
            one_by_one()

    def with_sync():
        with connection.pipeline() as pipeline:
            for value in VALUES:
                connection.execute(INSERT, value)
                pipeline.sync()

    def with_executemany():
        with connection.cursor() as cursor:
            cursor.executemany(INSERT, VALUES)

    def outcome(insert):
        connection.execute("TRUNCATE numbers")
        try:
            insert()
            error = "no error"
        except psycopg.Error as raised:
            error = type(raised).__name__
        rows = connection.execute("SELECT number FROM numbers ORDER BY number").fetchall()
        return f"{error}, rows {' '.join(str(number) for (number,) in rows) or 'none'}"

    found = {
        "execute(), three INSERTs, the third fails": outcome(one_by_one),
        "in a pipeline": outcome(in_a_pipeline),
        "in a pipeline with sync() after each": outcome(with_sync),
        "executemany()": outcome(with_executemany),
    }

for name, result in found.items():
    print(f"{name}: {result}")
kept, undone = "UniqueViolation, rows 1 2", "UniqueViolation, rows none"
if list(found.values()) != [kept, undone, kept, undone]:
    sys.exit("The behaviour has changed.")
PYTHON
