"""The codec of v2: which frames are requests, which are not, and what chatrelay sends."""

from __future__ import annotations

import contextlib
import json
import timeit
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import InboxEntry, LoggedMessage, Message, Page
from chatrelay.wire import codes, structs_v2, v2
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import UnusableFrame
from chatrelay.wire.structs_v2 import After, Kind, LoginRequest, Marks, SendRequest, UnusableRequest
from tests.support.v2 import (
    ANSWERED,
    MAX,
    conversations,
    has_surrogate,
    history,
    is_token,
    is_usable,
    login,
    message,
    ping,
)
from tests.support.v2_strategies import IDS, LIKE_A_REQUEST, TEXT

ID = "0b9d-4711"


def decode(value: object) -> structs_v2.Request:
    """Decode a request that is given as a value."""
    return v2.decode(json.dumps(value).encode())


class Requests(SynchronousTestCase):
    """Frames that can be used."""

    def test_requests_of_the_page_are_decoded(self) -> None:
        requests: list[tuple[dict[str, Any], object]] = [
            (login("s"), LoginRequest("auth-request", "s")),
            (login(), LoginRequest("auth-request")),
            (
                login("s", {"epoch": "q7", "n": 41}, resume="r"),
                LoginRequest("auth-request", "s", After("q7", 41), "r"),
            ),
            (
                history("7", before=58, limit=1),
                structs_v2.HistoryRequest("h", "7", "history-request", 58, UNSET, 1),
            ),
            (history(7, after=0), structs_v2.HistoryRequest("h", 7, "history-request", UNSET, 0, 50)),
            (
                conversations(limit=100),
                structs_v2.ConversationsRequest("c", "conversations-request", UNSET, 100),
            ),
            (ping(5), structs_v2.Ping(5, "ping")),
            ({"type": "received", "received": 58}, structs_v2.Received(58, "received")),
            ({"type": "read", "with": 7, "read": 57}, structs_v2.Read(7, 57, "read")),
            ({"type": "typing", "touID": "7"}, structs_v2.Typing("7", "typing")),
            (
                {"type": "presence-request", "id": "p", "of": ["7", 8]},
                structs_v2.PresenceRequest("p", ["7", 8], "presence-request"),
            ),
        ]
        for value, request in requests:
            self.assertEqual(decode(value), request)

    def test_send_request_has_again_and_offline(self) -> None:
        request = decode(message("7", id=ID, again=True, offline="reject"))
        assert isinstance(request, SendRequest)
        self.assertTrue(request.comes_again)
        self.assertEqual((request.id, request.offline, request.message.to_uid), (ID, "reject", "7"))

    def test_again_counts_only_as_true(self) -> None:
        for again in (False, None, 1, "true", [True], {"true": True}):
            request = decode(message("7", again=again))
            assert isinstance(request, SendRequest)
            self.assertFalse(request.comes_again, again)
        spaced = json.dumps(message("7", again=True)).replace('"again": true', '"again" : \n true ').encode()
        request = v2.decode(spaced)
        assert isinstance(request, SendRequest)
        self.assertTrue(request.comes_again)

    def test_unusable_after_is_a_place_of_no_log(self) -> None:
        for unusable in (0, None, "x", {}, {"epoch": "e"}, {"epoch": 1, "n": 1}, {"epoch": "e", "n": -1}, [[]]):
            request = decode({"type": "auth-request", "SESSID": "s", "after": unusable, "resume": "r"})
            self.assertEqual(request, LoginRequest("auth-request", "s", v2.NO_AFTER, "r"), unusable)

    def test_unusable_resume_is_an_empty_one(self) -> None:
        for unusable in ("", 0, None, "r" * 8001, ["r"]):
            request = decode(
                {"type": "auth-request", "SESSID": "s", "after": {"epoch": "e", "n": 1}, "resume": unusable}
            )
            self.assertEqual(request, LoginRequest("auth-request", "s", After("e", 1), ""), unusable)
        self.assertEqual(decode(login(None, resume="r" * 8000)), LoginRequest("auth-request", UNSET, UNSET, "r" * 8000))

    def test_unusable_sessid_is_refused_beside_an_unusable_after(self) -> None:
        with self.assertRaises(UnusableFrame):
            decode({"type": "auth-request", "SESSID": 5, "after": 5})

    def test_repr_hides_secrets(self) -> None:
        request = decode(login("secret-1", resume="secret-2"))
        self.assertNotIn("secret", repr(request))
        self.assertNotIn("secret", repr(structs_v2.Resume("secret")))
        self.assertNotIn("secret", repr(structs_v2.Closing(4000, 1, "secret")))
        limits = structs_v2.Limits(1, 1, 1, 1)
        answer = structs_v2.LoginResponse(
            response=True, uid="7", epoch="e", n=1, first=1, resume="secret", now=1, features=[], limits=limits
        )
        self.assertNotIn("secret", repr(answer))

    def test_request_of_an_unknown_type_is_ignored(self) -> None:
        for frame in (
            b'{"type":"wave"}',
            b'{"type":"wave","x":"\\ud83d"}',
            b'{"type":"wave","x":"\\u0000"}',
            b'{"type":"%s"}' % (b"x" * 60_000),
            b'{"type":"\\ud83d"}',
            b'{"id":5,"type":"message"}',
        ):
            self.assertIs(v2.decode(frame), v2.UNKNOWN, frame[:30])

    def test_frame_without_a_type_is_refused(self) -> None:
        for frame in (b"{}", b'{"type":1}', b'{"type":null}', b'{"type":["ping"]}'):
            refusal = self.assertRaises(UnusableFrame, v2.decode, frame)
            self.assertEqual(refusal.reason, Reason.UNKNOWN_TYPE)


