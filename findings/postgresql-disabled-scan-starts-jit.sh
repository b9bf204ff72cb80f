#!/bin/bash
# PostgreSQL: with enable_seqscan = off, a query of 0.1 ms spends 50 ms in the JIT compiler
#
# Guess:     enable_seqscan = off makes the planner prefer an index. Where there is none, the plan and its time stay the same.
# Behaviour: "off" adds 10000000000 to the cost of the scan. That is above jit_above_cost, so PostgreSQL compiles the query
#            with LLVM, inlining and optimization included, at every execution. (PostgreSQL 18 no longer adds to the cost.)
# Matters:   A test that switches scans off, to see an index used, makes queries of small tables hundreds of times slower, and
#            the time that EXPLAIN ANALYZE prints says nothing about the index. Set jit = off, too.
# Seen:      enable_seqscan = on: cost 23.65, 0.2 ms, of which JIT 0.0 ms
#            enable_seqscan = off: cost 10000000023.65, 47.4 ms, of which JIT 47.2 ms
#            enable_seqscan = off, jit = off: cost 10000000023.65, 0.1 ms, of which JIT 0.0 ms
# Versions:  PostgreSQL 15.18 with LLVM 14
# Needs:     PostgreSQL 15 with LLVM (Debian 12: postgresql-15) and, as root, its user postgres. No public package has a
#            server with LLVM, so nothing is pinned: with another version, the script says so and exits with 2.
# Checked:   2026-11-28
set -euo pipefail
programs=/usr/lib/postgresql/15/bin
if ! [ -x "$programs/initdb" ]; then
    echo "$programs/initdb is missing: this was seen with PostgreSQL 15 of Debian." >&2
    exit 2
fi
"$programs/postgres" --version
as_user=()
if [ "$(id -u)" = 0 ]; then as_user=(runuser -u postgres --); fi

folder=$(mktemp -d)
stop() {
    "${as_user[@]}" "$programs/pg_ctl" stop -D "$folder/data" -m immediate >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT

chmod 755 "$folder"
mkdir "$folder/data"
if [ "$(id -u)" = 0 ]; then chown postgres "$folder/data"; fi
cd "$folder"
"${as_user[@]}" "$programs/initdb" --auth trust --username tester --no-sync "$folder/data" >/dev/null
"${as_user[@]}" "$programs/pg_ctl" start -w -t 60 -D "$folder/data" -l "$folder/data/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$folder/data'" >/dev/null

timeout 60 "${PYTHON:-python3}" - "${as_user[@]}" "$programs/psql" --host "$folder/data" --username tester <<'PYTHON'
import json
import subprocess
import sys

PSQL = [*sys.argv[1:], "--dbname", "postgres", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
TABLE = """
CREATE TABLE words (number integer, word text);
INSERT INTO words SELECT number, 'word ' || number FROM generate_series(1, 1000) AS number;
ANALYZE words;
"""
EXPLAIN = """
EXPLAIN (ANALYZE, FORMAT JSON)
SELECT number, count(*) FROM words WHERE number % 7 = 1 AND word LIKE 'w%' GROUP BY number;
"""
SETTINGS = [["enable_seqscan = on"], ["enable_seqscan = off"], ["enable_seqscan = off", "jit = off"]]


def psql(statements):
    return subprocess.run(PSQL, input=statements, check=True, capture_output=True, text=True).stdout.strip()


def figures(settings):
    """Return cost, milliseconds and milliseconds of JIT of the second execution: the first one also loads LLVM."""
    plans = psql("".join(f"SET {setting};" for setting in settings) + EXPLAIN + EXPLAIN)
    decoder = json.JSONDecoder()
    _, end = decoder.raw_decode(plans)
    (plan,), _ = decoder.raw_decode(plans[end:].strip())
    return plan["Plan"]["Total Cost"], plan["Execution Time"], plan.get("JIT", {"Timing": {"Total": 0.0}})["Timing"]["Total"]


if psql("SELECT pg_jit_available()") != "t":
    print("This PostgreSQL has no LLVM.", file=sys.stderr)
    sys.exit(2)
psql(TABLE)
found = [figures(settings) for settings in SETTINGS]
for settings, (cost, milliseconds, jit) in zip(SETTINGS, found):
    print(f"{', '.join(settings)}: cost {cost}, {milliseconds:.1f} ms, of which JIT {jit:.1f} ms")
scan, disabled, without_jit = found
if not (scan[2] == without_jit[2] == 0 and disabled[0] == without_jit[0] > 1e10 and disabled[2] > 5 * scan[1]):
    sys.exit("The behaviour has changed.")
PYTHON
