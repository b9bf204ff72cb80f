#!/bin/bash
# msgspec: a Raw field of a few bytes keeps the whole document in memory
#
# Guess:     A decoded struct owns its values. The document is freed when the last name for it is gone.
# Behaviour: A Raw that a decoder makes is a view of the document. As long as the Raw lives, so does the document, the parts
#            that the struct ignores included. Raw.copy() returns a Raw with bytes of its own.
# Matters:   A cache or queue of small values, decoded as Raw to be passed on unchanged, grows by the size of the requests that
#            they came in. Neither sys.getsizeof() nor len(bytes(raw)) shows it. Call copy() on each Raw that is kept.
# Seen:      bytes in the field: 7; in the document: 1000034
#            kept for each struct: 1000180 bytes
#            kept for each struct, after body.copy(): 155 bytes
# Versions:  msgspec 0.22.0, CPython 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import sys
import tracemalloc

import msgspec

COUNT = 20


class Request(msgspec.Struct):
    id: int
    body: msgspec.Raw


def document():
    return b'{"id":1,"body":{"a":1},"other":"' + b"x" * 1_000_000 + b'"}'


def decoded():
    return msgspec.json.decode(document(), type=Request)


def copied():
    request = decoded()
    request.body = request.body.copy()
    return request


def bytes_kept(make):
    """Return the memory that each struct keeps, on average."""
    before, _ = tracemalloc.get_traced_memory()
    requests = [make() for _ in range(COUNT)]
    after, _ = tracemalloc.get_traced_memory()
    return (after - before) // len(requests)


field, whole = len(bytes(decoded().body)), len(document())
tracemalloc.start()
view, copy = bytes_kept(decoded), bytes_kept(copied)
print(f"bytes in the field: {field}; in the document: {whole}")
print(f"kept for each struct: {view} bytes")
print(f"kept for each struct, after body.copy(): {copy} bytes")
if not (view >= whole and copy < 1000):
    sys.exit("The behaviour has changed.")
PYTHON
