"""A relay in memory with its clients, its site and its log, all driven by the test, and a model of what must follow.

`World` joins the real `ChatFactory`, `ChatProtocol`, `Session`, `Relay` and `Directory`, under Twisted's own TCP
transports, with a `Site` that answers on request, a `SteppedMessageLog` that commits or fails on request, and a
`Model`. Each action is one method. After each action, the model has followed the events at the seams, and every frame
that was handed to a client has been compared with the promise. `tests.fuzz.test_state_machine` and `Scenario` choose
random actions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, MutableSet, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from chatrelay.app.build import build_parts
from chatrelay.app.listeners import Listeners
from chatrelay.app.service import ChatRelayService
from chatrelay.auth import throttle as attempts
from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.config.options import Config
from chatrelay.interfaces import Startable
from chatrelay.limits.active_time import TICK_SECONDS
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import Denied, LoggedIn, Message, Unavailable
from chatrelay.model import Verdict as SiteVerdict
from chatrelay.relay import base_session as session
from chatrelay.relay import delivery as relay_module
from chatrelay.websocket import outbox as outgoing
from chatrelay.websocket import shutdown as stopping
from chatrelay.websocket.factory import ChatFactory
from chatrelay.websocket.outbox import Outbox
from chatrelay.websocket.protocol import ChatProtocol
from tests.fuzz import model
from tests.fuzz.model import (
    Auth,
    Bad,
    Close,
    Connection,
    Model,
    Ping,
    Pong,
    Send,
    Sent,
    SiteRequest,
    State,
    Unusable,
    Verdict,
)
from tests.fuzz.network import PAUSE_AT, Kernel, NotDirect, Reactor, Socket, Stream
from tests.support.frames import BINARY, CLOSE, PING, PONG, TEXT, frame, handshake
from tests.support.message_logs import SteppedMessageLog
from tests.support.promise import UID, Request, Row

USERS: dict[str, UID] = {"alice": 1, "bo": "2", "cy": "cy"}
"""The users whose sessions the site knows: ``alice.7`` is one of alice's."""

UNCOUNTED = 512
"""Bytes that do not count towards a budget, at most: the answer to the opening handshake, and a close frame."""

RECIPIENTS: tuple[UID, ...] = (1, "1", 2, "2", "cy", "nobody")


class _ByHand:
    """A `chatrelay.auth.client.SessionPage` whose responses the test gives."""

    def __init__(self, pending: list[tuple[str, Deferred[SiteVerdict]]]) -> None:
        self._pending = pending

    def ask(self, sessid: str, is_ticket: bool) -> Deferred[SiteVerdict]:
        """Add a pending request."""
        return hold(self._pending, sessid)

    def close(self) -> Deferred[None]:
        """Do nothing: there is nothing to close."""
        return succeed(None)


class Site(SessionPageAuthenticator):
    """The real authenticator with its queue, breaker and deadlines, in front of a site whose responses the test gives.

    :ivar pending: the requests that have reached the site: the SESSID, and the Deferred for its verdict.
    """

    def __init__(self, reactor: Any, config: Config) -> None:
        super().__init__(
            reactor,
            "http://site.example/session",
            timeout=config.webserver_timeout,
            checks=config.webserver_checks,
            queue_timeout=config.login_timeout,
            answer_size=config.webserver_answer_size,
            breaker_failures=config.breaker_failures,
            breaker_wait=config.breaker_wait,
            breaker_longest_wait=config.breaker_longest_wait,
        )
        self.pending: list[tuple[str, Deferred[SiteVerdict]]] = []
        self._page = _ByHand(self.pending)  # type: ignore[assignment]

    def startup_check(self) -> None:
        """Do nothing: the startup check only logs."""


class BareSite:
    """An authenticator without any protection: each request is pending until the test gives the response."""

    def __init__(self) -> None:
        self.pending: list[tuple[str, Deferred[SiteVerdict]]] = []

    def authenticate(self, sessid: str) -> Deferred[SiteVerdict]:
        return hold(self.pending, sessid)


def hold(pending: list[Any], sessid: str) -> Deferred[SiteVerdict]:
    """Add a pending request; cancelling it removes it."""
    verdict: Deferred[SiteVerdict] = Deferred(lambda _: pending.remove(request))
    request = (sessid, verdict)
    pending.append(request)
    return verdict


