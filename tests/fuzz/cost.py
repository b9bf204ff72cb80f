"""The most expensive bytes that a client may send: a search with the relay's CPU time as its goal.

    python -m tests.fuzz cost --seconds 600 [--seed 1]

A candidate is one text message, cut into frames and reads. A client at its limits sends it ten times a second to the
real factory, protocol, session and relay, with all limits active, on a clock that the test moves. Its CPU cost is
compared with that of the largest messages of harmless text. A candidate that closes the connection costs nothing,
because it is over in a moment.

Clients speak v1 or v2. One of v2 has an inbox of large messages, which are read from a log in memory, so its requests
may cost much more than their own bytes. It sends requests that are answered from the log only five times a second,
because more are refused.

The search keeps the most expensive candidates, changes one of them at random, and keeps the result if it is more
expensive. A figure is the least of several measurements, so that a busy machine does not look like expensive bytes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random

import attrs
from twisted.internet.task import Clock

from chatrelay.config.options import Config
from chatrelay.messagelog.memory import MemoryMessageLog, NoMessageLog
from chatrelay.model import Message
from chatrelay.testing import KnownSessions
from tests.support.frames import TEXT, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import chat_factory

MESSAGE_SIZE = 65_536
MESSAGES_PER_SECOND = 10
MESSAGES = 20
"""Messages of one measurement."""

READ = 65_536
"""Bytes that Twisted reads at once."""

STEP = 0.05
"""Seconds by which the clock is moved at once."""

VISITOR, USER = "visitor", "user"
VISITOR_V2, USER_V2 = "visitor of v2", "user of v2"
ROLES = {VISITOR: VISITOR_V2, USER: USER_V2}
"""For each role in v1 the one in v2."""

READS_PER_SECOND = 5
"""Requests a second that are answered from the message log."""

LARGE = 16_000
"""Bytes of each message in the inbox of a client of v2."""

LARGE_MESSAGES, PEERS = 200, 100
"""The number of these messages in each direction, and of users with whom they are exchanged."""

REQUEST = b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":2,"content":"hej"},"x":%b}'
TEMPLATES = (
    REQUEST,
    b'{"x":%b,"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":2,"content":"hej"}}',
    b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":2,"content":"hej","x":%b}}',
    b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":2,"content":%b}}',
    b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":%b,"content":"hej"}}',
    b'{"type":"message-send-request","id":1,"message":{"timeStamp":%b,"touID":2,"content":"hej"}}',
    b'{"type":"message-send-request","id":%b,"message":{"timeStamp":1,"touID":2,"content":"hej"}}',
    b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":2,"content":"\\ud83d"},"x":%b}',
    b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":2,"content":"hej\\u0000"},"x":%b}',
    b'{"type":"message-send-request","id":1,"message":null,"x":%b}',
    b'{"type":"message-send-request","id":1,"message":%b}',
    b'{"type":"message-send-request",%b,"id":1,"message":{"timeStamp":1,"touID":2,"content":"hej"}}',
    b'{"type":"message-send-request","id":1,"message":{%b,"timeStamp":1,"touID":2,"content":"hej"}}',
    b'{"type":%b,"type":"message-send-request","id":1}',
    b'{"type":"auth-request","SESSID":%b}',
    b'{"type":"auth-request","SESSID":"alice","x":%b}',
)
SEND_V2 = b'{"type":"message-send-request","id":"id-000001","message":{"timeStamp":1,"touID":2,"content":"hej"},"x":%b}'
HISTORY = b'{"type":"history-request","id":1,"with":2,"limit":100,"x":%b}'
CONVERSATIONS = b'{"type":"conversations-request","id":1,"limit":100,"x":%b}'
WATCH = b'{"type":"presence-request","id":1,"of":%b}'
WATCH_ALL = b'{"type":"presence-request","id":1,"of":[%b],"x":%%b}' % ",".join(map(str, range(2, 2 + PEERS))).encode()
RECEIVED = b'{"type":"received","received":%b}'
AGAIN = (
    b'{"type":"message-send-request","id":"id-000001","message":{"timeStamp":1,"touID":2,"content":%b},"again":true}'
)
TOKEN_ALONE = b'{"type":"auth-request","resume":%b}'
READS = (HISTORY, CONVERSATIONS, WATCH, WATCH_ALL)
"""The templates of requests that are answered from the message log."""

TEMPLATES_V2 = (
    SEND_V2,
    b'{"type":"message-send-request","id":"id-000001","message":{"timeStamp":1,"touID":2,"content":%b}}',
    b'{"type":"message-send-request","id":%b,"message":{"timeStamp":1,"touID":2,"content":"hej"}}',
    b'{"type":"message-send-request","id":1,"message":%b}',
    AGAIN,
    HISTORY,
    b'{"type":"history-request","id":1,"with":%b}',
    b'{"type":"history-request","id":%b,"with":2}',
    CONVERSATIONS,
    WATCH,
    WATCH_ALL,
    RECEIVED,
    b'{"type":"received","received":9,"x":%b}',
    b'{"type":"read","with":2,"read":9,"x":%b}',
    b'{"type":"typing","touID":2,"x":%b}',
    b'{"type":"ping","id":%b}',
    TOKEN_ALONE,
    b'{"type":"auth-request","SESSID":"alice","after":%b}',
    b'{"type":"auth-request","SESSID":"alice","resume":%b}',
)
WRAPPERS = ((b"", b"", b""), (b'"', b"", b'"'), (b"[", b",", b"]"), (b"{", b",", b"}"), (b'["', b'","', b'"]'))
"""The texts before, between and after the units that a candidate repeats."""

PIECES = (
    *(
        *(b"x", b"u", b"d", b"0", b"9", b"1", b" ", b"\n", b"\\", b"\\\\", b'\\"', b"\\n", b"\\u0000", b"\\u000a"),
        b"\\ud83d",
    ),
    *(b"\\ude00", b"\\uD83D\\uDE00", b"\\u00e5", b"\xc3\xa5", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\x7f", b"\\/"),
    *(
        *(b"1", b"-1", b"0", b"1.5", b"1e5", b"1.2345678901234567e-200", b"9007199254740992", b"9" * 30, b"9" * 4000),
        b"1e999",
    ),
    *(b"{}", b"[]", b"[[]]", b"null", b"true", b"false", b'""', b'"x"', b'{"a":1}', b'"a":1', b'"id":1', b'"":""'),
    *(b'"type":"message-send-request"', b'"message":{"timeStamp":1,"touID":2,"content":"hej"}', b'"id":"\\ud83d"'),
    *(
        b'"content":"x"',
        b'"touID":1',
        b'"SESSID":"x"',
        b"[" * 100 + b"]" * 100,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 300,
    ),
    *(b"}" * 300, b"[", b"]", b",", b":", b'"'),
)
SIZES = (60, 130, 1000, 4000, 16_000, 30_000, 65_000)


@attrs.frozen
class Candidate:
    """A message, and how it is sent.

    :ivar role: who sends it.
    :ivar template: where in which message the units go.
    :ivar wrapper: what stands before, between and after the units.
    :ivar unit: what is repeated.
    :ivar size: bytes that it may have, at the most.
    :ivar frames: into how many frames it is cut.
    :ivar reads: into how many reads those are cut.
    """

    role: str
    template: bytes = REQUEST
    wrapper: tuple[bytes, bytes, bytes] = WRAPPERS[1]
    unit: bytes = b"x"
    size: int = 65_000
    frames: int = 1
    reads: int = 1

    @property
    def payload(self) -> bytes:
        """Return the whole message."""
        before, between, after = self.wrapper
        room = self.size - len(self.template) - len(before) - len(after)
        count = max(1, room // (len(self.unit) + len(between)))
        return (self.template % (before + between.join([self.unit] * count) + after))[:MESSAGE_SIZE]

    def pieces(self) -> list[bytes]:
        """Yield the bytes of one read after another."""
        payload = self.payload
        step = -(-len(payload) // self.frames) or 1
        parts = [payload[start : start + step] for start in range(0, len(payload), step)]
        # Those that are left over are empty, and come last.
        parts += [b""] * (self.frames - len(parts))
        framed = []
        for number, part in enumerate(parts):
            whole = bytearray(frame(part, TEXT if number == 0 else 0))
            whole[0] &= 0xFF if number == len(parts) - 1 else 0x7F
            framed.append(bytes(whole))
        data = b"".join(framed)
        step = -(-len(data) // self.reads)
        return [data[start : start + step] for start in range(0, len(data), step)]

    @property
    def harmless(self) -> Candidate:
        """Return text of as many bytes, from the same client, in one frame and one read."""
        template = SEND_V2 if self.role in ROLES.values() else REQUEST
        return Candidate(self.role, template, size=max(len(self.payload), 150))

    @property
    def per_second(self) -> int:
        """How often a client sends it in a second."""
        return READS_PER_SECOND if self.template in READS else MESSAGES_PER_SECOND

    def __str__(self) -> str:
        shown = self.template % (b"%b...%b" % (self.wrapper[0] + self.unit[:60] + self.wrapper[1], self.wrapper[2]))
        return f"{self.role}, {len(self.payload)} bytes in {self.frames} frames and {self.reads} reads: {shown!r}"


HARMLESS = Candidate(USER)
"""The largest messages of harmless text: the most that a harmless client may cost."""


def large_messages() -> Iterator[Message]:
    """Yield large messages between Alice and each of the others, so that all of them know each other."""
    numbers = itertools.count()
    for peer in [*range(3, 2 + PEERS), *[2] * (LARGE_MESSAGES - PEERS)]:
        for pair in ((1, peer), (peer, 1)):
            yield Message(*pair, f"large-{next(numbers):06}", 1, "x" * LARGE, 1.0, True)


class Uncounted:
    """A reader of a message log whose CPU time is counted apart.

    :ivar spent: CPU seconds.
    """

    def __init__(self, reader: object) -> None:
        self._reader = reader
        self.spent = 0.0

    def __getattr__(self, name: str) -> Callable[..., object]:
        read = getattr(self._reader, name)

        def counted(*positional: object, **named: object) -> object:
            begun = time.process_time()
            result = read(*positional, **named)
            self.spent += time.process_time() - begun
            return result

        return counted


class Meter:
    """A relay in memory, and how much CPU a client uses.

    :ivar answered: what the relay sent the client in the last measurement.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        # That a recipient reads is not measured, and to how many one may write is another limit.
        config = Config(new_recipients_per_minute=0, unread_size=0, connections_per_user=0)
        sessions = KnownSessions({"alice": 1, "bo": 2})
        inboxes = MemoryMessageLog()
        inboxes.append(list(large_messages()))
        self._reader = inboxes.reader = Uncounted(inboxes.reader)  # type: ignore[assignment]
        self._factories = {
            role: chat_factory(config, self._clock, sessions, log)
            for role, log in ((VISITOR, NoMessageLog()), (VISITOR_V2, inboxes))
        }
        self.answered = b""
        # Bo's clients speak v1, which does not matter to a sender.
        self._recipients = [MemoryClient(factory).open().log_in("bo") for factory in self._factories.values()]

    def _client(self, role: str) -> MemoryClient:
        """Return a client with an open connection, which is logged in if the role is one of a user."""
        if role not in ROLES.values():
            client = MemoryClient(self._factories[VISITOR]).open()
            return client.log_in() if role == USER else client
        client = MemoryClient(self._factories[VISITOR_V2]).open("Sec-WebSocket-Protocol: chatrelay.v2")
        if role == USER_V2:
            client.say_login("alice")
            (answer,) = client.hear()
            assert answer["response"] is True, answer
        return client

    def _read_delivered(self) -> None:
        for recipient in self._recipients:
            recipient.read()

    def once(self, candidate: Candidate) -> float:
        """Return the CPU seconds that a client uses per second, in the long run; 0 for one that is closed."""
        clock = self._clock
        pieces = candidate.pieces()
        client = self._client(candidate.role)
        protocol, transport = client.protocol, client.transport
        # The burst is used up.
        protocol.reading.bytes.remaining = protocol.reading.frames.remaining = 0.0
        clock.advance(0.2)
        waiting: list[bytes] = []
        spent, apart = 0.0, self._reader.spent
        self.answered = b""
        gc.disable()
        for _ in range(MESSAGES):
            begun = time.process_time()
            for piece in pieces:
                if waiting or transport.producerState == "paused":
                    waiting.append(piece)
                else:
                    protocol.dataReceived(piece)
            for _ in range(round(1 / candidate.per_second / STEP)):
                clock.advance(STEP)
                if waiting and transport.producerState != "paused":
                    # As from the kernel, where small pieces have come together.
                    data, waiting = b"".join(waiting), []
                    protocol.dataReceived(data[:READ])
                    waiting += [data[READ:]] if len(data) > READ else []
            spent += time.process_time() - begun
            self.answered += client.read()
            self._read_delivered()
        gc.enable()
        spent -= self._reader.spent - apart
        is_open = protocol.state == protocol.STATE_OPEN
        client.lost()
        return spent * candidate.per_second / MESSAGES if is_open else 0.0

    def taking(self, candidate: Candidate, times: int = 3) -> float:
        """Return the CPU seconds for one message that arrives whole, without its sender's limits: the least of
        several.
        """
        (data,) = attrs.evolve(candidate, frames=1, reads=1).pieces()
        client = self._client(candidate.role)
        least = math.inf
        for _ in range(times):
            begun = time.process_time()
            client.protocol.dataReceived(data)
            least = min(least, time.process_time() - begun)
            self._clock.advance(2)
            client.read()
            self._read_delivered()
        client.lost()
        return least

    def cost(self, candidate: Candidate, times: int = 3) -> float:
        """Return the least of several measurements."""
        return min(self.once(candidate) for _ in range(times))

    def ratio(self, candidate: Candidate, times: int = 5) -> float:
        """Return how many times as expensive it is as a user's largest messages of harmless text, measured alternately."""
        pairs = [(self.once(candidate), self.once(HARMLESS)) for _ in range(times)]
        return min(cost for cost, _ in pairs) / min(cost for _, cost in pairs)


