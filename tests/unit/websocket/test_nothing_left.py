"""However a connection ends, the relay keeps nothing of it, and one event reports its end."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from zope.interface import directlyProvides

from chatrelay.auth.login import Logins
from chatrelay.auth.rechecks import Rechecks
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import DenialCache, LoginThrottle
from chatrelay.config.options import Config
from chatrelay.limits.deadlines import Deadlines
from chatrelay.limits.pace import SlowReaders
from chatrelay.limits.sending import SendLimits
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.relay.directory import Directory
from chatrelay.testing import HeldAuthenticator
from chatrelay.websocket.keepalive import Pings
from chatrelay.websocket.opening import MAX_REFUSED
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.wire import codes
from tests.support import v1, v2
from tests.support.frames import BINARY, HANDSHAKE, PING, close_frame, frame
from tests.support.memory import OFFICE, MemoryClient, ProxiedClient, Transport, proxy_header_1
from tests.support.relay_case import chat_factory

COUNTED = (
    *(Deadlines, Directory, Logins, SessionIndex, Rechecks, Pings, SlowReaders, LoginThrottle, SendLimits),
    DenialCache,
)
"""Our objects that remember connections, or their outcomes."""

REMEMBERED_FOR_A_MINUTE = ("send_limits", "throttle", "_idle", "_recent")
"""Those of them that remember recent users and addresses, or denied sessions."""

RECHECK_SECONDS, GRACE_SECONDS = 10.0, 20.0


class Site(HeldAuthenticator):
    """A site that answers at once, unless it must hold its answers.

    :ivar verdict: what everybody is answered; None to hold it.
    """

    verdict: Verdict | None = LoggedIn(1)

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        if self.verdict is None:
            return super().authenticate(sessid)
        return succeed(self.verdict)


class Place:
    """A relay without a port, with its site and its clients.

    :ivar state: what a connection was brought into.
    """

    state: Callable[[Place], MemoryClient]

    def __init__(self, fast: bool, proxied: bool, **options: Any) -> None:
        self.clock = Clock()
        self.site = Site()
        self.clients: list[MemoryClient] = []
        self.connections: list[weakref.ref[ChatProtocol]] = []
        self.proxied = proxied
        config = Config(
            fast_path=fast,
            recheck_interval=RECHECK_SECONDS,
            denial_memory=5,
            recheck_grace=GRACE_SECONDS,
            log_format="json",  # each end is logged
            **options,
        )
        self.factory = chat_factory(config, self.clock, self.site, remembers_denials=True, chance=lambda: 0.5)
        self.factory.start_sweeping()

    def come(self, transport: Transport | None = None) -> MemoryClient:
        """Connect a client."""
        client = (
            ProxiedClient(self.factory, proxy_header_1(OFFICE))
            if self.proxied
            else MemoryClient(self.factory, transport)
        )
        self.clients.append(client)
        self.connections.append(weakref.ref(client.protocol))
        return client

    def member(self) -> MemoryClient:
        """Connect a client, and log it in."""
        return self.come().open().log_in()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and end connections that were aborted, or closed with a client that leaves politely."""
        for _ in range(int(seconds / 0.25)):
            self.clock.advance(0.25)
            for client in self.clients[:]:
                if client.transport.aborted or client.transport.disconnecting:
                    self.lose(client)

    def lose(self, client: MemoryClient) -> None:
        """End the TCP connection."""
        if client in self.clients:
            self.clients.remove(client)
            client.lost()

    def left(self) -> dict[str, int]:
        """Return what the relay remembers, each with its number of entries."""
        factory = self.factory
        registry = factory.registry
        parts: dict[str, Any] = {
            name: part
            for owner in (factory, registry, factory.parts.logins, factory.parts.logins.throttle)
            for name, part in vars(owner).items()
            if isinstance(part, COUNTED)
        }
        parts.update({name: getattr(registry, name) for name in ("connections", "refused", "_beneath_tls")})
        counts = {name: len(part) for name, part in parts.items()}
        counts["admission"] = factory.parts.admission.connections + factory.parts.admission.addresses()
        assert factory.parts.v2 is not None
        counts["inboxes"] = len(factory.parts.v2.inboxes)
        counts["unauthenticated"] = factory.parts.admission.unauthenticated
        return {name: count for name, count in counts.items() if count}


End = Callable[[Place, MemoryClient], None]
"""What ends an open connection."""


def say(client: MemoryClient, **message: Any) -> None:
    """Send one message, which is not answered yet."""
    client.write(frame(json.dumps(message).encode()))


