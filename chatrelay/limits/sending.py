"""What a connection and a user may still send: messages a second, and people they have not written to before.

Pure: the time is handed in. Nothing here answers or closes anything.
"""

from __future__ import annotations

import attrs

from chatrelay.limits.buckets import MINUTE, TokenBucket
from chatrelay.limits.deadlines import Deadlines
from chatrelay.model import MAX_TOKEN, user_key

MAX_KNOWN_RECIPIENTS = 256
"""Recipients that a user is remembered to have written to; the next displaces the one that was new longest ago."""


@attrs.define(eq=False, weakref_slot=False)
class Sender:
    """What one user may still send, over all their connections.

    A recipient is new to a user who has not written to them before, as far
    as that is remembered. Whether they are connected, or exist, makes no
    difference: who is there cannot be found out by asking for many.

    Nothing is remembered that is longer than any uID, as a client may call a
    recipient something as long as a message.

    :ivar connections: how many of the user's connections are logged in.
    """

    _messages: TokenBucket
    _new_recipients: TokenBucket
    connections: int = attrs.field(default=0, init=False)
    _known: dict[str, None] = attrs.field(factory=dict, init=False)

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
        self._user_burst = max(message_burst, user_messages_per_second)  # one connection alone may use its burst
        self._new_recipients_per_second = new_recipients_per_minute / MINUTE
        self._new_recipients_burst = new_recipients_per_minute
        self._senders: dict[str, Sender] = {}
        messages, new_recipients = self._user_buckets()
        self._gone: Deadlines[str] = Deadlines(max(messages.seconds_to_fill, new_recipients.seconds_to_fill))

    def messages(self) -> TokenBucket:
        """A bucket for the messages of a new connection."""
        return TokenBucket(self._messages_per_second, self._message_burst)

    def arrived(self, user: str) -> Sender:
        """A connection of `user` has logged in; what they may still send."""
        sender = self._senders.get(user)
        if sender is None:
            sender = self._senders[user] = Sender(*self._user_buckets())
        else:
            self._gone.stop(user)
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

    def _user_buckets(self) -> tuple[TokenBucket, TokenBucket]:
        """Make a new user's buckets: for messages, and for new recipients."""
        return (
            TokenBucket(self._user_messages_per_second, self._user_burst),
            TokenBucket(self._new_recipients_per_second, self._new_recipients_burst),
        )
