"""Relays that each break their promise in one way; `test_checker` shows that the model finds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace
from twisted.internet.defer import succeed

from chatrelay.auth import rechecks
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import DenialCache, LoginThrottle
from chatrelay.interfaces import Connection, Submitter
from chatrelay.limits.buckets import TokenBucket
from chatrelay.limits.sending import UserQuota
from chatrelay.model import Message, Unavailable, user_key
from chatrelay.relay import delivery as relay
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.relay.session import Session
from chatrelay.websocket import outbox as outgoing
from chatrelay.websocket.keepalive import Pings
from chatrelay.websocket.outbox import Outbox
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.websocket.registry import Registry
from chatrelay.websocket.shutdown import ShutdownPacer
from chatrelay.wire import v1 as wire
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import SendRequest, UnusableFrame

_deliver, _commit, _submit = Relay._deliver, Relay._commit, Relay.submit
_delivery, _received, _login_answered = wire.delivery, Session.received, SessionIndex.answered


def _reversed(self: Relay, numbers: Sequence[int], batch: list[Any], number: int) -> None:
    _deliver(self, numbers[::-1], batch[::-1], number)


def _answered_twice(self: Relay, numbers: Sequence[int], batch: list[Any], number: int) -> None:
    _deliver(self, numbers, batch, number)
    submitter, message = batch[-1]
    submitter.accepted(message)


def _delivered_before_the_commit(self: Relay) -> None:
    batch = self._forming
    self._unanswered[0] = 1
    _deliver(self, range(len(batch)), batch, 0)
    del self._unanswered[0]
    with patch.object(Relay, "_deliver", lambda *_: None):
        _commit(self)


def _answers_before_delivering(self: Relay, numbers: Sequence[int], batch: list[Any], number: int) -> None:
    for submitter, message in batch:
        submitter.accepted(message)
    for _, message in batch:
        for connection in self._directory.connections_of(user_key(message.to_uid)):
            connection.send(wire.delivery(message))


def _unlogged(self: Relay, message: Message, submitter: Submitter) -> None:
    for connection in self._directory.connections_of(user_key(message.to_uid)):
        connection.send(wire.delivery(message))
    submitter.accepted(message)


def _never_busy(self: Relay, message: Message, submitter: Submitter) -> None:
    with patch.object(relay, "MAX_WAITING", 10_000):
        _submit(self, message, submitter)


def _visitors_are_told(self: Session, payload: bytes) -> bool:
    if not self.logged_in:
        try:
            request = wire.decode(payload)
        except UnusableFrame:
            pass
        else:
            if isinstance(request, SendRequest):
                self._connection.send(wire.refused(request.id, Reason.RECEIVING_USER_NOT_CONNECTED))
    return _received(self, payload)


def _revoked_too_late(self: SessionIndex, connection: Connection, user: str | None, session: str | None = None) -> bool:
    _login_answered(self, connection, user, session)
    return True


def _newest_beyond(self: Directory, user: str, most: int) -> tuple[Connection, ...]:
    return self.connections_of(user)[most:]


def _asked_about_all_the_same(_: LoginThrottle, attempt: Any) -> None:
    attempt.verdict.callback(Unavailable("given up"))


def _all_of_them(self: ShutdownPacer[Any], _: float) -> list[Any]:
    there = list(self._waiting)
    self._waiting.clear()
    return there


def _is_within_a_minute(_: DenialCache, at: float | None, now: float) -> bool:
    return at is not None and now - at < 60


def _no_matter(*_: Any, **__: Any) -> None:
    """Omit a call."""


def _yes(*_: Any, **__: Any) -> bool:
    return True


BROKEN: dict[str, Callable[[], Any]] = {
    "a batch is delivered in the wrong order": lambda: patch.object(Relay, "_deliver", _reversed),
    "a request is answered twice": lambda: patch.object(Relay, "_deliver", _answered_twice),
    "messages are delivered before the commit": lambda: patch.object(Relay, "_commit", _delivered_before_the_commit),
    "the answer true says nothing of a delivery": lambda: patch.object(Relay, "_deliver", _answers_before_delivering),
    "messages are not logged": lambda: patch.object(Relay, "submit", _unlogged),
    "a batch that failed is not answered": lambda: patch.object(Relay, "_refuse", _no_matter),
    "who vanished is not marked": lambda: patch.object(Relay, "_mark", _no_matter),
    "any number of messages may wait": lambda: patch.object(Relay, "submit", _never_busy),
    "who is gone stays in the directory": lambda: patch.object(Directory, "remove", _no_matter),
    "visitors are told who is there": lambda: patch.object(Session, "received", _visitors_are_told),
    "fromuID is the recipient": lambda: patch.object(
        wire, "delivery", lambda message: _delivery(replace(message, from_uid=message.to_uid))
    ),
    "a uID goes out as a string": lambda: patch.object(
        wire, "delivery", lambda message: _delivery(replace(message, from_uid=str(message.from_uid)))
    ),
    "messages are sent after the close frame": lambda: patch.object(Outbox, "closing", _no_matter),
    "what is unread has no bound": lambda: patch.object(Outbox, "charge", _yes),
    "there is no limit on messages": lambda: patch.object(TokenBucket, "take", _yes),
    "a user may send without limit": lambda: patch.object(UserQuota, "take", _yes),
    "the site is asked whenever a user likes": lambda: patch.object(Session, "_take_reauthentication", _yes),
    "revoking forgets the login under way": lambda: patch.object(SessionIndex, "answered", _revoked_too_late),
    "a denied session goes on": lambda: patch.object(rechecks, "_close_all", _no_matter),
    "nobody is asked about again": lambda: patch.object(rechecks.Rechecks, "sweep", _no_matter),
    "who does not log in stays": lambda: patch.object(ChatProtocol, "login_timed_out", _no_matter),
    "who does not answer a close frame stays": lambda: patch.object(Registry, "closing", _no_matter),
    "a third denial closes nothing": lambda: patch("chatrelay.relay.base_session.MAX_DENIALS", 4),
    "eleven frames may be unusable": lambda: patch("chatrelay.relay.base_session.MAX_UNUSABLE_FRAMES", 11),
    "stopping waits for no answers": lambda: patch.object(Relay, "drain", lambda _: succeed(None)),
    "stopping is told to all at once": lambda: patch.object(ShutdownPacer, "due", _all_of_them),
    "nobody is told of stopping": lambda: patch.object(Registry, "_close_for_stopping", _no_matter),
    "a user may have any number of connections": lambda: patch.object(Directory, "oldest_beyond", lambda *_: ()),
    "the newest connection goes": lambda: patch.object(Directory, "oldest_beyond", _newest_beyond),
    "any number of logins may be denied": lambda: patch.object(TokenBucket, "remaining", lambda *_: math.inf),
    "a denial is not remembered": lambda: patch.object(DenialCache, "add", _no_matter),
    "a denial is remembered for long": lambda: patch.object(DenialCache, "_is_recent", _is_within_a_minute),
    "who has left is asked about": lambda: patch.object(LoginThrottle, "_cancel", _asked_about_all_the_same),
    "who gives no sign of life stays": lambda: patch.object(ChatProtocol, "ping_unanswered", _no_matter),
    "nobody is pinged": lambda: patch.object(Pings, "due", lambda *_: []),
    "a pong is no sign of life": lambda: patch.object(ChatProtocol, "activity", lambda _: 0),
    "slow readers have all the time": lambda: patch.object(Outbox, "unread_time_passed", _no_matter),
    "frames that waited are not written": lambda: patch.object(outgoing.FlushScheduler, "schedule", _no_matter),
}
"""Name of the defect -> context manager that causes it."""