class Limits(SynchronousTestCase):
    """The bounds of each value, on both sides."""

    def accepts(self, *values: dict[str, Any]) -> None:
        for value in values:
            self.assertTrue(is_usable(value))
            self.assertIsNot(decode(value), v2.UNKNOWN)

    def refuses(self, *values: dict[str, Any]) -> None:
        for value in values:
            self.assertFalse(is_usable(value), value)
            refusal = self.assertRaises(UnusableRequest, decode, value)
            self.assertEqual(refusal.kind.value, value["type"])

    def test_id_of_a_message_has_8_to_64_characters(self) -> None:
        self.accepts(message("7", id="x" * 8), message("7", id="😀" * 64))
        self.refuses(message("7", id="x" * 7), message("7", id="x" * 65), message("7", id=12345678))

    def test_uid_has_1_to_64_printable_characters_or_is_an_integer(self) -> None:
        for uid in ("x", "x" * 64, "å😀", 0, -MAX, MAX):
            self.accepts(message(uid), history(uid), {"type": "typing", "touID": uid})
            self.accepts({"type": "read", "with": uid, "read": 1}, {"type": "presence-request", "id": 1, "of": [uid]})
        for uid in ("", "x" * 65, "a\nb", "\u200b", MAX + 1, -MAX - 1, 1.5, None, True, ["7"]):
            self.refuses(message(uid), history(uid), {"type": "typing", "touID": uid})
            self.refuses({"type": "read", "with": uid, "read": 1}, {"type": "presence-request", "id": 1, "of": [uid]})

    def test_content_has_at_most_16384_bytes(self) -> None:
        self.accepts(message("7", ""), message("7", "x" * 16384), message("7", "å" * 8192), message("7", "😀" * 4096))
        self.refuses(message("7", "x" * 16385), message("7", "å" * 8193), message("7", "😀" * 4096 + "x"))

    def test_offline_is_store_or_reject(self) -> None:
        self.accepts(message("7", offline="store"), message("7", offline="reject"))
        self.refuses(message("7", offline="Store"), message("7", offline=None), message("7", offline=True))

    def test_limit_is_1_to_100(self) -> None:
        self.accepts(history("7", limit=1), history("7", limit=100), conversations(limit=1), conversations(limit=100))
        for limit in (0, 101, -1, 1.0, "1", None, True):
            self.refuses(history("7", limit=limit), conversations(limit=limit))

    def test_places_are_0_or_more(self) -> None:
        for place in (0, MAX):
            self.accepts(history("7", before=place), history("7", after=place), conversations(before=place))
            self.accepts({"type": "received", "received": place}, {"type": "read", "with": "7", "read": place})
        for bad in (-1, MAX + 1, 1.0, "1", None, True):
            self.refuses(history("7", before=bad), history("7", after=bad), conversations(before=bad))
            self.refuses({"type": "received", "received": bad}, {"type": "read", "with": "7", "read": bad})

    def test_before_and_after_exclude_each_other(self) -> None:
        self.refuses(history("7", before=5, after=1))
        self.accepts(conversations(before=5, after=1))  # a conversations-request has no `after`

    def test_at_most_100_users_are_watched(self) -> None:
        self.accepts(
            {"type": "presence-request", "id": 1, "of": []}, {"type": "presence-request", "id": 1, "of": [1] * 100}
        )
        self.refuses({"type": "presence-request", "id": 1, "of": [1] * 101})

    def test_sessid_has_1_to_4096_characters(self) -> None:
        self.accepts(login("s"), login("s" * 4096))
        self.refuses(login(""), login("s" * 4097), {"type": "auth-request", "SESSID": None})

    def test_ids_of_other_requests_are_those_of_v1(self) -> None:
        for id in ("", "x" * 64, 0, MAX):
            self.accepts(history("7", id), conversations(id), ping(id))
        for bad in ("x" * 65, MAX + 1, 1.5, None, True, "a\0", "\ud800"):
            self.refuses(history("7", bad), conversations(bad), ping(bad))


