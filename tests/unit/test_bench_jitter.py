"""The trial of jitter: its plan, and how it counts what arrived. The trial itself is in tests/trials/test_jitter.py."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.trials.jitter import Jitter, Plan, RelayServer, planned, shares
from tests.trials.jitter_devices import DeviceOfV1

PLAN = Plan(users=8, seconds=60.0, seed=1)


def test_plan_is_the_same_each_time_and_with_guests() -> None:
    without, guests = planned(PLAN), planned(replace(PLAN, guests=1))
    assert planned(PLAN) == without
    assert [event for event in guests if event in without] == without
    assert {event.devices for event in guests if event not in without} == {(0,), (1,), (2,)}


def test_every_device_is_cut_and_sends() -> None:
    events = planned(PLAN)
    for is_cut in (True, False):
        hit = {(event.user, device) for event in events if bool(event.down) is is_cut for device in event.devices}
        assert hit == {(user, device) for user in range(PLAN.users) for device in range(2)}


def test_arrivals_are_counted_for_each_device() -> None:
    async def count() -> None:
        jitter = Jitter(replace(PLAN, users=2), RelayServer.__new__(RelayServer), DeviceOfV1)
        anna, bert = jitter.users
        for _ in range(5):
            jitter.ledger.write(anna, anna.devices[0])
        for written in jitter.ledger.written[:4]:
            written.value = True
        jitter.ledger.written[4].value = False
        first, second = bert.devices
        for number in (0, 1, 3, 2, 0):
            first._arrived(number)
        for number in (0, 1, 2):
            second._arrived(number)
        found = shares(jitter)
        assert (found.written, found.accepted, found.refused, found.unknown) == (5, 4, 1, 0)
        assert (found.expected, found.once, found.lost, found.doubled, found.late) == (8, 6, 1, 1, 1)
        assert (found.of_all, found.equal) == (2, 1)

    asyncio.run(count())
