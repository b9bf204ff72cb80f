#!/bin/bash
# Twisted: Clock.advance(60) runs a timer of 10 seconds once
#
# Guess:     task.Clock.advance(60) passes through the 60 seconds, as fake timers elsewhere do: a call that repeats each
#            10 seconds runs six times, at 10, 20, ... 60.
# Behaviour: The clock is set to 60 at once, then the calls that are due run. Each sees seconds() == 60, and what it
#            schedules counts from 60. So a repeating call runs once, and sees 60 although it was due at 10.
# Matters:   A test that lets a minute pass sees one ping instead of six, and a deadline that the second ping should have
#            moved never moves. Such a test passes for the wrong reason. Use Clock.pump() with steps as long as the
#            shortest timer.
# Seen:      callLater that repeats, advance(60): 60
#            callLater that repeats, pump of six times 10: 10 20 30 40 50 60
#            LoopingCall, advance(60): 60
#            LoopingCall, pump of six times 10: 10 20 30 40 50 60
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import sys

from twisted.internet.task import Clock, LoopingCall


def call_later(clock, ran):
    def again():
        ran.append(int(clock.seconds()))
        clock.callLater(10, again)

    clock.callLater(10, again)


def looping_call(clock, ran):
    loop = LoopingCall(lambda: ran.append(int(clock.seconds())))
    loop.clock = clock
    loop.start(10, now=False)


def times(start, pass_time):
    clock, ran = Clock(), []
    start(clock, ran)
    pass_time(clock)
    return ran


def at_once(clock):
    clock.advance(60)


def in_steps(clock):
    clock.pump([10] * 6)


changed = False
for name, start in (("callLater that repeats", call_later), ("LoopingCall", looping_call)):
    advanced, pumped = times(start, at_once), times(start, in_steps)
    print(f"{name}, advance(60):", *advanced)
    print(f"{name}, pump of six times 10:", *pumped)
    changed = changed or not (advanced == [60] and pumped == [10, 20, 30, 40, 50, 60])
if changed:
    sys.exit("The behaviour has changed.")
PYTHON
