"""Test doubles, for the tests of chatrelay and of programs that embed it.

Each implements a Protocol of `chatrelay.interfaces`, and passes the contract test of that Protocol. The test decides
when each succeeds or fails. This module must not open a socket or a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from chatrelay.interfaces import Dialect
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import Denied, LoggedIn, LogUnavailable, Message, Verdict
from chatrelay.wire import v1
from chatrelay.wire.codes import Close


class KnownSessions:
    """An `Authenticator` that knows some sessions, and gives its verdicts at once.

    :param users: SESSID -> uID; others are denied.
    """

    def __init__(self, users: Mapping[str, str | int]) -> None:
        self.users = users

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Look the session up."""
        return succeed(LoggedIn(self.users[sessid]) if sessid in self.users else Denied())


class HeldAuthenticator:
    """An `Authenticator` that gives a verdict when the test calls `answer`.

    :ivar asked: the pending requests: (SESSID, the Deferred to fire with a verdict).
    :ivar cancelled: the SESSIDs of the requests that were given up.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Verdict]]] = []
        self.cancelled: list[str] = []

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Keep the request until the test answers it."""

        def give_up(answer: Deferred[Verdict]) -> None:
            self.asked[:] = [pending for pending in self.asked if pending[1] is not answer]
            self.cancelled.append(sessid)

        answer: Deferred[Verdict] = Deferred(give_up)
        self.asked.append((sessid, answer))
        return answer

    def answer(self, verdict: Verdict) -> None:
        """Answer the oldest pending request."""
        self.asked.pop(0)[1].callback(verdict)


class RecordedConnection:
    """A `Connection` that records the messages sent to it.

    :ivar dialect: the dialect in which messages are delivered to it.
    :ivar sent: the messages sent to it, as JSON values.
    :ivar closed: the close code and the reason, once it is closed; None before.
    """

    dialect: Dialect = v1

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: Close | None = None

    def send(self, payload: bytes) -> bool:
        """Record a message, unless the connection is closed."""
        if self.closed is not None:
            return False
        self.sent.append(json.loads(payload))
        return True

    def close(self, close: Close) -> None:
        """Close the connection. Later calls change nothing."""
        if self.closed is None:
            self.closed = close

    def take(self) -> list[Any]:
        """Return the messages that were sent since the last call."""
        sent, self.sent = self.sent, []
        return sent


class HeldMessageLog(MemoryMessageLog):
    """A message log that commits a batch when the test calls `commit`.

    :ivar batches: the batches that wait: (messages, the Deferred that fires with their numbers).
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Sequence[Message], Deferred[Sequence[int]]]] = []

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch until the test commits or refuses it."""
        committed: Deferred[Sequence[int]] = Deferred()
        self.batches.append((messages, committed))
        return committed

    def commit(self) -> None:
        """Commit the oldest batch."""
        messages, committed = self.batches.pop(0)
        super().append(messages).chainDeferred(committed)

    def fail(self, why: str = "the disk is full") -> None:
        """Refuse the oldest batch."""
        self.batches.pop(0)[1].errback(LogUnavailable(why))