class Refusals(SynchronousTestCase):
    """How a frame that can't be used is reported."""

    def refused(self, value: object) -> UnusableFrame:
        return self.assertRaises(UnusableFrame, decode, value)

    def test_request_is_refused_under_its_id(self) -> None:
        for value in (
            message("7", 5, ID),
            message("7", "a\0", ID),
            message("7", "\ud83d", ID),
            message("7", "hej", "short"),
            message("7", "hej", 7),
        ):
            refusal = self.refused(value)
            self.assertEqual(
                (refusal.reason, refusal.send, refusal.request_id), (Reason.INVALID_MESSAGE, True, value["id"])
            )
        for value in (
            history(None),
            history("7", x="\0"),
            conversations(limit=0),
            {"type": "presence-request", "id": "h"},
        ):
            refusal = self.refused(value)
            self.assertEqual((refusal.reason, refusal.send), (Reason.INVALID_REQUEST, False))
            self.assertEqual(refusal.request_id, value["id"])

    def test_marks_and_pings_are_refused_without_an_id(self) -> None:
        for value in (
            {"type": "received", "id": 1},
            {"type": "read", "id": 1},
            {"type": "typing", "id": 1},
            ping(None),
        ):
            refusal = self.refused(value)
            self.assertEqual((refusal.reason, refusal.request_id), (Reason.INVALID_REQUEST, UNSET))

    def test_auth_request_is_refused_as_in_v1(self) -> None:
        for value in (login(5), login("a\0"), login("s", {"epoch": "\0", "n": 1}), login("s", x="\ud83d")):
            self.assertEqual(self.refused(value).reason, Reason.INVALID_AUTH_REQUEST)

    def test_secrets_are_not_in_the_detail(self) -> None:
        self.assertNotIn("secret", self.refused(login("secret" * 1000, resume="secret" * 2000)).detail)

    def test_two_types_are_refused(self) -> None:
        frame = b'{"type":"ping","id":1,"type":"typing","touID":"7"}'
        refusal = self.assertRaises(UnusableRequest, v2.decode, frame)
        self.assertIs(refusal.kind, Kind.TYPING)

    def test_costly_bytes_take_little_time(self) -> None:
        # Each is refused, or decoded by the last decoder that is tried.
        text = "x" * 60_000
        line = quickest(json.dumps(message("7", x=text)).encode())
        for value in (
            login("s", text),
            login("s", [[text]], resume=text),
            history("7", x=text + "\ud83d"),
            {"x": text, "type": "received", "received": 1},
            {"type": text},
            message("7", x="\\u0000" * 8000),
        ):
            self.assertLess(quickest(json.dumps(value).encode()), 50 * line, str(value)[:50])


def quickest(frame: bytes) -> float:
    def call() -> None:
        with contextlib.suppress(UnusableFrame):
            v2.decode(frame)

    return min(timeit.repeat(call, number=5, repeat=7))


