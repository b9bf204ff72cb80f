"""How much a client may send: allowances, their rates, and what a large message counts as."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.config.options import Config
from chatrelay.limits.inflow import (
    BRACKET_BYTES,
    MIN_READ,
    Allowance,
    Inflow,
    InflowRates,
    weight,
)


class Allowances(SynchronousTestCase):
    """Counting down and refilling."""

    def test_remaining_counts_down_without_the_clock(self) -> None:
        allowance = Allowance(10, 20, 0)
        self.assertEqual(allowance.remaining, 20)
        allowance.remaining -= 21
        self.assertEqual(allowance.refill(0), 0.1)
        self.assertEqual(allowance.refill(0.1), 0)

    def test_refill_adds_no_more_than_the_burst(self) -> None:
        allowance = Allowance(10, 20, 0)
        allowance.remaining = -5
        allowance.refill(1000)
        self.assertEqual(allowance.remaining, 20)

    def test_clock_set_back_refills_nothing(self) -> None:
        allowance = Allowance(10, 20, 100)
        allowance.remaining = -1
        self.assertEqual(allowance.refill(50), 0.1)
        self.assertEqual(allowance.refill(50.1), 0)

    def test_rate_of_zero_is_no_limit(self) -> None:
        allowance = Allowance(0, 0, 0)
        allowance.remaining -= 1e9
        self.assertEqual(allowance.remaining, math.inf)
        self.assertEqual(allowance.refill(1), 0)

    @given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=50))
    def test_any_schedule_takes_no_more_than_twice_the_burst_and_the_refill(
        self, steps: list[tuple[float, int]]
    ) -> None:
        allowance, now, taken = Allowance(10, 20, 0), 0.0, [(0.0, 0)]
        for seconds, size in steps:
            now += seconds
            if allowance.remaining >= 0 or not allowance.refill(now):
                allowance.remaining -= size
                taken.append((now, size))
        for first in range(len(taken)):
            since = taken[first][0]
            self.assertLessEqual(
                sum(size for _, size in taken[first:]), 2 * 20 + 10 * (now - since) + 2 * 50 + 1e-6, (since, now)
            )


class Rates(SynchronousTestCase):
    """The default rates of reading."""

    def rates(self, **options: Any) -> InflowRates:
        """Return the rates of a relay with these options."""
        config = Config(**options)
        return InflowRates.beside(
            config.bytes_per_second,
            config.frames_per_second,
            config.messages_per_second,
            config.message_size,
            config.control_frames_per_second,
        )

    def test_default_rates_grow_with_the_message_limits_and_given_rates_are_kept(self) -> None:
        mib = 1024 * 1024
        for options, rates in (
            ({}, (mib, 100)),
            ({"messages_per_second": 100.0}, (10 * mib, 910)),
            ({"message_size": mib}, (16 * mib, 100)),
            ({"messages_per_second": 0.1}, (mib, 100)),  # the minimum
            ({"messages_per_second": 0.0}, (0, 0)),  # without a limit on messages there is no default
            ({"message_size": 0}, (0, 100)),
            ({"messages_per_second": 0.0, "bytes_per_second": 5, "frames_per_second": 7}, (5, 7)),
            ({"bytes_per_second": 0, "frames_per_second": 0}, (0, 0)),
        ):
            self.assertEqual(self.rates(**options), rates, options)

    def test_client_at_its_message_limits_is_within_the_default_rates(self) -> None:
        config = Config()
        inflow = Inflow(self.rates(), 0)
        inflow.apply_user_limits(self.rates(), 0)
        # Each of the largest messages in segments of a network with a small MTU, each segment in a read of its own.
        size = config.message_size + 14
        each = size + -(-size // 1300) * MIN_READ
        inflow.bytes.remaining -= config.message_burst * size
        self.assertGreater(inflow.bytes.remaining, 0)
        self.assertLess(config.messages_per_second * each, 1024 * 1024)


class Held(SynchronousTestCase):
    """Bytes that come during a pause."""

    def test_held_bytes_are_released_once_and_in_order(self) -> None:
        inflow = Inflow(InflowRates(1, 1), 0)
        self.assertEqual(inflow.release(), b"")
        inflow.hold(b"one ")
        inflow.hold(b"two")
        self.assertEqual([inflow.release(), inflow.release()], [b"one two", b""])


class Weights(SynchronousTestCase):
    """Arrays and objects count more than text."""

    def test_text_has_no_extra_weight(self) -> None:
        for text in (b"x" * 65_000, b"hej, hej! " * 6500, b"[{x " * 1000 + b"x" * 61_000):
            self.assertEqual(weight(text, 1.0), 0)

    def test_arrays_and_objects_have_extra_weight(self) -> None:
        for text in (b"[" * 500 + b"]" * 500, b"{},", b"[]", b'{"a":['):
            text *= 65_000 // len(text)
            brackets = text.count(b"[") + text.count(b"{")
            found = weight(text, 1.0) / BRACKET_BYTES
            self.assertLess(abs(found - (brackets - len(text) // 16)), brackets * 0.1)

    def test_sampled_bytes_cannot_be_foreseen(self) -> None:
        text = (b"[" * 16 + b"x") * 3800
        found = sorted(weight(text, now / 1e6) for now in range(1000, 1017))
        self.assertEqual(found[0], 0)
        self.assertGreater(found[2], 1_000_000)
