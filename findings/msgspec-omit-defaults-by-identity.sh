#!/bin/bash
# msgspec: omit_defaults compares by identity, so an equal value may still be written
#
# Guess:     omit_defaults=True leaves out each field that equals its default.
# Behaviour: The field is left out when it is the same object as the default or an empty list. A decoded
#            string, float or large integer is a new object and is written. A small integer is left out, because CPython
#            has one object for each.
# Matters:   Two equal structs encode to different bytes. A hash, a signature, a cache key or a golden file over the
#            encoded form depends on where the value came from.
# Seen:      created: {}
#            decoded: {"room":"general","limit":1000,"weight":0.0}
#            equal: True
# Versions:  msgspec 0.22.0, CPython 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import msgspec


class Settings(msgspec.Struct, omit_defaults=True):
    room: str = "general"
    limit: int = 1000
    retries: int = 3
    weight: float = 0.0
    tags: list[str] = []


created = Settings()
decoded = msgspec.json.decode(b'{"room":"general","limit":1000,"retries":3,"weight":0.0,"tags":[]}', type=Settings)
short, long = msgspec.json.encode(created), msgspec.json.encode(decoded)
print(f"created: {short.decode()}\ndecoded: {long.decode()}\nequal: {created == decoded}")
if not (created == decoded and short == b"{}" and long == b'{"room":"general","limit":1000,"weight":0.0}'):
    sys.exit("The behaviour has changed.")
PYTHON
