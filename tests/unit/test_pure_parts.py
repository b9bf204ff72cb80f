"""The directory, the limits, and that pure modules are pure."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.deadlines import Deadlines
from chatrelay.relay.directory import Directory
from chatrelay.testing import RecordedConnection
from tests.support import ROOT

PURE = (
    "wire.v1",
    "limits.buckets",
    "limits.inflow",
    "limits.admission",
    "limits.addresses",
    "websocket.keepalive",
    "auth.breaker",
    "relay.directory",
    "auth.session_index",
    "auth.rechecks",
    "relay.session",
    "relay.delivery",
    "interfaces",
    "config.options",
    "websocket.shutdown",
    "auth.throttle",
    "limits.origins",
    "websocket.sweep",
    "websocket.closing",
    "auth.verdicts",
    "limits.active_time",
    "limits.pace",
    "auth.headers",
    "auth.diagnosis",
    "wire.request_head",
    "wire.extensions",
    "auth.gunzip",
)
IMPURE = ("autobahn", "treq", "twisted.internet.reactor", "twisted.internet.tcp", "sqlite3")


def printed_by(code: str) -> str:
    """What a fresh Python prints that runs this; trial's working directory is not ours."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Measured by coverage, it would have imported what coverage imports.
    environment = {name: value for name, value in environment.items() if not name.startswith("COV")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


class Purity(SynchronousTestCase):
    """Pure modules import no autobahn, no treq, no reactor."""

    def test_pure_modules_import_nothing_impure(self) -> None:
        for name in PURE:
            code = f"import sys, chatrelay.{name}; print(*[m for m in {IMPURE!r} if m in sys.modules])"
            self.assertEqual(printed_by(code), "", name)

    def test_what_lies_around_the_protocol_does_not_know_it(self) -> None:
        ours = (
            "websocket.factory",
            "websocket.protocol",
            "websocket.registry",
            "websocket.handshake",
            "websocket.compression",
            "relay.session",
            "auth.authenticator",
            "app.service",
        )
        for name, unknown in (
            ("websocket.registry", ("autobahn", "treq")),
            ("websocket.handshake", ("autobahn.twisted", "treq", "twisted.internet.tcp")),
            ("websocket.compression", ("autobahn.twisted", "treq", "twisted.internet.tcp")),
        ):
            unknown = (*unknown, *(f"chatrelay.{other}" for other in ours if other != name))
            code = f"import sys, chatrelay.{name}; print(*[m for m in {unknown!r} if m in sys.modules])"
            self.assertEqual(printed_by(code), "", name)

    def test_the_plugin_imports_nothing_of_ours(self) -> None:
        code = (
            "import sys; from twisted.plugin import getPlugins; from twisted.application.service import IServiceMaker;"
            "assert 'chatrelay' in [p.tapname for p in getPlugins(IServiceMaker)];"
            # Autobahn has plugins of its own, which may import what they like.
            "print(*[m for m in sys.modules if m.split('.')[0] in ('chatrelay', 'treq')])"
        )
        self.assertEqual(printed_by(code), "")

    def test_the_package_is_cheap_to_import(self) -> None:
        code = "import sys, chatrelay; print(*[m for m in sys.modules if m.split('.')[0] in ('twisted', 'autobahn')])"
        self.assertEqual(printed_by(code), "")


class DirectoryTests(SynchronousTestCase):
    """Who is here."""

    def test_connections_of_a_user(self) -> None:
        directory, first, second = Directory(), RecordedConnection(), RecordedConnection()
        self.assertEqual(directory.connections_of("1"), ())
        directory.add("1", first)
        directory.add("1", second)
        self.assertEqual(directory.connections_of("1"), (first, second))
        self.assertEqual(len(directory), 1)
        directory.remove("1", first)
        self.assertEqual(directory.connections_of("1"), (second,))
        directory.remove("1", second)
        directory.remove("1", second)
        self.assertEqual((directory.connections_of("1"), len(directory)), ((), 0))


class DeadlinesTests(SynchronousTestCase):
    """Deadlines without timers."""

    def test_oldest_first_and_only_once(self) -> None:
        deadlines: Deadlines[str] = Deadlines(10)
        deadlines.start("a", 0)
        deadlines.start("b", 1)
        self.assertEqual(deadlines.expired(9.9), [])
        self.assertEqual(deadlines.expired(10), ["a"])
        self.assertEqual(deadlines.expired(10.9), [])
        self.assertEqual(deadlines.expired(99), ["b"])
        self.assertEqual(len(deadlines), 0)

    def test_started_anew_and_stopped(self) -> None:
        deadlines: Deadlines[str] = Deadlines(10)
        deadlines.start("a", 0)
        deadlines.start("b", 0)
        deadlines.start("c", 0)
        deadlines.start("a", 5)
        deadlines.stop("b")
        deadlines.stop("never started")
        self.assertEqual(deadlines.expired(10), ["c"])
        self.assertEqual(deadlines.expired(15), ["a"])

    def test_zero_means_never(self) -> None:
        deadlines: Deadlines[str] = Deadlines(0)
        deadlines.start("a", 0)
        self.assertEqual(deadlines.expired(1e9), [])

    @given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["start", "stop"]), st.integers(0, 5))))
    def test_as_a_timer_each_would_do(self, steps: list[tuple[str, str, int]]) -> None:
        deadlines: Deadlines[str] = Deadlines(7)
        timers: dict[str, int] = {}
        now = 0
        for key, what, passed in steps:
            now += passed
            self.assertEqual(set(deadlines.expired(now)), {key for key, due in timers.items() if due <= now})
            timers = {key: due for key, due in timers.items() if due > now}
            if what == "start":
                deadlines.start(key, now)
                timers[key] = now + 7
            else:
                deadlines.stop(key)
                timers.pop(key, None)
