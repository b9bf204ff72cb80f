"""The JSON Schema of each dialect, made from the Structs that decode and encode its objects.

Pure. `python docs/json_schema.py` writes the schemas for the documentation, and a test compares them with what clients
and relay send. This module must not add a rule: what a schema can't say is said by `docs/protocol.rst` alone, such as
the size of a content in bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from chatrelay.wire import structs, structs_v2
from chatrelay.wire.codes import OF_V2, Reason

FROM_CLIENT, FROM_RELAY = "FromClient", "FromRelay"
"""The names of the definitions that have all objects of one direction."""

_V1 = {
    FROM_CLIENT: (structs.AuthRequest, structs.SendRequest),
    FROM_RELAY: (structs.AuthResponse, structs.Delivery, structs.AcceptedResponse, structs.SendRefused, structs.Error),
}
_V2 = {
    FROM_CLIENT: (
        structs_v2.LoginRequest,
        structs_v2.SendRequest,
        structs_v2.HistoryRequest,
        structs_v2.ConversationsRequest,
        structs_v2.PresenceRequest,
        structs_v2.Received,
        structs_v2.Read,
        structs_v2.Typing,
        structs_v2.Ping,
    ),
    FROM_RELAY: (
        structs_v2.LoginResponse,
        structs.AuthResponse,
        structs_v2.Delivery,
        structs_v2.Void,
        structs_v2.Erased,
        structs_v2.AcceptedResponse,
        structs.SendRefused,
        structs_v2.HistoryResponse,
        structs_v2.HistoryRefused,
        structs_v2.ConversationsResponse,
        structs_v2.ConversationsRefused,
        structs_v2.PresenceResponse,
        structs_v2.PresenceRefused,
        structs_v2.Receipt,
        structs_v2.ReadMark,
        structs_v2.Presence,
        structs_v2.IsTyping,
        structs_v2.Resume,
        structs_v2.Closing,
        structs_v2.Pong,
        structs.Error,
    ),
}
_DIALECTS: Mapping[str, Mapping[str, tuple[type[msgspec.Struct], ...]]] = {"chatrelay.v1": _V1, "chatrelay.v2": _V2}

SUBPROTOCOLS = tuple(_DIALECTS)
"""The dialects that have a schema."""


def schema(subprotocol: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a dialect.

    Its definitions `FROM_CLIENT` and `FROM_RELAY` have what each side sends. Neither side refuses keys that it does not
    know, so the schema allows them.
    """
    directions = _DIALECTS[subprotocol]
    all_shapes = [shape for shapes in directions.values() for shape in shapes]
    _, definitions = msgspec.json.schema_components(all_shapes, ref_template="#/$defs/{name}")
    for definition in definitions.values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"]).replace("``", "`")
    if subprotocol == "chatrelay.v1":
        definitions["Reason"]["enum"] = sorted(reason.value for reason in Reason if reason not in OF_V2)
    either = {
        direction: {"anyOf": [{"$ref": f"#/$defs/{shape.__name__}"} for shape in shapes]}
        for direction, shapes in directions.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": subprotocol,
        "description": "The JSON objects that clients and relay send. docs/protocol.rst has the rules.",
        "anyOf": [{"$ref": f"#/$defs/{direction}"} for direction in directions],
        "$defs": {**either, **dict(sorted(definitions.items()))},
    }
