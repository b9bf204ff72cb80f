"""The codec: which frames are requests, which are not, and what chatrelay sends."""

from __future__ import annotations

import itertools
import json
import timeit

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import Message, user_key
from chatrelay.wire import v1 as wire
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import AuthRequest, Kind, SendRequest, UnusableFrame
from chatrelay.wire.v1 import decode

MAX = 2**53


def send_request(id: object = "21", time_stamp: object = "23", to: object = "7", content: object = "Hej") -> bytes:
    """Return a message-send-request as a client would write it."""
    message = {"timeStamp": time_stamp, "touID": to, "content": content}
    return json.dumps({"type": "message-send-request", "id": id, "message": message}).encode()


class Requests(SynchronousTestCase):
    """Frames that can be used."""

    def test_auth_request_is_decoded(self) -> None:
        for frame, sessid in (
            (b'{"type":"auth-request","SESSID":"aoeuaoeu"}', "aoeuaoeu"),
            (b'{"type":"auth-request","SESSID":"a","SESSID":"b"}', "b"),  # the last of doubled keys wins
            (rb'{"type":"auth-request","SESSID":"a\\u0000"}', "a\\u0000"),
            (rb'{"type":"auth-request","SESSID":"\ud83d\ude00"}', "😀"),
        ):
            self.assertEqual(decode(frame), AuthRequest("auth-request", sessid))
        request = decode(b'{"type":"auth-request"}')
        assert isinstance(request, AuthRequest)
        self.assertNotIsInstance(request.sessid, str)

    def test_added_keys_are_ignored(self) -> None:
        frame = b'{"x":[1,{"y":null}],"type":"auth-request","SESSID":"a","type2":1}'
        self.assertEqual(decode(frame), AuthRequest("auth-request", "a"))

    def test_repr_of_an_auth_request_hides_the_sessid(self) -> None:
        self.assertNotIn("aoeuaoeu", repr(decode(b'{"type":"auth-request","SESSID":"aoeuaoeu"}')))

    def test_id_and_timestamp_keep_their_type_and_value(self) -> None:
        for value in ("", "21", 21, 0, -5, MAX, -MAX, "x" * 64, "😀" * 64):
            request = decode(send_request(id=value, time_stamp=value))
            assert isinstance(request, SendRequest)
            self.assertEqual((request.id, request.message.time_stamp), (value, value))
            self.assertIs(type(request.id), type(value))

    def test_longest_values_are_accepted(self) -> None:
        self.assertEqual(
            decode(json.dumps({"type": "auth-request", "SESSID": "s" * 4096}).encode()),
            AuthRequest("auth-request", "s" * 4096),
        )
        for content in ("", "x" * 16384, "å" * 8192, "😀" * 4096):
            request = decode(send_request(content=content))
            assert isinstance(request, SendRequest)
            self.assertEqual(request.message.content, content)

    def test_user_key_is_the_same_for_string_and_integer(self) -> None:
        self.assertEqual(user_key(7), user_key("7"))
        self.assertNotEqual(user_key("07"), user_key(7))


