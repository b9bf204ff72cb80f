"""Stand-ins for tests: of ours, and of programs that embed chatrelay.

Each keeps the contract of the seam it stands at (`chatrelay.interfaces`), and
passes the same contract test as the real thing where there is one. They hold
time and failure still, so that a test can decide what happens next.
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
    """An `Authenticator` that knows some sessions, and answers at once.

    :param users: SESSID -> uID; others are denied.
    """

    def __init__(self, users: Mapping[str, str | int]) -> None:
        self.users = users

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Look the session up."""
        return succeed(LoggedIn(self.users[sessid]) if sessid in self.users else Denied())


class HeldAuthenticator:
    """An `Authenticator` that answers when the test does.

    :ivar asked: the questions that are out: (SESSID, the Deferred to fire with a verdict).
    :ivar cancelled: the SESSIDs of the questions that were given up.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Verdict]]] = []
        self.cancelled: list[str] = []

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Note the question."""
        answer: Deferred[Verdict] = Deferred(lambda _: self.cancelled.append(sessid))
        self.asked.append((sessid, answer))
        return answer

    def answer(self, verdict: Verdict) -> None:
        """Answer the oldest question."""
        self.asked.pop(0)[1].callback(verdict)


class RecordedConnection:
    """A `Connection` that keeps what it is given.

    :ivar dialect: in which it is delivered to.
    :ivar sent: the messages handed over, as JSON values.
    :ivar closed: the close code and reason, once closed; None before.
    """

    dialect: Dialect = v1

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: Close | None = None

    def send(self, payload: bytes) -> bool:
        """Keep a message, while open."""
        if self.closed is not None:
            return False
        self.sent.append(json.loads(payload))
        return True

    def close(self, close: Close) -> None:
        """Close, once."""
        if self.closed is None:
            self.closed = close

    def take(self) -> list[Any]:
        """What was sent since the last look."""
        sent, self.sent = self.sent, []
        return sent


class HeldMessageLog(MemoryMessageLog):
    """A message log that commits when the test says so.

    :ivar batches: the batches that wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Sequence[Message], Deferred[Sequence[int]]]] = []

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Let a batch wait."""
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
