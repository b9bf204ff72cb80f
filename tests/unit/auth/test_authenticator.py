"""The authenticator: how many requests are pending, who shares one, and who gives one up."""

from __future__ import annotations

from typing import Any

import trustme
from twisted.internet import reactor as untyped_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS

from chatrelay.auth.breaker import BreakerState
from chatrelay.auth.verdicts import ConnectFailed
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import Denied, LoggedIn, Unavailable
from tests.support.session_page_case import IN, Conversation, SessionPageTestCase, response, sleep

reactor: Any = untyped_reactor


class Turns(SessionPageTestCase):
    """How many requests are pending at once, and how the others wait."""

    async def test_pending_requests_stay_within_webserver_checks(self) -> None:
        out: list[Conversation] = []
        most = 0

        def reply(conversation: Conversation) -> None:
            nonlocal most
            out.append(conversation)
            most = max(most, len(out))

            def done() -> None:
                out.remove(conversation)
                conversation.write(response(IN))

            reactor.callLater(0.02, done)

        self.reply = reply
        authenticator = self.authenticator(checks=4)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(20)])
        self.assertEqual(list(verdicts), [LoggedIn(7)] * 20)
        self.assertEqual(most, 4)

    async def test_request_waits_no_longer_than_the_queue_timeout(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=1, queue_timeout=0.2, timeout=1)
        first = authenticator.authenticate("first")
        self.assertIn("webserver-checks", await self.failure(authenticator))
        self.assertIsInstance(await first, Unavailable)
        self.reply = lambda conversation: conversation.write(response(IN))
        self.assertEqual(await authenticator.authenticate("after"), LoggedIn(7))

    async def test_cancelled_request_leaves_the_queue(self) -> None:
        held: list[Conversation] = []
        self.reply = held.append
        authenticator = self.authenticator(checks=1)
        first, second, third = (authenticator.authenticate(name) for name in ("first", "second", "third"))
        second.cancel()
        with self.assertRaises(CancelledError):
            await second
        while not held:
            await sleep(0.01)
        self.reply = lambda conversation: conversation.write(response(IN))
        held[0].write(response(IN))
        self.assertEqual(await first, LoggedIn(7))
        self.assertEqual(await third, LoggedIn(7))
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=third"])

    async def test_requests_are_sent_in_the_order_of_arrival(self) -> None:
        authenticator = self.authenticator(checks=1)
        await gatherResults([authenticator.authenticate(str(number)) for number in range(20)])
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=%d" % number for number in range(20)])

    async def test_request_beyond_the_queue_is_unavailable(self) -> None:
        held: list[Conversation] = []
        self.reply = held.append
        told = self.logged()
        authenticator = self.authenticator(checks=1, queue=3)
        out, *waiting = [authenticator.authenticate(str(number)) for number in range(4)]
        # A request beyond the queue is refused at once. A request about a session that waits already is not refused.
        for number in range(4, 8):
            refused = self.successResultOf(authenticator.authenticate(str(number)))
            self.assertIn("webserver-checks", refused.why)
        waiting.append(authenticator.authenticate("3"))
        self.assertEqual(len(told), 1)
        while not held:
            await sleep(0.01)
        self.reply = lambda conversation: conversation.write(response(IN))
        held[0].write(response(IN))
        self.assertEqual(await gatherResults([out, *waiting]), [LoggedIn(7)] * 5)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=%d" % number for number in range(4)])
        # The queue has been empty since, so the next refusal is logged again.
        self.assertEqual(await authenticator.authenticate("7"), LoggedIn(7))
        self.reply = held.append
        asking = [authenticator.authenticate(str(number)) for number in range(4)]
        self.assertIsInstance(self.successResultOf(authenticator.authenticate("4")), Unavailable)
        self.assertEqual(len(told), 2)
        for verdict in asking:
            verdict.addErrback(lambda failure: failure.trap(CancelledError) and None)
            verdict.cancel()

    async def test_only_requests_that_waited_too_long_leave_the_queue(self) -> None:
        # Each response takes 0.1 s: two requests get their turn within 0.25 s, and the others time out.
        clock = Clock()

        def reply(conversation: Conversation) -> None:
            clock.advance(0.1)
            conversation.write(response(IN))

        self.reply = reply
        told = self.logged()
        authenticator = self.authenticator(checks=1)
        authenticator._queue_timer = DeadlineTimer(clock, 0.25, authenticator._queued_too_long)
        verdicts = await gatherResults([authenticator.authenticate(str(number)) for number in range(10)])
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=%d" % number for number in range(3)])
        self.assertEqual(verdicts[:3], [LoggedIn(7)] * 3)
        self.assertEqual({type(verdict) for verdict in verdicts[3:]}, {Unavailable})
        self.assertEqual(len(told), 1)

    async def test_timed_out_request_may_cancel_others(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=1, queue_timeout=0.1, timeout=0.5)
        out = authenticator.authenticate("out")
        first, second, third = (authenticator.authenticate(name) for name in ("a", "a", "b"))
        first.addCallback(lambda _: (second.cancel(), third.cancel()))
        for left in (second, third):
            with self.assertRaises(CancelledError):
                await left
        self.assertIsInstance(await out, Unavailable)

    async def test_checks_zero_is_no_limit(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=0, timeout=2)
        asking = [authenticator.authenticate(str(number)) for number in range(50)]
        await gatherResults(asking)
        self.assertEqual(len(self.requests), 50)


