"""Limits that are counted or timed, as values.

Pure: the time is handed in. Nothing here closes or answers anything; it says
when a limit is reached, and who asks decides what that means.

No clock is trusted to run forward only: under twistd it does, but in another
program it may be Twisted's own, the wall clock, which somebody may set.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

from chatrelay.wire.v1 import MAX_TOKEN, user_key

Key = TypeVar("Key", bound=Hashable)

MINUTE = 60.0
"""Seconds."""

MAX_KNOWN_RECIPIENTS = 256
"""Recipients that a user is remembered to have written to; the next displaces the one that was new longest ago."""


def plain_address(host: str) -> IPv4Address | IPv6Address:
    """An address in the one form in which addresses are compared.

    :raises ValueError: where it is none.
    """
    address = ip_address(host)
    # As a socket that takes both kinds shows IPv4 (RFC 4291, section 2.5.5.2).
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_key(host: str) -> str:
    """Under which name limits count an address: itself, or of an IPv6 address its /64 network, which one customer has.

    :param host: an IPv4 or IPv6 address.
    :raises ValueError: where it is none.
    """
    address = plain_address(host)
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), 64), strict=False))


class Deadlines(Generic[Key]):
    """Deadlines that all lie the same time ahead, kept without a timer each.

    As every deadline is set `seconds` ahead of the moment it is set, the
    order of setting is the order of expiry: a sweep looks at the oldest and
    stops at the first that is still ahead.

    :param seconds: how far ahead; 0 means never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[Key, float] = {}

    def start(self, key: Key, now: float) -> None:
        """Set the deadline of `key`, anew where it had one."""
        if self.seconds:
            self._due.pop(key, None)
            self._due[key] = now + self.seconds

    def stop(self, key: Key) -> None:
        """Lift the deadline of `key`, if it has one."""
        self._due.pop(key, None)

    def expired(self, now: float) -> list[Key]:
        """Take out and return the keys whose deadline has come, oldest first."""
        over = []
        for key, due in self._due.items():
            if due > now:
                break
            over.append(key)
        for key in over:
            del self._due[key]
        return over

    def earliest(self) -> float:
        """The deadline that comes first; there must be one."""
        return next(iter(self._due.values()))

    def first(self) -> Key:
        """The key whose deadline comes first; there must be one."""
        return next(iter(self._due))

    def __len__(self) -> int:
        return len(self._due)


class TokenBucket:
    """So many at once, and so many a second in the long run.

    It begins full. Each `take` takes a token out, and tokens come back as
    time passes, up to the burst; where there is none, nothing is taken. So
    over any time no more are taken than the burst and what comes back in it.

    A clock that is set back brings nothing back, and from there on time
    passes as ever; one that is set forward fills the bucket at the most.

    :param rate: tokens that come back a second; 0 for no limit.
    :param burst: tokens it holds when full, at least one; 0 for no limit.
    :ivar full_at: when it will be full, in tokens that come back.
    :ivar room: how far ahead that may be for there to be a token.
    """

    # All that changes is one number: when it will be full, with time counted in tokens that come back. Beyond 2**53 of
    # them, which takes a rate of millions a second, that is not exact.
    __slots__ = ("full_at", "rate", "room")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.room = max(1.0, burst) - 1.0 if rate and burst else math.inf
        self.full_at = 0.0

    def take(self, now: float) -> bool:
        """Take a token; whether there was one.

        :param now: seconds of any clock, the same at each call.
        """
        at = now * self.rate
        full_at = self.full_at
        if full_at < at:
            full_at = at
        elif full_at - at > self.room:
            return self.refuse(at)
        self.full_at = full_at + 1.0
        return True

    def left(self, now: float) -> float:
        """How many whole tokens could be taken now; infinitely many where there is no limit."""
        if self.room == math.inf:
            return math.inf
        at = now * self.rate
        if self.full_at - at > self.room:
            self.refuse(at)
        return math.floor(self.room + 1.0 - max(0.0, self.full_at - at))

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self.room == math.inf or self.full_at <= now * self.rate

    @property
    def mark(self) -> float:
        """A number that is another one after each token that was taken."""
        return self.full_at

    @property
    def seconds_to_fill(self) -> float:
        """How long an empty one takes until it is full; 0 where there is no limit."""
        return 0.0 if self.room == math.inf else (self.room + 1.0) / self.rate

    def refuse(self, at: float) -> bool:
        """Take nothing, as there is no token; False.

        :param at: the time, in tokens that come back.
        """
        # More than all are missing where the clock was set back: then all are.
        self.full_at = min(self.full_at, at + self.room + 1.0)
        return False


