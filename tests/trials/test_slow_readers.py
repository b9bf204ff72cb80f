"""Many clients that do not read, while two users write to each other."""

from __future__ import annotations

import re
import resource
import time

import pytest

from tests.support import PATIENCE
from tests.support.evidence import Evidence
from tests.support.processes import resident
from tests.support.programs import HIGH_RATES, RelayProcess, Site, StartRelay
from tests.support.saturation import Crowd, Part

pytestmark = pytest.mark.alone

MIB = 1024 * 1024
BUDGET = MIB
"""The default of unread-size."""

P99 = 0.25
"""Seconds."""

LEAST_SHARE = 64
"""Answers of the writer, who has as many requests pending at once, for one of the others: of a share, not a time."""

TOO_SLOW = re.compile(r"connection of deaf-\d+ from .* ended by the relay with 4002")
MORE = re.compile(r"too many log messages at once: (\d+) more connections ended")


def closed(relay: RelayProcess) -> int:
    """Return how many slow readers the relay has closed; the log names some of those closed together and counts the
    rest.
    """
    lines = list(relay.output)
    return sum(bool(TOO_SLOW.search(line)) for line in lines) + sum(
        int(found[1]) for line in lines if (found := MORE.search(line))
    )


def test_slow_readers_are_closed_and_memory_is_bounded(
    start_relay: StartRelay, site: Site, full: bool, evidence: Evidence
) -> None:
    """1,000 clients (100 in the short form) are sent messages until each is closed; two others get their answers
    meanwhile.
    """
    count = 1000 if full else 100
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    relay = start_relay(
        *HIGH_RATES,
        *("--ping-interval", "0"),  # pings find them, too
        *("--message-log", "none"),  # how long a sync takes is not what is measured
        *("--unauthenticated-per-address", "0", "--connections-per-user", "0"),
        measured=False,
    )
    deaf = [f"deaf-{number}" for number in range(count)]
    with Crowd(relay, site) as crowd:
        for uid in deaf:
            crowd.join(uid, Part(reads=False))
            if len(crowd.talkers) % 50 == 0:
                crowd.until(lambda: all(talker.logged_in for talker in crowd.talkers), "log in")
        (writer,) = crowd.join("writer", Part(deaf, window=64, padding=7000))  # 14 KB each
        polite = [*crowd.join("anna", Part(["bo"], window=1)), *crowd.join("bo", Part(["anna"], window=1))]
        crowd.begin()
        before = most = resident(relay.process.pid)
        began = time.monotonic()
        while closed(relay) < count:
            crowd.press(0.25)
            most = max(most, resident(relay.process.pid))
            assert most - before < count * BUDGET + 40 * MIB, f"grew by {(most - before) / MIB:.0f} MiB"
            assert time.monotonic() < began + count + PATIENCE, f"{closed(relay)} of {count} were closed"
        seconds = time.monotonic() - began
        assert writer.refusals
        for talker in (writer, *polite):
            talker.talking = False
        crowd.until(lambda: all(talker.answered == talker.sent for talker in (writer, *polite)), "be answered")
        found = closed(relay)
        accounts = [talker.account() for talker in (writer, *polite)]
    reasons = {
        frame["response"].get("reason") for account in accounts for frame in account.heard if "response" in frame
    }
    assert reasons == {None, "receiving-user-not-connected"}
    waits = sorted(wait for talker in polite for wait in talker.waits)
    p99 = waits[int(len(waits) * 0.99)]
    evidence.count("slow readers closed", found, count)
    evidence.count("answers of others meanwhile", len(waits), writer.answered // LEAST_SHARE)
    evidence.figure(
        f"others waited {p99 * 1000:.1f} ms (p99), {waits[-1] * 1000:.1f} ms at the most, in {seconds:.0f} s"
    )
    evidence.figure(f"the relay grew by {(most - before) / MIB:.0f} MiB")
    assert p99 < P99
