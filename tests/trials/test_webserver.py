"""The site behind the relay becomes unreachable, recovers, and gives every kind of invalid answer."""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trustme

from tests.support import PATIENCE
from tests.support.client import StreamClient
from tests.support.evidence import Evidence
from tests.support.processes import forget_peak, peak, resident
from tests.support.programs import RelayProcess
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE
from tests.trials.webserver import AT_START, CountingSite

MEBIBYTE = 1024 * 1024

COULD_NOT = "could not be asked: "
FAILED = "has failed 10 times in a row"
AGAIN = "answers again"
"""The logged line."""


# A site that goes away ---------------------------------------------------------


@dataclass(frozen=True)
class Outage:
    """The times of an outage.

    :ivar users: how many are logged in.
    :ivar seconds: how long the site is unreachable, at least: longer than the breaker needs to reach its longest wait.
    :ivar options: the relay's.
    :ivar longest_wait: the breaker's, as these options have it.
    :ivar within: seconds from the site's return to a login.
    """

    users: int
    seconds: float
    options: tuple[str, ...]
    longest_wait: float = 10.0
    within: float = 15.0


HASTY = (
    *("--breaker-wait", "0.1", "--breaker-longest-wait", "0.5"),
    *("--webserver-timeout", "1", "--recheck-interval", "1"),
)
SHORT = Outage(200, 5, HASTY, 0.5, 2)
FULL = Outage(1000, 60, ("--recheck-interval", "10"))


def test_unreachable_site_closes_no_connection(tmp_path: Path, evidence: Evidence, full: bool) -> None:
    """The site becomes unreachable in both possible ways, and recovers at the worst moment: just after a probe failed.

    The full form has the defaults except ``--recheck-interval 10``: within a minute every session is re-checked while
    the site is unreachable. The breaker's longest wait is 10 s. The 5 s between that and the allowed 15 s are
    ``webserver-timeout``, the time of a probe that the site accepted just before it recovered and never answered.

    The short form has 200 users, and the site is unreachable for about 6 s instead of 60. It uses ``--breaker-wait
    0.1``, ``--breaker-longest-wait 0.5``, ``--webserver-timeout 1`` and ``--recheck-interval 1``, and allows 2 s
    instead of 15 from the site's recovery to a login. It does not test the defaults themselves.
    """
    asyncio.run(outages(tmp_path, evidence, FULL if full else SHORT))


async def outages(folder: Path, evidence: Evidence, outage: Outage) -> None:
    """Log everybody in; then let the site refuse connections, and then accept them without answering."""
    site = CountingSite()
    await site.listen()
    async with AsyncExitStack() as leaving:
        relay = leaving.enter_context(RelayProcess(folder, "--auth-url", site.url, *outage.options, measured=False))
        users = [await member(relay, number, leaving) for number in range(outage.users)]
        messages = 0
        for way in ("refused", "silent"):
            asked, said = site.asked.copy(), len(relay.output)
            began = time.monotonic()
            if way == "refused":
                site.close()
            else:
                site.answering = False
            refusals = 0
            while time.monotonic() < began + outage.seconds:
                refusals += await logins(relay, 16, UNAVAILABLE)
                messages += await everybody_writes(users)
                await asyncio.sleep(0.1)
            lines = relay.output[said:]
            opened = [number for number, line in enumerate(lines) if FAILED in line]
            assert len(opened) == 1, f"the breaker opened {len(opened)} times"
            failures = sum(COULD_NOT in line for line in lines[: opened[0]])
            assert failures <= 10
            posts = (site.asked - asked).total()
            # 32 at once were out when the breaker opened; then one at a time, after 1, 2, 4, 8, 10, 10, … s.
            most = 32 + 5 + outage.seconds / outage.longest_wait
            assert posts <= most, f"{posts} POSTs to a site that does not answer, and not {most:g} at the most"
            site.cut_a_probe_and_answer()
            if way == "refused":
                await site.listen()
            coming = asyncio.create_task(first_login(relay))
            while not coming.done():
                messages += await everybody_writes(users)  # and reads, and so answers pings
                await asyncio.sleep(0.1)
            in_at = await coming
            assert site.back_since is not None
            back = in_at - site.back_since
            assert back <= outage.within, f"a login {back:.1f} s after the site's return, and not {outage.within:g}"
            # Else it returned at a shorter wait, and the longest may be anything.
            longest = outage.longest_wait
            assert back >= 0.8 * longest, f"a probe {back:.1f} s after one that failed, where the wait is {longest:g} s"
            messages += await everybody_writes(users)
            evidence.count(f"logins refused while connections were {way}", refusals, at_least=16)
            evidence.figure(f"{way}: breaker open after {failures} failures, {posts} POSTs, logins {back:.1f} s after")
        evidence.count("messages of those who were in", messages, at_least=2 * outage.users)

        # No connection was closed, and every session is asked about again.
        asked = site.asked.copy()
        async with asyncio.timeout(PATIENCE + 10):
            while any(site.asked[session] == asked[session] for session in map("session-{}".format, range(len(users)))):
                await everybody_writes(users)  # and reads, and so answers pings
                await asyncio.sleep(0.1)
        assert not any(user.reader.at_eof() for user in users)
        await everybody_writes(users)
    assert "Traceback" not in "\n".join(relay.output)
    assert sum(AGAIN in line for line in relay.output) >= 2


