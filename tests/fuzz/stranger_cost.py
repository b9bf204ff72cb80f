"""What it costs the relay that Alice asks about somebody: the same, whoever it is, and whether they exist at all.

Alice's requests go to the real session, relay and message log in SQLite, one at a time. Nobody whom she asks about has
ever written to her. What is counted does not depend on the machine, so a difference of one per cent is found. What the
connections of the recipient are told is left out: the message itself, and that they know Alice now.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import CodeType
from typing import Any

from twisted.internet import base, task
from twisted.internet.task import Clock

from chatrelay.config.options import Config
from chatrelay.relay.arrivals import Arrivals
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.delivery import Relay
from chatrelay.testing import KnownSessions
from chatrelay.websocket.outbox import Outbox
from tests.support import v2
from tests.support.counting import Applies, Instructions, always
from tests.support.direct_log import DirectLog
from tests.support.memory import MemoryClient
from tests.support.relay_case import chat_factory

ALICE = "alice"

KINDS = ("connected", "connected by v1", "busy", "away", "missing")
"""The people whom Alice asks about. Those who are busy write to others all the time."""

MESSAGES_PER_RUN = 24

UNCOUNTED = (str(Path(__file__).parents[1]), str(task.__file__), str(base.__file__))
"""The files of the test itself, and of the clock that it moves."""

Costs = Mapping[str, Mapping[str, Counter[str]]]
"""By kind of request and kind of person, how much of what was done."""


class AllMayLogIn(dict[str, str | int]):
    """The sessions of everybody, each named as its user."""

    def __contains__(self, sessid: object) -> bool:
        return True

    def __missing__(self, sessid: str) -> str:
        return sessid


class Meter:
    """A relay, Alice with two devices, and people of each kind, who do the same whomever Alice asks about.

    :param path: of the message log.
    :param kind: whom Alice asks about.
    :param people: how many there are of each kind.
    """

    def __init__(self, path: Path, kind: str, people: int) -> None:
        self._clock = Clock()
        self._clock.advance(1_700_000_000)
        self._log = DirectLog(path, MESSAGES_PER_RUN)
        config = Config(
            messages_per_second=0,
            user_messages_per_second=0,
            new_recipients_per_minute=0,
            ping_interval=0,
            recheck_interval=0,
            unauthenticated_per_address=0,
        )
        log: Any = self._log
        self._factory = chat_factory(config, self._clock, KnownSessions(AllMayLogIn()), log)
        self._ids = itertools.count(1)
        self._clients: dict[str, MemoryClient] = {}
        self._alice = self._connect(ALICE, "alice-1")
        self._connect(ALICE, "alice-2")
        self._connect("writer", "writer")
        self._kind = kind
        self._people = people
        for number in range(people):
            for each in KINDS:
                self._begin(name(each, number), each)
        self._without: Mapping[CodeType, Applies] = {
            Relay._hand_over.__code__: always,
            Arrivals.add.__code__: always,
            Awareness.became_known.__code__: always,
            Outbox.flush.__code__: lambda outbox: outbox is not self._alice.protocol.outgoing,
        }

    def measure(self) -> Mapping[str, Counter[str]]:
        """Have Alice ask about everybody of the kind; return by kind of request what that cost."""
        costs: dict[str, Counter[str]] = {}
        for number in range(self._people):
            for what, request in self._requests(name(self._kind, number)):
                self._send("writer", name("busy", number))
                self._send(name("busy", number), "writer")
                self._log.index_all()
                costs.setdefault(what, Counter()).update(self._cost(request))
        assert self._log.files > 2
        return costs

    def close(self) -> None:
        """Close the log."""
        self._log.stop()

    def _requests(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Return what Alice asks about somebody, in order."""
        first = v2.message(name, "hej", self._id())
        return [
            ("typing", {"type": "typing", "touID": name}),
            ("a watch", {"type": "presence-request", "id": "p", "of": [name]}),
            ("an empty history", v2.history(name)),
            ("a mark of an empty conversation", {"type": "read", "with": name, "read": 1}),
            ("a message that may be refused", v2.message(name, "hej", self._id(), offline="reject")),
            ("a message", first),
            ("a message that comes again", {**first, "again": True}),
            ("a message that comes again as a first", v2.message(name, "hej", self._id(), again=True)),
            ("a history", v2.history(name)),
            ("conversations", v2.conversations(limit=3)),
            ("a mark", {"type": "read", "with": name, "read": 2}),
        ]

    def _cost(self, request: dict[str, Any]) -> Counter[str]:
        self._take_all()
        self._log.reset()
        with Instructions(self._without, UNCOUNTED) as counted:
            self._alice.say(request)
            for _ in range(4):
                self._clock.advance(0)
        cost: Counter[str] = Counter({**counted.counts, **self._log.counts})
        for frame in self._take_all():
            cost[frame["type"]] += 1
            cost["bytes of answers"] += len(str(frame))
        self._clock.advance(3)
        self._take_all()
        return cost

    # What the people do ---------------------------------------------------------

    def _begin(self, name: str, kind: str) -> None:
        """Have somebody do what others of the kind have done: all that one can do but write to Alice."""
        self._send("writer", ALICE)
        if kind == "missing":
            return
        client = self._connect(name, name, is_v2=kind != "connected by v1")
        for _ in range(5):
            self._send("writer", name)
            if kind != "connected by v1":
                self._send(name, "writer")
        if kind != "connected by v1":
            for frame in (
                {"type": "received", "received": 5},
                {"type": "read", "with": "writer", "read": 3},
                {"type": "read", "with": ALICE, "read": 3},
                {"type": "typing", "touID": ALICE},
                {"type": "presence-request", "id": "p", "of": [ALICE, "writer"]},
            ):
                client.say(frame)
                self._clock.advance(0.25)
        if kind == "away":
            client.lost()
            del self._clients[name]
        self._clock.advance(10)
        self._take_all()

    def _connect(self, user: str, name: str, is_v2: bool = True) -> MemoryClient:
        client = self._clients[name] = MemoryClient(self._factory).open(*([v2.OFFER] if is_v2 else []))
        client.say(v2.login(user))
        self._clock.advance(0)
        (answer,) = client.hear()
        assert answer["response"] is True
        return client

    def _send(self, sender: str, to: str) -> None:
        client = self._clients[sender]
        client.say(v2.message(to, "hej", self._id()))
        for _ in range(3):
            self._clock.advance(0)
        answers = [frame for frame in client.hear() if frame["type"] == "send-request-response"]
        assert answers[0]["response"]["value"] is True, answers

    def _take_all(self) -> list[Any]:
        """Return what Alice got on the connection by which she asks; forget the rest."""
        heard = {name: client.hear() for name, client in self._clients.items()}
        return heard["alice-1"]

    def _id(self) -> str:
        return f"message-{next(self._ids):08}"


def name(kind: str, number: int) -> str:
    """Return the name of a person, which tells nothing of the kind by its length."""
    return f"person-{KINDS.index(kind)}-{number:03}"


def measure(folder: Path, people: int, kinds: Sequence[str] = KINDS) -> Costs:
    """Measure people of some kinds.

    :param folder: an empty folder, for message logs.
    :param people: how many of each kind.
    """
    costs: dict[str, dict[str, Counter[str]]] = {}
    for kind in kinds:
        with closing(Meter(folder / f"{kind}.sqlite3", kind, people)) as meter:
            for what, cost in meter.measure().items():
                costs.setdefault(what, {})[kind] = cost
    return costs


def differences(costs: Costs, share: float = 0.01) -> list[str]:
    """Return where people of one kind cost more than those of another, by more than a share of it."""
    found = []
    for what, by_kind in costs.items():
        for name in sorted(set().union(*by_kind.values())):
            amounts = {kind: cost[name] for kind, cost in by_kind.items()}
            if max(amounts.values()) > min(amounts.values()) * (1 + share):
                found.append(f"{what}: {name} {amounts}")
    return found