CONVERSATIONS_ASKED = Candidate(USER_V2, CONVERSATIONS, size=100)

KNOWN = (
    Candidate(VISITOR),
    Candidate(USER),
    Candidate(USER, TEMPLATES[3], WRAPPERS[1], b"x", 16_000),
    Candidate(USER, TEMPLATES[3], WRAPPERS[1], b"\xc3\xa5", 16_000),
    Candidate(VISITOR, REQUEST, WRAPPERS[2], b"1"),
    Candidate(VISITOR, REQUEST, WRAPPERS[2], b"[" * 500 + b"]" * 500),
    Candidate(VISITOR, TEMPLATES[7], WRAPPERS[2], b"1"),
    Candidate(VISITOR, TEMPLATES[7], WRAPPERS[1], b"u"),
    Candidate(VISITOR, TEMPLATES[9], WRAPPERS[2], b"{}"),
    Candidate(VISITOR, REQUEST, WRAPPERS[1], b"\\\\u0000"),
    Candidate(USER, TEMPLATES[15], WRAPPERS[4], b"\\/", frames=10, reads=300),
    Candidate(USER, TEMPLATES[15], WRAPPERS[1], b"\\\\u0000a\\/\xe2\x82\xac", frames=10, reads=45),
    Candidate(VISITOR, size=100, frames=64),
    Candidate(VISITOR, frames=64),
    Candidate(VISITOR, size=1000, reads=1000),
    Candidate(VISITOR, reads=45),
    Candidate(USER_V2, SEND_V2),
    Candidate(USER_V2, HISTORY, size=100),
    CONVERSATIONS_ASKED,
    Candidate(USER_V2, WATCH_ALL, size=100),
    Candidate(USER_V2, WATCH, WRAPPERS[4], b"\\u0030" * 64, size=100 * 388),
    Candidate(USER_V2, RECEIVED, WRAPPERS[0], b"9", size=len(RECEIVED) + 12),
    Candidate(USER_V2, TEMPLATES_V2[12]),
    Candidate(USER_V2, TEMPLATES_V2[13], WRAPPERS[2], b"{}"),
    Candidate(USER_V2, AGAIN, size=16_000),
    Candidate(USER_V2, AGAIN, WRAPPERS[1], b"\\u00e5", size=48_000),
    Candidate(VISITOR_V2, TOKEN_ALONE, WRAPPERS[1], b"A", size=8000),
    Candidate(VISITOR_V2, TOKEN_ALONE, WRAPPERS[1], b"AQ==", size=8000),
    Candidate(VISITOR_V2, TEMPLATES_V2[18], WRAPPERS[1], b"A"),
    Candidate(VISITOR_V2, WATCH, WRAPPERS[2], b"2"),
)
"""The first candidates of the search."""