class UnusableFrames(SynchronousTestCase):
    """Frames that can't be used, and how they are reported."""

    def refused(self, frame: bytes) -> UnusableFrame:
        """Decode, and return the refusal."""
        return self.assertRaises(UnusableFrame, decode, frame)

    def test_frame_that_is_not_a_json_object_is_invalid_json(self) -> None:
        for frame in (
            *(b"", b"x", b"[]", b"1", b"null", b'"auth-request"', b"{", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000),
            *(b'{"type":"auth-request"} x', b'{"type":"auth-request","x":NaN}'),
        ):
            self.assertEqual(self.refused(frame).reason, Reason.INVALID_JSON, frame[:20])

    def test_unknown_type_is_refused(self) -> None:
        for type in (b"1", b"null", b'"AUTH-REQUEST"', b'"message"', b'["auth-request"]'):
            frame = b'{"type":%b}' % type
            self.assertEqual(self.refused(frame).reason, Reason.UNKNOWN_TYPE, frame)
        self.assertEqual(self.refused(b"{}").reason, Reason.UNKNOWN_TYPE)

    def test_auth_request_out_of_bounds_is_invalid(self) -> None:
        for sessid in ("", "s" * 4097, 1, None, True, ["a"], "a\0b"):
            refusal = self.refused(json.dumps({"type": "auth-request", "SESSID": sessid}).encode())
            self.assertEqual(refusal.reason, Reason.INVALID_AUTH_REQUEST, sessid)
            self.assertFalse(refusal.send)

    def test_refused_sessid_is_not_in_the_detail(self) -> None:
        refusal = self.refused(json.dumps({"type": "auth-request", "SESSID": "secret" * 1000}).encode())
        self.assertNotIn("secret", refusal.detail)
        self.assertEqual(str(refusal), refusal.detail)

    def test_message_out_of_bounds_is_refused_under_its_id(self) -> None:
        bad: dict[str, tuple[object, ...]] = {
            "time_stamp": ("x" * 65, MAX + 1, -MAX - 1, 1.5, None, True),
            "to": (None, 1.0, MAX + 1, ["7"], "\0"),
            "content": (1, None, "x" * 16385, "å" * 8193, "😀" * 4096 + "x", "a\0b", "\ud800", "\udc00"),
        }
        for change in [{name: value} for name, values in bad.items() for value in values]:
            refusal = self.refused(send_request(id="21", **change))
            self.assertEqual((refusal.reason, refusal.send), (Reason.INVALID_MESSAGE, True), change)
            self.assertEqual(refusal.request_id, "21", change)

    def test_message_without_a_readable_id_is_refused_without_one(self) -> None:
        for id in ("x" * 65, MAX + 1, 1.5, None, True, [], {}, "a\0", "\ud800"):
            refusal = self.refused(send_request(id=id))
            self.assertEqual((refusal.reason, refusal.send), (Reason.INVALID_MESSAGE, True), id)
            self.assertNotIsInstance(refusal.request_id, str | int)
        refusal = self.refused(b'{"type":"message-send-request"}')
        self.assertNotIsInstance(refusal.request_id, str | int)

    def test_nul_is_refused_in_ignored_keys_too(self) -> None:
        for frame in (
            rb'{"type":"auth-request","SESSID":"a","x":"\u0000"}',
            rb'{"type":"auth-request","SESSID":"a","\u0000":1}',
            rb'{"type":"auth-request","SESSID":"a","x":["\\\u0000"]}',
            b'{"type":"auth-request","SESSID":"a","x":"\0"}',
        ):
            self.refused(frame)

    def test_nul_is_found_behind_every_run_of_backslashes(self) -> None:
        for pieces in range(6):
            for inside in map("".join, itertools.product(("\\", "u0000", "x"), repeat=pieces)):
                try:
                    holds = "\0" in json.loads(f'"{inside}"')
                except ValueError:
                    continue
                frame = b'{"type":"auth-request","SESSID":"a","x":"' + inside.encode() + b'"}'
                if holds:
                    self.refused(frame)
                else:
                    self.assertEqual(decode(frame), AuthRequest("auth-request", "a"), inside)

    def test_escapes_take_little_time(self) -> None:
        # Everything after an escaped character was once scanned byte by byte, at a hundred times the cost of the rest.
        text = "x" * 60_000
        lines, line = (b'{"type":"auth-request","SESSID":"a","x":"%s"}' % (text + end).encode() for end in ("\\n", "n"))
        many = b'{"type":"auth-request","SESSID":"a","x":"%s"}' % (rb"\\u0000" * 8000)
        for frame in (lines, many):
            self.assertLess(quickest(frame), 50 * quickest(line))

    def test_lone_surrogate_is_refused_in_ignored_keys_too(self) -> None:
        for lone in (rb"\ud800", rb"\udc00", rb"\ud800x", rb"\ud800\u0041", rb"\udfff\ud800"):
            self.refused(rb'{"type":"auth-request","SESSID":"a","x":"' + lone + b'"}')
            self.refused(rb'{"type":"auth-request","SESSID":"a","' + lone + b'":1}')

    def test_integer_of_thousands_of_digits_is_out_of_bounds(self) -> None:
        many = "9" * 5000
        frame = send_request(id=1, time_stamp="many").replace(b'"many"', many.encode())
        refusal = self.refused(frame)
        self.assertEqual((refusal.reason, refusal.send, refusal.request_id), (Reason.INVALID_MESSAGE, True, 1))

    def test_unknown_type_is_not_in_the_detail(self) -> None:
        self.assertNotIn("zzz", self.refused(b'{"type":"zzz"}').detail)


