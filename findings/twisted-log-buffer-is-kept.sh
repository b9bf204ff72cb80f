#!/bin/bash
# Twisted: objects that logged before logging began are kept until the process ends
#
# Guess:     beginLoggingTo() replays the events that were buffered and frees them.
# Behaviour: The buffer is replayed but never emptied. It holds its last 200 events, and each event holds the object
#            that logged it (log_source), whatever is logged later.
# Matters:   A test that counts live objects, or a process that reads large inputs before it starts to log, sees a leak
#            in code that has none. discardBuffer=True does not empty the buffer either.
# Seen:      alive before logging began: 200 of 300
#            alive after 1000 more objects logged: 200 of the first 300, 0 of the 1000
#            alive with discardBuffer=True: 200 of the first 300, 0 of the 1000
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

cat >"$folder/count.py" <<'PYTHON'
import gc
import sys
import weakref

from twisted.logger import Logger, globalLogBeginner


class Upload:
    log = Logger()

    def finish(self):
        self.log.info("finished")


def log_once(count):
    """Let this many objects log once each, and give weak references to them."""
    references = []
    for _ in range(count):
        upload = Upload()
        upload.finish()
        references.append(weakref.ref(upload))
    return references


def alive(references):
    gc.collect()
    return sum(reference() is not None for reference in references)


discard = sys.argv[1] == "discard"
first = log_once(300)
before = alive(first)
globalLogBeginner.beginLoggingTo([lambda event: None], discardBuffer=discard, redirectStandardIO=False)
later = log_once(1000)
after = alive(first), alive(later)
if discard:
    print(f"alive with discardBuffer=True: {after[0]} of the first 300, {after[1]} of the 1000")
else:
    print(f"alive before logging began: {before} of 300")
    print(f"alive after 1000 more objects logged: {after[0]} of the first 300, {after[1]} of the 1000")
if not (before == 200 and after == (200, 0)):
    sys.exit("The behaviour has changed.")
PYTHON
timeout 60 "$folder/venv/bin/python" "$folder/count.py" replay
timeout 60 "$folder/venv/bin/python" "$folder/count.py" discard
