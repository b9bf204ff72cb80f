"""The trial of jitter: people write to each other while their connections are cut and the server is killed.

Users in pairs, with two devices each, exchange numbered messages. Each connection is cut again and again, and comes back
after a while. The server is killed twice and stopped once, and started again each time. `test_jitter` runs it on the relay
with clients of v2, and checks every device. `bench.jitter` compares other servers over the same cuts.

Everything is planned before, by a seed: who writes from which device when, which connection is cut when and for how long,
and how the server ends. A third of the cuts each hit one device, the other one, or both. Half of them are noticed by the
server at once, the other half only when the device is back, as when a phone changes the network. Bytes take 5 to 50 ms in
each direction, and a cut loses those under way. This module must not know what is on the wire.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.ports import free_port
from tests.support import PATIENCE
from tests.support.evidence import Evidence
from tests.support.programs import RelayProcess
from tests.trials.again import read_places
from tests.trials.durability import LOG
from tests.trials.jitter_devices import Device, DeviceOfV1, DeviceOfV2, Ledger, User
from tests.trials.webserver import SeparateSite

STOPS = ((0.3, signal.SIGKILL), (0.55, signal.SIGTERM), (0.8, signal.SIGKILL))
"""When the server is ended, as a part of the time, and how."""

LEAST_UP_SECONDS = 4.0
"""The least time between a start of the server and its next end: on a busy machine, a start may take seconds."""

ARRIVING_PER_SECOND = 200
"""The devices that connect in a second at the beginning."""

PROGRESS_SECONDS = 10.0

MAX_WRONG = 20
"""The number of wrong things after which a trial ends."""


class Server(Protocol):
    """A server that is started again and again on one port of 127.0.0.1. Both methods block."""

    port: int

    def start(self) -> None:
        """Start it, and wait until it listens."""

    def stop(self, sign: int) -> None:
        """Send a signal, and wait for the end."""


class RelayServer:
    """The relay, with its defaults, an SQLite message log, and a key file for resume tokens.

    :param options: further options.
    :ivar relays: the processes, one after another.
    """

    def __init__(self, folder: Path, auth_url: str, port: int, *options: str, prelude: str = "") -> None:
        self.port = port
        self.relays: list[RelayProcess] = []
        self._folder = folder
        self._options = ("--auth-url", auth_url, "--resume-key-file", "resume.key", *options)
        self._prelude = prelude

    def start(self) -> None:
        relay = RelayProcess(
            self._folder,
            *self._options,
            listen=f"tcp:{self.port}:interface=127.0.0.1:backlog=4096",
            measured=False,
            prelude=self._prelude,
        )
        self.relays.append(relay)
        relay.__enter__()

    def stop(self, sign: int) -> None:
        self.relays[-1].stop(sign)


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    :ivar users: how many; even.
    :ivar seconds: how long they write.
    :ivar every: mean seconds between two cuts of a user; a device is hit by two in three.
    :ivar down: mean seconds for which a cut lasts.
    :ivar pause: mean seconds between two messages of a user.
    :ivar away: seconds between the end of a server and the next start.
    :ivar quiet: seconds without an arrival after which nothing more is awaited at the end.
    :ivar guests: of how many pairs there is one that also speaks version 1; 0 for none. The first user of such a pair has
        a third device, of version 1, and writes from it shortly before both devices of the other one are cut.
    :ivar noticed: whether the server notices every cut at once.
    """

    users: int
    seconds: float
    seed: int
    every: float = 10.0
    down: float = 2.0
    pause: float = 5.0
    away: float = 1.0
    quiet: float = 5.0
    guests: int = 0
    noticed: bool = False

    def has_guest(self, user: int) -> bool:
        """Whether a user has a third device, of version 1."""
        return bool(self.guests) and user % 2 == 0 and user // 2 % self.guests == 0


@dataclass(frozen=True)
class Event:
    """Something that is planned: a message, or a cut if there is a duration.

    :ivar devices: which of the user's devices; 2 is the guest.
    :ivar down: seconds for which the devices are cut; 0 for a message.
    :ivar is_quiet: whether the server does not notice the cut at once.
    """

    at: float
    user: int
    devices: tuple[int, ...]
    down: float = 0.0
    is_quiet: bool = False