class Properties(SynchronousTestCase):
    """Any bytes are decoded to a request or raise one kind of error, by the rules as they are stated elsewhere."""

    @settings(max_examples=500, deadline=None)
    @given(LIKE_A_REQUEST)
    def test_request_is_usable_exactly_if_it_keeps_the_rules(self, value: dict[str, Any]) -> None:
        try:
            request = decode(value)
        except UnusableRequest as refusal:
            self.assertFalse(is_usable(value), (value, refusal.detail))
            self.assertEqual(refusal.kind.value, value["type"])
            can_name = value["type"] in ANSWERED and is_token(value.get("id"))
            self.assertEqual(refusal.request_id, value["id"] if can_name else UNSET)
            json.loads(v2.error(refusal.reason, refusal.detail))
        else:
            self.assertTrue(is_usable(value), value)
            assert not isinstance(request, structs_v2.UnknownRequest)
            self.assertEqual(request.type, value["type"])

    @given(st.binary())
    def test_any_bytes_are_decoded_or_refused(self, frame: bytes) -> None:
        try:
            v2.decode(frame)
        except UnusableFrame as refusal:
            self.assertIsInstance(refusal.reason, Reason)

    @settings(deadline=None)
    @given(LIKE_A_REQUEST, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), max_size=4))
    def test_changed_request_is_decoded_or_refused(
        self, value: object, changes: list[tuple[float, int, bytes]]
    ) -> None:
        frame = json.dumps(value).encode()
        for share, size, piece in changes:
            at = int(share * len(frame))
            frame = frame[:at] + piece + frame[at + size :]
        try:
            v2.decode(frame)
        except UnusableFrame as refusal:
            self.assertIsInstance(refusal.reason, Reason)

    @given(TEXT, IDS, TEXT)
    def test_template_encodes_as_its_struct(self, id: str, stamp: object, content: str) -> None:
        if not is_token(stamp) or has_surrogate([id, content]):
            return
        sent = Message(7, "8", id, stamp, content, 12.3456, True)  # type: ignore[arg-type]
        inside = structs_v2.Delivered(stamp, "7", "8", content)  # type: ignore[arg-type]
        encode = msgspec.json.encode
        whole = structs_v2.Delivery(n=5, at=12345, id=id, message=inside)
        self.assertEqual(v2.delivery(sent, 5), encode(whole))
        sent.has_unique_id = False
        self.assertEqual(v2.delivery(sent, 5), encode(structs_v2.Delivery(n=5, at=12345, message=inside)))
        for delivered, word in ((True, "delivered"), (False, "stored")):
            outcome = structs_v2.Accepted(id, True, 5, 12345, word)  # type: ignore[arg-type]
            self.assertEqual(v2.accepted(id, 5, 12_345_678, delivered), encode(structs_v2.AcceptedResponse(outcome)))


def logged_message(content: str = "Hej", unique_id: str | None = ID) -> LoggedMessage:
    """Return a message from 7 to 8."""
    return LoggedMessage(9, "7", "8", 23, content, 1764271000123456, True, 1, 2, unique_id)


def logged(place: int, content: str = "Hej", unique_id: str | None = ID) -> InboxEntry:
    """Return an entry of an inbox with a message from 7 to 8."""
    return InboxEntry(place, logged_message(content, unique_id))


INSIDE = b'"message":{"timeStamp":23,"fromuID":"7","touID":"8","content":"Hej"}'


