"""Write the JSON Schema of each dialect into the documentation: ``python docs/json_schema.py``.

``--check`` writes nothing, and fails if a file is not current. The schemas are made by `chatrelay.wire.schema`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from chatrelay.wire.schema import SUBPROTOCOLS, schema

FOLDER = Path(__file__).parent / "_static" / "schema"


def main(arguments: list[str]) -> int:
    """Write the files, or check them; return the exit status."""
    status = 0
    for subprotocol in SUBPROTOCOLS:
        path = FOLDER / f"{subprotocol}.json"
        text = json.dumps(schema(subprotocol), indent=2, ensure_ascii=False) + "\n"
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            print(f"{path} is not current: run python docs/json_schema.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