def planned(plan: Plan) -> list[Event]:
    """Return what happens, in the order of time. The same plan gives the same, and guests change nothing else."""
    choose, aside = random.Random(plan.seed), random.Random(-plan.seed)
    unnoticed = 0.0 if plan.noticed else 0.5
    events: list[Event] = []
    for user in range(plan.users):
        at = choose.uniform(0, plan.pause)
        while at < plan.seconds:
            events.append(Event(at, user, (choose.randrange(2),)))
            at += choose.uniform(0.5, 1.5) * plan.pause
        at = choose.uniform(0.2, 1) * plan.every
        while at < plan.seconds:
            devices = choose.choice(((0,), (1,), (0, 1)))
            cut = Event(at, user, devices, choose.uniform(0.5, 1.5) * plan.down, choose.random() < unnoticed)
            events.append(cut)
            if plan.has_guest(user - 1) and len(devices) == 2 and not cut.is_quiet:
                # The relay takes the message, and then can't hand it over: its places in both inboxes become void.
                # What the same user writes just after it is logged with it, and must wait until they are void.
                before = at - aside.uniform(0.05, 0.15)
                events.append(Event(before, user - 1, (2,)))
                events += [Event(before + 0.015 * later, user - 1, (later % 2,)) for later in range(1, 5)]
            at += choose.uniform(0.5, 1.5) * plan.every
    return sorted(events, key=lambda event: event.at)


class Clock:
    """The time of a plan, in seconds. It rests while a server starts: that takes longer on a busy machine."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._zero = self._time()
        self._runs = asyncio.Event()
        self._runs.set()

    def now(self) -> float:
        """Return the time."""
        return self._time() - self._zero

    async def reach(self, at: float) -> None:
        """Wait until this time."""
        await self._runs.wait()
        while (remaining := at - self.now()) > 0:
            await asyncio.sleep(min(remaining, 0.1))
            await self._runs.wait()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Stop the time during the block."""
        self._runs.clear()
        began = self._time()
        try:
            yield
        finally:
            self._zero += self._time() - began
            self._runs.set()


