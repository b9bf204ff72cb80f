"""A crowd that gives a relay more work than it can do: many connections in one thread, with many requests each.

While it runs, the crowd does as little as possible: it builds frames by hand, many to a write, counts the answers that
it reads, and keeps the received bytes unchanged. Afterwards these are decoded into an `Account` of each connection.
"""

from __future__ import annotations

import json
import random
import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self

from tests.support import PATIENCE, v1
from tests.support.frames import CLOSE, FIN, HANDSHAKE, PING, TEXT, close_code, close_frame, frame, split
from tests.support.processes import work_of
from tests.support.programs import RelayProcess, Site
from tests.support.promise import UID, Account, Request

NOBODY = "nobody"
"""A uID that never logs in."""

USERS: Sequence[UID] = tuple(number if number % 2 else f"user-{number}" for number in range(16))
"""The users at full load, with two connections each."""

WINDOW = 64
"""The pending requests of each of those connections."""

SATURATED = 0.8
"""The share of the time in which the relay has something to do, for a load to count as a full one."""

ATTEMPTS = 10
"""The most attempts to reach a full load."""

LOGGED_IN = b'{"type":"auth-response","response":true}'
ANSWER = b'"send-request-response"'
REFUSAL = b'"value":false'
DELIVERY = b'"message":{'
"""Texts that occur once in each answer, each negative answer and each delivery, and in no content."""

NOT_READING = re.compile(rb"\x88.\x0f\xa2", re.DOTALL)
"""A close frame with the code 4002. It is answered only when it has arrived: if a client answers sooner, the relay
cuts off what it is still sending."""

STOPPING = re.compile(rb"\x88.\x0f\xa0", re.DOTALL)
"""Likewise with 4000."""

READ_AT_ONCE = 256 * 1024

NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""The errors of a socket that would block."""


class Heard:
    """The JSON values of the text frames in a stream, but for the answer to the login.

    They are decoded again at each iteration, because those of a minute at full load are millions, and may not fit into
    memory.

    :param start: where in the stream the frames begin.
    """

    def __init__(self, stream: bytes, start: int) -> None:
        self._stream = stream
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        texts = (payload for first, payload, _ in split(self._stream, self._start) if first == FIN | TEXT)
        decode = json.JSONDecoder().decode  # json.loads would look for the encoding of each
        return (decode(payload.decode()) for payload in islice(texts, 1, None))


@dataclass(frozen=True)
class Part:
    """What one talker does.

    :ivar recipients: the users to whom it sends, one after another.
    :ivar window: how many of its requests are pending at once; 0 to send none.
    :ivar padding: characters that fill up each content.
    :ivar leaves_after: about how many deliveries it takes before it disconnects without a close frame; None to stay.
    :ivar reads: whether it reads on after the login.
    """

    recipients: Sequence[UID] = ()
    window: int = 0
    padding: int = 20
    leaves_after: int | None = None
    reads: bool = True


class Talker:
    """One connection of one user.

    Whenever half of its requests are answered, it sends as many new ones in one write.

    :ivar refusals: about how many of the answers were refusals.
    :ivar waits: seconds from sending to the answer, where one request is pending at a time.
    :ivar ended: whether the connection is gone.
    :ivar told_at: when it read that the relay stops, as `time.perf_counter`; None where it did not, or was not asked to.
    """

    def __init__(self, crowd: Crowd, name: str, uid: UID, part: Part) -> None:
        self.name = name
        self.uid = uid
        self.part = part
        self.waits: list[float] = []
        self.logged_in = self.talking = self.ended = False
        self.sent = self.answered = self.refusals = 0
        self.told_at: float | None = None
        self._deliveries = 0
        self._crowd = crowd
        self._chunks: list[bytes] = []
        self._tail = b""
        self._unsent = b""
        self._sent_at = 0.0
        self._socket = socket.socket()
        if not part.reads:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        self._socket.connect(("127.0.0.1", crowd.relay.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if crowd.tls is not None:
            self._socket = crowd.tls.wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._socket.setblocking(False)
        crowd.selector.register(self._socket, selectors.EVENT_READ, self)
        self._write(HANDSHAKE + frame(v1.encoded(v1.login(str(uid)))))

    # Talking -----------------------------------------------------------------

    def talk(self) -> None:
        """Begin to send."""
        if self.part.window:
            self.talking = True
            self._top_up()

    def say_goodbye(self) -> None:
        """Begin the closing handshake, or end it."""
        self._write(close_frame())

    def heed(self, events: int) -> None:
        """Read and write what the socket is ready for."""
        if events & selectors.EVENT_WRITE:
            self._write(b"")
        if events & selectors.EVENT_READ:
            self._read()

    def read_on(self) -> None:
        """Start to read, even if this talker was not supposed to."""
        self._crowd.selector.register(self._socket, selectors.EVENT_READ, self)

    def leave(self) -> None:
        """End the connection without a close frame."""
        if not self.ended:
            self.ended = True
            self.talking = False
            if self._socket in self._crowd.selector.get_map():
                self._crowd.selector.unregister(self._socket)
            self._socket.close()

    def _top_up(self) -> None:
        wanted = self.part.window - (self.sent - self.answered)
        if self.talking and wanted * 2 >= self.part.window:
            self._sent_at = time.perf_counter()
            first, self.sent = self.sent, self.sent + wanted
            self._write(b"".join([frame(self._frame(number)) for number in range(first, self.sent)]))

    def _write(self, data: bytes) -> None:
        unsent = self._unsent + data
        try:
            unsent = unsent[self._socket.send(unsent) :]
        except NOT_NOW:
            pass
        except OSError:
            unsent = b""  # reading finds the end
        if bool(unsent) != bool(self._unsent):
            events = selectors.EVENT_READ | selectors.EVENT_WRITE if unsent else selectors.EVENT_READ
            self._crowd.selector.modify(self._socket, events, self)
        self._unsent = unsent

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_AT_ONCE)  # over TLS a record; the next one waits in the kernel
        except NOT_NOW:
            return
        except OSError:
            data = b""
        if not data:
            self.leave()
            return
        self._chunks.append(data)
        if not self.logged_in:
            self.logged_in = LOGGED_IN in b"".join(self._chunks)
            if self.logged_in and not self.part.reads:
                self._crowd.selector.unregister(self._socket)
            return
        seen = self._tail + data
        self._tail = seen[1 - len(ANSWER) :]
        if not self.part.reads and NOT_READING.search(seen):
            self.say_goodbye()
        if self._crowd.stopping and self.told_at is None and STOPPING.search(seen):
            self.told_at = time.perf_counter()
            self.talking = False
            self.say_goodbye()
        answers = seen.count(ANSWER)
        if answers:
            self.answered += answers
            if self.part.window == 1:
                self.waits.append(time.perf_counter() - self._sent_at)
            self.refusals += data.count(REFUSAL)
            self._top_up()
        if self.part.leaves_after is not None:
            self._deliveries += data.count(DELIVERY)
            if self._deliveries >= self.part.leaves_after:
                self.leave()
                self._crowd.come_back(self)

    # Requests, made again whenever they are read ------------------------------

    def _request(self, number: int) -> Request:
        # Text and integers alternate: each must come back with its type.
        recipient = self.part.recipients[number % len(self.part.recipients)]
        if isinstance(recipient, int) and number & 2:
            recipient = str(recipient)
        token = number if number & 1 else str(number)
        return Request(token, token, recipient, f"{self.name}/{number}/{'å' * self.part.padding}")

    def _frame(self, number: int) -> bytes:
        token, _, recipient, content = self._request(number)
        id = f'"{token}"' if isinstance(token, str) else token
        to = f'"{recipient}"' if isinstance(recipient, str) else recipient
        return (
            f'{{"type":"message-send-request","id":{id},'
            f'"message":{{"timeStamp":{id},"touID":{to},"content":"{content}"}}}}'
        ).encode()

    @property
    def stream(self) -> bytes:
        """Return all bytes that came."""
        self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def account(self) -> Account:
        """Return what happened on this connection, for the check of the promise."""
        stream = self.stream
        start = (stream.find(b"\r\n\r\n") + 4) if b"\r\n\r\n" in stream[:4096] else len(stream)
        assert not stream or stream.startswith(b"HTTP/1.1 101 "), stream[:start]
        code = None
        login = None
        for first, payload, _ in split(stream, start):
            if first == FIN | CLOSE:
                code = close_code(payload)
            elif first != FIN | PING:  # no pong is sent: messages are signs of life, too
                assert first == FIN | TEXT, f"a frame that begins with {first:#x}"
                assert code is None, f"after the close frame: {payload!r}"
                login = login or payload
        assert login in (None, LOGGED_IN), login
        heard = Heard(stream, start)
        return Account(self.uid, self.requests, heard, code, self.part.reads and self.part.leaves_after is None)

    @property
    def requests(self) -> list[Request]:
        """Return what was sent, in order."""
        return [self._request(number) for number in range(self.sent)]


@dataclass
class Pressure:
    """How busy the relay was for a while.

    :ivar seconds: how long that was.
    :ivar cpu: CPU seconds it used.
    :ivar wanted: seconds that its threads were running or waiting for a processor: what `cpu` would be on a machine
        with nothing else to do.
    :ivar answers: how many requests it answered.
    """

    seconds: float
    cpu: float
    wanted: float
    answers: int

    @property
    def busy(self) -> float:
        """Return the share of the time in which the relay had something to do; above 1 where two of its threads had."""
        return self.wanted / self.seconds

    def __str__(self) -> str:
        share = f"relay busy {self.busy:.0%} of the time, CPU {self.cpu / self.seconds:.0%}"
        return f"{share}, {self.answers / self.seconds:,.0f} answers a second"


class Crowd:
    """All talkers of one relay, in the thread that calls.

    :param name: what its talkers' names begin with.
    :param tls: a client's settings, where the relay listens with TLS.
    :ivar talkers: everyone who ever joined, including those who have gone.
    :ivar stopping: whether all talkers continue until the relay closes with 4000.
    """

    def __init__(self, relay: RelayProcess, site: Site, name: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.relay = relay
        self.tls = tls
        self.selector = selectors.DefaultSelector()
        self.talkers: list[Talker] = []
        self._site = site
        self._name = name
        self._pressing = False
        self.stopping = False

    def join(self, uid: UID, part: Part, connections: int = 1) -> list[Talker]:
        """Connect and ask to be logged in; does not wait."""
        self._site.users[str(uid)] = uid
        new = [Talker(self, f"{self._name}{len(self.talkers) + i}", uid, part) for i in range(connections)]
        self.talkers += new
        return new

    def come_back(self, talker: Talker) -> None:
        """Reconnect as a client that has just left; not when the round is about to end."""
        if self._pressing:
            self.join(talker.uid, talker.part)

    def fill(self, others: Sequence[UID] = (), window: int = WINDOW) -> None:
        """Let all `USERS` join, who write to each other, to `others`, and to an absent user."""
        for seed, uid in enumerate(USERS):
            recipients = by_turns([*USERS, *others, NOBODY, NOBODY], seed)
            self.join(uid, Part(recipients, window), connections=2)

    def begin(self) -> None:
        """Wait until everybody is logged in; let everybody talk."""
        self.until(lambda: all(talker.logged_in for talker in self.talkers), "log in")
        for talker in self.talkers:
            talker.talk()

    def press(self, seconds: float, answers: int = 0) -> Pressure:
        """Let everybody talk for a while, and until at least this many more requests are answered."""
        began, answered = time.perf_counter(), self._answered()
        cpu, wanted = work_of(self.relay.pid)
        self._pressing = True
        while (passed := time.perf_counter() - began) < seconds or self._answered() - answered < answers:
            assert passed < seconds + PATIENCE, f"{PATIENCE} s more were not enough for {answers} answers"
            self._turn()
        self._pressing = False
        cpu_then, wanted_then = work_of(self.relay.pid)
        return Pressure(time.perf_counter() - began, cpu_then - cpu, wanted_then - wanted, self._answered() - answered)

    def saturate(self, seconds: float) -> Pressure:
        """Let everybody talk until the relay was busy for this many seconds.

        On a busy machine the first attempt may not succeed.
        """
        for _ in range(ATTEMPTS):
            pressure = self.press(seconds)
            if pressure.busy > SATURATED:
                return pressure
        raise AssertionError(f"not saturated in {ATTEMPTS} times {seconds:g} s: {pressure}")

    def settle(self) -> None:
        """Stop sending, wait for every answer, then close and read each connection to its end."""
        for talker in self.talkers:
            talker.talking = False
        self.until(
            lambda: all(talker.ended or talker.answered >= talker.sent for talker in self.talkers), "be answered"
        )
        self._read_on()
        for talker in self.talkers:
            if not talker.ended and talker.part.reads:
                talker.say_goodbye()
        self._until_all_have_ended()

    def talk_to_the_end(self, drain_time: float) -> None:
        """Continue until the stopping relay, which takes this many seconds, has closed all connections."""
        self.stopping = True
        self._until_all_have_ended(patience=drain_time + 2 * PATIENCE)

    def hear_to_the_end(self) -> None:
        """Read until every connection is gone, including those that did not read before."""
        for talker in self.talkers:
            talker.talking = False
        self._read_on()
        self._until_all_have_ended()

    def accounts(self) -> list[Account]:
        """Return what happened on each connection."""
        return [talker.account() for talker in self.talkers]

    def _read_on(self) -> None:
        for talker in self.talkers:
            if not talker.ended and not talker.part.reads and talker.logged_in:
                talker.read_on()

    def _until_all_have_ended(self, patience: float | None = None) -> None:
        self.until(lambda: all(talker.ended for talker in self.talkers), "see the connections end", patience)

    def _answered(self) -> int:
        return sum(talker.answered for talker in self.talkers)

    @property
    def refused(self) -> int:
        """Return about how many requests were refused so far."""
        return sum(talker.refusals for talker in self.talkers)

    @property
    def accepted(self) -> int:
        """Return about how many were accepted."""
        return self._answered() - self.refused

    def _turn(self) -> None:
        for key, events in self.selector.select(0.02):
            talker: Talker = key.data
            if not talker.ended:
                talker.heed(events)

    def until(self, done: Callable[[], bool], what: str, patience: float | None = None) -> None:
        """Let everybody continue until a condition holds, for at most this many seconds, or `PATIENCE`."""
        patience = PATIENCE if patience is None else patience
        until = time.perf_counter() + patience
        while not done():
            assert time.perf_counter() < until, f"{patience} s were not enough to {what}"
            self._turn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for talker in self.talkers:
            talker.leave()
        self.selector.close()


def by_turns(recipients: Sequence[UID], seed: int, turns: int = 97) -> list[UID]:
    """Return recipients in an order without a pattern, the same for the same seed."""
    choose = random.Random(seed)
    return [choose.choice(recipients) for _ in range(turns)]
