"""Nobody learns anything of a person who has never written to them: not even whether the person is here or exists.

Alice does the same things in two worlds. In one of them there is also Xena, who does all that one can do but write to
Alice. Everything that Alice's connections get must be the same, in the same order, and so must all reads of the message
log that Alice's requests cause.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count, zip_longest
from typing import Any

from twisted.internet.defer import Deferred

from chatrelay.model import LoggedMessage, MarkKind
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.overview import Overview
from chatrelay.relay.presence import Watcher
from chatrelay.relay.storing import StorePolicy
from chatrelay.testing import HeldInboxReader, HeldMessageLog
from tests.support.people import WordDialect
from tests.support.store_case import Device, World

STEPS = 150
"""Things that are done in one pair of worlds."""

KINDS = 9
"""The kinds of thing that Alice does."""

READS = (
    "entries",
    "history",
    "conversations",
    "progress",
    "find",
    "has_written",
    "writers",
    "place_of_sender",
    "marks",
)
"""The methods of `chatrelay.interfaces.InboxReader`."""


class RecordedReader(HeldInboxReader):
    """A reader that records what is read."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in READS:
            reads: list[str] = super().__getattribute__("_log").reads

            def read(*arguments: Any, **keywords: Any) -> Any:
                reads.append(f"{name} {arguments} {keywords}")
                return value(*arguments, **keywords)

            return read
        return value


class RecordedLog(HeldMessageLog):
    """A log that records what is read.

    :ivar reads: the reads so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = "epoch"
        self.reads: list[str] = []
        self.reader = RecordedReader(self)

    def inbox(self, user: str) -> Deferred[Any]:
        """Look up a user's inbox."""
        self.reads.append(f"inbox {user}")
        return super().inbox(user)