async def member(relay: RelayProcess, number: int, leaving: AsyncExitStack) -> StreamClient:
    """Log a user in, ten at each address."""
    address = f"127.0.{1 + number // 2500}.{1 + number // 10 % 250}"
    caller = await leaving.enter_async_context(StreamClient(relay.port, address))
    await caller.open()
    assert await caller.log_in(f"session-{number}") == ADMITTED
    return caller


async def logins(relay: RelayProcess, count: int, expected: object) -> int:
    """Let this many visitors log in at once; return how many got this answer."""

    async def come(number: int) -> None:
        async with StreamClient(relay.port, f"127.9.0.{1 + number}") as caller:
            await caller.open()
            assert await caller.log_in(f"session-visitor-{number}") == expected

    await asyncio.gather(*map(come, range(count)))
    return count


async def first_login(relay: RelayProcess) -> float:
    """Wait until a visitor who tries every tenth of a second is logged in; return when."""
    while True:
        async with StreamClient(relay.port) as caller:
            await caller.open()
            while (answer := await caller.log_in("session-first")) == UNAVAILABLE:
                await asyncio.sleep(0.1)
        if answer == ADMITTED:
            return time.monotonic()
        assert answer == 4001  # not logged in for 10 s


async def everybody_writes(users: list[StreamClient]) -> int:
    """Let every user write to a neighbour, and check that all of it arrives; return the number of messages."""

    async def hear(number: int, user: StreamClient) -> None:
        heard = [await user.hear(), await user.hear()]
        assert all(isinstance(message, dict) for message in heard), f"user-{number} was disconnected: {heard}"
        assert sorted(message["type"] for message in heard) == ["message", "send-request-response"], heard
        assert all(message.get("response", {}).get("value", True) for message in heard), heard

    for number, user in enumerate(users):
        user.send(f"user-{(number + 1) % len(users)}", "still here?")
    # Check at once: waiting for a message of a user who was logged out would take long.
    await asyncio.gather(*map(hear, range(len(users)), users))
    return len(users)


# Clients that ask and disconnect -------------------------------------------------

LEAVERS = 1000
"""The clients that ask and disconnect."""


@pytest.mark.parametrize("addresses", [1, 50])
def test_clients_that_log_in_and_disconnect_cost_few_requests(
    tmp_path: Path, evidence: Evidence, addresses: int
) -> None:
    asyncio.run(leavers(tmp_path, evidence, addresses))