class Jitter:
    """One run of a plan against a server.

    :param dialect: of the devices.
    :ivar ledger: what happened.
    :ivar users: everybody, with their devices.
    """

    def __init__(self, plan: Plan, server: Server, dialect: type[Device]) -> None:
        self._plan = plan
        self._server = server
        self.ledger = Ledger()
        self.users = [User(number) for number in range(plan.users)]
        choose = random.Random(plan.seed + 1)
        for user in self.users:
            user.partner = self.users[user.number ^ 1]
            user.devices = [self._device(dialect, user, number, choose) for number in range(2)]
            user.guest = self._device(DeviceOfV1, user, 2, choose) if plan.has_guest(user.number) else None
            user.devices[0].is_careless = dialect is DeviceOfV2 and user.number % 4 < 2

    def _device(self, dialect: type[Device], user: User, number: int, choose: random.Random) -> Device:
        place = user.number * 3 + number
        return dialect(
            self.ledger, user, number, f"127.8.{place // 250}.{place % 250 + 1}", choose.uniform(0.005, 0.05)
        )

    @property
    def devices(self) -> Iterator[Device]:
        """All devices of the dialect, without guests."""
        return (device for user in self.users for device in user.devices)

    @property
    def everything(self) -> list[Device]:
        """All devices, with guests."""
        return [*self.devices, *(user.guest for user in self.users if user.guest is not None)]

    def progress(self) -> str:
        """Return what is going on."""
        devices = list(self.devices)
        waiting = sum(len(device.queue) + len(device.pending) for device in devices)
        written, counts = len(self.ledger.written), self.ledger.counts
        return (
            f"{sum(device.is_in for device in devices):,} of {len(devices):,} devices are in, {written:,} messages are "
            f"written, {waiting:,} of them are not answered, the server was ended {counts['kills'] + counts['stops']} times"
        )

    async def run(self) -> None:
        """Start the server, let everything happen, wait until nothing more happens, and stop the server."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: self.ledger.wrong.append(f"a client failed: {context}"))
        living: list[asyncio.Task[None]] = []
        await asyncio.to_thread(self._server.start)
        try:
            for number, device in enumerate(self.everything):
                living.append(asyncio.create_task(device.live(self._server.port)))
                if number % 20 == 0:
                    await asyncio.sleep(20 / ARRIVING_PER_SECOND)
            await self._until(lambda: all(device.is_in for device in self.everything), "not everybody has logged in")
            self._clock = Clock()
            stops = asyncio.create_task(self._stops())
            await self._play()
            await stops
            if not self.ledger.wrong:
                await self._settle()
            for task in living:
                if task.done():
                    task.result()
        finally:
            for task in living:
                task.cancel()
            for device in self.everything:
                device.leave()
            await asyncio.sleep(0.1)
            with suppress(ProcessLookupError):
                await asyncio.to_thread(self._server.stop, signal.SIGTERM)

    async def _play(self) -> None:
        for event in planned(self._plan):
            await self._clock.reach(event.at)
            if len(self.ledger.wrong) >= MAX_WRONG:
                return
            user = self.users[event.user]
            for number in event.devices:
                device = user.guest if number == 2 else user.devices[number]
                assert device is not None
                if not event.down:
                    device.write()
                else:
                    device.cut(event.down, event.is_quiet)

    async def _stops(self) -> None:
        for part, sign in STOPS:
            await self._clock.reach(max(part * self._plan.seconds, self._clock.now() + LEAST_UP_SECONDS))
            if len(self.ledger.wrong) >= MAX_WRONG:
                return
            await asyncio.to_thread(self._server.stop, sign)
            self.ledger.counts["kills" if sign == signal.SIGKILL else "stops"] += 1
            await asyncio.sleep(self._plan.away)
            with self._clock.resting():
                await asyncio.to_thread(self._server.start)

    async def _settle(self) -> None:
        """Wait until everybody is there and has what was accepted, or nothing arrives any more.

        Then ask for the last places and the conversations.
        """
        await self._until(
            lambda: all(device.is_done for device in self.everything), "not everything was sent and answered"
        )
        quiet = self._plan.quiet
        ledger = self.ledger
        ledger.last_arrival = ledger.time()
        while not self._is_complete() and ledger.time() < ledger.last_arrival + quiet and not ledger.wrong:
            await asyncio.sleep(0.2)
        of_v2 = [device for device in self.devices if isinstance(device, DeviceOfV2)]
        for device in of_v2:
            device.finish()
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not all(map(_has_all, of_v2)):
            await asyncio.sleep(0.1)

    def _is_complete(self) -> bool:
        return all(
            written.number in device.seen
            for written in self.ledger.written
            if written.value
            for device in written.to.devices
        )

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + 4 * PATIENCE + self._plan.seconds
        while not condition():
            if self.ledger.wrong:
                return
            assert time.monotonic() < until, what
            await asyncio.sleep(0.1)


def _has_all(device: DeviceOfV2) -> bool:
    return device.is_told and device.last is not None and device.place >= device.last


# What must hold for v2 --------------------------------------------------------------------


def check(jitter: Jitter, log: Path) -> int:
    """Compare what the devices of v2 have with the message log, which nobody writes any more.

    :returns: the number of void places in all inboxes.
    :raises AssertionError: for everything that is wrong.
    """
    ledger = jitter.ledger
    wrong = list(ledger.wrong)
    inboxes, places = _read(jitter, log, wrong)
    for device in jitter.devices if not wrong else ():
        assert isinstance(device, DeviceOfV2)
        wrong += _differences(device, inboxes[device.user.uid])
        if not device.is_told:
            wrong.append(f"{device} was not told of its conversations")
    for written in ledger.written if not wrong else ():
        found = places.get(written.number, 0)
        if written.value and found != 1:
            wrong.append(f"{written.content!r} was accepted, and has {found} places in the log")
        elif written.value is False and found:
            wrong.append(f"{written.content!r} was refused, and stands in the log")
        elif written.value is None and not written.by_v1:
            wrong.append(f"{written.content!r} was not answered")
    for device in jitter.devices if not wrong else ():
        if misplaced := out_of_order(device):
            wrong.append(f"{device} received {misplaced} messages out of order")
    if not wrong:
        wrong += _untrue_receipts(ledger, inboxes)
    assert not wrong, "\n".join(wrong)
    return sum(number is None for inbox in inboxes.values() for number in inbox)


def _read(jitter: Jitter, log: Path, wrong: list[str]) -> tuple[dict[str, list[int | None]], dict[int, int]]:
    """Return the inbox of each user as the log has it, and how often each message stands in it."""
    inboxes: dict[str, dict[int, int | None]] = {user.uid: {} for user in jitter.users}
    stands: dict[int, int] = {}
    for row in read_places(log):
        number = int(row.content[:7])
        written = jitter.ledger.written[number]
        if (row.from_uid, row.to_uid, row.content) != (written.sender.uid, written.to.uid, written.content):
            wrong.append(f"the log has {row}, and nobody wrote that")
        if row.delivered:
            stands[number] = stands.get(number, 0) + 1
        for uid, place in ((row.from_uid, row.from_place), (row.to_uid, row.to_place)):
            if place in inboxes[uid]:
                wrong.append(f"place {place} of {uid} was given twice")
            inboxes[uid][place] = number if row.delivered else None
    return {uid: [inbox[place] for place in sorted(inbox)] for uid, inbox in inboxes.items()}, stands


def _differences(device: DeviceOfV2, inbox: list[int | None]) -> Iterator[str]:
    """Yield how a device differs from the inbox of its user."""
    if len(device.inbox) < len(inbox):
        yield f"{device} lacks what is at the places from {len(device.inbox) + 1} to {len(inbox)}"
    for place, number in enumerate(inbox, 1):
        if place in device.inbox and device.inbox[place] != number:
            what = "nothing: it is void" if number is None else f"message {number}"
            yield f"{device} has message {device.inbox[place]} at place {place}, and the log has {what}"


def _untrue_receipts(ledger: Ledger, inboxes: dict[str, list[int | None]]) -> Iterator[str]:
    """Yield the receipts that name a message that the recipient had not said to have received."""
    for receipt in ledger.receipts:
        inbox = inboxes[receipt.user.uid]
        number = inbox[receipt.place - 1] if receipt.place <= len(inbox) else None
        written = None if number is None else ledger.written[number]
        if written is None or written.sender is not receipt.user:
            yield f"a {receipt.frame} names place {receipt.place} of {receipt.user.uid}, where no message of theirs is"
        elif written.acknowledged_at > receipt.at and written.at >= written.to.careless_until:
            yield (
                f"a {receipt.frame} told {receipt.user.uid} that {written.to.uid} has received {written.content!r}, "
                "and no device has said so"
            )


# What is measured for all -------------------------------------------------------------------


def out_of_order(device: Device) -> int:
    """Return how many messages arrived after a later one of the same sending device."""
    written = device.ledger.written
    latest: dict[int, int] = {}
    late = 0
    seen: set[int] = set()
    for number in device.arrivals:
        message = written[number]
        if number not in seen and not message.by_v1:
            seen.add(number)
            last = latest.get(message.device, -1)
            late += message.stream_place < last
            latest[message.device] = max(last, message.stream_place)
    return late


@dataclass(frozen=True)
class Shares:
    """What became of the messages; counts, and seconds.

    :ivar written: messages that were written, without those of guests.
    :ivar accepted: those whose sender was told that they were accepted.
    :ivar refused: those whose sender was told that they were not.
    :ivar unknown: those whose sender does not know.
    :ivar expected: accepted messages, for each device of their recipients; of these, `once` arrived exactly once, `lost`
        never, and `doubled` more than once.
    :ivar late: arrivals after a later message of the same sending device.
    :ivar of_all: messages that were written and arrived exactly once on both devices of their recipients.
    :ivar equal: users whose devices received the same messages in the same order.
    :ivar p50: of the seconds from writing to arrival on a device; so are `p99` and `longest`.
    """

    written: int
    accepted: int
    refused: int
    unknown: int
    expected: int
    once: int
    lost: int
    doubled: int
    late: int
    of_all: int
    users: int
    equal: int
    p50: float
    p99: float
    longest: float


def shares(jitter: Jitter) -> Shares:
    """Count what became of the messages."""
    copies = {device: _copies(device.arrivals) for device in jitter.devices}
    messages = [written for written in jitter.ledger.written if not written.by_v1]
    accepted = [written for written in messages if written.value]
    counts = [copies[device].get(written.number, 0) for written in accepted for device in written.to.devices]
    delays = sorted(jitter.ledger.delays)
    return Shares(
        written=len(messages),
        accepted=len(accepted),
        refused=sum(written.value is False for written in messages),
        unknown=sum(written.value is None for written in messages),
        expected=len(counts),
        once=counts.count(1),
        lost=counts.count(0),
        doubled=sum(count > 1 for count in counts),
        late=sum(map(out_of_order, jitter.devices)),
        of_all=sum(
            all(copies[device].get(written.number) == 1 for device in written.to.devices) for written in messages
        ),
        users=len(jitter.users),
        equal=sum(user.devices[0].arrivals == user.devices[1].arrivals for user in jitter.users),
        p50=_quantile(delays, 0.5),
        p99=_quantile(delays, 0.99),
        longest=delays[-1] if delays else math.nan,
    )


def _copies(arrivals: list[int]) -> dict[int, int]:
    copies: dict[int, int] = {}
    for number in arrivals:
        copies[number] = copies.get(number, 0) + 1
    return copies


def _quantile(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))] if values else math.nan


def run(plan: Plan, server: Server, dialect: type[Device], tell: Callable[[str], None] | None = None) -> Jitter:
    """Run a plan against a server.

    :param tell: called with a line now and then, about the progress.
    """

    async def play() -> Jitter:
        jitter = Jitter(plan, server, dialect)

        async def progress() -> None:
            while tell is not None:
                await asyncio.sleep(PROGRESS_SECONDS)
                tell(jitter.progress())

        telling = asyncio.create_task(progress())
        try:
            await jitter.run()
        finally:
            telling.cancel()
        return jitter

    return asyncio.run(play())


SLOW = "from tests.trials.broken import build; build('has a slow disk')"
"""A slow disk: more is under way when something ends, and more comes while a page of an inbox is read."""

FULL = Plan(users=1000, seconds=300.0, seed=13, guests=10)
SHORT = Plan(users=40, seconds=16.0, seed=13, every=4.0, down=0.8, pause=1.0, away=0.5, quiet=10.0, guests=1)


def over_cuts_and_kills(folder: Path, evidence: Evidence, full: bool) -> None:
    """Run the trial with clients of v2, and check everything."""
    plan = FULL if full else SHORT
    options = () if full else ("--drain-time", "2")
    with SeparateSite(0.0) as site:
        server = RelayServer(folder, site.url, free_port(), *options, prelude="" if full else SLOW)
        began = run(plan, server, DeviceOfV2)
    void = check(began, folder / LOG)
    counts, found = began.ledger.counts, shares(began)
    print(counts, began.ledger.setbacks, found, sep="\n")
    users = plan.users
    evidence.count("kills", counts["kills"], at_least=2)
    evidence.count("stops", counts["stops"], at_least=1)
    evidence.count("connections cut", counts["connections cut"], at_least=users * 4 // 3)
    evidence.count("of them unnoticed by the relay", counts["of them unnoticed by the server"], at_least=users // 3)
    evidence.count("bytes lost", counts["bytes lost"], at_least=users * 5)
    evidence.count("messages accepted", found.accepted, at_least=users * 8)
    evidence.count("messages sent again", counts["messages sent again"], at_least=users // 2)
    evidence.count("messages of v1", len(began.ledger.written) - found.written, at_least=users // 20)
    evidence.count("void places", void, at_least=0 if full else 1)
    evidence.count("receipts", len(began.ledger.receipts), at_least=users * 4)
    evidence.figure(f"{found.once:,} of {found.expected:,} arrived exactly once, {found.equal} of {users} users equal")
    evidence.figure(f"the site was asked {site.asked.total():,} times for {counts['logins']:,} logins")
    evidence.figure(f"from writing to arrival: p50 {found.p50:.3f} s, p99 {found.p99:.2f} s")
    told = [
        line for relay in server.relays for line in relay.output if "please report it" in line or "Traceback" in line
    ]
    assert not told, told
