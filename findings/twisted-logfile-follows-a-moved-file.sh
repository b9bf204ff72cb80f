#!/bin/bash
# Twisted: LogFile stops rotating when another program has moved its file, and says nothing
#
# Guess:     LogFile.rotate() opens a new file at its path. If the path is gone, it creates the file again, or raises.
# Behaviour: rotate() first asks whether it may write to the path. A path that does not exist fails that test, so rotate()
#            returns without an error or a log line. Each later write goes to the moved file, which grows past
#            rotateLength. reopen() recovers.
# Matters:   A server whose log is also listed in logrotate writes to yesterday's file, and to a deleted one after that.
#            The log at the configured path stays missing, and the disk fills.
# Seen:      before the move: log 1000
#            after 100 lines of 100 bytes and rotate(): moved 11000
#            after reopen(): log 100, moved 11000
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0
mkdir "$folder/logs"

timeout 60 "$folder/venv/bin/python" - "$folder/logs" <<'PYTHON'
import sys
from pathlib import Path

from twisted.python.logfile import LogFile

LINE = "x" * 99 + "\n"
folder = Path(sys.argv[1])


def sizes(when):
    log.flush()
    found = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    print(f"{when}:", ", ".join(f"{name} {size}" for name, size in found.items()))
    return found


log = LogFile("log", str(folder), rotateLength=2000)
for _ in range(10):
    log.write(LINE)
before = sizes("before the move")
(folder / "log").rename(folder / "moved")
for _ in range(100):
    log.write(LINE)
log.rotate()
rotated = sizes("after 100 lines of 100 bytes and rotate()")
log.reopen()
log.write(LINE)
reopened = sizes("after reopen()")
if not (before == {"log": 1000} and rotated == {"moved": 11000} and reopened == {"log": 100, "moved": 11000}):
    sys.exit("The behaviour has changed.")
PYTHON
