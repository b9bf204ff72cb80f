"""Builds of the relay that each break one promise, or lack one limit.

`build` runs in the relay's process before twistd begins. It looks up everything that it replaces: a name that has moved
ends the relay at once, and fails the test that needs the broken build.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from autobahn.websocket.compress import PerMessageDeflate
from twisted.internet.defer import succeed

from chatrelay.app import descriptors
from chatrelay.app import twistd as tap
from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.breaker import Breaker
from chatrelay.auth.rechecks import Rechecks
from chatrelay.auth.throttle import DenialCache, LoginThrottle
from chatrelay.limits import inflow
from chatrelay.limits.buckets import TokenBucket
from chatrelay.limits.inflow import Inflow
from chatrelay.limits.sending import SendLimits, UserQuota
from chatrelay.messagelog.sqlite import SqliteMessageLog, SqliteStore, checkpoints, files, recovery, store, wal
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.messagelog.sqlite.inbox_queries import InboxQueries
from chatrelay.model import LogUnavailable, user_key
from chatrelay.relay import delivery as relay
from chatrelay.relay.delivery import Relay
from chatrelay.relay.inbox import Cursor, Inbox, Inboxes, State
from chatrelay.relay.receipts import Receipts
from chatrelay.relay.session import Session
from chatrelay.relay.storing import Storing
from chatrelay.websocket import reading
from chatrelay.websocket.factory import ChatFactory
from chatrelay.websocket.outbox import Outbox
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.websocket.reading import BoundedProtocol
from chatrelay.websocket.registry import Registry
from chatrelay.websocket.shutdown import ShutdownPacer
from chatrelay.wire import codes
from chatrelay.wire import v1 as wire

BUILDS: dict[str, Callable[[], None]] = {}
"""The broken builds, by name."""


def named(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function that breaks something."""

    def enter(breaks: Callable[[], None]) -> Callable[[], None]:
        BUILDS[name] = breaks
        return breaks

    return enter


