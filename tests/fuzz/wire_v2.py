"""Coverage-guided bytes for `chatrelay.wire.v2.decode`.

python -m tests.fuzz wire_v2 -atheris_runs=100000 [a folder of a corpus]
python -m tests.fuzz wire_v2 crash-…              repeat what was found
"""

from __future__ import annotations

import json
from typing import Any

from chatrelay.model import Message
from chatrelay.wire import v2 as wire
from chatrelay.wire.structs import UnusableFrame
from chatrelay.wire.structs_v2 import Kind, LoginRequest, SendRequest, UnknownRequest, UnusableRequest
from tests.fuzz.harness import Fuzzed
from tests.support import v2

SEEDS = (
    v2.login("aoeuaoeu", {"epoch": "q7", "n": 41}, resume="r"),
    v2.login(None, 5, resume=[]),
    v2.message("234324", id="0b9d-4711", again=True, offline="reject"),
    v2.message(-1, "\ud83d\ude00", "0b9d-4711", "23"),
    v2.history("234324", before=58, limit=1),
    v2.history(7, after=0, before=1),
    v2.conversations("c1", limit=100),
    {"type": "presence-request", "id": "p1", "of": ["7", 8]},
    {"type": "received", "received": 58},
    {"type": "read", "with": "7", "read": 57},
    {"type": "typing", "touID": "\u200b"},
    v2.ping("\ud83d"),
    {"type": "hej", "a": [[[{}]]]},
)


def one(data: bytes) -> None:
    """Decode one text message: a request with every value within its bounds and as it was sent, or `UnusableFrame`."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return  # no text message: it never comes as far as this
    try:
        request = wire.decode(data)
    except UnusableFrame as problem:
        wire.error(problem.reason, problem.detail)
        if isinstance(problem.request_id, str | int):
            assert isinstance(problem, UnusableRequest)
            answer = json.loads(wire.refused(problem.request_id, problem.reason, problem.kind))
            assert answer["response"]["id"] == problem.request_id
        return
    as_python = json.loads(data)
    assert isinstance(as_python, dict)
    if isinstance(request, UnknownRequest):
        assert isinstance(as_python["type"], str) and as_python["type"] not in [kind.value for kind in Kind]
        return
    assert as_python["type"] == request.type
    assert v2.is_usable(as_python), as_python
    if isinstance(request, LoginRequest):
        if isinstance(request.sessid, str):
            assert request.sessid == as_python["SESSID"]
            assert request.sessid not in repr(request) or len(request.sessid) < 20
    elif isinstance(request, SendRequest):
        check_message(request, as_python)


def check_message(request: SendRequest, as_python: dict[str, Any]) -> None:
    """Check that a message is delivered as it was sent, and answered under its id."""
    outgoing, inside = request.message, as_python["message"]
    assert request.comes_again is (as_python.get("again") is True)
    message = Message(7, outgoing.to_uid, request.id, outgoing.time_stamp, outgoing.content, 1.0, True)
    delivered = json.loads(wire.delivery(message, 5))
    stamp = inside["timeStamp"]
    assert type(delivered["message"]["timeStamp"]) is type(stamp)
    assert delivered == {
        "type": "message",
        "n": 5,
        "at": 1000,
        "id": as_python["id"],
        "message": {
            "timeStamp": stamp,
            "fromuID": "7",
            "touID": str(inside["touID"]),
            "content": inside["content"],
        },
    }
    assert json.loads(wire.accepted(request.id, 5, 1, True))["response"]["id"] == as_python["id"]


FUZZED = Fuzzed(
    one,
    [json.dumps(seed).encode() for seed in SEEDS],
    dictionary=('"type"', '"SESSID"', '"message"', '"id"', '"again"', "true", "\\u0000", "\\ud83d", *v2.KINDS),
    planted=("chatrelay.wire.v2.holds_nul", lambda _: False),
)