class Stopping(SessionPageTestCase):
    async def test_requests_cut_off_by_stopping_log_nothing(self) -> None:
        lines = self.logged()
        authenticator = self.authenticator(breaker_failures=1)

        def look_up(sessid: str, is_ticket: bool) -> Deferred[Any]:
            # Twisted reports a cancelled lookup as a failed one.
            return Deferred(lambda asking: asking.errback(ConnectFailed("DNSLookupError")))

        self.patch(authenticator._page, "ask", look_up)
        verdict = authenticator.authenticate("sid")
        authenticator.give_up(verdict)
        await authenticator.close()
        self.assertEqual(await verdict, Unavailable("the relay is stopping"))
        self.assertEqual(lines, [])
        self.assertIs(authenticator._breaker.state, BreakerState.CLOSED)


class OverTLS(SessionPageTestCase):
    """A site over TLS that keeps its connections."""

    def setUp(self) -> None:
        super().setUp()
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        self.tls = reactor.listenSSL(0, self.factory, PrivateCertificate.loadPEM(pem).options(), interface="127.0.0.1")
        trusted = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        self.asks = self.authenticator(
            url=f"https://127.0.0.1:{self.tls.getHost().port}/", tls_policy=BrowserLikePolicyForHTTPS(trusted)
        )

    async def tearDown(self) -> None:
        # None of the connections notices that it was aborted, because none reads any more.
        for conversation in self.conversations:
            conversation.transport.transport.abortConnection()  # of TCP, below TLS
        await gatherResults([conversation.gone for conversation in self.conversations])
        self.conversations.clear()
        await maybeDeferred(self.tls.stopListening)
        await super().tearDown()

    async def test_stopping_does_not_wait_for_a_silent_site(self) -> None:
        def answer_and_fall_silent(conversation: Conversation) -> None:
            conversation.write(response(IN))
            conversation.transport.transport.pauseProducing()  # of TCP, below TLS

        self.reply = answer_and_fall_silent
        self.assertEqual(await self.asks.authenticate("sid"), LoggedIn(7))
        await self.asks.close().addTimeout(2, reactor)

    async def test_lost_kept_connection_to_an_absent_site_is_unavailable(self) -> None:
        self.assertEqual(await self.asks.authenticate("sid"), LoggedIn(7))
        await self.tls.stopListening()
        self.reply = lambda conversation: conversation.hang_up()
        self.assertIn("refused", await self.failure(self.asks))


