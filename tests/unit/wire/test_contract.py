"""The contract of every dialect, as the relay and a session use it."""

from __future__ import annotations

import inspect
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import Dialect
from chatrelay.model import Message
from chatrelay.wire import v1
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import AuthRequest, Kind, SendRequest, UnusableFrame
from tests.support.v1 import encoded, login, message

TOKENS: tuple[str | int, ...] = ("", "21", 21, 0, -5, 2**53, "å € 😀")
"""Values that a client chooses, which come back unchanged."""

JUNK = (b"", b"junk", b"{}", b"[]", b"\x00", b"\xff\xfe", b"{" * 5000, b'{"type":"message"}')


class DialectContract:
    """The contract of every dialect. A subclass says how a client writes requests and reads answers."""

    assertEqual: Any
    assertIs: Any
    assertIsInstance: Any
    assertNotIsInstance: Any
    assertRaises: Any

    dialect: Dialect

    def auth_request(self, sessid: str | None) -> bytes:
        """Write a request to log in; None is one without a SESSID."""
        raise NotImplementedError

    def send_request(self, id: str | int, time_stamp: str | int, to: str | int, content: str) -> bytes:
        """Write a request to send a message."""
        raise NotImplementedError

    def read(self, payload: bytes) -> tuple[Any, ...]:
        """Return the kind of an answer or a delivery, and its values."""
        raise NotImplementedError

    def test_each_method_has_the_parameters_of_the_interface(self) -> None:
        names = [name for name, value in inspect.getmembers(Dialect, inspect.isfunction) if name[0] != "_"]
        self.assertEqual(len(names), 7)
        for name in names:
            _, *expected = inspect.signature(getattr(Dialect, name)).parameters.values()
            taken = inspect.signature(getattr(self.dialect, name)).parameters.values()
            self.assertEqual([each.default for each in taken], [each.default for each in expected], name)

    def test_request_to_log_in_is_decoded(self) -> None:
        request = self.dialect.decode(self.auth_request("a session"))
        assert isinstance(request, AuthRequest)
        self.assertEqual(request.sessid, "a session")
        request = self.dialect.decode(self.auth_request(None))
        assert isinstance(request, AuthRequest)
        self.assertNotIsInstance(request.sessid, str)
        self.assertIs(self.dialect.read_header(self.auth_request("a session")).kind, Kind.AUTH_REQUEST)

    def test_request_to_send_is_decoded_with_its_values_and_their_types(self) -> None:
        for token in TOKENS:
            payload = self.send_request(token, token, 7, "hej")
            request, header = self.dialect.decode(payload), self.dialect.read_header(payload)
            assert isinstance(request, SendRequest)
            self.assertEqual((request.message.to_uid, request.message.content), (7, "hej"))
            for value in (request.id, request.message.time_stamp, header.request_id):
                self.assertEqual((value, type(value)), (token, type(token)))
            self.assertIs(header.kind, Kind.SEND_REQUEST)

    def test_other_payloads_are_unusable_for_a_published_reason(self) -> None:
        for payload in JUNK:
            for read in (self.dialect.decode, self.dialect.read_header):
                problem = self.assertRaises(UnusableFrame, read, payload)
                self.assertIsInstance(problem.reason, Reason)
                self.assertIsInstance(problem.detail, str)

    def test_delivery_has_the_values_of_the_message_and_no_id(self) -> None:
        for token in TOKENS:
            delivered = self.read(self.dialect.delivery(Message("a", 2, "secret", token, 'å "€" 😀\n', 1.5)))
            self.assertEqual(delivered, ("delivery", "a", 2, token, 'å "€" 😀\n'))

    def test_outcome_of_a_message_has_the_id_of_its_request(self) -> None:
        for token in TOKENS:
            accepted = self.dialect.accepted(Message(1, 2, token, "t", "hej", 1.5))
            self.assertEqual(self.read(accepted), ("outcome", token, True, None))
            for reason in Reason:
                self.assertEqual(self.read(self.dialect.refused(token, reason)), ("outcome", token, False, reason))

    def test_answer_to_a_login_has_its_reason(self) -> None:
        self.assertEqual(self.read(self.dialect.auth_response(True)), ("login", True, None))
        self.assertEqual(self.read(self.dialect.auth_response(False)), ("login", False, None))
        for reason in Reason:
            self.assertEqual(self.read(self.dialect.auth_response(False, reason)), ("login", False, reason))

    def test_error_has_its_reason_and_detail(self) -> None:
        for reason in Reason:
            self.assertEqual(self.read(self.dialect.error(reason, 'not "å"')), ("error", reason, 'not "å"'))


class V1(DialectContract, SynchronousTestCase):
    """``chatrelay.v1``"""

    dialect = v1

    def auth_request(self, sessid: str | None) -> bytes:
        return encoded(login(sessid))

    def send_request(self, id: str | int, time_stamp: str | int, to: str | int, content: str) -> bytes:
        return encoded(message(to, content, id, time_stamp))

    def read(self, payload: bytes) -> tuple[Any, ...]:
        value = json.loads(payload.decode("utf-8"))
        match value:
            case {"type": "message", "message": {"fromuID": sender, "touID": to, "timeStamp": at, "content": content}}:
                return "delivery", sender, to, at, content
            case {"type": "send-request-response", "response": {"id": id, "value": is_sent, **rest}}:
                return "outcome", id, is_sent, rest.get("reason")
            case {"type": "auth-response", "response": is_logged_in, **rest}:
                return "login", is_logged_in, rest.get("reason")
            case {"type": "error", "reason": reason, "detail": detail}:
                return "error", reason, detail
        raise AssertionError(value)
