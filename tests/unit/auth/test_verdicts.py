"""What the body of a response means, as a pure function."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor as untyped_reactor
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.verdicts import InvalidAnswer, judge_body
from chatrelay.model import Denied, LoggedIn, is_uid

reactor: Any = untyped_reactor


class Verdicts(SynchronousTestCase):
    """The verdict of a body."""

    def test_uid_is_a_short_printable_string_or_an_integer(self) -> None:
        for uid in (0, -1, 2**53, -(2**53), "7", "a" * 64, "å b", "名前"):
            self.assertTrue(is_uid(uid), uid)
        for not_uid in ("", "a" * 65, "a\n", "a\0", "\ud800", 2**53 + 1, -(2**53) - 1, 1.0, True, None, [], {}):
            self.assertFalse(is_uid(not_uid), not_uid)
            self.assertRaises(ValueError, LoggedIn, not_uid)

    def test_session_of_a_response_is_a_sessid(self) -> None:
        for session in ("x", "x" * 4096, "å\U0001f511"):
            self.assertEqual(
                judge_body(json.dumps({"loggedin": True, "uID": 7, "session": session}).encode()),
                LoggedIn(7, session=session),
            )
        self.assertEqual(judge_body(b'{"loggedin":true,"uID":7,"session":null}'), LoggedIn(7))
        for session in ("", "CANARY" * 1000, 7, True, ["CANARY"], "CANARY\ud83d"):
            error = self.assertRaises(ValueError, LoggedIn, 7, session=session)
            self.assertNotIn("CANARY", str(error))
        for session in ("", "CANARY" * 1000, 7, ["CANARY"]):
            error = self.assertRaises(
                InvalidAnswer, judge_body, json.dumps({"loggedin": True, "uID": 7, "session": session}).encode()
            )
            self.assertNotIn("CANARY", str(error))
        self.assertNotIn("CANARY", repr(LoggedIn(7, session="CANARY")))

    def test_session_of_a_response_is_not_quoted(self) -> None:
        for body in (
            b'{"loggedin":true,"uID":"","session":"CANARY"}',
            b'{"loggedin":true,"uID":7,"expires_in":0,"session" : "\\"CANARY"}',
            b'{"loggedin":1,"session":"CANARY',
            b'<br>Warning: x<br>{"session":"CANARY"}',
        ):
            error = self.assertRaises(InvalidAnswer, judge_body, body)
            self.assertIn("<hidden>", str(error))
            self.assertNotIn("CANARY", str(error))

    def test_expires_in_is_a_positive_number(self) -> None:
        for seconds in (1, 0.5, 3600, 2**31 - 1):
            self.assertEqual(
                judge_body(json.dumps({"loggedin": True, "uID": 7, "expires_in": seconds}).encode()),
                LoggedIn(7, seconds),
            )
        self.assertEqual(judge_body(b'{"loggedin":true,"uID":7,"expires_in":null}'), LoggedIn(7))
        for seconds in (0, -1, 2**31, "60", True, [], float("nan"), float("inf")):
            self.assertRaises(ValueError, LoggedIn, 7, seconds)

    @settings(deadline=None)  # the first call is slow, as it builds what later calls reuse
    @given(st.binary(max_size=200))
    def test_any_body_is_a_verdict_or_an_invalid_answer(self, body: bytes) -> None:
        try:
            self.assertIsInstance(judge_body(body), LoggedIn | Denied)
        except ValueError as error:
            self.assertIn("response", str(error))

    @settings(deadline=None)
    @given(
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)
    )
    def test_only_json_true_is_a_login(self, loggedin: object) -> None:
        body = json.dumps({"loggedin": loggedin, "uID": 7}).encode()
        if loggedin is True:
            self.assertEqual(judge_body(body), LoggedIn(7))
        elif loggedin is False:
            self.assertEqual(judge_body(body), Denied())
        else:
            self.assertRaises(InvalidAnswer, judge_body, body)
