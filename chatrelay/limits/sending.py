"""Limits on sending: messages of a connection and of a user, and recipients to whom a user has not written before.

Pure: the time is passed in. This module must not know what follows when a limit is reached.
"""

from __future__ import annotations

import attrs

from chatrelay.limits.buckets import MINUTE, TokenBucket
from chatrelay.limits.deadlines import Deadlines
from chatrelay.model import MAX_TOKEN, user_key

MAX_KNOWN_RECIPIENTS = 256
"""The most recipients that are remembered for a user. One more displaces the one that was remembered first."""

READS_PER_SECOND = 5
"""The most requests of a user that are answered from the message log, at once and per second."""


@attrs.define(eq=False, weakref_slot=False)
class UserQuota:
    """The messages that one user may still send, over all their connections.

    A recipient is new if the user is not remembered to have written to them before. It makes no difference whether the
    recipient is connected, or exists. So nobody can find out who is connected by writing to many.

    Nothing longer than a uID is remembered, because a client may send a recipient's name as long as a message.

    :ivar connections: how many of the user's connections are logged in.
    """

    _messages: TokenBucket
    _new_recipients: TokenBucket
    connections: int = attrs.field(default=0, init=False)
    _known: dict[str, None] = attrs.field(factory=dict, init=False)
    _reads: TokenBucket | None = attrs.field(default=None, init=False)  # made when needed, because v1 has no reads

    def take(self, recipient: str | int, now: float) -> bool:
        """Count a message, and return whether it may be sent."""
        # This is `TokenBucket.take`, inlined: the call would take as long again for every message.
        user = self._messages
        at = now * user.rate
        full_at = user.full_at
        if full_at < at:
            full_at = at
        elif full_at - at > user.room:
            return user.refuse(at)
        user.full_at = full_at + 1.0
        return recipient in self._known or self._take_recipient(recipient, now)

    def take_read(self, now: float) -> bool:
        """Count a request that is answered from the message log, and return whether it is within the limit."""
        if self._reads is None:
            self._reads = _reads_bucket()
        return self._reads.take(now)

    def is_as_new(self, now: float) -> bool:
        """Return whether a new quota would allow no more, apart from the recipients that are remembered."""
        reads = self._reads
        return (
            self._messages.is_full(now) and self._new_recipients.is_full(now) and (reads is None or reads.is_full(now))
        )

    def _take_recipient(self, recipient: str | int, now: float) -> bool:
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
    """The limits on what is sent: a bucket for each connection, and a quota for each user.

    A user's quota is kept while the user is connected, and afterwards until a new one would allow no more. So a user
    who comes back may send no more than one who has stayed.

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
        self._user_burst = max(message_burst, user_messages_per_second)  # so that one connection may use its own burst
        self._new_recipients_per_second = new_recipients_per_minute / MINUTE
        self._new_recipients_burst = new_recipients_per_minute
        self._quotas: dict[str, UserQuota] = {}
        messages, new_recipients = self._user_buckets()
        buckets = messages, new_recipients, _reads_bucket()
        self._gone: Deadlines[str] = Deadlines(max(bucket.seconds_to_fill for bucket in buckets))

    def messages(self) -> TokenBucket:
        """Return a bucket for the messages of a new connection."""
        return TokenBucket(self._messages_per_second, self._message_burst)

    def connected(self, user: str) -> UserQuota:
        """Note that a connection of `user` is logged in, and return the quota of the user."""
        quota = self._quotas.get(user)
        if quota is None:
            quota = self._quotas[user] = UserQuota(*self._user_buckets())
        else:
            self._gone.stop(user)
        quota.connections += 1
        return quota

    def disconnected(self, user: str, now: float) -> None:
        """Note that a connection of `user` that was logged in is gone."""
        quota = self._quotas[user]
        quota.connections -= 1
        if not quota.connections:
            if quota.is_as_new(now):
                del self._quotas[user]
            else:
                self._gone.start(user, now)

    def forget(self, now: float) -> None:
        """Forget users who have been gone for so long that new quotas would allow no more."""
        for user in self._gone.expired(now):
            del self._quotas[user]

    def __len__(self) -> int:
        """Return how many users are remembered."""
        return len(self._quotas)

    def _user_buckets(self) -> tuple[TokenBucket, TokenBucket]:
        """Make a new user's buckets: for messages, and for new recipients."""
        return (
            TokenBucket(self._user_messages_per_second, self._user_burst),
            TokenBucket(self._new_recipients_per_second, self._new_recipients_burst),
        )


def _reads_bucket() -> TokenBucket:
    """Make a bucket for the requests of a user that are answered from the message log."""
    return TokenBucket(READS_PER_SECOND, READS_PER_SECOND)