async def leavers(folder: Path, evidence: Evidence, addresses: int) -> None:
    """Let many clients log in with unknown sessions and disconnect at once, while others log in. The site answers requests
    that nobody waits for.
    """
    site = CountingSite(0.2)
    await site.listen()
    waits: list[float] = []
    left: list[int] = []
    with RelayProcess(folder, "--auth-url", site.url, measured=False) as relay:
        gate = asyncio.Semaphore(50)

        async def ask_and_leave(number: int) -> None:
            async with gate, StreamClient(relay.port, f"127.2.0.{1 + number % addresses}") as caller:
                await caller.open()
                caller.say_login(f"guess-{number}")
                for _ in range(20):
                    if not site.asked[f"guess-{number}"]:  # for which many wait in vain
                        await asyncio.sleep(0.01)
                caller.abort()
                left.append(number)

        async def log_in(number: int) -> None:
            async with StreamClient(relay.port, "127.3.0.1") as caller:
                await caller.open()
                began = time.monotonic()
                assert await caller.log_in(f"session-{number}") == ADMITTED
                waits.append(time.monotonic() - began)

        began = time.monotonic()
        attack = asyncio.gather(*map(ask_and_leave, range(LEAVERS)))
        while not attack.done():
            await log_in(len(waits))
        await attack
        seconds = time.monotonic() - began
    asked = sum(count for session, count in site.asked.items() if session.startswith("guess-"))
    evidence.count("clients that asked and left", len(left), at_least=LEAVERS)
    evidence.count("requests that the site worked on", asked, at_least=20)
    evidence.count("logins beside them", len(waits), at_least=3)
    evidence.figure(f"in {seconds:.1f} s, {site.most_at_once} at once; a login took {max(waits):.2f} s")
    assert site.most_at_once <= 32
    assert asked <= addresses * (20 + seconds / 3 + 1)
    assert max(waits) < 5
    assert "Traceback" not in "\n".join(relay.output)


