"""Clients connect and disconnect, and what each leaves behind in the relay must not accumulate.

They connect in rounds, each with as many of every kind, from many addresses. Half of them are users who were there
before. After each round the relay is left alone until the last connection has gone. Then its memory and its file
descriptors are measured.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import trustme

from tests.support import PATIENCE
from tests.support.client import StreamClient
from tests.support.evidence import Evidence
from tests.support.frames import BINARY, HANDSHAKE, PING, frame
from tests.support.processes import descriptors, resident
from tests.support.programs import RelayProcess
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE
from tests.trials.webserver import CountingSite

"""The first bytes of two kinds of frame."""

AT_ONCE = 100
"""The clients that are connected at one time."""

OF_EACH_KIND, OF_EACH_LONG_KIND = 20, 5
"""The clients of each kind in a round."""

ROUND_SECONDS = 5.0
"""The least time of a round: at an even pace, each rest finds the same number of remembered users."""

AT_LEAST_RESTS = 5
"""The least number of rests, even on a slow machine."""

REGULARS = 300
"""Users who return repeatedly."""


@dataclass
class Town:
    """The addresses and users of the clients.

    :param tls_port: the relay's for TLS.
    :param tls: the TLS settings of clients there.
    :param addresses: how many addresses there are.
    :ivar over_tls: how many came over TLS.
    :ivar ended: how connections ended, and how often.
    """

    port: int
    tls_port: int
    tls: ssl.SSLContext
    addresses: int
    over_tls: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    _newcomers: itertools.count[int] = field(default_factory=lambda: itertools.count(REGULARS))

    def caller(self) -> StreamClient:
        """Return a client at one of the addresses; every third uses TLS."""
        number = 1 + random.randrange(self.addresses)
        address = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        if random.randrange(3):
            return StreamClient(self.port, address)
        self.over_tls += 1
        return StreamClient(self.tls_port, address, self.tls)

    def user(self) -> int:
        """Return a new user, or one who was there before."""
        return next(self._newcomers) if random.random() < 0.5 else random.randrange(REGULARS)


class TooLate(Exception):
    """The machine was so busy that a login took longer than it may."""


async def log_in(caller: StreamClient, sessid: str, expected: object) -> None:
    """Log in, and check that it succeeds."""
    answer = await caller.log_in(sessid)
    if answer in (4001, UNAVAILABLE):
        raise TooLate
    assert answer == expected, answer


async def chat(caller: StreamClient, number: int) -> None:
    """Log in, write to oneself and to a user who may be there, and read the answers."""
    await caller.open()
    await log_in(caller, f"session-{number}", ADMITTED)
    caller.send(f"user-{number}", f"note of {number} to self", id=1)
    caller.send(f"user-{random.randrange(REGULARS)}", "hej", id=2)
    for _ in range(2):
        answer = await caller.answer("send-request-response")
        # rate-limited: as this user who was here a moment ago, and sent too fast
        assert answer["response"].get("reason") in (None, "receiving-user-not-connected", "rate-limited"), answer


async def a_close(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.say_close()
    assert await caller.closed() == 1000


async def a_reset(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.abort()


async def an_end_without_a_word(caller: StreamClient, number: int) -> None:
    await chat(caller, number)


async def half_a_close(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.close_half()
    await caller.cut()


async def half_a_frame(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.write(frame(b'{"type":"message-send-request"' + b" " * 5000)[:-1000])
    await caller.writer.drain()
    await asyncio.sleep(random.uniform(0, 0.02))


async def half_a_message(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.write(frame(b'{"type":"message-send-request"' + b" " * 5000, fin=False))
    await asyncio.sleep(random.uniform(0, 0.02))


async def answers_unread(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    for id in range(10):
        caller.send(f"user-{number}", "x" * 1000, id=id)
    await caller.writer.drain()
    caller.abort()


async def packed_messages(caller: StreamClient, number: int) -> None:
    await caller.open(compression=True)
    await log_in(caller, f"session-{number}", ADMITTED)
    for id in range(5):
        caller.send_compressed(f"user-{number}", "to self" * random.randrange(100, 1000), id=id)
    for _ in range(5):
        await caller.answer("send-request-response")
    caller.say_close()
    assert await caller.closed() == 1000


async def packed_messages_unread(caller: StreamClient, number: int) -> None:
    await caller.open(compression=True)
    await log_in(caller, f"session-{number}", ADMITTED)
    for id in range(10):
        caller.send_compressed(f"user-{number}", "to self" * 1000, id=id)
    await caller.writer.drain()
    caller.abort()


async def half_a_packed_message(caller: StreamClient, number: int) -> None:
    await caller.open(compression=True)
    await log_in(caller, f"session-{number}", ADMITTED)
    caller.write(frame(random.randbytes(500), fin=False, rsv=4))
    await asyncio.sleep(random.uniform(0, 0.02))


async def too_large_a_message(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.write(frame(bytes(1 << 20))[:14])
    assert await caller.closed() == 1009


async def ten_unusable_frames(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    for _ in range(10):
        caller.say("rubbish")
    assert await caller.closed() == 4502


async def sending_too_fast(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    for id in range(130):
        caller.send(f"user-{number}", "hej", id=id)
    assert await caller.closed() == 4503


async def too_many_pings(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.write(frame(b"", PING) * 30)
    assert await caller.closed() == 1002


async def a_close_unanswered(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    caller.write(frame(b"", BINARY))
    assert await caller.closed() == 1003
    await caller.cut()


async def a_second_login(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    await log_in(caller, "nobody", DENIED)
    await log_in(caller, f"session-{number}", ADMITTED)


async def three_denials(caller: StreamClient, number: int) -> None:
    await caller.open()
    for _ in range(3):
        # The same answer where this address was denied too often and is not asked about.
        await log_in(caller, f"nobody-{number}", DENIED)
    assert await caller.closed() == 4500


async def a_login_pending(caller: StreamClient, number: int) -> None:
    await caller.open()
    caller.say_login(f"session-{number}")
    await asyncio.sleep(random.uniform(0, 0.02))


async def a_login_pending_and_a_reset(caller: StreamClient, number: int) -> None:
    await a_login_pending(caller, number)
    caller.abort()


async def a_while(caller: StreamClient, number: int) -> None:
    await chat(caller, number)
    await asyncio.sleep(3)  # asked about again meanwhile
    caller.send(f"user-{number}", "still here", id=3)
    await caller.answer("send-request-response")
    caller.say_close()
    assert await caller.closed() == 1000


async def no_login(caller: StreamClient, number: int) -> None:
    await caller.open()
    assert await caller.closed() == 4001


async def half_a_handshake(caller: StreamClient, number: int) -> None:
    caller.write(HANDSHAKE[: random.randrange(len(HANDSHAKE))])
    await asyncio.sleep(random.uniform(0, 0.02))


async def no_handshake(caller: StreamClient, number: int) -> None:
    caller.write(b"GET /favicon.ico HTTP/1.1\r\nHost: relay.example\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        assert await caller.reader.readexactly(10) == b"HTTP/1.1 4"


async def nothing_at_all(caller: StreamClient, number: int) -> None:
    pass


KINDS: tuple[Callable[[StreamClient, int], Awaitable[None]], ...] = (
    *(a_close, a_reset, an_end_without_a_word, half_a_close, half_a_frame, half_a_message, answers_unread),
    *(too_large_a_message, ten_unusable_frames, sending_too_fast, too_many_pings, a_second_login, three_denials),
    *(packed_messages, packed_messages_unread, half_a_packed_message),
    *(a_login_pending, a_login_pending_and_a_reset, half_a_handshake, no_handshake, nothing_at_all),
)
"""The ways to disconnect. Most clients chat before."""

LONG_KINDS = (a_while, a_close_unanswered, no_login)
"""The ways to disconnect that take seconds."""


@dataclass(frozen=True)
class Rest:
    """The relay when all clients have disconnected.

    :ivar connections: how many there have been.
    :ivar seconds: when.
    :ivar memory: bytes.
    :ivar files: descriptors, without the connections to the session page.
    """

    connections: int
    seconds: float
    memory: int
    files: int


async def a_round(town: Town) -> None:
    """Run one round, with as many clients of each kind, in random order."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def come(kind: Callable[[StreamClient, int], Awaitable[None]]) -> None:
        try:
            async with gate, town.caller() as caller:
                await kind(caller, town.user())
            town.ended[kind.__name__] += 1
        except (TooLate, ConnectionError, asyncio.IncompleteReadError):
            # A client without time to read the relay's last frames is aborted after 2 s.
            town.ended["too late"] += 1

    kinds = [*KINDS] * OF_EACH_KIND + [*LONG_KINDS] * OF_EACH_LONG_KIND
    random.shuffle(kinds)
    async with asyncio.TaskGroup() as everybody:
        for kind in kinds:
            everybody.create_task(come(kind))