def close_codes(client: MemoryClient) -> list[int]:
    """Return the close codes that a client has received."""
    return [heard[0] for heard in client.hear() if isinstance(heard, tuple) and heard[0] >= 1000]


# States of a connection ----------------------------------------------------------------


def visitor(place: Place) -> MemoryClient:
    return place.come().open()


def denied(place: Place) -> MemoryClient:
    place.site.verdict = Denied()
    client = place.come().open()
    say(client, type="auth-request", SESSID="nobody")
    return client


def asking(place: Place) -> MemoryClient:
    place.site.verdict = None
    client = place.come().open()
    say(client, type="auth-request", SESSID="alice")
    return client


def asking_again(place: Place) -> MemoryClient:
    client = place.member()
    place.site.verdict = None
    say(client, type="auth-request", SESSID="another")
    return client


def asked_about_again(place: Place) -> MemoryClient:
    client = place.member()
    place.site.verdict = None
    place.pass_time(RECHECK_SECONDS + 1)
    assert place.site.asked
    return client


def sending(place: Place) -> MemoryClient:
    client = place.member()
    client.send(1)
    client.send("nobody")
    return client


def in_a_message(place: Place) -> MemoryClient:
    client = place.member()
    client.write(frame(b"not all", fin=False))
    return client


def in_a_frame(place: Place) -> MemoryClient:
    client = place.member()
    client.write(frame(b"not all")[:8])
    return client


def behind(place: Place) -> MemoryClient:
    client = place.member()
    client.protocol.outgoing.pauseProducing()
    client.send(1)
    place.clock.advance(0)
    return client


def pinged(place: Place) -> MemoryClient:
    client = place.member()
    client.hear()
    while (PING, b"") not in client.hear():
        place.pass_time(0.25)
    return client


def speaking_v2(place: Place) -> MemoryClient:
    client = place.come().open(v2.OFFER)
    say(client, **v2.login("alice"))
    (answer,) = client.hear()
    assert answer["response"] is True
    return client


def sending_in_v2(place: Place) -> MemoryClient:
    client = speaking_v2(place)
    for to in (1, "nobody"):
        say(client, **v2.message(to))
    say(client, **v2.history(1))
    return client


def behind_its_inbox(place: Place) -> MemoryClient:
    first = speaking_v2(place)
    for _ in range(12):
        say(first, **v2.message(1, "x" * 16_000))
        place.clock.advance(0)
    place.lose(first)
    client = place.come().open(v2.OFFER)
    client.protocol.outgoing.pauseProducing()
    assert place.factory.parts.v2 is not None
    say(client, **v2.login("alice", {"epoch": place.factory.parts.v2.log.epoch, "n": 0}))
    place.clock.advance(0)
    assert client.protocol.outgoing._drained is not None
    return client


STATES = {
    visitor: 4001,
    denied: 4001,
    asking: 4001,
    Place.member: 4004,
    asking_again: 4004,
    asked_about_again: 4004,
    sending: 4004,
    in_a_message: 1002,
    in_a_frame: 1002,
    behind: 4002,
    pinged: 4004,
    speaking_v2: 4004,
    sending_in_v2: 4004,
    behind_its_inbox: 4002,
}
"""The close code for each that is silent from then on."""


# How it ends ---------------------------------------------------------------------------


def closes_and_is_lost(place: Place, client: MemoryClient) -> None:
    client.write(close_frame())
    place.lose(client)


def says_no_more(place: Place, client: MemoryClient) -> None:
    place.pass_time(45)
    assert close_codes(client) == [STATES[place.state]]


def is_closed_and_writes(data: bytes) -> End:
    """Return the end of a client that the relay closes, and that sends this afterwards."""

    def end(place: Place, client: MemoryClient) -> None:
        client.protocol.close(codes.ENDED)
        client.write(data)

    return end


def reads_too_little(place: Place, client: MemoryClient) -> None:
    client.protocol.outgoing.pauseProducing()
    for _ in range(20):
        client.protocol.outgoing.send(b"x" * 100_000)


def is_ended_by_sessid(place: Place, client: MemoryClient) -> None:
    place.factory.parts.logins.index.end_session("alice")
    place.lose(client)


def is_ended_by_user(place: Place, client: MemoryClient) -> None:
    place.factory.parts.logins.index.end_user(1)
    for _, answer in place.site.asked:
        if not answer.called:
            answer.callback(LoggedIn(1))
    place.lose(client)


def is_told_that_the_relay_stops(place: Place, client: MemoryClient) -> None:
    Deferred.fromCoroutine(place.factory.registry.close_by_turns())
    place.pass_time(1)
    place.factory.registry.close_all()