# A site that answers wrongly ----------------------------------------------------

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A way to respond.

    :ivar act: writes the answer; then the connection is closed, unless it stays.
    :ivar answer: the answer to the client.
    :ivar told: a pattern of the logged line; None for no line.
    :ivar stays: whether the connection is left open.
    """

    act: Callable[[Write], Awaitable[None]]
    answer: object = field(default_factory=lambda: UNAVAILABLE)
    told: str | None = None
    stays: bool = True


def says(*parts: bytes, every: float = 0.0) -> Callable[[Write], Awaitable[None]]:
    """Return a fault that writes these, with pauses in between."""

    async def act(write: Write) -> None:
        for part in parts:
            await write(part)
            await asyncio.sleep(every)

    return act


def repeats(first: bytes, again: bytes) -> Callable[[Write], Awaitable[None]]:
    """Return a fault that writes up to 100 MiB, as fast as it is read."""

    async def act(write: Write) -> None:
        await write(first)
        for _ in range(100 * MEBIBYTE // len(again)):
            await write(again)

    return act


def whole(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    """Return a correct answer."""
    lines = (b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


GOOD = b'{"loggedin": true, "uID": "alice"}'
MALLORY = whole(b'{"loggedin": true, "uID": "mallory"}')
BOMB = gzip.compress(b" " * (100 * MEBIBYTE))
OUT_OF_TIME = "no complete response within 3 s"
TOO_LARGE = "its response is larger than "
NO_HTTP = "its response is not valid HTTP"
CLOSED = "Connection was closed cleanly"
EMPTY = "its response is not JSON: ''"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BLOCK = b"x" * 65536


def faults(elsewhere: str) -> dict[str, Fault]:
    """Return all faults by name.

    :param elsewhere: a URL for redirects.
    """
    away = b"Location: " + elsewhere.encode()
    return {
        "good": Fault(says(whole(GOOD)), ADMITTED),
        "cookies": Fault(
            says(whole(GOOD, b"200 OK", b"Set-Cookie: id=canary; Path=/", b"Set-Cookie2: id=canary")), ADMITTED
        ),
        "not logged in": Fault(says(whole(b'{"loggedin": false}')), DENIED),
        "forbidden, and 100 MB": Fault(repeats(b"HTTP/1.1 403 No\r\nContent-Length: 104857600\r\n\r\n", BLOCK), DENIED),
        # Time
        "silence": Fault(says(), told=OUT_OF_TIME),
        "slow": Fault(says(b"", whole(GOOD), every=5), told=OUT_OF_TIME),
        "stalled head": Fault(says(HEAD), told=OUT_OF_TIME),
        "stalled body": Fault(says(whole(GOOD)[:-1]), told=OUT_OF_TIME),
        "dripping body": Fault(says(*(bytes((byte,)) for byte in whole(GOOD)), every=0.1), told=OUT_OF_TIME),
        # Size
        "100 MB": Fault(repeats(HEAD + b"Content-Length: 104857600\r\n\r\n", BLOCK), told=TOO_LARGE),
        "until it is closed": Fault(repeats(HEAD + b"\r\n", BLOCK), told=TOO_LARGE),
        "endless chunks": Fault(repeats(CHUNKED, b"10000\r\n" + BLOCK + b"\r\n"), told=TOO_LARGE),
        "endless small chunks": Fault(repeats(CHUNKED, b"1\r\nx\r\n" * 10000), told=TOO_LARGE),
        "a bomb": Fault(says(whole(BOMB, b"200 OK", b"Content-Encoding: gzip")), told=TOO_LARGE),
        "an endless status": Fault(repeats(b"HTTP/1.1 200 ", BLOCK), told=TOO_LARGE),
        "an endless header": Fault(repeats(HEAD + b"X: ", BLOCK), told=TOO_LARGE),
        "endless headers": Fault(repeats(HEAD, b"".join(b"x%d: y\r\n" % n for n in range(5000))), told=TOO_LARGE),
        "endless long headers": Fault(repeats(HEAD, b"x: " + BLOCK[:8000] + b"\r\n"), told=TOO_LARGE),
        "an endless folded header": Fault(repeats(HEAD + b"X: \r\n", b" folded\r\n" * 5000), told=TOO_LARGE),
        "endless preludes": Fault(repeats(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000), told=TOO_LARGE),
        "an endless trailer": Fault(repeats(CHUNKED + b"0\r\n", b"x: y\r\n" * 5000), told=TOO_LARGE),
        # Something else
        "a redirect": Fault(
            says(whole(b"", b"302 Found", away)), told="it answered with status 302, a redirect to 'http"
        ),
        "a redirect that keeps the POST": Fault(
            says(whole(b"", b"307 T", away)), told="it answered with status 307, a redirect to"
        ),
        "HTML": Fault(
            says(whole(b"<html><h1>It works!</h1>", b"200 OK", b"Content-Type: text/html")),
            told="its response is not JSON: '<html",
        ),
        "nothing": Fault(says(whole(b"")), told=EMPTY),
        "no content": Fault(says(b"HTTP/1.1 204 No Content\r\n\r\n"), told="it answered with status 204"),
        "an error": Fault(says(whole(GOOD, b"500 Oops")), told="it answered with status 500"),
        "another charset": Fault(says(whole(GOOD.decode().encode("utf-16"))), told="its response is not JSON"),
        "Latin-1": Fault(
            says(whole('{"loggedin": true, "uID": "Åsa"}'.encode("latin-1"))), told="its response is not JSON"
        ),
        "no JSON after all": Fault(says(whole(GOOD + b"<!-- 3 ms -->")), told="its response is not JSON"),
        "nearly true": Fault(
            says(whole(b'{"loggedin": "true", "uID": 1}')), told='no "loggedin" that is true or false'
        ),
        "nobody": Fault(says(whole(b'{"loggedin": true}')), told='no "uID" that is'),
        # HTTP
        "a prelude": Fault(says(b"HTTP/1.1 103 Early Hints\r\n\r\n" + whole(GOOD)), ADMITTED),
        "another protocol": Fault(says(b"SSH-2.0-OpenSSH_9.2p1\r\n"), told=NO_HTTP),
        "no number": Fault(says(b"HTTP/1.1 OK\r\n\r\n"), told=NO_HTTP),
        "an older version": Fault(says(HEAD.replace(b"1.1", b"1.0") + b"\r\n" + GOOD), ADMITTED, stays=False),
        "no colon": Fault(says(HEAD + b"garbage\r\n\r\n" + GOOD), told=NO_HTTP),
        "no length": Fault(says(HEAD + b"Content-Length: many\r\n\r\n" + GOOD), told=NO_HTTP),
        "two lengths": Fault(says(HEAD + b"Content-Length: 34\r\nContent-Length: 9\r\n\r\n" + GOOD), told=NO_HTTP),
        "no chunks": Fault(says(CHUNKED + b"garbage\r\n"), told="MalformedChunkedData"),
        "another coding": Fault(says(HEAD + b"Transfer-Encoding: br\r\n\r\n" + GOOD), told=NO_HTTP),
        "no gzip": Fault(says(whole(GOOD, b"200 OK", b"Content-Encoding: gzip")), told="its response is not gzip"),
        "closed at once": Fault(says(), told=CLOSED, stays=False),
        "closed in the head": Fault(says(HEAD + b"X: y\r\n"), told=CLOSED, stays=False),
        "closed in the body": Fault(says(whole(GOOD)[:-1]), told=CLOSED, stays=False),
        "closed in a chunk": Fault(says(CHUNKED + b"22\r\n" + GOOD[:-1]), told=CLOSED, stays=False),
        "longer than it says": Fault(says(whole(GOOD) + MALLORY), ADMITTED),
        "shorter than it is": Fault(says(whole(GOOD).replace(b"34", b"30") + MALLORY), told="its response is not JSON"),
    }


class FaultySite:
    """Answers each request as its session says.

    :ivar url: the URL of its session page.
    :ivar requests: how many requests came.
    :ivar cookies: cookies that came with them.
    :ivar sent: bytes that were written, by fault.
    """

    def __init__(self, elsewhere: str) -> None:
        self.faults = faults(elsewhere)
        self.requests = 0
        self.cookies: list[bytes] = []
        self.sent: Counter[str] = Counter()
        self._names = list(self.faults)

    def sessid(self, name: str, number: int) -> str:
        """Return a session that is answered with this fault; no answer contains any part of it, which would be
        redacted.
        """
        return f"{self._names.index(name):04}{number:04}"

    async def listen(self) -> None:
        """Begin to listen."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/session"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
                self.cookies += re.findall(rb"(?i)\ncookie.*", head)
                sessid = parse_qs((await reader.readexactly(int(length))).decode())["SESSID"][0]
                self.requests += 1
                name = "not logged in" if sessid.startswith(AT_START) else self._names[int(sessid[:4])]

                async def write(data: bytes, name: str = name) -> None:
                    writer.write(data)
                    await writer.drain()
                    self.sent[name] += len(data)

                await self.faults[name].act(write)
                if not self.faults[name].stays:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the relay has hung up
        finally:
            writer.close()