async def churn(relay: RelayProcess, site: CountingSite, town: Town, seconds: float) -> list[Rest]:
    """Run rounds for this many seconds; return the state of the relay after each."""
    pid = relay.process.pid
    async with town.caller() as first:  # everything that a relay opens at its start is open once it has served a client
        await a_close(first, town.user())
        await first.cut()
    await asyncio.sleep(1)  # its descriptor is closed a turn or two after the connection
    alone = descriptors(pid) - len(site.connections)
    rests: list[Rest] = []
    began = time.monotonic()
    while time.monotonic() < began + seconds or len(rests) < AT_LEAST_RESTS:
        pace = asyncio.create_task(asyncio.sleep(ROUND_SECONDS))
        await a_round(town)
        until = time.monotonic() + PATIENCE
        while (files := descriptors(pid) - len(site.connections)) > alone and time.monotonic() < until:
            await asyncio.sleep(0.02)
        assert files <= alone, f"{files - alone} descriptors are left {PATIENCE:g} s after everybody has gone"
        rests.append(Rest(town.ended.total(), time.monotonic() - began, resident(pid), files))
        print(rests[-1])
        await pace
    return rests


def slope(points: list[tuple[float, float]]) -> float:
    """Return the median of the slopes between any two points (Theil and Sen), which ignores a few outliers."""
    return median((after - before) / (to - since) for (since, before), (to, after) in itertools.combinations(points, 2))