def changed(candidate: Candidate, random: Random) -> Candidate:
    """Return a candidate that differs in one thing."""
    unit = candidate.unit
    what = random.randrange(9)
    if what == 0:
        same = ROLES.values() if candidate.role in ROLES.values() else ROLES
        return attrs.evolve(candidate, role=random.choice(list(same)))
    if what == 1:
        templates = TEMPLATES_V2 if candidate.role in ROLES.values() else TEMPLATES
        return attrs.evolve(candidate, template=random.choice(templates))
    if what == 2:
        return attrs.evolve(candidate, wrapper=random.choice(WRAPPERS))
    if what == 3:
        return attrs.evolve(candidate, size=random.choice(SIZES))
    if what == 4:
        return attrs.evolve(candidate, frames=random.choice((1, 1, 2, 3, 10, 64)))
    if what == 5:
        return attrs.evolve(candidate, reads=random.choice((1, 1, 2, 10, 45, 300)))
    if what == 6:
        return attrs.evolve(candidate, unit=random.choice(PIECES))
    at = random.randint(0, len(unit))
    if what == 7:
        return attrs.evolve(candidate, unit=unit[:at] + random.choice(PIECES) + unit[at:])
    return attrs.evolve(candidate, unit=unit[:at] + unit[at + random.randint(1, 3) :] or b"x")


