"""Everybody comes back at once: the relay, real clients, and a webserver that takes its time and counts.

Each client has a session of its own, and finds out whose it became by writing to itself. Who is refused or closed
comes back as docs/protocol.rst says. They come from offices, a hundred behind one address.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("picows", reason="the clients need picows: pip install picows", exc_type=ImportError)
from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from tests.end_to_end.programs import RelayProcess
from tests.trials.caller import cpu_seconds
from tests.trials.conftest import Evidence
from tests.trials.webserver import WebserverApart

pytestmark = pytest.mark.alone

ANSWER_SECONDS = 0.05
"""How long the webserver takes for an answer."""

OFFICE = 100
"""How many clients share an address, unless told otherwise."""

WITHIN = 60.0
"""Seconds after which everybody is back."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""How long a client waits before it tries again: about so long at first, twice as long after each failure."""

YES = {"type": "auth-response", "response": True}
UNAVAILABLE = {"type": "auth-response", "response": False, "reason": "webserver-unavailable"}


class Connection(WSListener):
    """A client's connection: what comes in, in order; in the end the close code, or None for none."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.transport: WSTransport | None = None
        self._code: int | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.heard.put_nowait(json.loads(frame.get_payload_as_bytes()))
        elif frame.msg_type == WSMsgType.CLOSE:
            self._code = int(frame.get_close_code())
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.heard.put_nowait(self._code)

    def say(self, message: object) -> None:
        """Send one message."""
        assert self.transport is not None
        self.transport.send(WSMsgType.TEXT, json.dumps(message).encode())


@dataclass
class Storm:
    """Clients that come all at once, and what became of them.

    :param office: how many of them share an address.
    :ivar back_after: for each client that is back, how many seconds it took.
    :ivar setbacks: why clients had to try again, and how often.
    :ivar wrong: what should never have come.
    :ivar relay_seconds: of CPU that the relay had when everybody was back.
    :ivar own_seconds: and this process.
    """

    url: str
    office: int
    back_after: list[float] = field(default_factory=list)
    setbacks: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    relay_seconds: float = 0.0
    own_seconds: float = 0.0

    async def come(self, sessions: list[int]) -> None:
        """Have one client for each of the sessions come back; wait until all of them are."""
        self._began = asyncio.get_running_loop().time()
        offices = (1 + place // self.office for place in range(len(sessions)))
        addresses = (f"127.1.{office >> 8}.{office & 255}" for office in offices)
        await asyncio.gather(*map(self._come_back, sessions, addresses))

    async def _come_back(self, number: int, address: str) -> None:
        wait = FIRST_WAIT
        while not await self._logged_in(number, address):
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _logged_in(self, number: int, address: str) -> bool:
        """Connect and log in, again on the same connection while it lasts; whether it succeeded."""
        connection = Connection()
        try:
            await ws_connect(
                lambda: connection, self.url, websocket_handshake_timeout=2 * WITHIN, local_addr=(address, 0)
            )
        except (OSError, WSError, TimeoutError) as error:
            self.setbacks[type(error).__name__] += 1
            return False
        if connection.transport is None:  # picows calls that connected
            self.setbacks["cut in the handshake"] += 1
            return False
        self.connections.append(connection)
        wait = FIRST_WAIT
        while True:
            connection.say({"type": "auth-request", "SESSID": f"session-{number}"})
            answer = await connection.heard.get()
            if answer == YES:
                break
            if answer != UNAVAILABLE:
                self.setbacks[f"closed with {answer}"] += 1
                if not (answer is None or answer < 4500):
                    self.wrong.append(answer)
                return False
            self.setbacks["webserver-unavailable"] += 1
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT)
            if not connection.heard.empty():  # closed meanwhile
                self.setbacks[f"closed with {connection.heard.get_nowait()}"] += 1
                return False
        self.back_after.append(asyncio.get_running_loop().time() - self._began)
        await self._is(connection, f"user-{number}")
        return True

    async def _is(self, connection: Connection, uid: str) -> None:
        """Find out whose connection it is: a message to oneself says who sent it."""
        content = {"timeStamp": 1, "touID": uid, "content": f"Am I {uid}?"}
        connection.say({"type": "message-send-request", "id": uid, "message": content})
        message = {"type": "message", "message": {**content, "fromuID": uid}}
        answer = {"type": "send-request-response", "response": {"id": uid, "value": True}}
        for expected in (message, answer):
            heard = await connection.heard.get()
            # Another connection of the same user may have asked itself, too.
            while heard == message and expected == answer:
                heard = await connection.heard.get()
            if heard != expected:
                self.wrong.append(heard)

    def leave(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.disconnect(graceful=False)


StartStorm = Callable[..., tuple[Storm, WebserverApart]]


@pytest.fixture
def storm(tmp_path: Path) -> StartStorm:
    """Starts a webserver and a relay with some options, and has clients come: one for each number of a session."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the relay, too

    async def run(
        sessions: list[int], *options: str, office: int = OFFICE, answer_seconds: float = ANSWER_SECONDS
    ) -> tuple[Storm, WebserverApart]:
        with (
            WebserverApart(answer_seconds) as webserver,
            RelayProcess(
                tmp_path,
                *("--auth-url", webserver.url, *options),
                listen="tcp:0:interface=127.0.0.1:backlog=4096",
                measured=False,
            ) as relay,
        ):
            storm = Storm(relay.url, office)
            await asyncio.wait_for(storm.come(sessions), 5 * WITHIN)
            storm.relay_seconds, storm.own_seconds = cpu_seconds(relay.process.pid), time.process_time()
            storm.leave()
        assert not [line for line in relay.output if "session-" in line or "Traceback" in line]
        return storm, webserver

    return lambda sessions, *options, **others: asyncio.run(run(sessions, *options, **others))


