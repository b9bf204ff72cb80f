"""Token buckets, compared with their definition, and how long a user's limits are remembered."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits.addresses import address_key
from chatrelay.limits.buckets import TokenBucket
from chatrelay.limits.sending import MAX_KNOWN_RECIPIENTS, SendLimits, UserQuota

UNLIMITED = TokenBucket(0, 0)
"""The bucket of a connection without a limit."""


class Addresses(SynchronousTestCase):
    """The name by which an address is counted."""

    def test_ipv4_address_counts_as_itself_and_ipv6_address_as_its_network(self) -> None:
        for host, key in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
            ("2001:DB8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
            ("::1", "::/64"),
            ("fe80::1%eth0", "fe80::/64"),
        ):
            self.assertEqual(address_key(host), key)

    def test_text_that_is_not_an_address_is_refused(self) -> None:
        for host in ("", "example.com", "192.0.2.1:80", "192.0.2"):
            self.assertRaises(ValueError, address_key, host)


class TokenBucketTests(SynchronousTestCase):
    """A burst at once, and a rate per second."""

    def taken(self, bucket: TokenBucket, now: float, tries: int = 1000) -> int:
        """Return how many of this many tries at one moment succeed."""
        return sum(bucket.take(now) for _ in range(tries))

    def test_bucket_gives_a_burst_and_then_the_rate(self) -> None:
        bucket = TokenBucket(10, 30)
        self.assertEqual(self.taken(bucket, 5000), 30)
        self.assertEqual(self.taken(bucket, 5001), 10)
        self.assertEqual(self.taken(bucket, 5001.05), 0)
        self.assertEqual(self.taken(bucket, 5001.125), 1)
        self.assertEqual(self.taken(bucket, 1e9), 30)

    def test_remaining_counts_whole_tokens(self) -> None:
        bucket = TokenBucket(10, 30)
        for now, left in ((5000.0, 30), (5000.5, 5), (5001.0, 5), (2000.0, 0), (2001.0, 10), (2004.0, 30)):
            self.assertEqual(bucket.remaining(now), left)
            self.assertEqual(self.taken(bucket, now, tries=30), left)
        self.assertEqual(TokenBucket(0, 0).remaining(0), math.inf)

    def test_bucket_holds_at_least_one_token(self) -> None:
        bucket = TokenBucket(0.25, 0.5)
        self.assertEqual(self.taken(bucket, 0), 1)
        self.assertEqual(self.taken(bucket, 3.9), 0)
        self.assertEqual(self.taken(bucket, 4), 1)

    def test_rate_or_burst_of_zero_is_no_limit(self) -> None:
        for bucket in (TokenBucket(0, 30), TokenBucket(10, 0), TokenBucket(0, 0)):
            for now in (0, 0, 1e9, 5):
                self.assertEqual(self.taken(bucket, now), 1000)
            self.assertTrue(bucket.is_full(0))
            self.assertEqual(bucket.seconds_to_fill, 0)

    def test_clock_set_back_neither_adds_nor_removes_tokens(self) -> None:
        bucket = TokenBucket(10, 30)
        self.assertEqual(self.taken(bucket, 1_000_000), 30)
        self.assertEqual(self.taken(bucket, 1000), 0)
        self.assertEqual(self.taken(bucket, 1001), 10)

    def test_bucket_is_full_again_after_its_refill_time(self) -> None:
        bucket = TokenBucket(10, 30)
        self.assertTrue(bucket.is_full(0))
        self.taken(bucket, 0)
        self.assertFalse(bucket.is_full(2.9))
        self.assertTrue(bucket.is_full(3))
        self.assertEqual(bucket.seconds_to_fill, 3)
        self.taken(bucket, 0, tries=1)
        self.assertFalse(bucket.is_full(-1000))

    @given(st.integers(1, 1000), st.integers(1, 40), st.lists(st.tuples(st.integers(0, 4096), st.integers(1, 50))))
    def test_bucket_gives_a_token_exactly_when_no_span_of_time_forbids_it(
        self, rate_in_16ths: int, burst: int, steps: list[tuple[int, int]]
    ) -> None:
        rate = rate_in_16ths / 16  # with times in 1024ths of a second, all that follows is exact as floats
        bucket = TokenBucket(rate, burst)
        taken, now = 0, 1000.0
        spans: list[tuple[float, int]] = []  # when each began, and how many had been taken before
        for passed, tries in steps:
            now += passed / 1024
            spans.append((now, taken))
            for _ in range(tries):
                allowed = all(taken - before + 1 <= burst + rate * (now - since) for since, before in spans)
                self.assertEqual(bucket.take(now), allowed)
                taken += allowed

    @given(
        st.floats(0.01, 1e6),
        st.floats(1, 1e6),
        st.lists(st.floats(-1e9, 1e9), max_size=30),
    )
    def test_jumping_clock_gives_no_more_tokens_than_its_forward_time(
        self, rate: float, burst: float, moments: list[float]
    ) -> None:
        bucket = TokenBucket(rate, burst)
        given_away, came_back, last = 0, 0.0, -math.inf
        for now in moments:
            came_back += min(burst, max(0.0, now - last) * rate) if last > -math.inf else 0.0
            last = now
            given_away += self.taken(bucket, now, tries=5)
            self.assertLessEqual(given_away, (burst + came_back) * (1 + 1e-9) + 1e-6)


class SenderTests(SynchronousTestCase):
    """How much one user may still send."""

    def sender(self, messages: float = 0, new_recipients: float = 0) -> UserQuota:
        """Return a user who may send this many messages, to this many new recipients, without any refill."""
        return UserQuota(TokenBucket(messages and 1e-9, messages), TokenBucket(new_recipients and 1e-9, new_recipients))

    def test_quota_limits_messages_and_new_recipients(self) -> None:
        sender = self.sender(messages=5, new_recipients=2)
        told = [sender.take(recipient, 0) for recipient in ("a", "b", "c", "a", "b", "a")]
        self.assertEqual(told, [True, True, False, True, True, False])

    @given(
        st.lists(st.floats(0, 60), max_size=60),
        st.sampled_from([0, 3, 30]),
        st.sampled_from([0, 2, 20]),
    )
    def test_may_send_takes_from_the_bucket_as_take_does(
        self, moments: list[float], burst: float, user_rate: float
    ) -> None:
        user, sender = TokenBucket(user_rate, burst), UserQuota(TokenBucket(user_rate, burst), UNLIMITED)
        for now in moments:  # in any order, as a clock that is set back
            self.assertEqual(sender.take("bo", now), user.take(now))

    def test_refused_recipient_is_still_new(self) -> None:
        sender = self.sender(new_recipients=1)
        sender.take("a", 0)
        self.assertFalse(sender.take("b", 0))
        self.assertFalse(sender.take("b", 0))

    def test_quota_remembers_a_limited_number_of_recipients(self) -> None:
        sender = self.sender(new_recipients=MAX_KNOWN_RECIPIENTS + 2)
        for recipient in range(MAX_KNOWN_RECIPIENTS):
            self.assertTrue(sender.take(recipient, 0))
        self.assertTrue(sender.take("one more", 0))
        self.assertTrue(sender.take(1, 0))  # known
        self.assertTrue(sender.take(0, 0))  # not any more: this was the last that could be new
        self.assertTrue(sender.take(2, 0))
        self.assertFalse(sender.take(1, 0))
        self.assertEqual(len(sender._known), MAX_KNOWN_RECIPIENTS)

    def test_quota_remembers_nothing_longer_than_a_uid(self) -> None:
        sender = self.sender()
        for recipient in ("x" * 64, "x" * 65, "x" * 60_000):
            self.assertTrue(sender.take(recipient, 0))
        self.assertEqual(list(sender._known), ["x" * 64])

    @given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 20))
    def test_any_schedule_reaches_no_more_new_recipients_than_the_limit(self, recipients: list[int], most: int) -> None:
        sender = self.sender(new_recipients=most)
        written_to = set()
        for recipient in recipients:
            allowed = recipient in written_to or len(written_to) < most
            self.assertEqual(sender.take(recipient, 0), allowed)
            if allowed:
                written_to.add(recipient)


class Remembering(SynchronousTestCase):
    """A user is remembered for as long as it makes a difference."""

    def test_user_who_sent_nothing_is_forgotten_at_once(self) -> None:
        limits = SendLimits(10, 30, 20, 30)
        limits.connected("a")
        limits.disconnected("a", 0)
        self.assertEqual(len(limits), 0)

    def test_connected_user_is_not_forgotten(self) -> None:
        limits = SendLimits(10, 30, 20, 30)
        limits.connected("a").take("b", 0)
        limits.connected("a")
        limits.disconnected("a", 0)
        limits.forget(1000)
        self.assertEqual(len(limits), 1)

    def test_disconnected_user_is_forgotten_when_the_slowest_limit_is_full_again(self) -> None:
        for rate, seconds in ((10, 60), (0.1, 300)):
            limits = SendLimits(rate, 30, rate, 30)
            limits.connected("a").take("b", 0)
            limits.disconnected("a", 1)
            limits.forget(seconds + 0.9)
            self.assertEqual(len(limits), 1)
            limits.forget(seconds + 1)
            self.assertEqual(len(limits), 0)

    def test_user_who_comes_back_gets_the_same_quota(self) -> None:
        limits = SendLimits(10, 30, 20, 30)
        sender = limits.connected("a")
        sender.take("b", 0)
        limits.disconnected("a", 1)
        self.assertIs(limits.connected("a"), sender)
        limits.forget(100)
        self.assertEqual(len(limits), 1)
        limits.disconnected("a", 101)
        self.assertEqual(len(limits), 0)

    def test_reads_of_a_user_are_limited_over_all_connections_and_logins(self) -> None:
        limits = SendLimits(0, 0, 0, 0)
        quotas = [limits.connected("a") for _ in range(2)]
        self.assertEqual([quotas[number % 2].take_read(100) for number in range(7)], [True] * 5 + [False] * 2)
        self.assertEqual([limits.connected("b").take_read(100), quotas[0].take_read(100.2)], [True, True])
        for _ in range(2):
            limits.disconnected("a", 100.2)
        self.assertFalse(limits.connected("a").take_read(100.2))
        limits.disconnected("a", 100.2)
        limits.disconnected("b", 100.2)
        limits.forget(102)
        self.assertEqual(len(limits), 0)

    def test_without_limits_no_user_is_remembered(self) -> None:
        limits = SendLimits(0, 0, 0, 0)
        limits.connected("a").take("b", 0)
        limits.disconnected("a", 0)
        self.assertEqual(len(limits), 0)

    @given(
        st.lists(
            st.tuples(st.integers(0, 40), st.sampled_from(["arrive", "leave", "send"]), st.integers(0, 60)), max_size=60
        )
    )
    def test_reconnecting_passes_no_more_messages(self, steps: list[tuple[int, str, int]]) -> None:
        limits = SendLimits(10, 30, 20, 30)
        connections: list[UserQuota] = []
        now = written_to = sent = 0
        for seconds, what, count in steps:
            now += seconds
            limits.forget(now)
            if what == "arrive":
                connections.append(limits.connected("a"))
            elif what == "leave" and connections:
                connections.pop()
                limits.disconnected("a", now)
            elif connections:
                sent += sum(connections[-1].take("the same", now) for _ in range(count))
                written_to += sum(connections[-1].take(f"{now}-{number}", now) for number in range(count))
            self.assertLessEqual(written_to, 30 + now / 2)
            self.assertLessEqual(sent + written_to, 30 + 20 * now)
            self.assertLessEqual(len(limits), 1)
