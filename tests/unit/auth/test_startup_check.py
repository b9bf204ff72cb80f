"""The startup check of the session page: what it asks, and what it logs."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as untyped_reactor
from twisted.internet.task import deferLater

from chatrelay.model import LoggedIn
from tests.support.session_page_case import IN, SessionPageTestCase, response

reactor: Any = untyped_reactor


class StartupCheck(SessionPageTestCase):
    """When the relay starts, it checks once whether the page answers as it should."""

    async def logged_by_check(self, **options: Any) -> list[str]:
        """Run the startup check; return what it logs."""
        told = self.logged()
        authenticator = self.authenticator(**options)
        authenticator.startup_check()
        assert authenticator._startup_check is not None
        await authenticator._startup_check
        return told

    async def test_startup_check_sends_a_random_session_id(self) -> None:
        self.respond_with(response(b'{"loggedin":false}'))
        for _ in range(2):
            (line,) = await self.logged_by_check(secret="s3cret")
            self.assertIn("made up, as it should", line)
        (_, headers, first), (_, _, second) = self.requests
        self.assertEqual(headers["authorization"], "Bearer s3cret")
        self.assertRegex(first, b"^SESSID=chatrelay-at-start-[0-9a-f]{16}$")
        self.assertNotEqual(first, second)

    async def test_startup_check_without_a_verdict_logs_the_option_to_change(self) -> None:
        page = b"<html>Not found</html>"
        for reply, said in (
            (response(page, "404 Not Found"), "it answered with status 404"),
            (response(page), "not JSON"),
            (response(b"", "302 Found", "Location: /login"), "a redirect to '/login', which is not followed"),
            (response(b"", "400 Bad Request"), "it answered with status 400"),
        ):
            self.respond_with(reply)
            (line,) = await self.logged_by_check()
            self.assertIn("the startup check of the session page at http://127.0.0.1:", line)
            self.assertIn("nobody can log in: ", line)
            self.assertIn(said, line)
            self.assertRegex(line, "auth-(url|host)")
            self.assertNotIn("chatrelay-at-start", line)

    async def test_startup_check_of_an_absent_site_logs_why(self) -> None:
        (line,) = await self.logged_by_check(url="http://127.0.0.1:1/session")
        self.assertIn("refused", line)
        (line,) = await self.logged_by_check(url="http://nowhere.invalid/session")
        self.assertIn("nowhere.invalid", line)

    async def test_startup_check_of_a_silent_site_logs_a_timeout(self) -> None:
        self.reply = lambda conversation: None
        (line,) = await self.logged_by_check(timeout=0.05)
        self.assertIn("no complete response within 0.05 s", line)

    async def test_startup_check_warns_of_a_site_that_accepts_a_made_up_session(self) -> None:
        (line,) = await self.logged_by_check()
        self.assertIn("so anybody can log in here", line)
        self.assertNotIn("chatrelay-at-start", line)

    async def test_startup_check_takes_no_turn_and_does_not_count_for_the_breaker(self) -> None:
        told = self.logged()
        authenticator = self.authenticator(checks=1, breaker_failures=1)
        self.reply = lambda conversation: None
        authenticator.startup_check()
        while not self.requests:
            await deferLater(reactor, 0.01)
        # The check takes no turn, and its failure does not count for the breaker.
        self.reply = lambda conversation: conversation.write(response(IN))
        self.assertEqual(await authenticator.authenticate("a"), LoggedIn(7))
        self.conversations[0].write(response(b"", "500 Oops"))
        await authenticator._startup_check
        self.assertEqual(await authenticator.authenticate("a"), LoggedIn(7))
        self.assertEqual(len(told), 1)

    async def test_startup_check_logs_nothing_when_the_relay_stops(self) -> None:
        told = self.logged()
        authenticator = self.authenticator()
        self.reply = lambda conversation: None
        authenticator.startup_check()
        while not self.requests:
            await deferLater(reactor, 0.01)
        await authenticator.close()
        await authenticator._startup_check
        self.assertEqual(told, [])
