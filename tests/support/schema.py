"""The published JSON Schemas, and a check of frames against them.

The schemas are read as the documentation publishes them. This module shares no code with the relay.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from tests.support import ROOT

V1, V2 = "chatrelay.v1", "chatrelay.v2"


@cache
def published(subprotocol: str) -> dict[str, Any]:
    """Read the schema of a dialect."""
    text = (ROOT / "docs" / "_static" / "schema" / f"{subprotocol}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def _validator(subprotocol: str, direction: str) -> Draft202012Validator:
    schema = json.loads(json.dumps(published(subprotocol)))
    if direction == "FromRelay":
        # The schema allows further keys, as later versions may send more. This version must send no others.
        for definition in schema["$defs"].values():
            if "properties" in definition:
                definition["additionalProperties"] = False
    del schema["anyOf"]
    schema["$ref"] = f"#/$defs/{direction}"
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def is_valid_request(frame: Any, subprotocol: str) -> bool:
    """Return whether a client may send this, by the schema."""
    return bool(_validator(subprotocol, "FromClient").is_valid(frame))


def check_sent(frame: Any, subprotocol: str) -> None:
    """Check that the relay may send this, by the schema, and that it has no other keys.

    :raises AssertionError: if not.
    """
    assert _validator(subprotocol, "FromRelay").is_valid(frame), f"not in the schema of {subprotocol}: {frame!r}"