class Seen:
    """One world, and what Alice sees of it.

    :param seed: decides what everybody does.
    :param has_xena: whether Xena exists.
    :ivar seen: what Alice's connections got, and the reads that Alice's requests caused, in order.
    :ivar tries: how often Alice did something to Xena, by kind.
    """

    def __init__(self, seed: int, has_xena: bool) -> None:
        self._chance = random.Random(seed)
        policy = StorePolicy(reject=seed % 3 == 0, stranger_messages=self._chance.choice((0, 3, 20)))
        self.log = RecordedLog()
        self.world = World(policy, self.log)
        self.world.inboxes.dialect = WordDialect()  # type: ignore[assignment]
        self.awareness = Awareness(
            WordDialect(),
            self.log,
            self.world.directory,
            self.world.inboxes,
            self.world.storing.acquaintances,
            self.world.clock.seconds,
            self.world.clock,
            lambda call: self.world.clock.callLater(0, call),
        )
        self.world.storing.tell(self.awareness)
        self.overview = Overview(self.log.reader, self.world.storing.acquaintances, self.awareness.marks)
        self._has_xena = has_xena
        self._devices: dict[str, list[Device]] = {"alice": [], "bo": [], "xena": []}
        self._watchers: dict[Device, Watcher] = {}
        self._ids: Counter[str] = Counter()
        self.seen: list[str] = []
        self.tries: Counter[str] = Counter()

    def run(self) -> None:
        """Have everybody do things."""
        for user, others in (("alice", ["bo", "xena"]), ("bo", ["alice"])):
            for _ in range(2):
                self._log_in(user)
            for other in others:
                self._send(user, other, self._devices[user][0])
        for _ in range(STEPS):
            # Every random number is drawn in both worlds.
            user = self._chance.choice(("alice", "alice", "bo", "xena", "xena"))
            peer = self._chance.choice(
                {"alice": ("xena", "xena", "bo"), "bo": ("alice", "xena")}.get(user, ("alice", "dee"))
            )
            do = self._chance.choice(self._things)
            self._detail = self._chance.random()
            before = len(self.log.reads)
            if user != "xena" or self._has_xena:
                do(self, user, peer)
                self.world.commit()
            if user == "alice":
                self._note(self.log.reads[before:])
                if peer == "xena":
                    self.tries[do.__name__.strip("_")] += 1
            if self._chance.random() < 0.1:
                self._forget()
            if self._chance.random() < 0.2:
                self.world.clock.pump([0.25] * self._chance.choice((1, 2, 12, 25)))
            self._note(())

    def _note(self, reads: Any) -> None:
        self.seen.extend(reads)
        for device in self._devices["alice"]:
            self.seen.extend(device.take())

    def _forget(self) -> None:
        """Have the relay forget who is known to whom, as it does if many others write meanwhile."""
        for acquaintances in (self.world.storing.acquaintances, self.awareness._told):
            acquaintances.forget()

    def _device(self, user: str) -> Device:
        if not self._devices[user]:
            self._log_in(user)
        devices = self._devices[user]
        return devices[int(self._detail * len(devices))]

    def _log_in(self, user: str, _: str = "") -> None:
        if len(self._devices[user]) < 3:
            device = self.world.device(user)
            self._devices[user].append(device)
            self._watchers[device] = Watcher(user, device)
            received = self.log.marks.get((user, MarkKind.RECEIVED, ""), 0)
            self.awareness.receipts.entered(user, received)

    def _log_out(self, user: str, _: str) -> None:
        if self._devices[user]:
            device = self._devices[user].pop(int(self._detail * len(self._devices[user])))
            self.seen.extend(device.take() if user == "alice" else ())
            device.leave()
            self.awareness.receipts.left(user)
            self.awareness.closed(self._watchers.pop(device))

    def _send(self, user: str, peer: str, device: Device | None = None) -> None:
        if (user, peer) == ("xena", "alice"):
            return
        self._ids[user] += 1
        device = device or self._device(user)
        reject = (None, True, False)[self._ids[user] % 3]
        self.world.store(device, peer, f"{user}-{self._ids[user]}", reject=reject)
        self.world.commit()

    def _send_again(self, user: str, peer: str) -> None:
        if (user, peer) != ("xena", "alice"):
            number = max(1, self._ids[user] - int(self._detail * 3))
            self.world.store(self._device(user), peer, f"{user}-{number}", again=True)

    def _received(self, user: str, _: str) -> None:
        device = self._device(user)
        assert device.cursor is not None
        self.awareness.receipts.acknowledge(user, device.cursor, device.cursor.place)

    def _read(self, user: str, peer: str) -> None:
        device = self._device(user)
        assert device.cursor is not None
        self.awareness.receipts.read(user, device.cursor, peer, device.cursor.place)

    def _type(self, user: str, peer: str) -> None:
        self.awareness.typing.typed(user, peer, self._device(user))

    def _watch(self, user: str, peer: str) -> None:
        users = ([peer], [peer, "bo"], ["bo", peer, "nobody"])[int(self._detail * 3)]
        watcher = self._watchers[self._device(user)]
        answer: Any = Deferred.fromCoroutine(self.awareness.watch(watcher, tuple(dict.fromkeys(users)))).result  # type: ignore[attr-defined]
        if user == "alice":
            self.seen.append(f"watches {answer}")

    def _look(self, user: str, peer: str) -> None:
        last: dict[str, LoggedMessage | None] = {peer: None, "bo": None}
        found = Deferred.fromCoroutine(self.overview.marks_of(user, last, 1000)).result  # type: ignore[attr-defined]
        if user == "alice":
            self.seen.append(f"finds {found}")

    _things: tuple[Callable[[Seen, str, str], None], ...] = (
        _log_in,
        _log_out,
        _send,
        _send,
        _send_again,
        _received,
        _read,
        _type,
        _watch,
        _look,
    )


class Different(AssertionError):
    """Alice sees a difference."""


def compare(tries: int, first: int = 0) -> Counter[str]:
    """Compare pairs of worlds until Alice has tried each kind of thing often enough.

    :param tries: how often she must have done each kind of thing to Xena.
    :param first: the seed of the first pair; the others follow.
    :returns: how often she has done each kind.
    :raises Different: with the seed of the worlds in which she sees a difference.
    """
    done: Counter[str] = Counter()
    for seed in count(first):
        empty, other = Seen(seed, False), Seen(seed, True)
        empty.run()
        other.run()
        for number, (one, two) in enumerate(zip_longest(empty.seen, other.seen)):
            if one != two:
                raise Different(f"seed {seed}, event {number}: {one!r} without Xena, {two!r} with her")
        done += empty.tries
        if len(done) == KINDS and min(done.values()) >= tries:
            break
    return done