@pytest.mark.parametrize("advised", [True, False], ids=["as advised", "with the defaults"])
def test_everybody_comes_back_at_once_and_as_themselves(
    storm: StartStorm, evidence: Evidence, full: bool, advised: bool
) -> None:
    """The short form has 1,000 clients, the full one 10,000; the message log is an SQLite file, as by default.

    The 1,000 are through in two seconds, and so show that no more than 32 questions are out, that each is put once and
    nobody becomes somebody else. They all find a place, and no login waits for long: that so many want one that the
    relay is full (``unauthenticated``), or that their turn comes too late (``login-timeout``), only the full form shows.

    With the defaults, 5,000 of them are refused at first and come again when their own wait is over.
    docs/operating/limits.rst says with which options nobody is. On a machine that has others to serve both take longer, and fail.
    """
    count = 10_000 if full else 1000
    began = time.process_time()
    patience = ("--login-timeout", "60", "--handshake-timeout", "60", "--unauthenticated", "10000")
    clients, webserver = storm(list(range(count)), *(patience if advised else ()))
    evidence.count("clients at once", len(clients.back_after), at_least=count)
    evidence.figure(f"all back after {max(clients.back_after):.1f} s")
    evidence.figure(f"{webserver.most_at_once} questions at once, {webserver.asked.total():,} in all")
    evidence.figure(f"setbacks: {dict(clients.setbacks) or 'none'}")
    evidence.figure(f"CPU: relay {clients.relay_seconds:.1f} s, clients {clients.own_seconds - began:.1f} s")
    assert clients.wrong == []
    assert webserver.most_at_once == 32
    # A client that had no setback was asked about once.
    assert webserver.asked.total() <= count + clients.setbacks.total()
    assert webserver.twice_at_once == set()
    assert max(clients.back_after) < WITHIN


def test_who_is_refused_or_too_late_comes_again(storm: StartStorm) -> None:
    # 4 at once of 0.05 s each are 80 in the second that a connection has for its login.
    late = ("--webserver-checks", "4", "--login-timeout", "1")
    clients, _ = storm(list(range(160)), *late)
    assert clients.wrong == []
    assert len(clients.back_after) == 160
    assert clients.setbacks["webserver-unavailable"]
    assert clients.setbacks["closed with 4001"]


def test_the_tabs_of_a_user_are_one_question(storm: StartStorm) -> None:
    # A tab that comes after the answer asks anew: it must not come before they do, on a slow machine, too. And without
    # logins-per-minute, for which those of one address would wait for each other.
    tabs = [number % 20 for number in range(200)]
    unlimited = ("--webserver-checks", "5", "--logins-per-minute", "0")
    clients, webserver = storm(tabs, *unlimited, answer_seconds=0.5)
    assert clients.wrong == []
    assert len(clients.back_after) == 200
    assert webserver.most_at_once <= 5
    assert webserver.twice_at_once == set()
    assert webserver.asked.total() < 100


def test_a_hundred_people_of_one_address_log_in_at_once_with_the_defaults(storm: StartStorm) -> None:
    clients, _ = storm(list(range(100)))
    assert (len(clients.back_after), clients.wrong, clients.setbacks) == (100, [], Counter())


def test_more_people_of_one_address_come_again_and_get_in_with_the_defaults(storm: StartStorm) -> None:
    clients, _ = storm(list(range(250)), office=250)
    assert (len(clients.back_after), clients.wrong) == (250, [])
    assert clients.setbacks  # the 101st, for one