async def ask(relay: RelayProcess, site: FaultySite, names: list[str]) -> dict[str, object]:
    """Log in with a session of each of these faults, all at once; return the wrong answers with their faults."""
    wrong: dict[str, object] = {}

    async def come(number: int, name: str) -> None:
        async with StreamClient(relay.port, f"127.0.1.{1 + number % 250}") as caller:
            await caller.open()
            began = time.monotonic()
            answer = await caller.log_in(site.sessid(name, number))
            if answer != site.faults[name].answer:
                wrong[f"{name}/{number}"] = answer
            if time.monotonic() - began > 8:
                wrong[f"{name}/{number}"] = f"{time.monotonic() - began:.1f} s"

    await asyncio.gather(*(come(number, name) for number, name in enumerate(names)))
    return wrong


EACH = 4
"""How often each fault is met at one time."""

MOST_GROWTH = 8 * MEBIBYTE
"""The allocator reaches about 5 MiB after five rounds, and then no more. One response that is kept would be 100 MB."""


def test_each_invalid_answer_has_one_outcome_and_costs_no_memory(
    tmp_path: Path, evidence: Evidence, full: bool
) -> None:
    """The short form meets each fault 4 times, the full one 40 times."""
    asyncio.run(wrong_answers(tmp_path, evidence, 10 if full else 1))