class SingleFlight(SessionPageTestCase):
    """Logins by the same session at the same time share one request."""

    def setUp(self) -> None:
        super().setUp()
        self.held: list[Conversation] = []
        self.reply = self.held.append

    async def asked(self, times: int = 1) -> None:
        """Wait until the site has got this many requests."""
        while len(self.requests) < times:
            await sleep(0.01)

    async def test_logins_by_the_same_session_share_one_request(self) -> None:
        authenticator = self.authenticator()
        asking = [authenticator.authenticate("sid") for _ in range(50)]
        await self.asked()
        asking += [authenticator.authenticate("sid") for _ in range(50)]
        other = authenticator.authenticate("other")
        await self.asked(2)
        for conversation in self.held:
            conversation.write(response(IN))
        self.assertEqual(await gatherResults([*asking, other]), [LoggedIn(7)] * 101)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=sid", b"SESSID=other"])

    async def test_waiting_logins_by_the_same_session_share_one_request(self) -> None:
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate(name) for name in ("first", "second", "second", "first", "second")]
        await self.asked()
        self.reply = lambda conversation: conversation.write(response(IN))
        self.held[0].write(response(IN))
        self.assertEqual(await gatherResults(asking), [LoggedIn(7)] * 5)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=second"])

    async def test_verdict_is_not_remembered(self) -> None:
        authenticator = self.authenticator()
        for raw, expected in (
            (response(b'{"loggedin":false}'), Denied()),
            (response(b"", "500 Internal Server Error"), Unavailable("it answered with status 500")),
            (response(IN), LoggedIn(7)),
        ):
            self.respond_with(raw)
            asking = [authenticator.authenticate("sid") for _ in range(3)]
            self.assertEqual(await gatherResults(asking), [expected] * 3)
        self.assertEqual(len(self.requests), 3)

    async def test_login_during_a_verdict_sends_a_new_request(self) -> None:
        authenticator = self.authenticator()
        self.reply = lambda conversation: conversation.write(response(IN))
        again = authenticator.authenticate("sid").addCallback(lambda _: authenticator.authenticate("sid"))
        self.assertEqual(await again, LoggedIn(7))
        self.assertEqual(len(self.requests), 2)

    async def test_one_cancelled_login_leaves_the_shared_request_to_others(self) -> None:
        authenticator = self.authenticator()
        first, second, third = (authenticator.authenticate("sid") for _ in range(3))
        await self.asked()
        for leaving in (first, third):
            leaving.cancel()
            with self.assertRaises(CancelledError):
                await leaving
        self.held[0].write(response(IN))
        self.assertEqual(await second, LoggedIn(7))
        self.assertEqual(len(self.requests), 1)

    async def test_request_is_given_up_with_its_last_login(self) -> None:
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate("sid") for _ in range(3)]
        await self.asked()
        for leaving in asking:
            leaving.cancel()
            with self.assertRaises(CancelledError):
                await leaving
        await self.held[0].gone
        # Another request has its turn now, and a login by the same session sends a new one.
        self.reply = lambda conversation: conversation.write(response(IN))
        self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
        self.assertEqual(len(self.requests), 2)

    async def test_abandoned_request_keeps_its_turn(self) -> None:
        authenticator = self.authenticator(checks=1)
        given_up = [authenticator.authenticate("sid") for _ in range(2)]
        await self.asked()
        waits = authenticator.authenticate("waits")
        for one in given_up:
            authenticator.give_up(one)
        authenticator.give_up(waits)
        with self.assertRaises(CancelledError):  # at once, as its request was not sent yet
            await waits
        # The verdict may be older than an end that was reported since, so it is not shared any more.
        again = authenticator.authenticate("sid")
        await sleep(0.05)
        self.assertEqual(len(self.requests), 1)
        self.reply = lambda conversation: conversation.write(response(b'{"loggedin":false}'))
        self.held[0].write(response(IN))
        self.assertEqual(await again, Denied())
        self.assertEqual(await gatherResults(given_up), [LoggedIn(7)] * 2)
        self.assertEqual(len(self.requests), 2)

    async def test_request_that_is_awaited_by_one_is_still_shared(self) -> None:
        authenticator = self.authenticator()
        leaves, stays = (authenticator.authenticate("sid") for _ in range(2))
        await self.asked()
        authenticator.give_up(leaves)
        joins = authenticator.authenticate("sid")
        self.held[0].write(response(IN))
        self.assertEqual(await gatherResults([leaves, stays, joins]), [LoggedIn(7)] * 3)
        self.assertEqual(len(self.requests), 1)

    async def test_failure_of_an_abandoned_request_counts_and_is_logged(self) -> None:
        told = self.logged()
        authenticator = self.authenticator(timeout=1, breaker_failures=1)
        asking = authenticator.authenticate("sid")
        await self.asked()
        authenticator.give_up(asking)
        self.assertEqual(await asking, Unavailable("no complete response within 1 s"))
        self.assertIsInstance(await authenticator.authenticate("other"), Unavailable)
        self.assertEqual((len(told), len(self.requests)), (2, 1))

    async def test_close_gives_up_all_requests(self) -> None:
        authenticator = self.authenticator(checks=1)
        out, waits = (authenticator.authenticate(name) for name in ("out", "waits"))
        await self.asked()
        authenticator.give_up(out)
        await authenticator.close()
        self.assertEqual(await waits, Unavailable("the relay is stopping"))
        with self.assertRaises(CancelledError):
            await out
        await self.held[0].gone

    async def test_timeout_is_shared(self) -> None:
        told = self.logged()
        authenticator = self.authenticator(timeout=0.1)
        verdicts = await gatherResults([authenticator.authenticate("sid") for _ in range(3)])
        self.assertEqual(verdicts, [Unavailable("no complete response within 0.1 s")] * 3)
        self.assertEqual(len(told), 1)

    async def test_request_cancelled_while_connecting_logs_nothing(self) -> None:
        told = self.logged()
        asking = self.authenticator().authenticate("sid")
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking
        self.assertIsInstance(await self.authenticator(timeout=0.000001).authenticate("sid"), Unavailable)
        self.assertEqual([line.partition("asked: ")[2] for line in told], ["no complete response within 1e-06 s"])

    async def test_defect_is_shared_and_frees_the_turn(self) -> None:
        authenticator = self.authenticator(checks=1)
        self.patch(authenticator._page, "_body", {}.__getitem__)
        for _ in range(2):
            for asking in [authenticator.authenticate("sid") for _ in range(2)]:
                with self.assertRaises(KeyError):
                    await asking

    async def test_repr_has_no_session_id(self) -> None:
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate(name) for name in ("CANARY", "CANARY", "CANARY too")]
        (out, waiting) = authenticator._shared.values()
        for thing in (authenticator, out, waiting, authenticator._queue, authenticator._pending, out.asking, *asking):
            self.assertNotIn("CANARY", repr(thing))
        for verdict in asking:
            verdict.cancel()
            with self.assertRaises(CancelledError) as caught:
                await verdict
            self.assertNotIn("CANARY", Failure(caught.exception).getTraceback())