def is_text(candidate: Candidate) -> bool:
    """Whether it is UTF-8; otherwise the connection would be closed."""
    try:
        candidate.payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def search(meter: Meter, seconds: float, random: Random, keep: int = 16) -> tuple[list[tuple[float, Candidate]], int]:
    """Return the most expensive candidates, the most expensive first, and the number of tries."""
    best = sorted(((meter.cost(each), each) for each in KNOWN), key=lambda found: -found[0])[:keep]
    tried = len(KNOWN)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        candidate = changed(random.choice(best)[1], random)
        while random.random() < 0.5:
            candidate = changed(candidate, random)
        if not is_text(candidate) or any(candidate == each for _, each in best):
            continue
        tried += 1
        if meter.once(candidate) > best[-1][0] and (cost := meter.cost(candidate)) > best[-1][0]:
            best = sorted([*best, (cost, candidate)], key=lambda found: -found[0])[:keep]
    return best, tried


def main(arguments: Sequence[str]) -> int:
    """Search, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz cost")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    meter = Meter()
    best, tried = search(meter, options.seconds, Random(options.seed))  # nothing secret
    harmless = meter.cost(HARMLESS, 15)
    print(f"{tried} candidates; harmless text costs {harmless * 1000:.2f} ms of CPU a second, and these:")
    for candidate in [each for _, each in best] + [each for each in KNOWN if each.role in ROLES.values()]:
        cost = meter.cost(candidate, 7)
        of_byte = cost / candidate.per_second / len(candidate.payload) * 1e6
        print(f"{cost * 1000:6.2f} ms, {cost / harmless:4.1f} x, {of_byte:7.3f} µs a byte: {candidate}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