def is_there_when_the_relay_has_no_time(place: Place, client: MemoryClient) -> None:
    place.factory.registry.close_all()
    place.factory.registry.abort_all()


def has_its_tls_end(place: Place, client: MemoryClient) -> None:
    for beneath in place.factory.registry._beneath_tls.values():
        beneath.disconnecting = True
    place.clock.pump([0.25] * 5)
    assert client.transport.aborted == place.proxied
    place.lose(client)


def writes(data: bytes) -> End:
    """Return the end of a client that sends this."""
    return lambda place, client: client.write(data)


OF_OPEN_ONES: dict[str, End] = {
    "is lost": lambda place, client: place.lose(client),
    "closes": writes(close_frame()),
    "closes and is lost": closes_and_is_lost,
    "says no more": says_no_more,
    "is closed": lambda place, client: client.protocol.close(codes.ENDED),
    "is closed and answers": is_closed_and_writes(close_frame(4505)),
    "is closed and goes on": is_closed_and_writes(frame(b"{}") * 200),
    "is cut": lambda place, client: client.protocol.abort(),
    "breaks the protocol": writes(frame(b"x", rsv=1)),
    "sends binary": writes(frame(b"x", BINARY)),
    "sends too much": writes(frame(b"x" * 100_000)),
    "pings too often": writes(frame(b"p", PING) * 100),
    "sends too fast": writes(frame(v1.encoded({**v1.message(1), "message": {}})) * 200),
    "sends what nobody can use": writes(frame(b"x") * 10),
    "reads too little": reads_too_little,
    "is ended by sessid": is_ended_by_sessid,
    "is ended by user": is_ended_by_user,
    "is told that the relay stops": is_told_that_the_relay_stops,
    "is there when the relay has no time": is_there_when_the_relay_has_no_time,
    "has its TLS end": has_its_tls_end,
}
"""Of any open connection."""


def goes_in_the_middle_of_one(place: Place) -> None:
    client = place.come()
    client.write(b"GET / HTTP/1.1\r\nHost:")
    place.lose(client)


def never_finishes_one(place: Place) -> None:
    client = place.come()
    place.pass_time(5.25)
    assert client.transport.aborted


def is_refused_with(header: str) -> Callable[[Place], None]:
    """Return the end of a client whose handshake is refused for a header."""

    def end(place: Place) -> None:
        client = place.come()
        assert client.shake(header).startswith(b"HTTP/1.1 4")
        place.lose(client)

    return end


def has_it_refused_and_stays(place: Place) -> None:
    client = place.come()
    client.write(b"GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n" + b"more" * 10_000)
    place.pass_time(2.25)


def is_one_too_many(place: Place) -> None:
    """Connect beyond the limit; where the address is unknown before the handshake, that is refused then."""
    first, second = place.come().open(), place.come()
    second.write(HANDSHAKE)
    place.clock.advance(0)
    assert second.transport.value().startswith(b"HTTP/1.1 429 ")
    assert len(place.factory.registry.refused) == (not place.proxied)
    place.lose(second)
    place.lose(first)


def is_one_too_many_and_says_nothing(place: Place) -> None:
    place.come().open()
    for _ in range(MAX_REFUSED + 5):
        place.come()
    place.pass_time(12)


def is_one_too_many_over_tls(place: Place) -> None:
    place.come().open()
    transport = Transport()
    directlyProvides(transport, ISSLTransport)
    place.come(transport)
    place.pass_time(12)


def is_denied_three_times(place: Place) -> None:
    place.site.verdict = Denied()
    client = place.come().open()
    for number in range(3):
        say(client, type="auth-request", SESSID=f"nobody-{number}")
    assert close_codes(client) == [4500]


def is_the_oldest_of_too_many(place: Place) -> None:
    first, second = place.member(), place.member()
    assert close_codes(first) == [4504]
    place.lose(second)


def has_its_session_end(place: Place) -> None:
    clients = [place.member(), place.member()]
    place.site.verdict = Denied()
    place.pass_time(RECHECK_SECONDS + 1)
    assert [close_codes(client) for client in clients] == [[4501], [4501]]


def has_a_site_that_stays_away(place: Place) -> None:
    client = place.member()
    place.site.verdict = Unavailable("gone for good")
    for _ in range(4):
        place.pass_time(10)
        client.write(frame(b"p", PING))
    assert close_codes(client) == [4501]


