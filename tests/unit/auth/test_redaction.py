"""No session id is logged, in whatever form a site repeats it."""

from __future__ import annotations

import html
import json
import time
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor as untyped_reactor

from chatrelay.auth.redaction import MAX_SEARCHED_BYTES, NOT_SHOWN, redacted, without
from chatrelay.auth.verdicts import InvalidAnswer
from chatrelay.model import Unavailable
from tests.support.relay_case import logged_events
from tests.support.session_page_case import SessionPageTestCase, response

reactor: Any = untyped_reactor


class Redaction(SessionPageTestCase):
    """What the operator may read of a response."""

    async def test_invalid_response_logs_one_message(self) -> None:
        events = logged_events(self)
        self.respond_with(response(b"<html>"))
        await self.failure()
        ours = [event for event in events if event.get("log_namespace", "").startswith("chatrelay")]
        self.assertEqual(len(ours), 1)
        self.assertEqual(ours[0]["url"], self.url.removesuffix("?x=1"))
        self.assertIn("<html>", ours[0]["what"])
        self.assertNotIn("sid", str(ours[0]).replace("inside", ""))

    async def test_session_id_in_a_response_is_not_logged(self) -> None:
        events = logged_events(self)
        sessid = "CANARY/å +"
        back = [sessid.encode(), b"CANARY%2F%C3%A5%20%2B", b"CANARY%2F%C3%A5+%2B", b"CANARY/%C3%A5%20%2B"]
        for form in back:
            for raw in (
                response(b"unknown session " + form),
                response(b"x" * 190 + form),
                response(b"", "302 Found", "Location: /login?PHPSESSID=" + form.decode()),
                response(b"", "302 Found", "Location: /login;" + form.decode()),
                b"HTTP/1.1 " + form + b"\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: " + form + b"\r\n\r\n",
            ):
                self.respond_with(raw)
                got = await self.authenticator(timeout=1).authenticate(sessid)
                self.assertIsInstance(got, Unavailable)
                self.assertNotIn("CANARY", str(got))
        self.flushLoggedErrors()
        self.assertNotIn("CANARY", "".join(str(event) for event in events))

    def test_pieces_of_a_session_id_in_a_response_are_not_logged(self) -> None:
        sessid = "left0123456789é'/+right0123456789"
        for text, left in (
            ("no session left01234567...", "no session <SESSID>..."),
            ("no session ...ght0123456789", "no session ...<SESSID>"),
            ("left012345, 0123456789é'/+righ, right012", "<SESSID>, <SESSID>, <SESSID>"),
            ("no session left012", "no session left012"),  # seven characters occur in many words
            (json.dumps({"s": sessid}), '{"s": "<SESSID>"}'),
            (ascii(json.dumps({"s": sessid})), r"""'{"s": "<SESSID>\<SESSID>"}'"""),  # Python quotes a quote
            (html.escape(sessid), "<SESSID>"),
            ("no session", "no session"),
            ("", ""),
        ):
            self.assertEqual(without(sessid, text), left)
        long = "é" * 4096
        for text in (long, ascii(long), json.dumps(long), quote(long)):
            self.assertLess(len(without(long, text[:2000])), 20)
        self.assertEqual(without("x", "an x"), "an <SESSID>")

    def test_response_about_a_long_session_id_is_not_quoted(self) -> None:
        for sessid, said in (
            ("a" * MAX_SEARCHED_BYTES, "<html>"),
            ("a" * (MAX_SEARCHED_BYTES + 1), NOT_SHOWN),
            ("é" * 65, NOT_SHOWN),
        ):
            self.assertEqual(redacted(InvalidAnswer("not JSON: ", "<html>", "."), sessid), f"not JSON: {said}.")

    def test_redaction_of_a_long_session_id_takes_no_time(self) -> None:
        # The client chooses the session id. The search for its pieces once blocked the relay for 300 ms.
        for error in (InvalidAnswer("it answered with status 500"), InvalidAnswer("it is not JSON: ", "<html>" * 1000)):
            for sessid in ("😀" * 4096, "\"&<'" * 1024, '"&<' * (MAX_SEARCHED_BYTES // 3)):
                seconds = []
                for _ in range(5):
                    began = time.perf_counter()
                    redacted(error, sessid)
                    seconds.append(time.perf_counter() - began)
                self.assertLess(min(seconds), 0.01)

    async def test_session_id_in_a_utf_16_response_is_not_logged(self) -> None:
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            self.respond_with(response("no session CANARY-0123456789".encode(encoding)))
            got = await self.authenticator().authenticate("CANARY-0123456789")
            assert isinstance(got, Unavailable)
            self.assertIn("no session <SESSID>", got.why)
