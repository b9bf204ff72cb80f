"""SIGTERM to an overloaded relay."""

from __future__ import annotations

import signal
import socket
import threading
import time
import urllib.error
from collections import Counter

import pytest

from tests.support.evidence import Evidence
from tests.support.programs import HIGH_RATES, RelayProcess, Site, StartRelay
from tests.support.promise import Account, Trial, read_log
from tests.support.saturation import Crowd, Part

pytestmark = pytest.mark.alone

JOINING = 50
"""The idle clients that connect at once, well below the limit of clients without a login."""


class Readiness:
    """The answers of ``/readyz``, requested repeatedly once the relay has logged that it stops."""

    def __init__(self, relay: RelayProcess) -> None:
        self.answers: Counter[int] = Counter()
        self.port_was_closed = False
        self._relay = relay
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        self._relay.said("Received SIGTERM")
        while True:
            try:
                status, _ = self._relay.ops("GET", "/readyz")
            except (urllib.error.URLError, ConnectionError):
                return  # it has stopped
            self.answers[status] += 1
            if not self.port_was_closed:
                with socket.socket() as late:
                    self.port_was_closed = late.connect_ex(("127.0.0.1", self._relay.port)) != 0

    def wait(self) -> None:
        """Wait until the relay no longer answers."""
        self._thread.join(30)
        assert not self._thread.is_alive()


def unanswered(account: Account) -> list[str]:
    """Return the contents of the messages that got no answer."""
    answered = {frame["response"]["id"] for frame in account.heard if frame["type"] == "send-request-response"}
    return [request.content for request in account.requests if request.id not in answered]


@pytest.mark.parametrize("fast_path", ["yes", "no"])
def test_sigterm_under_load_closes_all_with_4000_and_keeps_what_it_acknowledged(
    start_relay: StartRelay, site: Site, evidence: Evidence, full: bool, fast_path: str
) -> None:
    """Every client is closed with 4000, each at another time, and everything acknowledged is in the log.

    In full: 8,000 connections and the default drain-time, 10 s. In the short form: 400, and 2 s.
    """
    connections, drain_time = (8_000, 10.0) if full else (400, 2.0)
    options = (*HIGH_RATES, "--fast-path", fast_path, "--drain-time", str(drain_time), "--ops-listen", "tcp:0")
    options += ("--ping-interval", "0")  # which the idle ones would not answer, while thousands come
    relay = start_relay(*options, measured=False)
    trial = Trial()
    with Crowd(relay, site) as crowd:
        crowd.fill(window=16)
        while len(crowd.talkers) < connections:
            for number in range(JOINING):
                crowd.join(f"idle-{len(crowd.talkers)}-{number}", Part())
            while not all(talker.logged_in for talker in crowd.talkers[-JOINING:]):
                crowd.press(0.01)
        crowd.begin()
        pressure = crowd.saturate(0.5)
        answered = sum(talker.answered for talker in crowd.talkers)
        readiness = Readiness(relay)
        relay.process.terminate()
        began = time.perf_counter()
        crowd.talk_to_the_end(drain_time)
        took = time.perf_counter() - began
        answered_after = sum(talker.answered for talker in crowd.talkers) - answered
        accounts = crowd.accounts()
        told = sorted(talker.told_at - began for talker in crowd.talkers if talker.told_at is not None)
        trial.add(accounts, settled=False)
    readiness.wait()
    status = relay.wait()
    log = read_log(relay.folder / "chatrelay.sqlite3")
    trial.check_log(log)
    logged = {row.content for row in log}

    tenths = Counter(int(seconds / drain_time * 10) for seconds in told)
    spread = told[-1] - told[0]
    print(f"{pressure}; {trial}")
    print("told in each tenth of the drain-time:", *(tenths[tenth] for tenth in range(max(tenths) + 1)))
    evidence.count("connections", len(accounts), at_least=connections)
    evidence.count("acknowledged messages", trial.counts["acknowledged"], at_least=1000)
    evidence.count("messages answered after SIGTERM", answered_after, at_least=100)
    evidence.count("times not ready", readiness.answers[503], at_least=3)
    evidence.figure(
        f"told 4000 over {spread:.1f} s of {drain_time:.0f} s, at most {max(tenths.values()) / len(told):.0%} of them in "
        f"a tenth of it; all gone after {took:.1f} s"
    )
    assert [account.code for account in accounts] == [4000] * len(accounts)
    # A busy machine closes some late, and then many at once; without turns all are closed in one tenth.
    assert spread > drain_time * 0.5
    assert max(tenths.values()) < len(told) * 0.5
    # Messages taken before a connection's turn were answered before its end.
    assert not [content for account in accounts for content in unanswered(account) if content in logged]
    assert readiness.answers.keys() == {503}
    assert readiness.port_was_closed
    assert status == -signal.SIGTERM
    assert not [line for line in relay.output if "Traceback" in line or "Unhandled" in line]
    assert any("chatrelay has stopped" in line for line in relay.output)