class Tickets(SessionPageTestCase):
    """SESSIDs that are good for one request."""

    async def test_ticket_is_never_shared(self) -> None:
        self.respond_with(response(IN), response(b'{"loggedin":false}'))
        authenticator = self.authenticator(checks=1)
        verdicts = await gatherResults([authenticator.authenticate_ticket("ticket") for _ in range(2)])
        self.assertEqual(verdicts, [LoggedIn(7), Denied()])
        self.assertEqual(len(self.requests), 2)

    async def test_session_is_shared_beside_tickets(self) -> None:
        authenticator = self.authenticator()
        cookies = [authenticator.authenticate("sid") for _ in range(10)]
        tickets = [authenticator.authenticate_ticket("sid") for _ in range(10)]
        cookies.append(authenticator.authenticate("sid"))
        self.assertEqual(await gatherResults(cookies + tickets), [LoggedIn(7)] * 21)
        self.assertEqual(len(self.requests), 1 + 10)

    async def test_session_uses_a_kept_connection_beside_tickets(self) -> None:
        authenticator = self.authenticator()
        for number in range(3):
            await authenticator.authenticate_ticket(f"ticket {number}")
            await authenticator.authenticate("sid")
        self.assertEqual(len(self.conversations), 3 + 1)

    async def test_ticket_uses_a_new_connection(self) -> None:
        authenticator = self.authenticator()
        for number in range(3):
            await authenticator.authenticate_ticket(str(number))
        self.assertEqual(len(self.conversations), 3)

    async def test_ticket_is_never_retried(self) -> None:
        authenticator = self.authenticator()
        await authenticator.authenticate_ticket("first")
        self.reply = Conversation.hang_up
        self.assertIsInstance(await authenticator.authenticate_ticket("sid"), Unavailable)
        self.assertEqual([body for _, _, body in self.requests], [b"SESSID=first", b"SESSID=sid"])

    async def test_ticket_is_not_remembered(self) -> None:
        self.reply = lambda conversation: None
        authenticator = self.authenticator(checks=1)
        asking = [authenticator.authenticate_ticket("CANARY") for _ in range(2)]
        self.assertEqual(authenticator._shared, {})
        self.assertNotIn("CANARY", repr(vars(authenticator)))
        for verdict in asking:
            verdict.cancel()
            with self.assertRaises(CancelledError):
                await verdict
