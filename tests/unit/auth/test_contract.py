"""The contract of every authenticator, and those of its optional parts."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from chatrelay.interfaces import Abandons, Authenticator, Startable, TicketAuthenticator
from chatrelay.model import MAX_SESSID, Denied, LoggedIn, Unavailable, Verdict
from chatrelay.testing import HeldAuthenticator, KnownSessions
from examples import embedded, twisted_web_site
from tests.fuzz.world import BareSite
from tests.support.session_page_case import Conversation, SessionPageTestCase, response, sleep

USERS: dict[str, str | int] = {"good": "7", "other": "8"}

ODD = ("GOOD", " good", "good ", "good&", "good\n", "%67ood", "x=good", '"}', "\0", "ö € 😀", "x" * MAX_SESSID)
"""SESSIDs that are not among those of `USERS`."""


async def outcome(asking: Awaitable[Verdict]) -> Verdict | None:
    """Return the verdict, or None for a request that was cancelled."""
    try:
        return await asking
    except CancelledError:
        return None


class AuthenticatorContract:
    """The contract of every authenticator. Those that answer at once have no pending requests to hold."""

    assertEqual: Any
    assertIn: Any
    assertIsInstance: Any

    def make(self) -> Authenticator:
        """Return an authenticator that knows the sessions of `USERS`."""
        raise NotImplementedError

    def ask(self, authenticator: Any, sessid: str) -> Deferred[Verdict]:
        """Ask about a SESSID."""
        asking: Deferred[Verdict] = authenticator.authenticate(sessid)
        return asking

    def hold(self) -> None:
        """Answer no request from now on."""

    async def arrived(self, count: int) -> None:
        """Wait until this many held requests have arrived."""

    async def gave_up(self) -> None:
        """Wait until the one held request was given up."""

    def release(self) -> None:
        """Answer the held requests, and from now on all at once."""

    async def test_known_session_is_logged_in(self) -> None:
        verdict = await self.ask(self.make(), "good")
        self.assertEqual(verdict, LoggedIn("7"))
        assert isinstance(verdict, LoggedIn)
        self.assertEqual(verdict.user, "7")

    async def test_unknown_session_is_denied(self) -> None:
        self.assertEqual(await self.ask(self.make(), "bad"), Denied())

    async def test_denied_session_does_not_affect_others(self) -> None:
        authenticator = self.make()
        for _ in range(3):
            self.assertEqual(await self.ask(authenticator, "bad"), Denied())
            self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))

    async def test_unusual_sessid_is_denied_without_an_error(self) -> None:
        authenticator = self.make()
        for sessid in ODD:
            self.assertEqual(await self.ask(authenticator, sessid), Denied(), repr(sessid))

    async def test_simultaneous_logins_get_their_own_verdicts(self) -> None:
        authenticator = self.make()
        asking = [self.ask(authenticator, sessid) for sessid in ("good", "bad", "other", "good")]
        expected = [LoggedIn("7"), Denied(), LoggedIn("8"), LoggedIn("7")]
        self.assertEqual([await each for each in asking], expected)

    async def test_cancelled_request_fails_alone(self) -> None:
        authenticator = self.make()
        self.hold()
        leaving, same, other = (self.ask(authenticator, sessid) for sessid in ("good", "good", "other"))
        leaving.cancel()
        self.release()
        self.assertIn(await outcome(leaving), (None, LoggedIn("7")))
        self.assertEqual([await same, await other], [LoggedIn("7"), LoggedIn("8")])
        self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))

    async def test_cancelled_request_is_given_up(self) -> None:
        authenticator = self.make()
        self.hold()
        leaving = self.ask(authenticator, "good")
        await self.arrived(1)
        leaving.cancel()
        self.assertIn(await outcome(leaving), (None, LoggedIn("7")))
        await self.gave_up()
        self.release()
        self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))

    async def test_cancelling_after_the_verdict_changes_nothing(self) -> None:
        asking = self.ask(self.make(), "good")
        self.assertEqual(await asking, LoggedIn("7"))
        asking.cancel()
        self.assertEqual(await asking, LoggedIn("7"))


class AbandonsContract(AuthenticatorContract):
    """The contract of an authenticator that is notified when nobody waits for a verdict any more."""

    def test_authenticator_with_give_up_is_recognised(self) -> None:
        self.assertIsInstance(self.make(), Abandons)

    async def test_abandoned_request_ends_without_another_failure(self) -> None:
        authenticator: Any = self.make()
        self.hold()
        leaving, other = self.ask(authenticator, "good"), self.ask(authenticator, "other")
        await self.arrived(2)
        authenticator.give_up(leaving)
        authenticator.give_up(leaving)
        self.release()
        self.assertIn(await outcome(leaving), (None, LoggedIn("7")))
        self.assertEqual(await other, LoggedIn("8"))
        self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))

    async def test_giving_up_after_the_verdict_changes_nothing(self) -> None:
        authenticator: Any = self.make()
        asking = self.ask(authenticator, "good")
        self.assertEqual(await asking, LoggedIn("7"))
        authenticator.give_up(asking)
        self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))


class StartableContract(AuthenticatorContract):
    """The contract of an authenticator that is notified when the relay starts and stops."""

    def test_startable_authenticator_is_recognised(self) -> None:
        self.assertIsInstance(self.make(), Startable)

    async def test_verdicts_come_during_the_startup_check(self) -> None:
        authenticator: Any = self.make()
        authenticator.startup_check()
        self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))

    async def test_pending_startup_check_can_be_stopped_more_than_once(self) -> None:
        authenticator: Any = self.make()
        self.hold()
        authenticator.startup_check()
        authenticator.stop_startup_check()
        authenticator.stop_startup_check()
        self.assertEqual(await authenticator.close(), None)

    async def test_startup_check_that_was_not_begun_can_be_stopped(self) -> None:
        authenticator: Any = self.make()
        authenticator.stop_startup_check()
        self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))

    async def test_close_ends_pending_requests_without_another_failure(self) -> None:
        authenticator: Any = self.make()
        self.hold()
        asking = [self.ask(authenticator, sessid) for sessid in ("good", "other")]
        await self.arrived(2)
        self.assertEqual(await authenticator.close(), None)
        for each in asking:
            self.assertIsInstance(await outcome(each), Unavailable | None)

    async def test_closed_authenticator_starts_again(self) -> None:
        authenticator: Any = self.make()
        for _ in range(2):
            authenticator.startup_check()
            self.assertEqual(await self.ask(authenticator, "good"), LoggedIn("7"))
            self.assertEqual(await authenticator.close(), None)


class TicketAuthenticatorContract(AuthenticatorContract):
    """The contract of an authenticator for tickets: the general contract, with the method for tickets."""

    def ask(self, authenticator: Any, sessid: str) -> Deferred[Verdict]:
        asking: Deferred[Verdict] = authenticator.authenticate_ticket(sessid)
        return asking

    def test_ticket_authenticator_is_recognised(self) -> None:
        self.assertIsInstance(self.make(), TicketAuthenticator)


class Known(AuthenticatorContract, TestCase):
    """The stand-in that answers at once."""

    def make(self) -> KnownSessions:
        return KnownSessions(USERS)


class ExampleEmbedded(AuthenticatorContract, TestCase):
    """The authenticator of examples/embedded.py."""

    def make(self) -> embedded.Sessions:
        return embedded.Sessions(USERS)


class ExampleSite(AuthenticatorContract, TestCase):
    """The authenticator of examples/twisted_web_site.py."""

    def make(self) -> twisted_web_site.Sessions:
        return twisted_web_site.Sessions({sessid: str(uid) for sessid, uid in USERS.items()})


class ReleasedByHand(AuthenticatorContract):
    """The contract of an authenticator that waits for the test: unless it is to hold a request, it is released at once."""

    is_holding = False

    def ask(self, authenticator: Any, sessid: str) -> Deferred[Verdict]:
        asking = super().ask(authenticator, sessid)
        if not self.is_holding:
            self.release()
        return asking

    def hold(self) -> None:
        self.is_holding = True


class Held(ReleasedByHand, TestCase):
    """The stand-in that answers when the test says so; unless it is to hold a request, it says so at once."""

    def setUp(self) -> None:
        self.authenticator = HeldAuthenticator()

    def make(self) -> HeldAuthenticator:
        return self.authenticator

    async def gave_up(self) -> None:
        self.assertEqual((self.authenticator.cancelled, self.authenticator.asked), (["good"], []))

    def release(self) -> None:
        self.is_holding = False
        while self.authenticator.asked:
            sessid, _ = self.authenticator.asked[0]
            self.authenticator.answer(LoggedIn(USERS[sessid]) if sessid in USERS else Denied())


class FuzzedSite(ReleasedByHand, TestCase):
    """The authenticator of the fuzzed scenarios without any protection."""

    def setUp(self) -> None:
        self.site = BareSite()

    def make(self) -> BareSite:
        return self.site

    async def gave_up(self) -> None:
        self.assertEqual(self.site.pending, [])

    def release(self) -> None:
        self.is_holding = False
        while self.site.pending:
            sessid, asking = self.site.pending.pop(0)
            asking.callback(LoggedIn(USERS[sessid]) if sessid in USERS else Denied())


class SessionPageCase(SessionPageTestCase):
    """A site that knows the sessions of `USERS`."""

    def setUp(self) -> None:
        super().setUp()
        self.held: list[tuple[Conversation, bytes]] = []
        self.reply = self.answer

    def make(self) -> Authenticator:
        return self.authenticator()

    def answer(self, conversation: Conversation) -> None:
        conversation.write(self.verdict())

    def verdict(self) -> bytes:
        """Return the response to the request that came last."""
        (sessid,) = parse_qs(self.requests[-1][2].decode("ascii"), strict_parsing=True)["SESSID"]
        body = (
            b'{"loggedin":true,"uID":"%b"}' % str(USERS[sessid]).encode() if sessid in USERS else b'{"loggedin":false}'
        )
        return response(body)

    def hold(self) -> None:
        self.reply = lambda conversation: self.held.append((conversation, self.verdict()))

    async def arrived(self, count: int) -> None:
        while len(self.held) < count:
            await sleep(0.005)

    async def gave_up(self) -> None:
        ((conversation, _),) = self.held
        await conversation.gone
        self.held.clear()

    def release(self) -> None:
        self.reply = self.answer
        for conversation, verdict in self.held:
            conversation.write(verdict)
        self.held.clear()


class SessionPage(SessionPageCase, AbandonsContract, StartableContract):
    """The authenticator that asks a site's session page."""


class SessionPageTickets(SessionPageCase, TicketAuthenticatorContract):
    """The same, asked about tickets."""
