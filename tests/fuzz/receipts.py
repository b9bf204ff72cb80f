"""Random marks of a few people, and a check that every receipt is true: it names what was said, and nothing more.

Messages are committed at once. Reads of the log are answered late, or fail. Devices read slowly, so that marks beyond
what they were sent mean something else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from chatrelay.testing import HeldMessageLog
from tests.support.people import STEP, Device, People

USERS = ("alice", "bo", "cy")

STEPS = 200
"""Things that happen in one scenario."""

SLOW = 100_000
"""Bytes that a device which reads slowly has not read."""


class Untrue(AssertionError):
    """A receipt says what is not so, or comes too soon, or does not come."""


class Story:
    """One scenario.

    :param seed: decides what happens.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._chance = random.Random(seed)
        self._fails = seed % 2 == 1
        self._log = HeldMessageLog()
        self._people = People(self._log)
        self._devices: list[Device] = []
        self._sent_to: dict[Device, int] = {}  # the last place that the device was sent
        self._received: dict[str, int] = {}  # by user: up to where the user has said to have received
        self._read: dict[tuple[str, str], int] = {}  # by user and peer: up to where the user has said to have read
        self._told: dict[tuple[Device, str], tuple[int, int]] = {}  # by device and peer: the numbers of receipts
        self._told_at: dict[tuple[Device, str], float] = {}
        self._owed: dict[tuple[Device, str], tuple[int, int]] = {}  # the least that must be told at the end
        self.receipts = 0

    def run(self) -> int:
        """Have things happen; return how many receipts were checked.

        :raises Untrue: if one is not true.
        """
        chance = self._chance
        events = [self._send, self._acknowledge, self._answer] * 2
        events += [self._say_read, self._connect, self._wait, self._slow_down]
        for user in USERS:
            self._log_in(user)
        for _ in range(STEPS):
            chance.choice(events)()
            self._look()
        self._log.reader.holds = False
        for _ in range(4):
            while self._log.reader.waiting:
                self._log.reader.answer()
            self._pass_steps(20)
        if not self._fails:
            for key, (received, read) in self._owed.items():
                told = self._told.get(key, (0, 0))
                if key[0] in self._devices and (told[0] < received or told[1] < read):
                    self._fail(f"{key[0].user} was told {told} by {key[1]}, and should know {received, read}")
        return self.receipts

    def _fail(self, text: str) -> None:
        raise Untrue(f"seed {self._seed}: {text}")

    # What happens

    def _log_in(self, user: str) -> None:
        device = self._people.log_in(user)
        self._devices.append(device)
        self._sent_to[device] = len(self._log.inboxes.get(user, ()))

    def _connect(self) -> None:
        if len(self._devices) > 4 or (self._devices and self._chance.random() < 0.4):
            device = self._chance.choice(self._devices)
            self._devices.remove(device)
            self._people.log_out(device)
        else:
            self._log_in(self._chance.choice(USERS))

    def _send(self) -> None:
        sender, recipient = self._chance.choice(USERS), self._chance.choice(USERS)
        for _ in range(self._chance.choice((1, 1, 5))):
            self._people.send(sender, recipient)

    def _mark(self) -> tuple[Device, int] | None:
        """Return a device and the place that a mark on it names, which may be too far."""
        if not self._devices:
            return None
        device = self._chance.choice(self._devices)
        self._look()
        sent = self._sent_to[device]
        return device, max(0, sent + self._chance.choice((0, 0, 0, -1, -3, 2, 1000)))

    def _acknowledge(self) -> None:
        if (mark := self._mark()) is not None:
            device, place = mark
            before = {peer: self._said(device.user, peer) for peer in USERS}
            self._received[device.user] = max(self._received.get(device.user, 0), min(place, self._sent_to[device]))
            self._people.received(device, place)
            self._owe(device.user, before)

    def _say_read(self) -> None:
        if (mark := self._mark()) is not None:
            device, place = mark
            peer = self._chance.choice(USERS)
            key = (device.user, peer)
            before = {peer: self._said(device.user, peer)}
            self._read[key] = max(self._read.get(key, 0), min(place, self._sent_to[device]))
            self._people.read(device, peer, place)
            self._owe(device.user, before)

    def _slow_down(self) -> None:
        if self._devices:
            device = self._chance.choice(self._devices)
            if device.unsent:
                device.drain()
            else:
                device.unsent = SLOW

    def _answer(self) -> None:
        reader = self._log.reader
        reader.holds = self._chance.random() < 0.5
        for _ in range(self._chance.choice((1, 3, 10))):
            if reader.waiting:
                if self._fails and self._chance.random() < 0.2:
                    reader.fail()
                else:
                    reader.answer()

    def _wait(self) -> None:
        self._pass_steps(self._chance.choice((1, 2, 5, 20)))

    def _pass_steps(self, steps: int) -> None:
        for _ in range(steps):
            self._look()
            self._people.pass_time(STEP)
        self._look()

    # What must be so

    def _has_written(self, sender: str, recipient: str) -> bool:
        return any((row.from_user, row.to_user) == (sender, recipient) for row in self._log.rows)

    def _number(self, sender: str, recipient: str, place: int) -> int:
        """Return the sender's place of the last message up to a place of the recipient."""
        rows = [row for row in self._log.rows if (row.from_user, row.to_user) == (sender, recipient)]
        return max((row.from_place for row in rows if row.to_place <= place), default=0)

    def _said(self, user: str, peer: str) -> tuple[int, int]:
        """Return what a user has said to have received and read of a peer's messages, in places of the peer."""
        read = self._read.get((user, peer), 0)
        received = max(self._received.get(user, 0), read)
        return self._number(peer, user, received), self._number(peer, user, read)

    def _owe(self, user: str, before: Mapping[str, tuple[int, int]]) -> None:
        """Note what the devices that are here must be told of a mark of a user.

        :param before: by peer, what the user had said before.
        """
        for device in self._devices:
            peer = device.user
            if peer in before and self._has_written(user, peer):
                said = self._said(user, peer)
                owed = self._owed.get((device, user), (0, 0))
                grown = [now if now > then else 0 for now, then in zip(said, before[peer], strict=True)]
                self._owed[device, user] = (max(owed[0], grown[0]), max(owed[1], grown[1]))

    def _look(self) -> None:
        """Check what the devices were sent since the last look."""
        now = self._people.clock.seconds()
        for device in list(self._sent_to):
            for frame in device.take():
                words = frame.split()
                if words[1] in ("message", "void"):
                    self._sent_to[device] = int(words[0].rpartition("-")[2])
                elif words[0] == "receipt":
                    self._check(device, words[1], words[2], words[3], now)

    def _check(self, device: Device, peer: str, *numbers: str | float) -> None:
        received, read = (0 if each == "-" else int(each) for each in numbers[:2])
        now = float(numbers[2])
        self.receipts += 1
        if not self._has_written(peer, device.user):
            self._fail(f"{device.user} was told of {peer}, who is unknown")
        said = self._said(peer, device.user)
        if received > said[0] or read > said[1]:
            self._fail(f"{device.user} was told {received, read} by {peer}, who has said {said}")
        before = self._told.get((device, peer), (0, 0))
        if (received and received <= before[0]) or (read and read <= before[1]) or not (received or read):
            self._fail(f"{device.user} was told {received, read} by {peer} after {before}")
        told = (max(received, before[0]), max(read, before[1]))
        if now - self._told_at.get((device, peer), -1.0) < 0.25:
            self._fail(f"{device.user} was told by {peer} twice within a quarter of a second")
        self._told[device, peer] = told
        self._told_at[device, peer] = now