MINUTES = float(os.environ.get("CHATRELAY_CHURN_MINUTES", "60"))
"""The duration of the full form. CHATRELAY_CHURN_MINUTES=10 make trials ARGS="-k churn" shortens it."""

SHORT_SECONDS = 60.0

WARM_UP = 0.4
"""The share of the time, at the beginning, that is not looked at: the memory that a relay needs, and a minute's worth of
users and addresses that it remembers, are there afterwards."""

MOST_AN_HOUR = 1 << 20
"""Bytes that may be added in an hour, in the full form."""

MOST_A_CONNECTION = 1000
"""Bytes that each connection may add, in the short form; 100 to 300 are seen while a process grows at first."""


def test_hour_of_churn_leaves_no_memory_and_no_descriptors(tmp_path: Path, evidence: Evidence, full: bool) -> None:
    """The full form takes an hour, or as many minutes as CHATRELAY_CHURN_MINUTES says.

    Both forms have ``--login-timeout 3``, so that silent clients do not stay for long, ``--recheck-interval 2``, so
    that sessions are re-checked, and ``--compression yes``. A third of the clients use TLS.

    The short form takes 60 seconds, in which a slope of 1 MiB an hour can't be distinguished from a process's initial
    growth. It finds descriptors that are kept, and memory of more than a KiB that is kept for each connection, but
    nothing smaller. It is without everything that fills up slowly and stays: the message log (``--message-log none``)
    with its cache, and users' new recipients (``--new-recipients-per-minute 0``).
    """
    if full:
        rests, town = asyncio.run(trial(tmp_path, 1 << 20, 60 * MINUTES))
    else:
        options = ("--message-log", "none", "--new-recipients-per-minute", "0")
        rests, town = asyncio.run(trial(tmp_path, 500, SHORT_SECONDS, *options))
    looked_at = [rest for rest in rests if rest.seconds >= WARM_UP * rests[-1].seconds]
    an_hour = slope([(rest.seconds / 3600, rest.memory) for rest in looked_at])
    a_connection = slope([(rest.connections, rest.memory) for rest in looked_at])
    kinds = len(KINDS) + len(LONG_KINDS)
    evidence.count("connections", rests[-1].connections, at_least=round(2000 * MINUTES) if full else 1000)
    evidence.count("of them over TLS", town.over_tls, at_least=rests[-1].connections // 4)
    evidence.figure(f"in {len(rests)} rounds, of {kinds} kinds; {town.ended['too late']} too late")
    evidence.figure(f"memory {an_hour / MOST_AN_HOUR:+.2f} MiB an hour, {a_connection:+.1f} bytes a connection")
    evidence.figure(
        f"{len(looked_at)} times at rest, {looked_at[0].memory >> 10:,} to {looked_at[-1].memory >> 10:,} KiB"
    )
    evidence.figure(f"never more than {max(rest.files for rest in rests)} descriptors, as in the beginning")
    assert all(town.ended[kind.__name__] for kind in (*KINDS, *LONG_KINDS))
    if full:
        assert an_hour < MOST_AN_HOUR
    else:
        assert a_connection < MOST_A_CONNECTION, f"{a_connection:.0f} bytes of each connection stay"


async def trial(folder: Path, addresses: int, seconds: float, *options: str) -> tuple[list[Rest], Town]:
    """Start a relay and run rounds of clients; return the state of the relay after each round."""
    site = CountingSite(0.01)
    await site.listen()
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "relay.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with RelayProcess(
        folder,
        *("--auth-url", site.url, "--login-timeout", "3", "--recheck-interval", "2", "--compression=yes"),
        *("--listen", "ssl:0:privateKey=relay.pem:interface=127.0.0.1", *options),
        measured=False,
    ) as relay:
        tls_port = int(relay.said(r"ChatFactory \(TLS\) starting on \d+").rpartition(" ")[2])
        town = Town(relay.port, tls_port, trusting, addresses)
        rests = await churn(relay, site, town, seconds)
    assert "Traceback" not in "\n".join(relay.output)
    return rests, town
