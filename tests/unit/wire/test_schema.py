"""The published JSON Schemas: current, valid, and true of what is decoded and encoded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from chatrelay.model import InboxEntry, LoggedMessage, Message, Page
from chatrelay.wire import codes, structs, structs_v2, v1, v2
from chatrelay.wire.codes import OF_V2, Reason
from chatrelay.wire.structs import UnusableFrame
from tests.support import ROOT
from tests.support.schema import V1, V2, check_sent, is_valid_request, published
from tests.support.v2 import after, conversations, history, is_usable, login, message, ping
from tests.support.v2_strategies import LIKE_A_REQUEST

KEPT = LoggedMessage(9, "7", "8", 23, "Hej", 1764271000123456, True, 1, 2, "0b9d-4711")


def test_published_files_are_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "json_schema.py"), "--check"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def sent_in_v1() -> Iterator[bytes]:
    """Yield what the relay sends to a client of v1, each shape once."""
    sent = Message("7", 8, 5, "t", "hej", 1.5)
    yield v1.auth_response(True)
    yield v1.delivery(sent)
    yield v1.accepted(sent)
    for reason in set(Reason) - OF_V2:
        yield v1.auth_response(False, reason)
        yield v1.refused("i", reason)
        yield v1.error(reason, "detail")


def sent_in_v2() -> Iterator[bytes]:
    """Yield what the relay sends to a client of v2, each shape at least once."""
    limits = structs_v2.Limits(16384, 30, 0.5, 86400)
    for recovered in (True, False, None):
        yield v2.logged_in(7, "epoch", 5, 1, recovered, 1764271000.5, ["store"], limits, "r" if recovered else None)
    yield v2.auth_response(True)
    for has_unique_id in (True, False):
        yield v2.delivery(Message("7", 8, "0b9d-4711", "t", "hej", 1.5, has_unique_id), 5)
    yield v2.delivery(KEPT, 5)
    yield v2.void(5, 5)
    yield v2.void(3, 5)
    yield v2.erased(9, [(3, 5), (7, 7)])
    for delivered in (True, False):
        yield v2.accepted("0b9d-4711", 5, 1764271000123456, delivered)
    for reason in Reason:
        yield v2.auth_response(False, reason)
        yield v2.error(reason, "detail")
        for kind in structs_v2.ANSWERED:
            yield v2.refused(5, reason, kind)
    entry = InboxEntry(5, KEPT)
    for marks in (structs_v2.Marks(), structs_v2.Marks(1, 2, 3, 4)):
        yield v2.history("h", "8", Page([entry], True), marks)
        yield v2.conversations("c", [("8", entry, marks)], False)
    yield v2.presences("p", ["7"], {"8": 5, "9": None})
    yield v2.presence("7", True)
    yield v2.presence("7", False, None)
    yield v2.receipt("7", 5, None)
    yield v2.receipt("7", None, 4)
    yield v2.read_mark("7", 5)
    yield v2.typing("7")
    yield v2.resume("r")
    yield v2.closing(codes.STOPPING, 1.5, "r")
    yield v2.pong("p", 5)
    yield v2.pong(5, None)


@pytest.mark.parametrize(("subprotocol", "sent"), [(V1, sent_in_v1()), (V2, sent_in_v2())], ids=[V1, V2])
def test_what_the_relay_sends_is_valid_and_of_every_type(subprotocol: str, sent: Iterator[bytes]) -> None:
    types = set()
    with closing(sent):  # type: ignore[type-var]
        for payload in sent:
            frame = json.loads(payload)
            check_sent(frame, subprotocol)
            types.add(frame["type"])
    shapes = [each["$ref"].rpartition("/")[2] for each in published(subprotocol)["$defs"]["FromRelay"]["anyOf"]]
    assert types == {published(subprotocol)["$defs"][shape]["properties"]["type"]["enum"][0] for shape in shapes}


def test_other_keys_and_values_are_noticed() -> None:
    for frame in (
        {"type": "pong", "id": 1, "more": 2},
        {"type": "pong"},
        {"type": "void", "n": -1},
        {"type": "message", "n": 1, "at": 1.5, "message": {}},
        {"type": "wave"},
    ):
        with pytest.raises(AssertionError):
            check_sent(frame, V2)
    with pytest.raises(AssertionError):
        check_sent({"type": "error", "reason": "resume-expired", "detail": ""}, V1)


def test_requests_of_clients_are_valid() -> None:
    requests: list[dict[str, Any]] = [
        login("s", after({"epoch": "e", "n": 5}), resume="r"),
        login(),
        message("7", again=True, offline="reject"),
        history(7, before=5, limit=1),
        conversations(before=5),
        {"type": "presence-request", "id": "p", "of": ["7"]},
        {"type": "received", "received": 5},
        {"type": "read", "with": "7", "read": 5},
        {"type": "typing", "touID": "7"},
        ping(),
    ]
    for request in requests:
        assert is_valid_request(request, V2)


@settings(max_examples=300, deadline=None)
@given(LIKE_A_REQUEST)
def test_request_that_is_decoded_is_valid_and_one_that_breaks_only_rules_of_the_schema_is_not(
    value: dict[str, Any],
) -> None:
    try:
        v2.decode(json.dumps(value).encode())
    except UnusableFrame:
        assert not is_usable(value)
    else:
        # An `after` or `resume` that can't be used is no reason to refuse the login. The schema says what is usable.
        lenient = (
            {key: value[key] for key in value.keys() - {"after", "resume"}}
            if value["type"] == "auth-request"
            else value
        )
        assert is_valid_request(lenient, V2), value


def test_template_of_v1_encodes_as_its_struct() -> None:
    for id in ("", 'å "€" 😀\n', 5):
        whole = structs.AcceptedResponse(structs.Accepted(id, True))
        assert v1.accepted(Message(1, 2, id, 3, "", 0.0)) == msgspec.json.encode(whole)
