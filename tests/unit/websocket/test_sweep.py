"""The sweep: each part is checked, even if others fail."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.active_time import ActiveTime
from chatrelay.model import Verdict
from chatrelay.testing import KnownSessions
from chatrelay.websocket import sweep
from chatrelay.websocket.sweep import Check, Sweep
from chatrelay.wire import codes
from tests.support.frames import PING, frame
from tests.support.memory import MemoryClient, ProxiedClient, Transport, proxy_header_2
from tests.support.relay_case import WebSocketTestCase, logged_lines

FAILED = (
    "checking {} failed; please report it. It is checked again four times a second, and further failures are not logged "
    "until it recovers"
)


def sweep_of(tasks: Mapping[str, Check]) -> Sweep:
    """Return a sweep that the test runs."""
    clock = Clock()
    return Sweep(tasks, ActiveTime(clock.seconds), clock)


class Looks(SynchronousTestCase):
    """The order of the checks, and what is logged."""

    def setUp(self) -> None:
        self.done: list[str] = []
        self.told = logged_lines(self)

    def do(self, what: str) -> Any:
        """Return a check that does something."""
        return lambda *_: self.done.append(what)

    def test_actions_of_a_check_run_before_the_next_check(self) -> None:
        def look(now: float) -> Any:
            self.done.append(f"a at {now}")
            return (self.do(f"a{number}") for number in (1, 2))

        sweep_of({"a": look, "b": self.do("b")}).check(7.0)
        self.assertEqual(self.done, ["a at 7.0", "a1", "a2", "b"])
        self.assertEqual(self.told, [])

    def test_all_actions_of_a_check_are_found_before_the_first_runs(self) -> None:
        there = {"x": 1, "y": 2}
        sweep_of({"a": lambda now: (there.clear if name == "x" else self.do(name) for name in there)}).check(0)
        self.assertEqual((there, self.done), ({}, ["y"]))

    def test_failing_check_does_not_keep_others_from_running(self) -> None:
        def fails_on_the_way(now: float) -> Any:
            yield self.do("not all was found")
            raise KeyError

        looks = sweep_of({"a": lambda now: 1 / 0, "b": self.do("b"), "c": fails_on_the_way, "d": self.do("d")})  # type: ignore[dict-item, return-value]
        looks.check(0)
        self.assertEqual(self.done, ["b", "d"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.told, [FAILED.format("a"), FAILED.format("c")])

    def test_failing_action_does_not_keep_others_from_running(self) -> None:
        sweep_of({"a": lambda now: (self.do("x"), lambda: 1 / 0, self.do("y")), "b": self.do("b")}).check(0)
        self.assertEqual(self.done, ["x", "y", "b"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_lasting_failure_is_logged_when_it_begins_and_when_it_ends(self) -> None:
        failing = True

        def look(now: float) -> Any:
            return [lambda: 1 / 0, lambda: 1 / 0] if failing else []

        looks = sweep_of({"a": look})
        for _ in range(1000):
            looks.check(0)
        failing = False
        for _ in range(sweep.RECOVERY_SWEEPS - 1):
            looks.check(0)
        self.assertEqual(self.told, [FAILED.format("a")])
        looks.check(0)
        self.assertEqual(self.told[1:], ["checking a works again; it had failed 2000 times"])
        for _ in range(sweep.RECOVERY_SWEEPS):
            looks.check(0)
        self.assertEqual(len(self.told), 2)
        failing = True
        looks.check(0)
        self.assertEqual(self.told[2:], [FAILED.format("a")])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_intermittent_failure_is_logged_once(self) -> None:
        sweeps = iter(range(10_000))
        looks = sweep_of({"a": lambda now: [lambda: 1 / 0] * (next(sweeps) % sweep.RECOVERY_SWEEPS == 0)})
        for _ in range(10_000):
            looks.check(0)
        self.assertEqual(self.told, [FAILED.format("a")])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Counted(KnownSessions):
    """An authenticator that knows alice, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__({"alice": 1})
        self.asked = 0

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        self.asked += 1
        return super().authenticate(sessid)


PARTS = {
    "refused origins": "handshakes.log_more_refused_origins",
    "limits of disconnected users": "send_limits.forget",
    "addresses with denied logins": "logins.throttle.sweep",
    "log messages that were left out": "log_limiter.report",
    "addresses behind the PROXY protocol": "registry._without_address",
    "unanswered close frames": "registry.closing_deadlines.expired",
    "handshake-timeout": "registry.handshake_deadlines.expired",
    "login-timeout": "registry.login_deadlines.expired",
    "message-timeout": "registry.message_deadlines.expired",
    "ping-timeout": "registry.pings.unanswered",
    "unread-time": "registry.slow_readers.expired",
    "TLS connections that have ended": "registry._tls_ended",
    "ping-interval": "registry.pings.due",
    "recheck-interval": "logins.rechecks.sweep",
    "epoch of the message log": "relay._storing.check_epoch",
    "resume-time": "logins.resumption.sweep",
}
"""The checks of the sweep, and the method that each of them calls."""


