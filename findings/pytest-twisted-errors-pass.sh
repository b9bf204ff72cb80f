#!/bin/bash
# pytest-twisted: an exception in the reactor, and a call that a test left behind, fail no test
#
# Guess:     pytest-twisted runs tests on the reactor and checks what trial checks: errors that were logged, Deferreds that
#            failed unseen, and delayed calls that are still scheduled.
# Behaviour: It only waits for the test's own Deferred. An exception in a delayed call or in a Deferred that nobody looks at is
#            printed, and the test passes. A delayed call that a test leaves behind runs in a later test. The same tests as
#            TestCases of trial fail, under trial and under pytest.
# Matters:   A suite that is moved from trial to pytest-twisted stays green with bugs that trial reported. Keep TestCases for
#            code with timers.
# Seen:      pytest-twisted: exception in a delayed call passed, unseen failure passed, call left behind passed
#            trial: exception in a delayed call failed, unseen failure failed, call left behind failed
# Versions:  pytest-twisted 1.14.3, pytest 9.2.0, Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytest-twisted==1.14.3 pytest==9.2.0 Twisted==26.10.0
cd "$folder"

cat >bodies.py <<'PYTHON'
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater


async def exception_in_a_delayed_call():
    reactor.callLater(0, lambda: 1 / 0)
    await deferLater(reactor, 0.1)


async def unseen_failure():
    Deferred().errback(ValueError("nobody looks"))
    await deferLater(reactor, 0)


async def call_left_behind():
    reactor.callLater(0.1, print, "too late")
PYTHON
cat >test_pytest.py <<'PYTHON'
import bodies
import pytest_twisted


@pytest_twisted.ensureDeferred
async def test_exception_in_a_delayed_call():
    await bodies.exception_in_a_delayed_call()


@pytest_twisted.ensureDeferred
async def test_unseen_failure():
    await bodies.unseen_failure()


@pytest_twisted.ensureDeferred
async def test_call_left_behind():
    await bodies.call_left_behind()
PYTHON
cat >test_trial.py <<'PYTHON'
import bodies
from twisted.trial.unittest import TestCase


class Tests(TestCase):
    async def test_exception_in_a_delayed_call(self):
        await bodies.exception_in_a_delayed_call()

    async def test_unseen_failure(self):
        await bodies.unseen_failure()

    async def test_call_left_behind(self):
        await bodies.call_left_behind()
PYTHON

results() {
    local name words=()
    for name in exception_in_a_delayed_call unseen_failure call_left_behind; do
        if "$@" "$name" >"$name.log" 2>&1; then words+=("${name//_/ } passed"); else words+=("${name//_/ } failed"); fi
    done
    printf '%s, %s, %s\n' "${words[@]}"
}
with_pytest() { timeout 60 venv/bin/python -m pytest -q -p no:cacheprovider "test_pytest.py::test_$1"; }
with_trial() { timeout 60 venv/bin/python -m twisted.trial "test_trial.Tests.test_$1"; }

pytest=$(results with_pytest) trial=$(results with_trial)
echo "pytest-twisted: $pytest"
echo "trial: $trial"
if [ "$pytest" != "exception in a delayed call passed, unseen failure passed, call left behind passed" ] ||
    [ "$trial" != "exception in a delayed call failed, unseen failure failed, call left behind failed" ]; then
    echo 'The behaviour has changed.' >&2
    exit 1
fi