def build(name: str) -> None:
    """Apply a broken build."""
    BUILDS[name]()


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an attribute that `owner` itself has.

    :param make: called with the present value, returns the new one.
    :raises KeyError: where there is nothing.
    """
    setattr(owner, name, make(vars(owner)[name]))


def always(value: object) -> Callable[[Any], Any]:
    """For `replace`: return a function that returns one value."""
    return lambda _: lambda *_: value


def pragma(text: str) -> None:
    """Make each message log begin with a pragma."""

    def make(open: Any) -> Any:
        def opened(self: Any) -> None:
            open(self)
            self._connection.execute(f"PRAGMA {text}")

        return opened

    replace(SqliteStore, "open", make)


def leave_out(check: str) -> None:
    """Leave a check out of the sweep."""

    def make(sweep_tasks: Any) -> Any:
        def others(self: Any) -> Any:
            kept = sweep_tasks(self)
            del kept[check]
            return kept

        return others

    replace(Registry, "sweep_tasks", make)


# Not broken: changes that short trials need ---------------------------------------------


@named("a short WAL")
def _() -> None:
    replace(checkpoints, "CHECKPOINT_BYTES", lambda _: 8 * 4096)


@named("waits after each commit")
def _() -> None:
    def make(append: Any) -> Any:
        def appended(self: Any, messages: Any) -> Any:
            numbers = append(self, messages)
            time.sleep(0.1)
            return numbers

        return appended

    replace(SqliteStore, "append", make)


@named("has a slow disk")
def _() -> None:
    def slow(seconds: float, every: int) -> Callable[[Any], Any]:
        def make(method: Any) -> Any:
            calls = itertools.count()

            def waited(self: Any, *arguments: Any) -> Any:
                if next(calls) % every == 0:
                    time.sleep(seconds)
                return method(self, *arguments)

            return waited

        return make

    build("waits after each commit")
    replace(SqliteStore, "mark_undelivered", slow(0.1, every=1))
    # Longer than a commit, so that messages come meanwhile. If all waited, two threads could not read fast enough.
    replace(InboxQueries, "entries", slow(0.2, every=3))


# The message log ------------------------------------------------------------------------


@named("answers before the commit")
def _() -> None:
    def make(append: Any) -> Any:
        def answered_at_once(self: Any, messages: Any) -> Any:
            append(self, messages).addErrback(lambda failure: failure.trap(LogUnavailable) and None)
            return succeed(range(len(messages)))

        return answered_at_once

    replace(SqliteMessageLog, "append", make)


@named("drops the sync")
def _() -> None:
    pragma("synchronous = OFF")


@named("does not sync the note beside the log")
def _() -> None:
    replace(LogFiles, "sync_note", always(None))


@named("writes every thousandth batch")
def _() -> None:
    def make(append: Any) -> Any:
        kept: list[Any] = []
        batches = 0

        def append_later(self: Any, messages: Any) -> Any:
            nonlocal batches
            kept.extend(messages)
            batches += 1
            if batches % 1000 == 0:
                append(self, kept)
                kept.clear()
            return range(1, len(messages) + 1)

        return append_later

    replace(SqliteStore, "append", make)


@named("goes by the name of a link")
def _() -> None:
    def make(resolve: Any) -> Any:
        def named_as_given(self: Any) -> None:
            resolve(self)
            self.path = os.path.abspath(self._given)
            self.wal, self.lock = f"{self.path}-wal", f"{self.path}.lock"

        return named_as_given

    replace(LogFiles, "_resolve", make)


@named("lets SQLite throw an orphaned write-ahead log away")
def _() -> None:
    replace(recovery, "set_orphan_aside", always(None))


@named("locks a file that can be removed, and no other")
def _() -> None:
    replace(files, "LOCKS_DATABASE", lambda _: False)


@named("reads a write-ahead log at once")
def _() -> None:
    replace(wal, "_PIECE_BYTES", lambda _: 1024**4 // 256)


@named("leaves a message out of the log")
def _() -> None:
    replace(SqliteStore, "append", lambda append: lambda self, messages: append(self, messages[1:] or messages) * 2)


@named("logs a message twice")
def _() -> None:
    replace(SqliteStore, "append", lambda append: lambda self, messages: append(self, [*messages, messages[-1]])[:-1])


@named("reorders what it logs")
def _() -> None:
    replace(SqliteStore, "append", lambda append: lambda self, messages: append(self, messages[::-1])[::-1])


@named("gives a place twice")
def _() -> None:
    def make(placed: Any) -> Any:
        def placed_again(messages: Any, places: Any) -> Any:
            rows = placed(messages, places)
            places[user_key(messages[-1].from_uid)] -= 1
            return rows

        return placed_again

    replace(store, "place", make)


@named("takes a failed commit for one")
def _() -> None:
    def make(append: Any) -> Any:
        def appended(self: Any, messages: Any) -> Any:
            return append(self, messages).addErrback(lambda failure: range(1, len(messages) + 1))

        return appended

    replace(SqliteMessageLog, "append", make)


# The path of a message --------------------------------------------------------------------


@named("reorders what it delivers")
def _() -> None:
    replace(
        Relay,
        "_deliver",
        lambda deliver: lambda self, numbers, batch, *rest: deliver(self, numbers[::-1], batch[::-1], *rest),
    )


@named("answers twice")
def _() -> None:
    def make(deliver: Any) -> Any:
        def delivered(self: Any, numbers: Any, batch: Any, *rest: Any) -> None:
            deliver(self, numbers, batch, *rest)
            submitter, message = batch[0]
            submitter.accepted(message)

        return delivered

    replace(Relay, "_deliver", make)


@named("leaves a request unanswered")
def _() -> None:
    replace(
        Relay,
        "_deliver",
        lambda deliver: lambda self, numbers, batch, *rest: deliver(self, numbers[:-1], batch[:-1], *rest),
    )


@named("delivers what it refuses")
def _() -> None:
    def make(refuse: Any) -> Any:
        def refused(self: Any, failure: Any, batch: Any) -> None:
            for _submitter, message in batch:
                payload = wire.delivery(message)
                for connection in self._directory.connections_of(user_key(message.to_uid)):
                    connection.send(payload)
            refuse(self, failure, batch)

        return refused

    replace(Relay, "_refuse", make)


@named("delivers to one connection of many")
def _() -> None:
    def make(init: Any) -> Any:
        class First:
            def __init__(self, directory: Any) -> None:
                self._directory = directory

            def connections_of(self, user: str) -> list[Any]:
                return list(self._directory.connections_of(user))[:1]

        def made(self: Any, directory: Any, *others: Any) -> None:
            init(self, First(directory), *others)

        return made

    replace(Relay, "__init__", make)


@named("answers what is sent again by a second row")
def _() -> None:
    replace(Storing, "_found", lambda find: lambda self, _found, held: find(self, None, held))


@named("replays from a wrong place")
def _() -> None:
    def make(enter: Any) -> Any:
        def entered(self: Any, user: str, connection: Any, last: int, after: int | None = None) -> Any:
            return enter(self, user, connection, last, after if after is None else min(after + 1, last))

        return entered

    replace(Inboxes, "enter", make)


@named("drops an answer at or below the cursor")
def _() -> None:
    def make(answer: Any) -> Any:
        def answered(self: Any, place: int, payload: bytes) -> Any:
            return place <= self.place or answer(self, place, payload)

        return answered

    replace(Cursor, "answer", make)


@named("forgets own devices")
def _() -> None:
    def make(hand_over: Any) -> Any:
        deliver = Inbox.deliver

        def handed_over(self: Any, message: Any, pair: Any, *rest: Any) -> Any:
            def delivered(inbox: Any, message: Any, *others: Any) -> Any:
                return inbox.user == pair[1] and deliver(inbox, message, *others)

            Inbox.deliver = delivered  # type: ignore[method-assign]
            try:
                return hand_over(self, message, pair, *rest)
            finally:
                Inbox.deliver = deliver  # type: ignore[method-assign]

        return handed_over

    replace(Relay, "_hand_over", make)


@named("loses the race of replay and live")
def _() -> None:
    def make(_: Any) -> Any:
        def page_read(self: Any, page: Any, after: int) -> None:
            if self.state is State.READING:
                self._send_page(page)
                self._stop_time()
                self.place = self._inbox.last
                self.state = State.LIVE

        return page_read

    replace(Cursor, "_page_read", make)


@named("sends past an unsettled place")
def _() -> None:
    replace(Inboxes, "settled", lambda _: lambda self, user, last: last)


@named("sends a receipt too far")
def _() -> None:
    replace(Receipts, "_clamped", lambda _: staticmethod(lambda place, cursor: place))


@named("writes past TLS")
def _() -> None:
    def make(init: Any) -> Any:
        def made(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            self._direct = True

        return made

    replace(Outbox, "__init__", make)


# Limits -------------------------------------------------------------------------------------


@named("forgets how many may wait for the log")
def _() -> None:
    replace(relay, "MAX_WAITING", lambda most: most**2)


@named("forgets messages-per-second")
def _() -> None:
    # The buckets themselves: where a message comes in, the session takes from them without a call.
    replace(SendLimits, "messages", lambda _: lambda *_: TokenBucket(rate=0, burst=0))
    replace(SendLimits, "_user_buckets", lambda make: lambda limits: (TokenBucket(rate=0, burst=0), make(limits)[1]))


@named("forgets new-recipients-per-minute")
def _() -> None:
    replace(UserQuota, "_take_recipient", always(True))


@named("forgets unread-size")
def _() -> None:
    replace(Outbox, "charge", always(True))


@named("forgets message-size")
def _() -> None:
    def any_frame(made: Any) -> Any:
        def connection_made(self: Any) -> None:
            made(self)
            self._message_size = 0

        return connection_made

    def any_message(init: Any) -> Any:
        def initialised(self: Any, *arguments: Any, **keywords: Any) -> None:
            init(self, *arguments, **keywords)
            self.setProtocolOptions(maxMessagePayloadSize=0, maxFramePayloadSize=0)

        return initialised

    replace(ChatProtocol, "connectionMade", any_frame)
    replace(ChatFactory, "__init__", any_message)


@named("forgets handshake-size")
def _() -> None:
    replace(reading, "take_handshake", lambda _: lambda connection, data: connection.feed(data))


@named("forgets handshake-timeout")
def _() -> None:
    leave_out("handshake-timeout")


@named("forgets pings")
def _() -> None:
    leave_out("ping-interval")


@named("goes by the clock on the wall")
def _() -> None:
    replace(tap, "keep_steady_time", always(None))


@named("keeps no descriptors in reserve")
def _() -> None:
    replace(descriptors, "max_connections", lambda _: lambda most, checks: most)


@named("tells all at once that it stops")
def _() -> None:
    replace(ShutdownPacer, "due", lambda due: lambda self, now: due(self, now + 3600))


def _read_at_any_rate() -> None:
    """Never pause reading: a pause would slow an attack down, and hide that the build lacks a limit."""
    replace(Inflow, "take_frame", always(True))
    replace(Inflow, "pause", always(0.0))


@named("forgets message-frames")
def _() -> None:
    def make(begin: Any) -> Any:
        def first_again(self: Any, length: int) -> None:
            self.reading.frames_of_message = 0
            begin(self, length)

        return first_again

    replace(BoundedProtocol, "onMessageFrameBegin", make)
    _read_at_any_rate()


@named("forgets the bound on control frames")
def _() -> None:
    replace(BoundedProtocol, "_take_control_frame", always(True))
    _read_at_any_rate()


@named("forgets the bound on what is unpacked")
def _() -> None:
    def make(_: Any) -> Any:
        def all_of_it(self: Any, data: bytes, max_output_len: int | None = None) -> bytes:
            unpacked: bytes = self._decompressor.decompress(data)
            return unpacked

        return all_of_it

    replace(PerMessageDeflate, "decompress_message_data", make)


@named("forgets frames-per-second")
def _() -> None:
    replace(Inflow, "take_frame", always(True))


@named("diagnoses before the limit")
def _() -> None:
    def make(received: Any) -> Any:
        def diagnosed(self: Any, payload: bytes) -> Any:
            if b"\\ud" in payload:
                json.loads(payload, parse_int=lambda digits: int(digits))
            return received(self, payload)

        return diagnosed

    replace(Session, "received", make)
    # As a user's, or there would be few.
    replace(inflow, "VISITORS_BYTES", lambda _: 1)


@named("forgets webserver-checks")
def _() -> None:
    replace(
        SessionPageAuthenticator,
        "__init__",
        lambda init: lambda self, *arguments, **keywords: init(self, *arguments, **keywords | {"checks": 0}),
    )


@named("keeps what has gone")
def _() -> None:
    def make(lost: Any) -> Any:
        kept: list[bytes] = []

        def lost_and_kept(self: Any, connection: Any) -> None:
            lost(self, connection)
            kept.append(b"a little of it".ljust(2000))

        return lost_and_kept

    replace(Registry, "disconnected", make)


# The session page ------------------------------------------------------------------------


@named("forgets breaker-failures")
def _() -> None:
    replace(Breaker, "failed", always(False))


@named("forgets breaker-longest-wait")
def _() -> None:
    replace(Breaker, "__init__", lambda init: lambda self, failures, wait, longest: init(self, failures, wait, 0))


@named("asks on while the breaker is open")
def _() -> None:
    replace(Breaker, "admit", always(True))


@named("puts people out while the site cannot be asked")
def _() -> None:
    def make(_: Any) -> Any:
        def ended(self: Any, check: Any) -> None:
            for connection in tuple(check.connections):
                connection.close(codes.SESSION_UNCONFIRMED)

        return ended

    replace(Rechecks, "_unreachable", make)


@named("forgets logins-per-minute")
def _() -> None:
    replace(LoginThrottle, "_denials", lambda _: lambda self: TokenBucket(0, 0))


@named("remembers no denial")
def _() -> None:
    replace(DenialCache, "has", always(False))


@named("shares a ticket as it shares a session")
def _() -> None:
    replace(SessionPageAuthenticator, "authenticate_ticket", lambda _: lambda self, sessid: self.authenticate(sessid))