def quickest(frame: bytes) -> float:
    return min(timeit.repeat(lambda: decode(frame), number=5, repeat=7))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
LIKE_A_REQUEST = st.fixed_dictionaries(
    {"type": st.sampled_from(["auth-request", "message-send-request", "message"]) | JSON},
    optional={
        "SESSID": JSON | st.text(),
        "id": JSON | st.text(max_size=70),
        "message": JSON
        | st.fixed_dictionaries({"timeStamp": JSON, "touID": JSON | st.integers(), "content": JSON | st.text()}),
    },
)
TOKENS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=64) | st.integers(
    -MAX, MAX
)
UIDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.integers(-MAX, MAX)
CONTENTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4096)


class Properties(SynchronousTestCase):
    """Any bytes are decoded to an object or raise one kind of error."""

    def in_or_refused(self, frame: bytes) -> None:
        """Decode, and check that the result is a request or `UnusableFrame`."""
        try:
            request = decode(frame)
        except UnusableFrame as refusal:
            self.assertIsInstance(refusal.reason, Reason)
            # The answer can be encoded, whatever was received.
            json.loads(wire.error(refusal.reason, refusal.detail))
        else:
            self.assertIsInstance(request, AuthRequest | SendRequest)

    @given(st.binary())
    def test_any_bytes_are_decoded_or_refused(self, frame: bytes) -> None:
        self.in_or_refused(frame)

    @given(LIKE_A_REQUEST)
    def test_anything_like_a_request_is_decoded_or_refused(self, value: object) -> None:
        self.in_or_refused(json.dumps(value).encode())

    @given(st.data())
    def test_good_frame_with_changed_bytes_is_decoded_or_refused(self, data: st.DataObject) -> None:
        frame = bytearray(data.draw(st.sampled_from([send_request(), b'{"type":"auth-request","SESSID":"a"}'])))
        for _ in range(data.draw(st.integers(1, 4))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        self.in_or_refused(bytes(frame))

    @given(TOKENS, TOKENS, UIDS, CONTENTS)
    def test_good_message_is_delivered_unchanged(
        self, id: object, time_stamp: object, to: object, content: object
    ) -> None:
        request = decode(send_request(id, time_stamp, to, content))
        assert isinstance(request, SendRequest)
        message = request.message
        delivered = json.loads(
            wire.delivery(Message(1, message.to_uid, request.id, message.time_stamp, message.content, 0.0))
        )
        self.assertEqual(
            delivered,
            {"type": "message", "message": {"timeStamp": time_stamp, "fromuID": 1, "touID": to, "content": content}},
        )
        self.assertEqual(json.loads(wire.accepted(Message(1, 2, request.id, 3, "", 0.0)))["response"]["id"], id)


class Meant:
    """The meaning of a frame as Python's own JSON decoder finds it, which is slow and reads lone surrogates."""

    def __init__(self, frame: bytes) -> None:
        self.reason = Reason.INVALID_JSON
        self.id: object = None
        try:
            value = json.loads(frame.decode(), parse_int=self._integer, parse_constant=self._refuse)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            reasons = {
                "auth-request": Reason.INVALID_AUTH_REQUEST,
                "message-send-request": Reason.INVALID_MESSAGE,
            }
            kind = value.get("type")
            self.reason = reasons.get(kind, Reason.UNKNOWN_TYPE) if isinstance(kind, str) else Reason.UNKNOWN_TYPE
            if self.reason is Reason.INVALID_MESSAGE and self._is_token(value.get("id")):
                self.id = value["id"]

    @staticmethod
    def _integer(digits: str) -> int:
        return int(digits) if len(digits) < 20 else MAX + 1

    @staticmethod
    def _refuse(name: str) -> None:
        raise ValueError(name)

    @staticmethod
    def _is_token(value: object) -> bool:
        if isinstance(value, str):
            return len(value) <= 64 and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
        return type(value) is int and abs(value) <= MAX


FRAGMENTS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b'"type":', b'"id":', b'"ic":', b'"message":', b'"content":'),
    *(b'"SESSID":', b'"auth-request"', b'"message-send-request"', b'"wave"', b'"x":1,', b'"id":2,', b'"type":"wave",'),
    *(b'"\\u0069d":3,', b"\\ud83d", b"\\ude00", b"\\uD83D\\uDE00", b"\\\\", b'\\"', b"\\u0000", b"\\ucafe", b"\\uDEAD"),
    *(b"\\u12", b"\\n", b"\\", b"1", b"-0", b"1e3", b"1.0", b"9007199254740993", b"9" * 30, b"null", b"true", b"NaN"),
    *(b"u", b"ud", b"\\\\ud83d", b" ", b"\n", b"\x01", "å".encode(), "😀".encode(), b'"\\ud83d":0,', b"[[[{}]]]"),
    b"\xef\xbb\xbf",
)
REQUESTS = (
    b'{"type":"auth-request","SESSID":"a","x":"\\ud83d"}',
    b'{"type":"message-send-request","id":"21","message":{"timeStamp":"23","touID":"7","content":"Hej\\ud83d"}}',
    b'{"type":"message-send-request","id":"\\ud83d\\ude00\\\\ud83D","message":null,"x":"\\uDEAD"}',
    b'{"id":5,"x":[1,{"id":6}],"type":"message-send-request"}',
    b'{"type":"wave","x":"\\udead"}',
)