class Answers(SynchronousTestCase):
    """What chatrelay sends has exactly these keys, in this order."""

    def test_answer_to_the_login(self) -> None:
        limits = structs_v2.Limits(16384, 30, 10, 86400)
        answer = v2.logged_in(293482, "q7", 57, 1, True, 1764271000.1234, ["store"], limits, "r")
        self.assertEqual(
            answer,
            b'{"type":"auth-response","response":true,"uID":"293482","epoch":"q7","n":57,"first":1,"recovered":true,'
            b'"resume":"r","now":1764271000123,"features":["store"],'
            b'"limits":{"content":16384,"messageBurst":30,"messagesPerSecond":10,"again":86400}}',
        )
        answer = v2.logged_in("a", "q7", 0, 1, None, 1.0, [], limits)
        self.assertEqual(
            answer.partition(b',"limits"')[0],
            b'{"type":"auth-response","response":true,"uID":"a","epoch":"q7","n":0,"first":1,"now":1000,"features":[]',
        )
        self.assertEqual(
            v2.auth_response(False, Reason.LOG_UNAVAILABLE),
            b'{"type":"auth-response","response":false,"reason":"log-unavailable"}',
        )
        self.assertEqual(v2.auth_response(True), b'{"type":"auth-response","response":true}')

    def test_places(self) -> None:
        kept = b'{"type":"message","n":3,"at":1764271000123,"id":"0b9d-4711",' + INSIDE + b"}"
        self.assertEqual(v2.delivery(logged_message(), 3), kept)
        self.assertEqual(v2.delivery(logged_message(unique_id=None), 3), kept.replace(b'"id":"0b9d-4711",', b""))
        self.assertEqual(v2.void(4, 4), b'{"type":"void","n":4}')
        self.assertEqual(v2.void(3, 17), b'{"type":"void","from":3,"n":17}')
        self.assertEqual(v2.erased(61, ((3, 17), (40, 40))), b'{"type":"erased","n":61,"places":[[3,17],[40,40]]}')

    def test_live_delivery_is_byte_for_byte_what_the_log_gives_later(self) -> None:
        for id in (ID, None):
            sent = Message(7, "8", id or 5, 23, "Hej", 1764271000.123456, id is not None)
            self.assertEqual(v2.delivery(sent, 3), v2.delivery(logged_message(unique_id=id), 3))

    def test_outcomes(self) -> None:
        for kind, name in (
            (Kind.SEND_REQUEST, b"send-request-response"),
            (Kind.HISTORY_REQUEST, b"history-response"),
            (Kind.CONVERSATIONS_REQUEST, b"conversations-response"),
            (Kind.PRESENCE_REQUEST, b"presence-response"),
        ):
            self.assertEqual(
                v2.refused("i", Reason.BUSY, kind),
                b'{"type":"' + name + b'","response":{"id":"i","value":false,"reason":"busy"}}',
            )

    def test_history(self) -> None:
        entry = b'{"n":3,"at":1764271000123,"id":"0b9d-4711",' + INSIDE + b"}"
        page = Page([InboxEntry(4), logged(3)], False)
        self.assertEqual(
            v2.history("h1", 8, page, Marks(55, 50, 57)),
            b'{"type":"history-response","response":{"id":"h1","value":true,"with":"8","messages":['
            + entry
            + b'],"more":false,'
            b'"received":55,"read":50,"readByMe":57}}',
        )
        self.assertIn(b'"messages":[],"more":true}}', v2.history(1, "8", Page([], True), Marks()))

    def test_conversations(self) -> None:
        self.assertEqual(
            v2.conversations("c1", [("8", logged(3), Marks(UNSET, UNSET, 54, 3))], False),
            b'{"type":"conversations-response","response":{"id":"c1","value":true,"conversations":[{"with":"8","n":3,'
            b'"at":1764271000123,"id":"0b9d-4711",' + INSIDE + b',"unread":3,"readByMe":54}],"more":false}}',
        )

    def test_answer_that_would_be_too_large_is_cut_shorter(self) -> None:
        page = Page([logged(place, "\x01" * 16384) for place in (9, 8, 7, 6)], False)  # 96 KiB each, escaped
        answer = v2.history("\x01" * 64, "8", page, Marks(55, 50, 57))
        self.assertLess(len(answer), v2.MAX_ANSWER)
        self.assertEqual([each["n"] for each in json.loads(answer)["response"]["messages"]], [9, 8])
        self.assertTrue(json.loads(answer)["response"]["more"])
        found = [("8", entry, Marks()) for entry in page.entries]
        answer = v2.conversations("c", found, False)
        self.assertEqual(len(json.loads(answer)["response"]["conversations"]), 2)
        self.assertTrue(json.loads(answer)["response"]["more"])
        whole = v2.history("h", "8", Page(page.entries[:2], False), Marks())
        self.assertFalse(json.loads(whole)["response"]["more"])

    def test_first_entry_always_fits(self) -> None:
        answer = json.loads(v2.history("h", "8", Page([logged(2), logged(1)], False), Marks(), size=10))
        self.assertEqual(
            ([each["n"] for each in answer["response"]["messages"]], answer["response"]["more"]), ([2], True)
        )

    def test_events(self) -> None:
        self.assertEqual(v2.pong("p", 58), b'{"type":"pong","id":"p","last":58}')
        self.assertEqual(v2.pong(5, None), b'{"type":"pong","id":5}')
        self.assertEqual(v2.closing(codes.STOPPING, 1.5), b'{"type":"closing","code":4000,"retryAfter":1500}')
        self.assertEqual(
            v2.closing(codes.STOPPING, 0, "r"), b'{"type":"closing","code":4000,"retryAfter":0,"resume":"r"}'
        )
        self.assertEqual(v2.resume("r"), b'{"type":"resume","resume":"r"}')
        self.assertEqual(v2.receipt("7", 43, 41), b'{"type":"receipt","with":"7","received":43,"read":41}')
        self.assertEqual(v2.receipt("7", None, 41), b'{"type":"receipt","with":"7","read":41}')
        self.assertEqual(v2.read_mark("7", 57), b'{"type":"read","with":"7","read":57}')
        self.assertEqual(v2.presence("7", True), b'{"type":"presence","uID":"7","online":true}')
        self.assertEqual(v2.presence("7", False), b'{"type":"presence","uID":"7","online":false,"lastSeen":null}')
        self.assertEqual(v2.presence("7", False, 9), b'{"type":"presence","uID":"7","online":false,"lastSeen":9}')
        self.assertEqual(v2.typing("7"), b'{"type":"typing","fromuID":"7"}')
        self.assertEqual(
            v2.presences("p1", ["7"], {"8": 9, "9": None}),
            b'{"type":"presence-response","response":{"id":"p1","value":true,"online":["7"],"offline":{"8":9,"9":null}}}',
        )
        self.assertEqual(
            v2.error(Reason.INVALID_REQUEST, "no"), b'{"type":"error","reason":"invalid-request","detail":"no"}'
        )
