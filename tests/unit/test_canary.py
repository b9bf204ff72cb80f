"""No session id is in anything printed of the objects that know it, nor in a traceback through them.

tests/end_to_end/test_canary.py searches the output of a real relay.
"""

from __future__ import annotations

import base64
import gc
import types
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.logger import eventAsText, globalLogPublisher
from twisted.python.failure import Failure

from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.throttle import DenialCache
from chatrelay.config.options import Config
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.testing import HeldAuthenticator, HeldMessageLog
from chatrelay.websocket.factory import ChatFactory
from chatrelay.wire.structs import AuthRequest
from chatrelay.wire.v1 import decode
from tests.support import v2
from tests.support.memory import MemoryClient, Transport
from tests.support.relay_case import WebSocketTestCase, chat_factory
from tests.support.session_page_case import SessionPageTestCase

CANARY = "canary-7f3e91d0c4"

OURS = "chatrelay."


def what_is_printed_of(root: object) -> dict[str, str]:
    """Return repr and str of every object of our classes that can be reached from one object, by class."""
    seen: dict[int, object] = {}
    left = [root]
    while left:
        one = left.pop()
        # Modules, classes and code lead to the whole program, so they are not followed.
        if id(one) in seen or isinstance(one, type | types.ModuleType | types.CodeType | types.FrameType):
            continue
        seen[id(one)] = one
        if isinstance(one, types.FunctionType):
            left += [cell.cell_contents for cell in one.__closure__ or () if cell != types.CellType()]
        else:
            left += gc.get_referents(one)
    printed: dict[str, str] = {}
    for one in seen.values():
        if type(one).__module__.startswith(OURS) or isinstance(one, Deferred):
            name = type(one).__qualname__
            printed[name] = printed.get(name, "") + repr(one) + str(one)
    return printed


class Printed(WebSocketTestCase):
    """Every object of a factory with clients in every state."""

    def make_factory(self, authenticator: Any = None, **options: Any) -> ChatFactory:
        self.denials = DenialCache(b"key", 5)
        factory = super().make_factory(authenticator, logins_per_minute=3, **options)
        self.patch(factory.parts.logins.throttle, "_recent", self.denials)
        return factory

    def test_repr_of_every_object_has_no_session_id(self) -> None:
        held = HeldAuthenticator()
        self.factory = self.make_factory(held, session_cookie="sid", origin=("https://example.com",))
        clients = [
            self.client().open("Origin: https://example.com", f"Cookie: sid={CANARY}-cookie-{number}")
            for number in range(8)
        ]
        for client, verdict in zip(
            clients, (LoggedIn(1), LoggedIn(2, session=f"{CANARY}-handle"), Denied(), Unavailable("down")), strict=False
        ):
            client.say_login()
            held.answer(verdict)
        for client in clients[1:]:  # one logs in again; the others wait
            client.say_login(f"{CANARY}-{id(client)}")
        self.assertTrue(held.asked)
        printed = what_is_printed_of(self.factory)
        for name in (
            *("ChatFactory", "ChatProtocol", "Session", "Logins", "SessionIndex", "Rechecks", "_Recheck"),
            *("_SiteSession", "LoginThrottle"),
        ):
            self.assertIn(name, printed)
        for name in ("_Attempt", "_Address", "DenialCache", "Outbox", "Deferred", "_PendingLogin"):
            self.assertIn(name, printed)
        del printed["HeldAuthenticator"]  # the test's own
        self.assertEqual([name for name, text in printed.items() if CANARY in text], [])
        # The cache does not even keep the session id of a denied session itself.
        self.assertEqual(len(self.denials), 1)
        self.assertNotIn(CANARY, repr([vars(self.denials), gc.get_referents(self.denials)]))

    def test_repr_of_every_object_has_no_resume_token(self) -> None:
        held, message_log = HeldAuthenticator(), HeldMessageLog()
        self.factory = chat_factory(Config(ping_interval=0), self.clock, held, message_log)
        clients = [MemoryClient(self.factory, Transport()).open(v2.OFFER) for _ in range(4)]
        for client in clients[:2]:
            client.say(v2.login(f"{CANARY}-{id(client)}"))
            held.answer(LoggedIn(1, session=f"{CANARY}-handle"))
        (used,), (kept,) = (client.hear() for client in clients[:2])
        message_log.holds_inboxes = True
        clients[2].say(v2.login(f"{CANARY}-with a token", resume=used["resume"]))  # its inbox is being loaded
        clients[3].say(v2.login(f"{CANARY}-with another", resume="unusable"))  # the session page is asked
        printed = what_is_printed_of(self.factory)
        for name in ("SessionV2", "LoginRequest", "Resumption", "_Holder", "Grant", "Sealer", "_Login", "Revocations"):
            self.assertIn(name, printed)
        del printed["HeldAuthenticator"]  # the test's own
        for secret in (CANARY, used["resume"], kept["resume"]):
            self.assertEqual([name for name, text in printed.items() if secret in text], [])
        for token in (used["resume"], kept["resume"]):
            self.assertNotIn(CANARY.encode(), base64.urlsafe_b64decode(token))

    def test_repr_of_values_has_no_session_id(self) -> None:
        request = decode(f'{{"type":"auth-request","SESSID":"{CANARY}"}}'.encode())
        assert isinstance(request, AuthRequest)
        for value in (request, LoggedIn(1, session=CANARY), attrs.asdict(LoggedIn(1)), Denied(), Unavailable("down")):
            self.assertNotIn(CANARY, f"{value!r} {value}")


class Raising:
    """An authenticator that raises an exception with the session id."""

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Raise it, or fail with it."""
        try:
            try:
                raise KeyError(sessid)
            except KeyError as error:
                raise RuntimeError(f"no session {sessid}") from error
        except RuntimeError:
            if self.at_once:
                raise
            return fail(Failure(captureVars=True))


class Tracebacks(WebSocketTestCase):
    """An authenticator's exception is logged without its text."""

    def lines(self, authenticator: Any) -> str:
        """Return all that is logged of a login, with its events."""
        lines: list[str] = []

        def note(event: Any) -> None:
            lines.append(eventAsText(event))
            lines.append(repr({name: value for name, value in event.items() if name != "log_source"}))
            if "log_failure" in event:
                lines.append(event["log_failure"].getTraceback(detail="verbose"))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        self.factory = self.make_factory(authenticator)
        client = MemoryClient(self.factory).open()
        client.say_login(CANARY)
        lines.append(repr(client.hear()))
        client.lost()
        gc.collect()  # unhandled failures would be logged now
        return "\n".join(lines)

    def test_exception_of_an_authenticator_is_not_logged(self) -> None:
        for at_once in (True, False):
            said = self.lines(Raising(at_once))
            self.assertIn("an authenticator raised RuntimeError", said)
            self.assertIn("webserver-unavailable", said)
            self.assertNotIn(CANARY, said)


class SessionPage(SessionPageTestCase):
    """The session page's authenticator, with pending and waiting requests."""

    async def test_repr_of_every_object_has_no_session_id(self) -> None:
        self.reply = lambda conversation: None
        authenticator: SessionPageAuthenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate(f"{CANARY}-{number}") for number in (1, 1, 2)]
        printed = what_is_printed_of(authenticator)
        for name in ("SessionPageAuthenticator", "_Request", "Breaker", "DeadlineTimer", "Deadlines", "Deferred"):
            self.assertIn(name, printed)
        self.assertEqual([name for name, text in printed.items() if CANARY in text], [])
        for verdict in asking:
            verdict.addErrback(lambda _: None)
            verdict.cancel()
