#!/bin/bash
# Twisted: reactor.run() keeps a SIGINT handler that was set before, and replaces a SIGTERM handler
#
# Guess:     reactor.run() treats SIGINT and SIGTERM alike: both stop the reactor, or both keep a handler set earlier.
# Behaviour: SIGINT stops the reactor only if Python's default handler is still in place. A handler of one's own is kept,
#            and so is "ignored", which a shell script sets for each command that it starts with "&". SIGTERM is always
#            taken over, and a handler of one's own is never called.
# Matters:   A server that a script starts in the background does not stop at SIGINT, although it does when started by
#            hand. A clean-up in a SIGTERM handler does not run. Stop with SIGTERM, and clean up in a "before shutdown"
#            trigger.
# Seen:      default handlers: stopped by SIGINT
#            own handlers: own SIGINT handler, stopped by SIGTERM
#            started with "&": stopped by SIGTERM
# Versions:  Twisted 26.10.0 (epoll reactor), Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

cat >"$folder/server.py" <<'PYTHON'
import os
import signal
import sys

from twisted.internet import reactor

seen, sent = [], []


def send(name):
    sent.append(name)
    os.kill(os.getpid(), getattr(signal, name))


if sys.argv[1] == "default":
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "own":
    signal.signal(signal.SIGINT, lambda *_: seen.append("own SIGINT handler"))
    signal.signal(signal.SIGTERM, lambda *_: seen.append("own SIGTERM handler"))
reactor.callWhenRunning(send, "SIGINT")
reactor.callLater(1, send, "SIGTERM")
reactor.callLater(10, send, "SIGKILL")
reactor.run()
print(", ".join([*seen, f"stopped by {sent[-1]}"]))
PYTHON

server=("$folder/venv/bin/python" "$folder/server.py")
default=$(timeout 30 "${server[@]}" default)
own=$(timeout 30 "${server[@]}" own)
background=$(timeout 30 bash -c '"$@" & wait $!' bash "${server[@]}" background)
echo "default handlers: $default"
echo "own handlers: $own"
echo "started with \"&\": $background"
if ! [[ $default == "stopped by SIGINT" && $own == "own SIGINT handler, stopped by SIGTERM" &&
    $background == "stopped by SIGTERM" ]]; then
    echo "The behaviour has changed." >&2
    exit 1
fi
