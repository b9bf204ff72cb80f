#!/bin/bash
# psycopg: 20000 + 20000 is out of range
#
# Guess:     A Python int is sent as one type that holds it, and PostgreSQL adds two of them as integers.
# Behaviour: psycopg chooses the type by the value: smallint, integer, bigint or numeric. PostgreSQL then computes in that
#            type, so a sum of two small numbers fails, and a division is cut or exact according to its operands' size.
# Matters:   A query that passes with the values of a test can fail with others. Write a cast: %s::bigint.
# Seen:      types of 5, 70000, 2**40, 2**70: smallint integer bigint numeric
#            20000 + 20000: NumericValueOutOfRange: smallint out of range
#            32768 + 20000: 52768
#            20000 + 20000 with a cast to bigint: 40000
# Versions:  psycopg 3.3.9, PostgreSQL 15.18, Python 3.11
# Needs:     PostgreSQL's server programs (Debian: postgresql) and, as root, its user postgres
# Checked:   2026-11-27
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

with psycopg.connect(host=sys.argv[1], user="tester", dbname="postgres", autocommit=True) as connection:

    def select(expression, *values):
        try:
            row = connection.execute(f"SELECT {expression}", values).fetchone()
        except psycopg.Error as error:
            return f"{type(error).__name__}: {error}"
        return " ".join(map(str, row))

    types = select("pg_typeof(%s), pg_typeof(%s), pg_typeof(%s), pg_typeof(%s)", 5, 70000, 2**40, 2**70)
    small, mixed = select("%s + %s", 20000, 20000), select("%s + %s", 32768, 20000)
    cast = select("%s::bigint + %s::bigint", 20000, 20000)

print("types of 5, 70000, 2**40, 2**70:", types)
print("20000 + 20000:", small)
print("32768 + 20000:", mixed)
print("20000 + 20000 with a cast to bigint:", cast)
if not (
    types == "smallint integer bigint numeric"
    and small == "NumericValueOutOfRange: smallint out of range"
    and (mixed, cast) == ("52768", "40000")
):
    sys.exit("The behaviour has changed.")
PYTHON