class AllParts(WebSocketTestCase):
    """The factory's own parts: if any of them fails, the others still work."""

    def do_their_work(self, *broken: str) -> set[str]:
        """Give every part something to do within 70 seconds, with some broken; return those that did it."""
        authenticator = Counted()
        self.clock = Clock()
        self.factory = self.make_factory(
            authenticator,
            origin=("https://example.com",),
            ping_interval=20,
            recheck_interval=10,
            logins_per_minute=60,
        )
        for part in broken:
            owner, _, name = PARTS[part].rpartition(".")
            self.patch(attrgetter(owner)(self.factory.parts), name, lambda *_: 1 / 0)
        told = logged_lines(self)

        resumption = self.factory.parts.logins.resumption
        assert resumption is not None
        revocations = resumption._revocations
        storing = self.factory.parts.relay._storing
        assert storing is not None
        revocations._revoked[b"of long ago"] = -1e9
        self.client()
        in_handshake = self.client().transport
        visitor = self.client().open()
        denied = MemoryClient(self.factory, Transport(IPv4Address("TCP", "192.0.2.2", 4321))).open()
        denied.say_login("nobody")
        denied.lost()
        member, typing, slow, unanswered, inside = (self.client().open().log_in() for _ in range(5))
        typing.write(frame(b"not all", fin=False))
        slow.protocol.outgoing.pauseProducing()
        unanswered.protocol.close(codes.STOPPING)
        tls = StringTransport(peerAddress=inside.transport.getPeer())
        self.factory.registry._beneath_tls[inside.protocol] = tls
        tls.loseConnection()
        for number in range(100):
            self.client().shake(f"Origin: https://{number}.test")
        proxied = ProxiedClient(self.factory, proxy_header_2("192.0.2.3")).protocol
        self.pass_time(1)
        visit = proxied.remote.slot
        assert visit is not None
        self.log.epoch = "another"
        self.pass_time(11)
        ends_at_12 = in_handshake.aborted, unanswered.transport.aborted, inside.transport.aborted
        self.pass_time(28)
        asked = authenticator.asked  # with nobody logging in but the five
        heard = {name: client.hear() for name, client in locals().items() if isinstance(client, MemoryClient)}
        talker = self.client().open().log_in()
        talker.send("bo")
        for client in (member, typing, slow, unanswered, inside, talker):
            client.lost()
        self.pass_time(62)
        return {
            part
            for part, has_worked in {
                "log messages that were left out": any("too many log messages at once" in line for line in told),
                "refused origins": any("too many refused origins at once" in line for line in told),
                "limits of disconnected users": not len(self.factory.parts.send_limits),
                "addresses with denied logins": not len(self.factory.parts.logins.throttle),
                "addresses behind the PROXY protocol": visit.address == "192.0.2.3",
                "handshake-timeout": ends_at_12[0],
                "login-timeout": (4001, "not logged in in time") in heard["visitor"],
                "message-timeout": (1002, "a message took too long") in heard["typing"],
                "ping-timeout": (4004, "no answer to pings") in heard["member"],
                "unread-time": (4002, "not reading fast enough") in heard["slow"],
                "unanswered close frames": ends_at_12[1],
                "TLS connections that have ended": ends_at_12[2],
                "ping-interval": (PING, b"") in heard["member"],
                "recheck-interval": asked > 6,
                "epoch of the message log": storing._epoch == "another",
                "resume-time": b"of long ago" not in revocations._revoked,
            }.items()
            if has_worked
        }

    def test_every_check_has_work_in_this_test(self) -> None:
        self.assertEqual(self.do_their_work(), set(PARTS))

    def test_other_checks_work_while_one_fails(self) -> None:
        for part in PARTS:
            told = logged_lines(self)
            idle = {part, "ping-timeout"} if part == "ping-interval" else {part}
            self.assertEqual(self.do_their_work(part), set(PARTS) - idle)
            self.assertEqual([line for line in told if "failed" in line], [FAILED.format(part)])
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_check_works_while_all_others_fail(self) -> None:
        for part in PARTS:
            kept = {part, "ping-interval"} if part == "ping-timeout" else {part}
            self.assertEqual(self.do_their_work(*set(PARTS) - kept), kept)
            self.flushLoggedErrors(ZeroDivisionError)

    def test_another_timeout_does_not_extend_the_closing_timeout(self) -> None:
        client = self.client().open().log_in()
        client.protocol.close(codes.ENDED)
        client.write(frame(b"not all", fin=False))  # goes on, and its message takes too long as well
        self.factory.registry.closing_deadlines.seconds = self.factory.registry.message_deadlines.seconds
        client.protocol.close(codes.ENDED)
        self.factory.registry.closing(client.protocol)
        # An overloaded relay looks at both in one sweep.
        self.pass_time(self.factory.registry.message_deadlines.seconds + 0.5)
        self.assertTrue(client.transport.aborted)

    def test_failing_report_does_not_keep_the_sweep_from_stopping(self) -> None:
        telling = self.patch(self.factory.parts.log_limiter, "report", lambda: 1 / 0)
        self.assertRaises(ZeroDivisionError, self.factory.stop_sweeping)
        telling.restore()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_every_check_is_listed_here(self) -> None:
        self.assertEqual([task.name for task in self.factory.parts.sweep._tasks], list(PARTS))
