"""The most expensive bytes that a client may send, compared with harmless ones: their effect on another user's logins.

Harmless and expensive bytes take turns, and their effects on the same relay and machine are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from bench.proc import cpu_seconds_of
from tests.fuzz.cost import REQUEST, TEMPLATES, USER, VISITOR, WRAPPERS, Candidate
from tests.support import ROOT
from tests.support.evidence import Evidence
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.trials.crowd import address
from tests.trials.siege import Member

pytestmark = pytest.mark.alone

SECONDS, FULL_SECONDS = 5, 9
"""Seconds of each turn. After ten, a visitor who has not logged in is closed."""

UNTIL_STEADY = 1.0
"""Seconds until the bursts are used up, and the clients are at their limits."""

ALONE = 1.0
"""Seconds for which the relay's CPU is measured before the logins begin."""

TURNS, FULL_TURNS = 1, 5
"""Turns of each kind of bytes."""

MORE_TURNS = 5
"""The most turns, if the result may be due to chance."""

MEMBERS = 3
"""Users who log in repeatedly at the same time."""

MOST_SLOWER = 3.0
"""How many times as long the p99 of a login may take beside expensive bytes as beside harmless ones."""

MOST_CPU = 5.0
"""How many times as much CPU the relay may take."""

STEADY = 0.02
"""Seconds below which a login counts as undisturbed."""

DEAREST = Candidate(USER, REQUEST, WRAPPERS[4], b"\\/", frames=10)
UNUSABLE = Candidate(VISITOR, TEMPLATES[7], WRAPPERS[2], b"1")
EMPTY_FRAGMENTS = Candidate(VISITOR, size=150, frames=64)
"""Found by ``python -m tests.fuzz cost``; see docs/security.rst."""


def to(template: bytes, user: int) -> bytes:
    """Return a message to another user."""
    return template.replace(b'"touID":2,', b'"touID":%d,' % user)


@attrs.frozen
class Flood:
    """Clients of one kind, from one address.

    :ivar candidate: what each sends.
    :ivar users: their numbers, where they are logged in; each sends to itself.
    """

    candidate: Candidate
    connections: int
    users: Sequence[int] = ()

    def plan(self, place: int) -> dict[str, object]:
        """Return the content of a file for `tests.trials.flood`.

        :param place: the number of an unused address, because a client that disconnects in a pause is noticed only after it.
        """
        template = self.candidate.template
        return {
            "address": address(place),
            "sessids": [f"user-{number}" for number in self.users],
            "data": [
                b"".join(attrs.evolve(self.candidate, template=to(template, number)).pieces()).hex()
                for number in self.users or [2] * self.connections
            ],
        }

    @property
    def harmless(self) -> Flood:
        """Return the same flood with harmless text."""
        return attrs.evolve(self, candidate=self.candidate.harmless)


class Beside:
    """The measurements during one turn of some floods.

    :ivar seconds: that each login beside it took.
    :ivar cpu: seconds of CPU that the relay took in a second.
    :ivar sent: messages.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.sent = 0

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[-1 - len(self.seconds) // 100]

    @property
    def share(self) -> float:
        return sum(self.cpu) / len(self.cpu)


@contextmanager
def flooding(relay: RelayProcess, folder: Path, floods: Sequence[Flood], seconds: float) -> Iterator[Callable[[], int]]:
    """Let clients flood a relay; yield a function that returns, at the end, how many messages they sent."""
    files = []
    for flood in floods:
        place = len(list(folder.glob("flood-*")))
        files.append(folder / f"flood-{place}.json")
        files[-1].write_text(json.dumps(flood.plan(place)))
    command = [sys.executable, "-m", "tests.trials.flood", str(relay.port), str(seconds), *map(str, files)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "connected\n"

            def sent() -> int:
                assert running.stdout is not None
                said = running.stdout.read().strip()
                assert said.isdigit(), f"a client that kept its limits was {said}"
                return int(said)

            yield sent
        finally:
            running.terminate()


def one_turn(relay: RelayProcess, folder: Path, floods: Sequence[Flood], seconds: float, beside: Beside) -> None:
    """Flood the relay for a while, and log in meanwhile."""
    with flooding(relay, folder, floods, seconds) as sent:
        time.sleep(UNTIL_STEADY)
        before, begun = cpu_seconds_of([relay.process.pid]), time.monotonic()
        time.sleep(ALONE)
        beside.cpu.append((cpu_seconds_of([relay.process.pid]) - before) / (time.monotonic() - begun))
        with ExitStack() as logging_in:
            members = [logging_in.enter_context(Member(relay)) for _ in range(MEMBERS)]
            time.sleep(seconds - UNTIL_STEADY - ALONE - 0.5)
        beside.sent += sent()
    for member in members:
        assert member.trouble == []
        beside.seconds += member.seconds


def compare(relay: RelayProcess, folder: Path, evidence: Evidence, floods: Sequence[Flood], full: bool) -> None:
    """Run both alternately, and again if expensive bytes seem to slow others down too much."""
    expensive, harmless = Beside(), Beside()
    turns = FULL_TURNS if full else TURNS
    for turn in range(turns + MORE_TURNS):
        for kinds, beside in ((floods, expensive), ([flood.harmless for flood in floods], harmless)):
            one_turn(relay, folder, kinds, FULL_SECONDS if full else SECONDS, beside)
        if turn + 1 >= turns and is_no_slower(expensive, harmless) and takes_no_more(expensive, harmless):
            break
    evidence.count("messages of expensive bytes", expensive.sent, 50)
    evidence.count("logins beside them", len(expensive.seconds), 20)
    took = f"{expensive.p99 * 1000:.0f} ms beside expensive bytes, {harmless.p99 * 1000:.0f} ms beside harmless ones"
    cpu = f"{expensive.share:.0%} of a core beside expensive bytes, {harmless.share:.0%} beside harmless ones"
    evidence.figure(f"p99 of a login {took}")
    evidence.figure(cpu)
    assert is_no_slower(expensive, harmless), f"a login took {took}"
    assert takes_no_more(expensive, harmless), f"the relay took {cpu}"


def is_no_slower(expensive: Beside, harmless: Beside) -> bool:
    return expensive.p99 <= MOST_SLOWER * max(harmless.p99, STEADY)


def takes_no_more(expensive: Beside, harmless: Beside) -> bool:
    return expensive.share <= MOST_CPU * max(harmless.share, 0.02)


@pytest.fixture
def flooded(start_relay: StartRelay) -> RelayProcess:
    """Start a relay with its defaults."""
    return start_relay()


def test_most_expensive_bytes_leave_the_relay_responsive(
    flooded: RelayProcess, site: Site, tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """A hundred clients of each kind, at their limits."""
    users = range(1000, 1100)
    site.users |= {f"user-{number}": number for number in users}
    floods = [Flood(UNUSABLE, 100), Flood(DEAREST, 100, users)]
    compare(flooded, tmp_path, evidence, floods, full)


def test_unusable_messages_of_visitors_leave_the_relay_responsive(
    flooded: RelayProcess, tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """60 visitors, each with messages of 65 KB that are answered by nothing."""
    compare(flooded, tmp_path, evidence, [Flood(UNUSABLE, 60)], full)


def test_messages_in_empty_fragments_leave_the_relay_responsive(
    flooded: RelayProcess, tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """95 visitors, each with messages in 64 frames, nearly all of them empty."""
    compare(flooded, tmp_path, evidence, [Flood(EMPTY_FRAGMENTS, 95)], full)