class InOrder(MutableSet[ChatProtocol]):
    """A set with a fixed order. The order of Python's set depends on memory addresses and differs between runs."""

    def __init__(self) -> None:
        self._those: dict[ChatProtocol, None] = {}

    def add(self, value: ChatProtocol) -> None:
        self._those[value] = None

    def discard(self, value: ChatProtocol) -> None:
        self._those.pop(value, None)

    def __contains__(self, value: object) -> bool:
        return value in self._those

    def __iter__(self) -> Iterator[ChatProtocol]:
        return iter(tuple(self._those))

    def __len__(self) -> int:
        return len(self._those)


class WatchedProtocol(ChatProtocol):
    """Notifies the world when its messages no longer count, when it is pinged, and when the ping had no answer."""

    factory: WatchedFactory

    def stop_taking(self) -> None:
        self.factory.tell(self.factory.world.model.turn_came, self)
        super().stop_taking()

    def ping(self) -> None:
        self.factory.tell(self.factory.world.model.pinged, self, bool(self.transport.producerPaused))
        super().ping()

    def ping_unanswered(self) -> None:
        self.factory.tell(self.factory.world.model.ping_timed_out, self, bool(self.transport.producerPaused))
        super().ping_unanswered()


class WatchedFactory(ChatFactory):
    """Makes connections that notify the world."""

    protocol = WatchedProtocol
    world: World

    def tell(self, what: Callable[..., None], connection: ChatProtocol, *arguments: Any) -> None:
        c = self.world.connection_of(connection)
        if c is not None:
            self.world.note(what, c, *arguments)


class Client:
    """One client, and what is known of its connection.

    :ivar known: the model's side of it.
    """

    def __init__(self, world: World, number: int) -> None:
        self.socket = Socket(number)
        kind = tcp.Server if world.direct else NotDirect
        protocol: Any = world.factory.buildProtocol(None)
        host = f"192.0.2.{7 + number % 2}"
        self.transport: Any = kind(self.socket, protocol, (host, number), None, number, world.reactor)  # type: ignore[arg-type]
        self.transport.bufferSize = PAUSE_AT
        self.protocol: ChatProtocol = protocol
        self.known = Connection(number, Stream(self.transport), host)
        self.requests = 0
        self.sent: list[tuple[int, int | None, Sent]] = []  # the stream's offsets: its last byte, its header's; what
        self.written = 0
        self.later = b""
        self.is_over = False
        self.is_silent = False
        self.answered = 0

    def __repr__(self) -> str:
        return f"<client {self.known.number}, {self.known.state.name}>"

    def write(self, data: bytes) -> None:
        """Write bytes to the relay's socket."""
        self.written += len(data)
        self.socket.incoming += data


