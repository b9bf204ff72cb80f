#!/bin/bash
# msgspec: a float that is NaN or infinite is encoded as null, and the same type cannot decode it
#
# Guess:     A struct that msgspec encodes can be decoded as the same struct. A float that JSON cannot express is an error when
#            it is written, or is written as NaN, as json.dumps() does.
# Behaviour: msgspec.json.encode() writes null without an error. The decoder refuses null for a float, so the error
#            appears where the document is read. msgspec.msgpack keeps the value.
# Matters:   One mean of no values makes a stored file unreadable, and the error appears far from its cause. Declare the field
#            as "float | None", or check math.isfinite() before encoding.
# Seen:      nan: JSON {"mean":null}, ValidationError: Expected `float`, got `null` - at `$.mean`
#            inf: JSON {"mean":null}, ValidationError: Expected `float`, got `null` - at `$.mean`
#            0.5: JSON {"mean":0.5}, Report(mean=0.5)
#            nan, inf and 0.5 through MessagePack: Report(mean=nan) Report(mean=inf) Report(mean=0.5)
# Versions:  msgspec 0.22.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import msgspec


class Report(msgspec.Struct):
    mean: float


def read_back(document):
    try:
        return repr(msgspec.json.decode(document, type=Report))
    except msgspec.ValidationError as error:
        return f"ValidationError: {error}"


values = [math.nan, math.inf, 0.5]
documents = [msgspec.json.encode(Report(value)) for value in values]
results = [read_back(document) for document in documents]
packed = [repr(msgspec.msgpack.decode(msgspec.msgpack.encode(Report(value)), type=Report)) for value in values]
for value, document, result in zip(values, documents, results):
    print(f"{value}: JSON {document.decode()}, {result}")
print("nan, inf and 0.5 through MessagePack:", *packed)
refused = "ValidationError: Expected `float`, got `null` - at `$.mean`"
if not (
    documents == [b'{"mean":null}', b'{"mean":null}', b'{"mean":0.5}']
    and results == [refused, refused, "Report(mean=0.5)"]
    and packed == ["Report(mean=nan)", "Report(mean=inf)", "Report(mean=0.5)"]
):
    sys.exit("The behaviour has changed.")
PYTHON
