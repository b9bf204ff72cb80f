"""The authenticator with a site that keeps failing."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import CancelledError, gatherResults

from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.breaker import BreakerState
from chatrelay.model import Denied, LoggedIn, Unavailable
from tests.support.session_page_case import IN, Conversation, SessionPageTestCase, response, sleep

reactor: Any = untyped_reactor


class BreakerOpens(SessionPageTestCase):
    """A site that keeps failing gets one request at a time."""

    NO = response(b"", "500 Internal Server Error")

    async def broken(self, failures: int = 3, **options: Any) -> SessionPageAuthenticator:
        """Return an authenticator whose breaker has just opened."""
        self.respond_with(self.NO)
        authenticator = self.authenticator(breaker_failures=failures, **options)
        # The last failure in the row is that of the relay's own request.
        for number in range(max(1, failures - 1)):
            self.assertIn("status 500", await self.failure(authenticator), number)
        while authenticator._breaker.state is BreakerState.CLOSED:
            await sleep(0.01)
        return authenticator

    async def test_open_breaker_refuses_at_once(self) -> None:
        authenticator = await self.broken()
        for _ in range(20):
            refused = self.successResultOf(authenticator.authenticate("sid"))
            self.assertIn("breaker-failures", refused.why)
        self.assertEqual(len(self.requests), 3)

    async def test_breaker_stays_closed_below_its_limit(self) -> None:
        self.respond_with(self.NO, self.NO, response(b"", "403 Forbidden"), self.NO, self.NO, response(IN))
        authenticator = self.authenticator(breaker_failures=4)
        verdicts = [await authenticator.authenticate("sid") for _ in range(6)]
        self.assertEqual(verdicts[2], Denied())
        self.assertEqual(verdicts[5], LoggedIn(7))

    async def test_successful_probe_closes_the_breaker(self) -> None:
        told = self.logged()
        authenticator = await self.broken()
        held: list[Conversation] = []
        self.reply = held.append
        await sleep(1.05)
        probe = authenticator.authenticate("probe")
        # Only one is sent, and nobody else waits, not even for the same session.
        for name in ("probe", "other"):
            self.assertIsInstance(self.successResultOf(authenticator.authenticate(name)), Unavailable)
        while not held:
            await sleep(0.01)
        held[0].write(response(IN))
        self.assertEqual(await probe, LoggedIn(7))
        self.reply = lambda conversation: conversation.write(response(IN))
        self.assertEqual(await authenticator.authenticate("after"), LoggedIn(7))
        self.assertEqual(
            [line for line in told if "could not be asked" not in line][1:],
            [f"the session page at {self.url.removesuffix('?x=1')} answers again"],
        )
        self.assertIn("has failed 3 times in a row", told[3])
        self.assertEqual(len(told), 5)

    async def test_failed_probe_logs_nothing(self) -> None:
        told = self.logged()
        authenticator = await self.broken()
        self.assertEqual(len(told), 4)
        await sleep(1.05)
        self.assertIn("status 500", await self.failure(authenticator))
        self.assertIn("breaker-failures", await self.failure(authenticator))
        self.assertEqual(len(told), 4)

    async def test_cancelled_probe_is_followed_by_another(self) -> None:
        authenticator = await self.broken()
        self.reply = lambda conversation: None
        await sleep(1.05)
        probe = authenticator.authenticate("probe")
        probe.cancel()
        with self.assertRaises(CancelledError):
            await probe
        self.reply = lambda conversation: conversation.write(response(IN))
        self.assertEqual(await authenticator.authenticate("next"), LoggedIn(7))

    async def test_opening_breaker_refuses_the_queue(self) -> None:
        self.respond_with(self.NO)
        authenticator = self.authenticator(breaker_failures=3, checks=1)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(50)])
        self.assertEqual({type(verdict) for verdict in verdicts}, {Unavailable})
        self.assertEqual(len(self.requests), 3)

    def failing_over(self, odd: str) -> None:
        """Make the site fail for one session id, and let everybody else in."""
        no, yes = self.NO, response(IN)
        self.reply = lambda conversation: conversation.write(no if odd.encode() in self.requests[-1][2] else yes)

    async def test_session_id_that_the_site_fails_on_does_not_open_the_breaker(self) -> None:
        told = self.logged()
        self.failing_over("odd")
        authenticator = self.authenticator(breaker_failures=3)
        for number in range(20):
            odd = await gatherResults([authenticator.authenticate(f"odd {number} {each}") for each in range(5)])
            self.assertEqual({type(verdict) for verdict in odd}, {Unavailable})
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
        self.assertFalse([line for line in told if "in a row" in line])
        own = [body for _, _, body in self.requests if b"odd" not in body and b"sid" not in body]
        self.assertTrue(0 < len(own) <= 100 / 2, len(own))
        self.assertEqual(len(set(own)), len(own))  # so nobody can have such a session, or guess it in advance
        for body in own:
            self.assertRegex(body, rb"\ASESSID=[0-9a-f]{32}\Z")

    async def test_probe_that_the_site_fails_on_does_not_keep_the_breaker_open(self) -> None:
        authenticator = await self.broken(breaker_wait=0.0)
        self.failing_over("odd")
        self.assertIn("status 500", (await authenticator.authenticate("odd")).why)  # type: ignore[union-attr]
        while authenticator._breaker.state is not BreakerState.CLOSED:
            await sleep(0.01)
        self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))

    async def test_own_request_stays_within_webserver_checks(self) -> None:
        most = 0

        def reply(conversation: Conversation) -> None:
            nonlocal most
            most = max(most, len(authenticator._pending))
            reactor.callLater(0.01, conversation.write, self.NO)

        self.reply = reply
        authenticator = self.authenticator(breaker_failures=5, checks=2)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(50)])
        self.assertEqual({type(verdict) for verdict in verdicts}, {Unavailable})
        self.assertEqual(most, 2)
        self.assertLessEqual(len(self.requests), 7)

    async def test_own_request_is_given_up_by_close(self) -> None:
        self.respond_with(self.NO)
        authenticator = self.authenticator(breaker_failures=2)
        await self.failure(authenticator)
        (own,) = authenticator._pending
        self.assertTrue(own.is_own)
        await authenticator.close()
        self.assertFalse(authenticator._pending)

    async def test_timeouts_open_the_breaker(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(breaker_failures=2, timeout=0.1)
        for _ in range(2):
            self.assertIn("within 0.1 s", await self.failure(authenticator))
        self.assertIn("breaker-failures", await self.failure(authenticator))

    async def test_defect_does_not_open_the_breaker(self) -> None:
        authenticator = self.authenticator(breaker_failures=1)
        self.patch(authenticator._page, "_body", {}.__getitem__)
        for _ in range(3):
            with self.assertRaises(KeyError):
                await authenticator.authenticate("sid")

    async def test_session_id_is_not_logged_by_the_breaker(self) -> None:
        told = self.logged()
        authenticator = self.authenticator(breaker_failures=1, checks=1)
        self.reply = lambda conversation: conversation.write(response(b"no " + self.requests[-1][2], "200 OK"))
        verdicts = await gatherResults([authenticator.authenticate("CANARY"), authenticator.authenticate("CANARY 2")])
        self.assertNotIn("CANARY", "".join([*told, repr(verdicts), repr(vars(authenticator._breaker))]))
