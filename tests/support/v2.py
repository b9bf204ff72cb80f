"""The requests of the dialect v2 as clients write them, and the rules for them, stated a second time.

Values are encoded as given, even those that the protocol does not allow. This module shares no code with the relay.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

SUBPROTOCOL = "chatrelay.v2"

OFFER = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}"
"""The header that offers this dialect alone."""

KINDS = (
    "auth-request",
    "message-send-request",
    "history-request",
    "conversations-request",
    "presence-request",
    "received",
    "read",
    "typing",
    "ping",
)
"""The types that clients send."""

ANSWERED = frozenset(KINDS[1:5])
"""Those that are answered under their ids if they can't be used."""

MAX = 2**53


def login(sessid: Any = None, after: Any = None, **more: Any) -> dict[str, Any]:
    """Build an auth-request; None leaves a key out."""
    given = {"SESSID": sessid, "after": after, **more}
    return {"type": "auth-request", **{name: value for name, value in given.items() if value is not None}}


def after(answer: dict[str, Any], n: int | None = None) -> dict[str, Any]:
    """Build the ``after`` of a client that had this answer to its last login, and now has place `n`."""
    return {"epoch": answer["epoch"], "n": answer["n"] if n is None else n}


def message(to: Any, content: Any = "hej", id: Any = None, time_stamp: Any = 1, **more: Any) -> dict[str, Any]:
    """Build a message-send-request; without an id it gets a new one."""
    inside = {"timeStamp": time_stamp, "touID": to, "content": content}
    return {"type": "message-send-request", "id": str(uuid.uuid4()) if id is None else id, "message": inside, **more}


def history(peer: Any, id: Any = "h", **more: Any) -> dict[str, Any]:
    """Build a history-request."""
    return {"type": "history-request", "id": id, "with": peer, **more}


def conversations(id: Any = "c", **more: Any) -> dict[str, Any]:
    """Build a conversations-request."""
    return {"type": "conversations-request", "id": id, **more}


def ping(id: Any = "p") -> dict[str, Any]:
    """Build a ping."""
    return {"type": "ping", "id": id}


# The rules ---------------------------------------------------------------------


def is_usable(request: dict[str, Any]) -> bool:
    """Return whether a request keeps the rules; it is read by Python's JSON decoder, and its type is a known one."""
    if has_nul(request) or has_surrogate(request):
        return False
    match request["type"]:
        case "auth-request":
            sessid = request.get("SESSID", "s")
            return isinstance(sessid, str) and 1 <= len(sessid) <= 4096
        case "message-send-request":
            inside = request.get("message")
            return (
                isinstance(request.get("id"), str)
                and 8 <= len(request["id"]) <= 64
                and request.get("offline", "store") in ("store", "reject")
                and isinstance(inside, dict)
                and is_token(inside.get("timeStamp"))
                and is_uid(inside.get("touID"))
                and isinstance(inside.get("content"), str)
                and len(inside["content"].encode()) <= 16384
            )
        case "history-request":
            return (
                _has_id_and_page(request)
                and is_uid(request.get("with"))
                and not ("before" in request and "after" in request)
            )
        case "conversations-request":
            return _has_id_and_page({name: value for name, value in request.items() if name != "after"})
        case "presence-request":
            of = request.get("of")
            return is_token(request.get("id")) and isinstance(of, list) and len(of) <= 100 and all(map(is_uid, of))
        case "received":
            return _is_integer(request.get("received"), 0, MAX)
        case "read":
            return is_uid(request.get("with")) and _is_integer(request.get("read"), 0, MAX)
        case "typing":
            return is_uid(request.get("touID"))
        case "ping":
            return is_token(request.get("id"))
    raise AssertionError(request["type"])


def _has_id_and_page(request: dict[str, Any]) -> bool:
    return (
        is_token(request.get("id"))
        and all(_is_integer(request[name], 0, MAX) for name in ("before", "after") if name in request)
        and _is_integer(request.get("limit", 50), 1, 100)
    )


def _is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def is_token(value: Any) -> bool:
    """Return whether a value can be an ``id`` or a ``timeStamp``."""
    if isinstance(value, str):
        return len(value) <= 64 and "\0" not in value and not has_surrogate(value)
    return _is_integer(value, -MAX, MAX)


def is_uid(value: Any) -> bool:
    """Return whether a value can be a uID."""
    if isinstance(value, str):
        return 1 <= len(value) <= 64 and value.isprintable()
    return _is_integer(value, -MAX, MAX)


def has_nul(value: Any) -> bool:
    """Return whether a value has U+0000 in any string."""
    return "\\u0000" in json.dumps(value).replace("\\\\", "")


def has_surrogate(value: Any) -> bool:
    """Return whether a value has half of a surrogate pair in any string."""
    text = json.dumps(value, ensure_ascii=False)
    return any("\ud800" <= character <= "\udfff" for character in text)