class Diagnosis(SynchronousTestCase):
    """The diagnosis of a frame that can't be used: the same as by Python's own decoder, at less cost."""

    def compare(self, frame: bytes) -> None:
        """Check that both decoders diagnose a frame that can't be used in the same way."""
        meant = Meant(frame)
        try:
            decode(frame)
        except UnusableFrame as refusal:
            request_id = None if isinstance(refusal.request_id, UnsetType) else refusal.request_id
            self.assertEqual(
                (refusal.reason, type(request_id), request_id), (meant.reason, type(meant.id), meant.id), frame
            )
            self.assertEqual(refusal.send, refusal.reason is Reason.INVALID_MESSAGE)
        try:
            header = wire.read_header(frame)
        except UnusableFrame as refusal:
            self.assertEqual(refusal.reason, meant.reason, frame)
        else:
            reasons = {
                Kind.AUTH_REQUEST: Reason.INVALID_AUTH_REQUEST,
                Kind.SEND_REQUEST: Reason.INVALID_MESSAGE,
            }
            self.assertEqual(reasons[header.kind], meant.reason, frame)
            if header.kind is Kind.SEND_REQUEST:
                request_id = None if isinstance(header.request_id, UnsetType) else header.request_id
                self.assertEqual((type(request_id), request_id), (type(meant.id), meant.id), frame)

    @settings(max_examples=1000, deadline=None)
    @given(
        st.sampled_from(REQUESTS),
        st.lists(st.tuples(st.integers(0, 120), st.integers(0, 4), st.sampled_from(FRAGMENTS))),
    )
    def test_changed_request_is_read_as_python_reads_it(
        self, frame: bytes, changes: list[tuple[int, int, bytes]]
    ) -> None:
        for at, size, fragment in changes[:4]:
            frame = frame[:at] + fragment + frame[at + size :]
        try:
            frame.decode("utf-8")
        except UnicodeDecodeError:
            return  # no text message
        self.compare(frame)

    @given(LIKE_A_REQUEST)
    def test_anything_like_a_request_is_read_as_python_reads_it(self, value: object) -> None:
        self.compare(json.dumps(value).encode())

    def test_id_beside_a_lone_surrogate_is_what_was_sent(self) -> None:
        for id in (
            *(
                *(b'"\\ud83d\\ude00"', b'"\\\\ud83d"', b'"\\\\uD83D"', b'"\\ucafe\\uCAFE"', b'"\\uD55C"', b"-5"),
                b'"ud83d"',
            ),
        ):
            frame = b'{"type":"message-send-request","id":%b,"message":"\\ud83d"}' % id
            self.assertEqual(self.assertRaises(UnusableFrame, decode, frame).request_id, json.loads(id))

    def test_no_other_key_is_taken_for_the_id_beside_a_lone_surrogate(self) -> None:
        others = rb'"ic":7,"iC":7,"i\u0063":7,"i\u0043":7,"iD":7,"i\u00dd":7,"i\u00DD":7,"i3":7,"i2":7'
        end = rb',"type":"message-send-request","message":"\ud83d"}'
        self.assertIs(self.refused_id(b"{" + others + end), UNSET)
        for key in (b'"id":5', rb'"\u0069d":5', rb'"i\u0064":5'):
            for members in (key + b"," + others, others + b"," + key):
                self.compare(b"{" + members + end)
                self.assertEqual(self.refused_id(b"{" + members + end), 5)

    def test_id_written_in_two_ways_beside_a_lone_surrogate_is_not_read(self) -> None:
        frame = rb'{"type":"message-send-request","id":1,"i\u0064":2,"message":"\ud83d"}'
        self.assertIs(self.refused_id(frame), UNSET)

    def refused_id(self, frame: bytes) -> object:
        return self.assertRaises(UnusableFrame, decode, frame).request_id

    def test_read_header_reads_type_and_id_only(self) -> None:
        header = wire.read_header(b'{"type":"message-send-request","message":5,"id":1,"id":"2","x":{"id":3}}')
        self.assertEqual(header, (Kind.SEND_REQUEST, "2"))
        self.assertEqual(wire.read_header(b'{"type":"auth-request","SESSID":5}').kind, Kind.AUTH_REQUEST)


