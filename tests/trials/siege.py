"""An attack on a relay, during which a member logs in repeatedly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest

from tests.support import processes
from tests.support.evidence import Evidence
from tests.support.programs import RelayProcess, StartRelay
from tests.support.v1 import ADMITTED
from tests.trials.crowd import Crowd, still_open

LOGINS = 100
"""Logins beside each attack, at least."""

MOST_SECONDS = 1.0
"""The p99 that a login may take meanwhile, from connecting to the answer."""

LONGEST = 120.0
"""The time limit in seconds for that many logins, which is enough at `MOST_SECONDS` each."""

MEBIBYTE = 1 << 20


class Member:
    """Logs in repeatedly, and measures the time."""

    def __init__(self, relay: RelayProcess) -> None:
        self._relay = relay
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.seconds: list[float] = []
        self.trouble: list[object] = []

    def _work(self) -> None:
        while not self._over.is_set() and not self.trouble:
            begun = time.monotonic()
            try:
                with self._relay.client() as bo:
                    if (answer := bo.log_in("bo-session")) != ADMITTED:
                        self.trouble.append(answer)
                    self.seconds.append(time.monotonic() - begun)
            # Refused, aborted or timed out: whatever it was, the attack did it to a member.
            except Exception as error:
                self.trouble.append(error)
            self._over.wait(0.02)

    @property
    def p99(self) -> float:
        """Return the time that 99 % of the logins did not exceed."""
        return sorted(self.seconds)[-1 - len(self.seconds) // 100]

    def __enter__(self) -> Member:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Siege:
    """An attack in progress.

    :ivar crowd: the attackers.
    """

    def __init__(self, relay: RelayProcess, member: Member, crowd: Crowd) -> None:
        self.crowd = crowd
        self._relay = relay
        self._member = member
        self._begun = time.monotonic()

    def lasts(self) -> bool:
        """Whether more logins are needed."""
        assert self._member.trouble == []
        logins, took = len(self._member.seconds), time.monotonic() - self._begun
        assert logins >= LOGINS or took < LONGEST, f"only {logins} logins beside the attack in {took:.0f} s"
        return logins < LOGINS

    def ended(self, seconds: float) -> float:
        """Wait until the relay has closed all attackers; return how long that took.

        :param seconds: how long it may take.
        """
        begun = time.monotonic()
        while left := still_open(self.crowd.sockets):
            took = time.monotonic() - begun
            assert took < seconds, f"{left} of {len(self.crowd.sockets)} attackers are still there after {took:.1f} s"
            time.sleep(0.05)
        return time.monotonic() - begun


class Begin(Protocol):
    """Begins an attack."""

    def __call__(self, most_mib: float, *options: str) -> AbstractContextManager[Siege]:
        """
        :param most_mib: by how much the relay may grow.
        :param options: the relay's, where the defaults won't do.
        """


@pytest.fixture
def siege(start_relay: StartRelay, evidence: Evidence) -> Iterator[Begin]:
    """Attack a relay, while a member logs in."""

    @contextmanager
    def begin(most_mib: float, *options: str) -> Iterator[Siege]:
        relay = start_relay(*options)
        pid = relay.process.pid
        with Crowd(relay.port) as crowd:
            with relay.client() as bo:
                assert bo.log_in("bo-session") == ADMITTED
            before = processes.peak(pid) / MEBIBYTE
            with Member(relay) as member:
                siege = Siege(relay, member, crowd)
                yield siege
                while siege.lasts():
                    time.sleep(0.05)
            grown = processes.peak(pid) / MEBIBYTE - before
        assert member.trouble == []
        evidence.count("logins beside it", len(member.seconds), LOGINS)
        evidence.figure(f"p99 of a login {member.p99 * 1000:.0f} ms")
        evidence.figure(f"memory +{grown:.1f} MiB")
        assert grown < most_mib, f"the relay grew by {grown:.1f} MiB, and may grow by {most_mib} MiB"
        assert member.p99 < MOST_SECONDS, f"a login beside the attack took {member.p99:.3f} s"
        relay.stop()
        assert "Traceback" not in "\n".join(relay.output)

    yield begin
