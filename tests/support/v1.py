"""The protocol's requests and answers as clients write and read them: JSON in UTF-8.

Values are encoded as given, even those that the protocol does not allow. This module shares no code with the relay.
"""

from __future__ import annotations

import json
from typing import Any

ADMITTED = {"type": "auth-response", "response": True}
DENIED = {"type": "auth-response", "response": False}
UNAVAILABLE = {"type": "auth-response", "response": False, "reason": "webserver-unavailable"}
"""The answers to a login."""


def login(sessid: Any = None) -> dict[str, Any]:
    """Build an auth-request; None is one without a SESSID, for a client with a cookie."""
    return {"type": "auth-request"} if sessid is None else {"type": "auth-request", "SESSID": sessid}


def message(to: Any, content: Any = "hej", id: Any = 1, time_stamp: Any = 1) -> dict[str, Any]:
    """Build a message-send-request."""
    inside = {"timeStamp": time_stamp, "touID": to, "content": content}
    return {"type": "message-send-request", "id": id, "message": inside}


def encoded(value: object) -> bytes:
    """Encode a value as JSON, as the payload of a text frame."""
    return json.dumps(value).encode()
