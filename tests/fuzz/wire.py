"""Coverage-guided bytes for `chatrelay.wire.v1.decode`.

python -m tests.fuzz wire -atheris_runs=100000 [a folder of a corpus]
python -m tests.fuzz wire crash-…              repeat what was found
"""

from __future__ import annotations

import json

from chatrelay.model import MAX_CONTENT, MAX_INTEGER, MAX_TOKEN, Message, is_sessid
from chatrelay.wire import v1 as wire
from chatrelay.wire.structs import AuthRequest, SendRequest, UnusableFrame
from tests.fuzz.harness import Fuzzed, message

SEEDS = (
    b'{"type":"auth-request","SESSID":"aoeuaoeu"}',
    b'{"type":"auth-request"}',
    message(),
    message(id=2**53, to=-1, time_stamp="23"),
    message(content="\ud83d\ude00"),
    b'{"type":"message-send-request","id":"21","message":{"timeStamp":"23","touID":"2","content":"\\ud83d"}}',
    b'{"type":"message-send-request","id":"\\u0000","message":{"timeStamp":1e2,"touID":true,"content":null}}',
    b'{"type":"hej","a":[[[{}]]],"type":"auth-request","SESSID":""}',
    b'[1,-0,1E400,NaN,"\\"]',
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
            answer = json.loads(wire.refused(problem.request_id, problem.reason))
            assert answer["response"]["id"] == problem.request_id
        return
    as_python = json.loads(data)
    assert isinstance(as_python, dict) and as_python["type"] in ("auth-request", "message-send-request")
    if isinstance(request, AuthRequest):
        if isinstance(request.sessid, str):
            assert request.sessid == as_python["SESSID"] and is_sessid(request.sessid)
            assert request.sessid not in repr(request) or len(request.sessid) < 20
        return
    assert isinstance(request, SendRequest)
    inside = as_python["message"]
    sent = (request.id, request.message.time_stamp, request.message.to_uid, request.message.content)
    came = (as_python["id"], inside["timeStamp"], inside["touID"], inside["content"])
    assert [(type(value), value) for value in sent] == [(type(value), value) for value in came]
    for value in sent:
        assert isinstance(value, str) or abs(value) <= MAX_INTEGER
        assert not isinstance(value, str) or "\0" not in value
    assert len(str(request.id)) <= MAX_TOKEN and len(str(request.message.time_stamp)) <= MAX_TOKEN
    assert len(request.message.content.encode("utf-8")) <= MAX_CONTENT
    delivery = json.loads(wire.delivery(Message("from", sent[2], request.id, sent[1], request.message.content, 0.0)))
    assert delivery == {
        "type": "message",
        "message": {"timeStamp": sent[1], "fromuID": "from", "touID": sent[2], "content": sent[3]},
    }


FUZZED = Fuzzed(
    one,
    SEEDS,
    dictionary=('"type"', '"auth-request"', '"SESSID"', '"message"', '"id"', "\\u0000", "\\ud83d"),
    planted=("chatrelay.wire.v1.holds_nul", lambda _: False),
)