class Answers(SynchronousTestCase):
    """What chatrelay sends has exactly these keys, in this order."""

    def test_auth_response_has_its_keys_and_no_others(self) -> None:
        self.assertEqual(wire.auth_response(True), b'{"type":"auth-response","response":true}')
        self.assertEqual(wire.auth_response(False), b'{"type":"auth-response","response":false}')
        self.assertEqual(
            wire.auth_response(False, Reason.LOGIN_PENDING),
            b'{"type":"auth-response","response":false,"reason":"login-pending"}',
        )

    def test_delivery_has_its_keys_and_no_others(self) -> None:
        self.assertEqual(
            wire.delivery(Message("293482", "234324", "21", "23", "Hej", 0.0)),
            b'{"type":"message","message":{"timeStamp":"23","fromuID":"293482","touID":"234324","content":"Hej"}}',
        )

    def test_send_response_has_its_keys_and_no_others(self) -> None:
        self.assertEqual(
            wire.accepted(Message(1, 2, "21", 3, "", 0.0)),
            b'{"type":"send-request-response","response":{"id":"21","value":true}}',
        )
        self.assertEqual(
            wire.refused(21, Reason.RECEIVING_USER_NOT_CONNECTED),
            b'{"type":"send-request-response","response":{"id":21,"value":false,"reason":"receiving-user-not-connected"}}',
        )

    def test_error_has_its_keys_and_no_others(self) -> None:
        self.assertEqual(
            wire.error(Reason.INVALID_JSON, "no"), b'{"type":"error","reason":"invalid-json","detail":"no"}'
        )