class World:
    """The relay and everything around it, and all actions on them.

    :param fast_path: whether the relay uses it.
    :param direct: whether the transports are Twisted's plain TCP, to which the relay writes at once; else as TLS.
    :param held: whether the test drives the log; otherwise it is ``memory:``, which commits at once.
    :param guarded: whether the real authenticator with queue, breaker and deadlines stands before the site.
    :param chance: of re-checks.
    """

    def __init__(
        self,
        fast_path: bool = True,
        direct: bool = True,
        held: bool = True,
        guarded: bool = False,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.direct = direct
        self.held = held
        self.reactor = Reactor()
        self.reactor.rightNow = 1000.0
        config = Config(
            fast_path=fast_path,
            messages_per_second=float(model.MESSAGES_PER_SECOND),
            message_burst=model.MESSAGE_BURST,
            user_messages_per_second=float(model.USER_MESSAGES_PER_SECOND),
            new_recipients_per_minute=model.NEW_RECIPIENTS_PER_MINUTE,
            unread_size=model.UNREAD_SIZE,
            login_timeout=float(model.LOGIN_TIMEOUT),
            message_timeout=float(model.MESSAGE_TIMEOUT),
            handshake_timeout=float(model.HANDSHAKE_TIMEOUT),
            recheck_interval=float(model.RECHECK_INTERVAL),
            recheck_grace=float(model.RECHECK_GRACE),
            control_frames_per_second=float(model.CONTROL_FRAMES_PER_SECOND),
            control_frame_burst=model.CONTROL_FRAME_BURST,
            webserver_checks=4 * model.MAX_RECHECKS_AT_ONCE,
            drain_time=float(model.DRAIN_TIME),
            connections_per_user=model.CONNECTIONS_PER_USER,
            logins_per_minute=model.LOGINS_PER_MINUTE,
            denial_memory=float(model.DENIAL_MEMORY),
            closing_timeout=float(model.CLOSING_TIMEOUT),
            ping_interval=float(model.PING_INTERVAL),
            ping_timeout=float(model.PING_TIMEOUT),
            unread_time=float(model.UNREAD_TIME),
            # Who is refused before the handshake is no client; both sides of these are in tests/unit/websocket/test_connecting.py,
            # and the model knows those who are let in.
            connections=0,
            connections_per_address=0,
            unauthenticated=0,
            unauthenticated_per_address=0,
        )
        self.site: Site | BareSite = Site(self.reactor, config) if guarded else BareSite()
        self.log = SteppedMessageLog() if held else MemoryMessageLog()
        self._watch_log()
        self._stack = ExitStack()
        self._stack.enter_context(patch.object(attempts, "MINUTE", float(model.MINUTE)))
        self._stack.enter_context(patch.object(session, "MINUTE", float(model.MINUTE)))
        self._stack.enter_context(
            patch.object(session, "REAUTHENTICATIONS_PER_MINUTE", model.REAUTHENTICATIONS_PER_MINUTE)
        )
        self._stack.enter_context(patch.object(outgoing, "sendqueue", Kernel()))
        # The relay remembers only the denials of its own authenticator.
        parts = build_parts(
            config,
            self.reactor,
            self,
            self.log,
            remembers_denials=guarded,
            now=self.reactor.seconds,
            chance=chance,
        )
        self.relay = parts.relay
        self.factory = WatchedFactory(parts)
        self.factory.registry.connections = InOrder()  # type: ignore[assignment]
        self._watch_rechecks()
        self._watch_slow_readers()
        self.factory.world = self
        startable = self.site if isinstance(self.site, Startable) else None
        self.service = ChatRelayService(self.factory, self.log, "moved by hand", Listeners(self.reactor), startable)
        self.has_stopped = False
        self._stopping: Deferred[None] | None = None
        self.model = Model(self.reactor.seconds(), remembers=guarded)
        self.clients: list[Client] = []
        self.contents = 0
        self.events = 0
        self.seconds = 0.0
        self.sessions = 0
        self._messages_begun = 0
        self.failures_expected = 0
        self._failures: list[str] = []
        self._journal: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._is_rechecking = False
        self._watch_connections()

    def __enter__(self) -> World:
        self._stack.enter_context(patch.object(relay_module, "MAX_WAITING", model.MAX_WAITING))
        self._stack.enter_context(patch.object(stopping, "FIRST_TURNS", model.TURNS_AT_ONCE))
        self._stack.enter_context(patch.object(stopping, "MIN_TURNS_PER_SECOND", model.MIN_TURNS_PER_SECOND))
        # Failures that are meant to happen are nobody else's business.
        for name, module in list(sys.modules.items()):
            if name.startswith("chatrelay.") and isinstance(getattr(module, "log", None), Logger):
                self._stack.enter_context(patch.object(module, "log", Logger(observer=self._observe)))
        globalLogPublisher.addObserver(self._observe)
        self._stack.callback(globalLogPublisher.removeObserver, self._observe)
        self.service.startService()
        self._stack.callback(self.factory.stop_sweeping)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stopping is not None:
            self._stopping.addErrback(lambda _: None)  # something was wrong, and was reported already
            self._stopping.cancel()
        self._stack.close()

    # Actions of clients-----------------------------------------------------------

    def connect(self, whole: bool = True) -> Client:
        """Connect a client that does the opening handshake, or begins it."""
        assert self.is_listening
        client = Client(self, len(self.clients))
        self.clients.append(client)
        self.model.connections.append(client.known)
        client.known.handshake_due = self.reactor.seconds() + model.HANDSHAKE_TIMEOUT
        client.protocol.makeConnection(client.transport)
        client.later = handshake()
        self.shake(client, whole)
        return client

    def shake(self, client: Client, whole: bool = True) -> None:
        """Continue a handshake that has begun, perhaps to its end."""
        if client.known.state is State.CONNECTING and not client.known.was_cut:
            part = client.later if whole else client.later[: len(client.later) // 2]
            client.later = client.later[len(part) :]
            client.write(part)
            self.turn()

    def log_in(self, client: Client, sessid: str) -> None:
        """Send an auth-request."""
        self.say(client, Auth(sessid), {"type": "auth-request", "SESSID": sessid})

    def session_of(self, user: str) -> str:
        """Return a new session of one of the site's users."""
        self.sessions += 1
        return f"{user}.{self.sessions}"

    def send(self, client: Client, to: UID, size: int = 0, part: float = 1.0) -> None:
        """Send a message from a client."""
        self.contents += 1
        number = client.requests = client.requests + 1
        request = Request(
            number if number % 2 else str(number),
            str(number) if number % 3 else -number,
            to,
            f"{self.contents} hej å" + "x" * size,
        )
        value = {
            "type": "message-send-request",
            "id": request.id,
            "more": {"fromuID": "forged"},
            "message": {
                "timeStamp": request.time_stamp,
                "touID": to,
                "content": request.content,
                "fromuID": "forged",
            },
        }
        self.say(client, Send(request), value, part)

    def say(self, client: Client, sent: Sent, value: Any, part: float = 1.0) -> None:
        """Send text, or a part of it now and the rest with the client's next action."""
        self.put(client, sent, frame(json.dumps(value).encode()), part)

    def put(self, client: Client, sent: Sent, data: bytes, part: float = 1.0) -> None:
        """Send a frame, or a part of it."""
        if client.known.state is State.CONNECTING or client.known.was_cut:
            return
        self.go_on(client)
        size = len(data) if part >= 1 else int(part * len(data))
        head = {126: 8, 127: 14}.get(data[1] & 127, 6) if data[0] & 15 == TEXT else None
        client.sent.append((client.written + len(data), None if head is None else client.written + head, sent))
        client.write(data[:size])
        client.later = data[size:]

    def go_on(self, client: Client) -> None:
        """Send the rest of a frame."""
        if client.known.state is not State.CONNECTING and not client.known.was_cut:
            client.write(client.later)
            client.later = b""

    def talk_nonsense(self, client: Client, kind: int) -> None:
        """Send text that is not a request."""
        values: tuple[tuple[Any, Unusable], ...] = (
            (["hej"], Unusable("invalid-json")),
            ({"type": "hej"}, Unusable("unknown-type")),
            ({"type": "auth-request", "SESSID": 7}, Unusable("invalid-auth-request")),
            ({"type": "message-send-request", "id": "bad", "message": {}}, Unusable("invalid-message", True, "bad")),
            ({"type": "message-send-request", "message": {}}, Unusable("invalid-message", True)),
            (
                {
                    "type": "message-send-request",
                    "id": -1,
                    "message": {"timeStamp": 1, "touID": 1, "content": "\ud83d"},
                },
                Unusable("invalid-message", True, -1),
            ),
        )
        value, sent = values[kind % len(values)]
        self.say(client, sent, value)

    def break_the_rules(self, client: Client, kind: int) -> None:
        """Send a frame that is not allowed."""
        data, code = (
            (frame(b"hej", BINARY), 1003),
            (frame(b"hej", 3), 1002),
            (frame(b"hej", rsv=4), 1002),
            (frame(b"hej", masked=False), 1002),
            (frame(b"\xff\xfe"), 1007),
            (frame(b"x" * 66000)[:14], 1009),
        )[kind % 6]
        self.put(client, Bad(code), data)

    def ping(self, client: Client) -> None:
        """Send a ping."""
        self.put(client, Ping(b"hej"), frame(b"hej", PING))

    def fall_silent(self, client: Client) -> None:
        """Answer no pings from now on, as if the network were gone."""
        client.is_silent = True

    def _answer_pings(self) -> None:
        answer = False
        for client in self.clients:
            if client.is_silent or not client.socket.reading or client.later or client.known.state is State.CONNECTING:
                continue
            frames = client.known.stream.frames
            if len(frames) == client.answered:
                continue
            pings = sum(each == (PING, b"") for each in frames[client.answered :])
            client.answered = len(frames)
            for _ in range(pings):
                self.put(client, Pong(), frame(b"", PONG))
                answer = True
        if answer:
            self.turn()

    def close(self, client: Client, code: int = 1000) -> None:
        """Close properly."""
        self.put(client, Close(1000), frame(code.to_bytes(2), CLOSE))

    def cut(self, client: Client, broken: bool) -> None:
        """End a client: its end is closed, or the connection breaks."""
        client.known.was_cut = True
        client.socket.ended = True
        client.socket.broken = client.socket.broken or broken

    def stop_reading(self, client: Client) -> None:
        """Stop reading."""
        client.socket.reading = False

    def read_on(self, client: Client) -> None:
        """Read again, everything that is there."""
        client.socket.reading = True
        client.socket.read_on()

    def turn(self, first: int = 0) -> None:
        """Take one turn of the reactor: serve everything that is ready once, beginning with this one; then do what is
        due.
        """
        self.events += 1
        now = self.model.now = self.reactor.seconds()
        for client in (*self.clients[first:], *self.clients[:first]):
            if not client.known.is_lost:
                self._serve(client, now)
        self.reactor.advance(0)
        self._follow()

    def _serve(self, client: Client, now: float) -> None:
        known = client.known
        if client.transport not in self.reactor.writers and not client.socket.is_readable:
            return
        reads = min(PAUSE_AT, len(client.socket.incoming)) if client.transport in self.reactor.readers else 0
        reads = 0 if client.socket.broken else reads
        until = client.socket.taken + reads
        if reads:
            if known.state is State.CONNECTING and not client.later:
                self.note(client.known.stream.skip_handshake)
                self.note(self.model.opened, known)
            while client.sent and client.sent[0][0] <= until:
                self.note(self.model.received, known, client.sent.pop(0)[2])
                known.message_due = None
            if (
                client.sent
                and client.sent[0][1] is not None
                and client.sent[0][1] <= until
                and known.message_due is None
            ):
                known.message_due = now + model.MESSAGE_TIMEOUT
                self._messages_begun += 1
                known.message_begun = self._messages_begun
        self.reactor.serve(client.transport)
        known.is_lost = client.transport.disconnected

    # Actions of the site ------------------------------------------------------------

    def authenticate(self, sessid: str) -> Deferred[SiteVerdict]:
        """Pass on the relay's request, and record its outcome."""
        site_request = SiteRequest(sessid, self._is_rechecking)
        if site_request.is_recheck:
            self.note(self.model.recheck_sent, sessid)
        else:
            self.model.site_requests.append(site_request)

        def answered(said: Any) -> Any:
            if isinstance(said, Failure) and said.check(CancelledError):
                return said
            if isinstance(said, LoggedIn):
                verdict = Verdict(said.uid, expires_in=said.expires_in)
            else:
                verdict = Verdict(None, available=isinstance(said, Denied))
            if returned:
                self.note(self.model.answered, site_request, verdict)
            else:
                site_request.verdict = verdict  # at once: the model reads it when it matches the request with a login
                if site_request.is_recheck:
                    self.note(self.model.answered, site_request, verdict)
            return said

        returned = False
        asking = self.site.authenticate(sessid).addBoth(answered)
        returned = True
        return asking

    def _watch_connections(self) -> None:
        """Record when time limits are checked, which connection is closing or gone, and when all are closed."""

        def watch(owner: Any, name: str, note: Callable[..., None]) -> None:
            really = getattr(owner, name)

            def watched(*arguments: Any) -> Any:
                note(*arguments)
                return really(*arguments)

            setattr(owner, name, watched)

        registry, model = self.factory.registry, self.model
        watch(self.factory.parts.sweep, "check", lambda now: self.note(model.swept))
        watch(registry, "closing", lambda connection: self.factory.tell(model.released, connection))
        watch(registry, "disconnected", lambda connection: self.factory.tell(model.lost, connection))
        watch(registry, "close_all", lambda: self.note(model.closed_all))

    def _watch_slow_readers(self) -> None:
        slow_readers = self.factory.registry.slow_readers

        def watch(name: str, what: str) -> None:
            really = getattr(slow_readers, name)

            def watched(outgoing: Outbox) -> None:
                for client in self.clients:
                    if getattr(client.protocol, "outgoing", None) is outgoing:
                        self.note(getattr(self.model, what), client.known)
                really(outgoing)

            setattr(slow_readers, name, watched)

        watch("fell_behind", "fell_behind")
        watch("caught_up", "caught_up")

    def _watch_rechecks(self) -> None:
        start_due = self.factory.parts.logins.rechecks._start_due

        def watched() -> None:
            before, self._is_rechecking = self._is_rechecking, True
            start_due()
            self._is_rechecking = before

        self.factory.parts.logins.rechecks._start_due = watched  # type: ignore[method-assign]

    def answer(self, which: int, said: str = "right") -> None:
        """Let the site answer one of the pending requests."""
        if not self.site.pending:
            return
        self.events += 1
        sessid, verdict = self.site.pending.pop(which % len(self.site.pending))
        uid = USERS.get(sessid.partition(".")[0])
        if said == "unavailable":
            verdict.callback(Unavailable("the site is down"))
        elif said == "breaks":
            self.failures_expected += 1
            verdict.errback(ZeroDivisionError("a defect of the authenticator's"))
        elif uid is None or said == "denied":
            verdict.callback(Denied())
        else:
            verdict.callback(LoggedIn(uid, expires_in=30.0 if said == "short" else None))
        self._settle_turn()

    def revoke_user(self, user: str) -> None:
        """End all sessions of a user at the site."""
        self.note(self.model.revoked_user, str(USERS[user]))
        self.factory.parts.logins.index.end_user(USERS[user])
        self._settle_turn()

    def revoke_session(self, sessid: str) -> None:
        """End a session at the site."""
        self.note(self.model.revoked_session, sessid)
        self.factory.parts.logins.index.end_session(sessid)
        self._settle_turn()

    # Actions of the log ---------------------------------------------------------------

    def _watch_log(self) -> None:
        log, append, mark = self.log, self.log.append, self.log.mark_undelivered

        def watched_append(messages: Sequence[Message]) -> Deferred[Sequence[int]]:
            as_sent = [(m.from_uid, m.to_uid, m.client_id, m.time_stamp, m.content) for m in messages]
            self.note(self.model.appended, as_sent)

            def done(result: Any) -> Any:
                self.note(self.model.committed, None if isinstance(result, Failure) else list(result))
                return result

            return append(messages).addBoth(done)

        def watched_mark(numbers: Sequence[int]) -> Deferred[None]:
            def done(result: Any) -> Any:
                self.note(self.model.marked, list(numbers), isinstance(result, Failure))
                return result

            return mark(numbers).addBoth(done)

        log.append = watched_append  # type: ignore[method-assign]
        log.mark_undelivered = watched_mark  # type: ignore[method-assign]

    def move_log(self, how: str = "commit") -> None:
        """Let the log do its oldest pending step, or fail."""
        log = self.log
        if not isinstance(log, SteppedMessageLog):
            return
        self.events += 1
        if how in ("mark", "fail_to_mark"):
            if log.unmarked:
                getattr(log, how)()
        elif log.batches:
            self.failures_expected += how == "break_down"
            getattr(log, how)()
        self._settle_turn()

    # Time -----------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, and check the deadlines after each quarter of a second, as a relay that is never held up."""
        left = seconds
        while left > 0:
            self.events += 1
            self.seconds += TICK_SECONDS
            left -= TICK_SECONDS
            self.model.now = self.reactor.seconds() + TICK_SECONDS
            self.reactor.advance(TICK_SECONDS)
            self._follow()
            self._answer_pings()

    # Stopping ---------------------------------------------------------------------------

    def stop(self) -> None:
        """Tell the relay to stop."""
        if not self.model.stopping:
            there = [client.known for client in self.clients if not client.transport.disconnected]
            self.note(self.model.stopped, there)
            self._stopping = self.service.stopService()
            self._stopping.addCallback(self._stopped)
            self._settle_turn()

    def _stopped(self, _: None) -> None:
        self.has_stopped = True

    @property
    def is_listening(self) -> bool:
        """Whether clients may connect: as long as the relay checks deadlines, even while it stops."""
        is_over = self.has_stopped or self.reactor.seconds() >= self.model.stopped_at + model.DRAIN_TIME
        return not (self.model.stopping and is_over)

    def settle(self) -> None:
        """Let all clients read, the site and the log answer, and time pass, until everything has ended."""
        for client in self.clients:
            self.read_on(client)
            self.go_on(client)
        for _ in range(200):
            self.turn()
            busy = any(c.socket.incoming and c.transport in self.reactor.readers for c in self.clients)
            busy = busy or any(c.transport in self.reactor.writers for c in self.clients)
            if isinstance(self.log, SteppedMessageLog):
                busy = busy or bool(self.log.batches or self.log.unmarked)
                self.move_log("commit")
                self.move_log("mark")
            if self.site.pending:
                self.answer(0)
                busy = True
            if not busy:
                break
        else:
            raise AssertionError("the scenario does not end")
        assert not self.model.waiting and not self.model.unmarked, "messages were left without an outcome"
        if isinstance(self.log, SteppedMessageLog):
            self.log.recover()
        self.model.check_promise(self.rows())

    def end(self) -> None:
        """Settle; then stop the relay, and check that all connections are closed and nothing is left."""
        self.settle()
        self.stop()
        # Nobody answers a close frame here.
        self.advance(model.DRAIN_TIME + 1)
        assert self.has_stopped, "all connections are closed, and the relay still waits"
        assert not self.reactor.readers and not self.reactor.writers, "a descriptor is left"
        assert not self.factory.registry.connections and not len(self.factory.directory), "a connection is remembered"
        assert not len(self.factory.parts.logins.index) and not len(self.factory.parts.logins.rechecks), (
            "a login is remembered"
        )
        self.advance(60)
        self.factory.parts.sweep.run()
        assert not len(self.factory.parts.send_limits), "a user is remembered"
        assert not len(self.factory.parts.logins.throttle), "an address is remembered"
        assert not len(self.factory.registry.pings) and not len(self.factory.registry.slow_readers), (
            "a closed connection is still due"
        )
        deadlines = (
            self.factory.registry.login_deadlines,
            self.factory.registry.message_deadlines,
            self.factory.registry.handshake_deadlines,
        )
        assert not any(map(len, (*deadlines, self.factory.registry.closing_deadlines))), "a deadline is left"
        self.model.check_promise(self.rows())

    def rows(self) -> list[Row]:
        """Return the rows of the log."""
        return [
            Row(str(m.from_uid), str(m.to_uid), m.client_id, m.time_stamp, m.content, int(row.delivered))
            for row in self.log.rows
            for m in (row.message,)
        ]

    # How the model follows -----------------------------------------------------------------

    def connection_of(self, protocol: ChatProtocol) -> Connection | None:
        """Return the model's side of a connection."""
        return next((client.known for client in self.clients if client.protocol is protocol), None)

    def note(self, what: Callable[..., None], *arguments: Any) -> None:
        """Record an event at a seam; the model is notified when the turn is over."""
        self._journal.append((what, arguments))

    def _settle_turn(self) -> None:
        self.model.now = self.reactor.seconds()
        self.reactor.advance(0)
        self._follow()

    def _follow(self) -> None:
        open_clients = [client for client in self.clients if not client.is_over]
        for client in open_clients:
            known = client.known
            known.is_lost = bool(client.transport.disconnected)
            if known.state is not State.CONNECTING:
                known.stream.parse()
        journal, self._journal = self._journal, []
        for what, arguments in journal:
            what(*arguments)
            if what.__name__ == "skip_handshake":
                what.__self__.parse()  # type: ignore[attr-defined]
        for client in open_clients:
            client.known.compare()
            if client.known.is_lost:
                client.is_over = client.known.state is State.CLOSED
            else:
                self._check_budget(client)
        self.model.compare()
        assert not self.model.site_requests, f"requests without a reason: {self.model.site_requests}"
        assert len(self._failures) == self.failures_expected, f"logged as failures: {self._failures}"

    def _check_budget(self, client: Client) -> None:
        known = client.known
        if known.state in (State.CONNECTING, State.CLOSED):
            return
        if not known.stream.waiting and client.socket.reading:
            known.unread_since = known.stream.total
        if client.transport.producerPaused:
            assert known.behind_since is not None, f"{client!r} is behind, and the relay has not noticed"
        unread = known.stream.waiting + client.socket.unacknowledged
        assert unread <= model.UNREAD_SIZE + UNCOUNTED, f"{client!r} has {unread} bytes unread"

    def _observe(self, event: Any) -> None:
        if event.get("log_failure") is not None or event.get("log_level") in (LogLevel.error, LogLevel.critical):
            failure = event.get("log_failure")
            self._failures.append(formatEvent(event) + ("" if failure is None else failure.getTraceback()))