async def wrong_answers(folder: Path, evidence: Evidence, rounds: int) -> None:
    """Let several logins at once meet every fault, among all the others."""
    elsewhere: list[bytes] = []
    bystander = await asyncio.start_server(lambda reader, writer: elsewhere.append(b"visited"), "127.0.0.1", 0)
    site = FaultySite(f"http://127.0.0.1:{bystander.sockets[0].getsockname()[1]}/elsewhere")
    await site.listen()
    # Each fault by itself, without a breaker that would put an end to them all.
    options = ("--webserver-timeout", "3", "--breaker-failures", "0", "--message-log", "memory:")
    with RelayProcess(folder, "--auth-url", site.url, *options, measured=False) as relay:
        pid = relay.process.pid
        at_first = ["good", "HTML", "closed in the body", "no gzip"] * 8
        for _ in range(12):  # the memory that a relay needs for as many at once, whatever the answers
            assert await ask(relay, site, at_first) == {}
        # Its earlier output has been read, so that later output belongs to the trial.
        relay.said(COULD_NOT, times=12 * sum(site.faults[name].told is not None for name in at_first))
        said, asked = len(relay.output), site.requests
        before = resident(pid)
        forget_peak(pid)
        names = [name for name in site.faults for _ in range(EACH)]
        wrong: dict[str, object] = {}
        for _ in range(rounds):
            random.shuffle(names)
            # Those who take long all at once, or each of the others would wait for one of them.
            names.sort(key=lambda name: site.faults[name].told != OUT_OF_TIME)
            for start in range(0, len(names), 32):
                wrong |= await ask(relay, site, names[start : start + 32])
        growth = peak(pid) - before
    told = [line.partition(COULD_NOT)[2] for line in relay.output[said:] if COULD_NOT in line]
    evidence.count("requests that got an invalid response", site.requests - asked, at_least=rounds * EACH * 40)
    evidence.figure(f"{len(site.faults)} kinds, {sum(site.sent.values()) / MEBIBYTE:.0f} MiB sent")
    evidence.figure(f"peak of the relay's memory {growth / MEBIBYTE:+.1f} MiB")

    assert growth < MOST_GROWTH
    assert wrong == {}
    # One line for each, which says what came, and none for what was no trouble.
    expected = Counter(fault.told for fault in site.faults.values() if fault.told is not None)
    patterns = sorted(expected, key=len, reverse=True)
    found = Counter(next((pattern for pattern in patterns if pattern in line), line) for line in told)
    assert found == Counter({pattern: count * EACH * rounds for pattern, count in expected.items()})
    assert "Traceback" not in "\n".join(relay.output)

    assert elsewhere == []
    assert site.cookies == []


# A site that somebody else has ----------------------------------------------------


class Impostor(asyncio.Protocol):
    """One connection to a site with a wrong certificate; keeps what comes through TLS."""

    def __init__(self, heard: list[bytes]) -> None:
        self._heard = heard

    def data_received(self, data: bytes) -> None:
        self._heard.append(data)


OURS, THEIRS = trustme.CA(), trustme.CA()
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
CERTIFICATES = {
    "another authority's": THEIRS.issue_cert("127.0.0.1"),
    "another name's": OURS.issue_cert("elsewhere.example"),
    "an expired one": OURS.issue_cert("127.0.0.1", not_before=LONG_AGO, not_after=LONG_AGO + timedelta(365)),
}


def test_site_with_a_wrong_certificate_receives_no_session_id(tmp_path: Path, evidence: Evidence) -> None:
    asyncio.run(wrong_certificates(tmp_path, evidence))


async def wrong_certificates(folder: Path, evidence: Evidence) -> None:
    """Log in at sites that can't prove who they are, several at once."""
    OURS.cert_pem.write_to_path(folder / "ours.pem")
    each = 8
    heard: list[bytes] = []
    options = ("--auth-ca-file", "ours.pem", "--breaker-failures", "0", "--message-log", "memory:")
    for what, leaf in CERTIFICATES.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Impostor(heard), "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/session"
        with RelayProcess(folder, "--auth-url", url, *options, measured=False) as relay:
            await logins(relay, each, UNAVAILABLE)
        told = [line.partition(COULD_NOT)[2] for line in relay.output if COULD_NOT in line]
        assert len(told) == each
        assert all("certificate" in line or "127.0.0.1" in line for line in told), (what, told)
        assert "Traceback" not in "\n".join(relay.output)
        server.close()
    evidence.count("logins at sites with wrong certificates", len(CERTIFICATES) * each, at_least=24)
    evidence.figure(f"{len(CERTIFICATES)} kinds of them, and {sum(map(len, heard))} bytes came through")
    assert heard == []