def sends_a_message_in_too_many_frames(place: Place) -> None:
    client = place.member()
    client.write(frame(b"", fin=False) + frame(b"", 0, fin=False) * 64)
    assert close_codes(client) == [1002]


def comes_when_the_relay_has_stopped(place: Place) -> None:
    place.factory.registry.abort_all()
    assert place.come().transport.aborted


OF_OTHERS: dict[str, tuple[Callable[[Place], None], dict[str, Any]]] = {
    "goes before the handshake": (lambda place: place.lose(place.come()), {}),
    "goes in the middle of one": (goes_in_the_middle_of_one, {}),
    "never finishes one": (never_finishes_one, {}),
    "finishes none before the relay stops": (lambda place: is_told_that_the_relay_stops(place, place.come()), {}),
    "has it refused and stays": (has_it_refused_and_stays, {}),
    "has the wrong subprotocol": (is_refused_with("Sec-WebSocket-Protocol: nonsense"), {}),
    "has the wrong origin": (is_refused_with("Origin: https://evil.test"), {"origin": ("https://example.com",)}),
    "has too large a handshake": (is_refused_with("X: " + "x" * 20_000), {}),
    "is one too many": (is_one_too_many, {"unauthenticated_per_address": 1}),
    "is one too many and says nothing": (is_one_too_many_and_says_nothing, {"unauthenticated": 1}),
    "is one too many over TLS": (is_one_too_many_over_tls, {"unauthenticated": 1}),
    "is denied three times": (is_denied_three_times, {"logins_per_minute": 2}),
    "is the oldest of too many": (is_the_oldest_of_too_many, {"connections_per_user": 1}),
    "has its session end": (has_its_session_end, {}),
    "has a site that stays away": (has_a_site_that_stays_away, {}),
    "sends a message in too many frames": (sends_a_message_in_too_many_frames, {}),
    "comes when the relay has stopped": (comes_when_the_relay_has_stopped, {}),
}
"""Ends of connections that are not open yet, or in one state only, and the options they need."""


def let_go(place: Place) -> dict[str, int]:
    """Wait as long as a client may take to answer a close; return what is left before and after."""
    for _ in range(10):
        if place.clients:
            place.pass_time(0.25)
    assert not place.clients, "it is still connected"
    left = place.left()
    for part in REMEMBERED_FOR_A_MINUTE:
        left.pop(part, None)
    place.clock.advance(61)
    place.clock.advance(0.25)
    return left or place.left()


def every_end(fast: bool, proxied: bool) -> Iterator[tuple[str, Place, Callable[[], None]]]:
    """Yield every end of every kind of connection: its name, its place, and the action that causes it."""

    def of_open_one(place: Place, end: End) -> None:
        client = place.state(place)
        assert place.left()
        end(place, client)

    for state, (name, end) in itertools.product(STATES, OF_OPEN_ONES.items()):
        place = Place(fast, proxied, connections_per_address=5)
        place.state = state
        yield f"{state.__name__}, {name}", place, partial(of_open_one, place, end)
    for name, (other, options) in OF_OTHERS.items():
        place = Place(fast, proxied, connections_per_address=100, **options)
        yield name, place, partial(other, place)


@pytest.mark.parametrize(
    ("fast", "proxied"), [(True, False), (False, True)], ids=["fast path", "behind a proxy, without the fast path"]
)
def test_closed_connection_leaves_nothing_behind(fast: bool, proxied: bool) -> None:
    # As in a program that has not begun to log: every event is kept for later observers.
    told: list[LogEvent] = []
    globalLogPublisher.addObserver(told.append)
    left: dict[str, object] = {}
    places: dict[str, Place] = {}
    ends_told: dict[str, list[int]] = {}
    gc.collect()
    gc.disable()
    try:
        for name, place, end in every_end(fast, proxied):
            before = len(told)
            end()
            left[name] = let_go(place)
            places[name] = place
            of_ends = [event for event in told[before:] if "phase" in event]
            ends_told[name] = [sum(event["log_level"] is LogLevel.info for event in of_ends), len(place.connections)]
        kept = {name: sum(each() is not None for each in place.connections) for name, place in places.items()}
    finally:
        globalLogPublisher.removeObserver(told.append)
        gc.enable()
    assert {name: counts for name, counts in left.items() if counts} == {}
    assert {name: counts for name, counts in ends_told.items() if counts[0] != counts[1]} == {}
    # This finds references that are counted nowhere: only the relays remain, and nothing else that knows a connection.
    # No connection refers to itself either, because no garbage was collected since then.
    assert {name: count for name, count in kept.items() if count} == {}
    assert len(places) == len(left) > 200 and told
