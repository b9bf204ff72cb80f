#!/bin/bash
# msgspec: half an emoji, as JSON.stringify() writes it, is reported as truncated input
#
# Guess:     msgspec decodes what JSON.stringify() and json.dumps() write, and "Input data was truncated" means that bytes are
#            missing at the end.
# Behaviour: In JavaScript, "😀".slice(0, 1) is one half of a surrogate pair. JSON.stringify() writes it as "\ud83d", which the
#            grammar of JSON permits. msgspec refuses the whole document. If the half stands at the end, the error says that
#            the input was truncated. json.loads() accepts all of them.
# Matters:   A page that cuts a text after 100 characters loses the message, not one character. A reader that waits for more
#            bytes after "truncated" waits forever. Cut with Array.from(text), or call text.toWellFormed() before sending.
# Seen:      "\ud83d": json '\ud83d', msgspec DecodeError: Input data was truncated
#            {"text":"\ud83d"}: json {'text': '\ud83d'}, msgspec DecodeError: Input data was truncated
#            {"text":"\ud83d","number":1}: json {'text': '\ud83d', 'number': 1}, msgspec DecodeError: JSON is malformed:
#                unexpected end of escaped utf-16 surrogate pair (byte 15)
#            "\ud83d\ude00": json '😀', msgspec '😀'
# Versions:  msgspec 0.22.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0

PYTHONIOENCODING=utf-8 timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

import msgspec

HALF, WHOLE = r'"\ud83d"', r'"\ud83d\ude00"'
TRUNCATED, MALFORMED = "DecodeError: Input data was truncated", "DecodeError: JSON is malformed"


def outcome(decode, document):
    try:
        return repr(decode(document))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


documents = [HALF, '{"text":%s}' % HALF, '{"text":%s,"number":1}' % HALF, WHOLE]
found = [(outcome(json.loads, document), outcome(msgspec.json.decode, document)) for document in documents]
for document, (standard, other) in zip(documents, found):
    print(f"{document}: json {standard}, msgspec {other}")
expected = [TRUNCATED, TRUNCATED, MALFORMED, repr("😀")]
is_accepted = not any("Error" in standard for standard, _ in found)
if not (is_accepted and all(other.startswith(text) for (_, other), text in zip(found, expected))):
    sys.exit("The behaviour has changed.")
PYTHON
