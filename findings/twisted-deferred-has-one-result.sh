#!/bin/bash
# Twisted: of two coroutines that await one Deferred, the second gets None, also when the first gets an exception
#
# Guess:     await gives each waiter the result, or raises the exception, as with a Future of asyncio.
# Behaviour: The first waiter takes the result out of the Deferred and leaves None there. Each later waiter gets None. An
#            exception is raised in the first waiter only: the others continue with None, as if all were well.
# Matters:   A cache that hands one Deferred to all who ask for the same page answers the first one correctly, and the
#            others with None. Give each waiter a Deferred of its own, and fire them all.
# Seen:      Twisted, result: 'page' None None
#            Twisted, exception: ValueError None None
#            asyncio, result: 'page' 'page' 'page'
#            asyncio, exception: ValueError ValueError ValueError
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys

from twisted.internet.defer import Deferred, ensureDeferred


async def wait_for(source, outcomes):
    try:
        outcomes.append(repr(await source))
    except ValueError as error:
        outcomes.append(type(error).__name__)


def with_twisted(fire):
    source, outcomes = Deferred(), []
    for _ in range(3):
        ensureDeferred(wait_for(source, outcomes))
    fire(source)
    return outcomes


async def with_asyncio(fire):
    source, outcomes = asyncio.get_running_loop().create_future(), []
    waiting = [asyncio.create_task(wait_for(source, outcomes)) for _ in range(3)]
    await asyncio.sleep(0)
    fire(source)
    await asyncio.gather(*waiting)
    return outcomes


found = {
    "Twisted, result": with_twisted(lambda source: source.callback("page")),
    "Twisted, exception": with_twisted(lambda source: source.errback(ValueError())),
    "asyncio, result": asyncio.run(with_asyncio(lambda source: source.set_result("page"))),
    "asyncio, exception": asyncio.run(with_asyncio(lambda source: source.set_exception(ValueError()))),
}
for name, outcomes in found.items():
    print(f"{name}:", *outcomes)
if list(found.values()) != [["'page'", "None", "None"], ["ValueError", "None", "None"], ["'page'"] * 3, ["ValueError"] * 3]:
    sys.exit("The behaviour has changed.")
PYTHON