class Sender:
    """What one user may still send, over all their connections.

    A recipient is new to a user who has not written to them before, as far
    as that is remembered. Whether they are connected, or exist, makes no
    difference: who is there cannot be found out by asking for many.

    Nothing is remembered that is longer than any uID, as a client may call a
    recipient something as long as a message.

    :ivar connections: how many of the user's connections are logged in.
    """

    __slots__ = ("_known", "_messages", "_new_recipients", "connections")

    def __init__(self, messages: TokenBucket, new_recipients: TokenBucket) -> None:
        self.connections = 0
        self._messages = messages
        self._new_recipients = new_recipients
        self._known: dict[str, None] = {}

    def may_send(self, recipient: str | int, now: float) -> bool:
        """Count a message; whether it may be sent."""
        # `TokenBucket.take`, without the call, which would cost as much again for every message.
        user = self._messages
        at = now * user.rate
        full_at = user.full_at
        if full_at < at:
            full_at = at
        elif full_at - at > user.room:
            return user.refuse(at)
        user.full_at = full_at + 1.0
        return recipient in self._known or self._may_write_to(recipient, now)

    def is_as_new(self, now: float) -> bool:
        """Whether nothing would be lost, but who is known, if this were forgotten."""
        return self._messages.is_full(now) and self._new_recipients.is_full(now)

    def _may_write_to(self, recipient: str | int, now: float) -> bool:
        known = self._known
        user = user_key(recipient)
        if user in known:
            return True
        if not self._new_recipients.take(now):
            return False
        if len(user) <= MAX_TOKEN:
            if len(known) == MAX_KNOWN_RECIPIENTS:
                del known[next(iter(known))]
            known[user] = None
        return True


class SendLimits:
    """The limits on what is sent: buckets for each connection, and what each user may still send.

    A user is remembered while connected, and afterwards until they are as
    good as new, so that who comes back has no more than who has stayed.

    :param messages_per_second: messages of one connection; 0 for no limit.
    :param message_burst: how many of them at once; 0 for no limit.
    :param user_messages_per_second: messages over all connections of one user; 0 for no limit.
    :param new_recipients_per_minute: recipients to whom a user has not written before; 0 for no limit.
    """

    def __init__(
        self,
        messages_per_second: float,
        message_burst: int,
        user_messages_per_second: float,
        new_recipients_per_minute: int,
    ) -> None:
        self._messages_per_second = messages_per_second
        self._message_burst = message_burst
        self._user_messages_per_second = user_messages_per_second
        self._new_recipients_per_minute = new_recipients_per_minute
        self._senders: dict[str, Sender] = {}
        self._gone: Deadlines[str] = Deadlines(
            max(self._user_messages().seconds_to_fill, self._new_recipients().seconds_to_fill)
        )

    def messages(self) -> TokenBucket:
        """A bucket for the messages of a new connection."""
        return TokenBucket(self._messages_per_second, self._message_burst)

    def arrived(self, user: str) -> Sender:
        """A connection of `user` has logged in; what they may still send."""
        self._gone.stop(user)
        sender = self._senders.get(user)
        if sender is None:
            sender = self._senders[user] = Sender(self._user_messages(), self._new_recipients())
        sender.connections += 1
        return sender

    def left(self, user: str, now: float) -> None:
        """A connection of `user` that had logged in is gone."""
        sender = self._senders[user]
        sender.connections -= 1
        if not sender.connections:
            if sender.is_as_new(now):
                del self._senders[user]
            else:
                self._gone.start(user, now)

    def forget(self, now: float) -> None:
        """Forget users who have been gone for so long that they are as good as new."""
        for user in self._gone.expired(now):
            del self._senders[user]

    def __len__(self) -> int:
        """How many users are remembered."""
        return len(self._senders)

    def _user_messages(self) -> TokenBucket:
        # One connection alone may use its burst.
        burst = max(self._message_burst, self._user_messages_per_second)
        return TokenBucket(self._user_messages_per_second, burst)

    def _new_recipients(self) -> TokenBucket:
        return TokenBucket(self._new_recipients_per_minute / MINUTE, self._new_recipients_per_minute)
