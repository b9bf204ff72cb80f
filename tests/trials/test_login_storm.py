"""Everybody comes back at once: the relay, real clients, and a webserver that takes its time and counts.

Each client has a session of its own, and finds out whose it became by writing to itself. Who is refused or closed
comes back as docs/protocol.rst says.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import pytest

pytest.importorskip("picows", reason="the clients need picows: pip install picows", exc_type=ImportError)
from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from tests.end_to_end.programs import RelayProcess

ANSWER_SECONDS = 0.05
"""How long the webserver takes for an answer."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""How long a client waits before it tries again: about so long at first, twice as long after each failure."""

YES = {"type": "auth-response", "response": True}
UNAVAILABLE = {"type": "auth-response", "response": False, "reason": "webserver-unavailable"}


class Webserver:
    """A site where ``session-N`` belongs to the user ``user-N``.

    :ivar most_at_once: the most questions that were waiting for their answer at one time.
    :ivar asked: how often each session was asked about.
    :ivar twice_at_once: sessions that were asked about while they were being asked about.
    """

    def __init__(self) -> None:
        self.most_at_once = 0
        self.asked: Counter[str] = Counter()
        self.twice_at_once: set[str] = set()
        self._under_way: list[str] = []

    async def listen(self) -> str:
        """Begin to listen; the URL."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Questions(self), "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/session"

    def begin(self, sessid: str) -> None:
        """A question came."""
        self.asked[sessid] += 1
        if sessid in self._under_way:
            self.twice_at_once.add(sessid)
        self._under_way.append(sessid)
        self.most_at_once = max(self.most_at_once, len(self._under_way))

    def end(self, sessid: str) -> None:
        """It was answered, or who asked has gone."""
        self._under_way.remove(sessid)


class Questions(asyncio.Protocol):
    """One connection of the relay's to the webserver: POSTs of a form, one after the other."""

    def __init__(self, webserver: Webserver) -> None:
        self._webserver = webserver
        self._received = b""
        self._sessid: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or -1)
        if len(body) == length:
            self._received = b""
            self._sessid = parse_qs(body.decode())["SESSID"][0]
            self._webserver.begin(self._sessid)
            self._answering = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._answer, self._sessid)

    def _answer(self, sessid: str) -> None:
        self._sessid = None
        self._webserver.end(sessid)
        body = json.dumps({"loggedin": True, "uID": sessid.replace("session", "user")}).encode()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._sessid is not None:
            self._answering.cancel()
            self._webserver.end(self._sessid)


class Connection(WSListener):
    """A client's connection: what comes in, in order; in the end the close code, or None for none."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
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
        self.transport.send(WSMsgType.TEXT, json.dumps(message).encode())


@dataclass
class Storm:
    """Clients that come all at once, and what became of them.

    :ivar back_after: for each client that is back, how many seconds it took.
    :ivar setbacks: why clients had to try again, and how often.
    :ivar wrong: what should never have come.
    """

    url: str
    back_after: list[float] = field(default_factory=list)
    setbacks: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)

    async def come(self, sessions: list[int]) -> None:
        """Have one client for each of the sessions come back; wait until all of them are."""
        self._began = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._come_back(number) for number in sessions))

    async def _come_back(self, number: int) -> None:
        wait = FIRST_WAIT
        while not await self._logged_in(number):
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _logged_in(self, number: int) -> bool:
        """Connect and log in, again on the same connection while it lasts; whether it succeeded."""
        connection = Connection()
        try:
            await ws_connect(lambda: connection, self.url, websocket_handshake_timeout=60)
        except (OSError, WSError, TimeoutError) as error:
            self.setbacks[type(error).__name__] += 1
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
            connection.transport.disconnect(graceful=False)


StartStorm = Callable[..., tuple[Storm, Webserver]]


@pytest.fixture
def storm(tmp_path: Path) -> StartStorm:
    """Starts a webserver and a relay with some options, and has clients come: one for each number of a session."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the relay, too

    async def run(sessions: list[int], *options: str) -> tuple[Storm, Webserver]:
        webserver = Webserver()
        url = await webserver.listen()
        with RelayProcess(
            tmp_path,
            # All clients have one address, which would have no more questions out than it may have denials.
            *("--auth-url", url, "--message-log", "memory:", "--logins-per-minute", "1000", *options),
            listen="tcp:0:interface=127.0.0.1:backlog=4096",
        ) as relay:
            storm = Storm(relay.url)
            await asyncio.wait_for(storm.come(sessions), 60)
            storm.leave()
        assert not [line for line in relay.output if "session-" in line or "Traceback" in line]
        return storm, webserver

    return lambda sessions, *options: asyncio.run(run(sessions, *options))


def test_everybody_comes_back_at_once_and_as_themselves(storm: StartStorm) -> None:
    clients, webserver = storm(list(range(1000)), "--unauthenticated-per-address", "1000")
    assert clients.wrong == []
    assert len(clients.back_after) == 1000
    assert webserver.most_at_once == 32
    # A client that had no setback was asked about once.
    assert webserver.asked.total() <= 1000 + clients.setbacks.total()
    assert webserver.twice_at_once == set()


def test_who_is_refused_or_too_late_comes_again(storm: StartStorm) -> None:
    # 4 at once of 0.05 s each are 80 in the second that a connection has for its login.
    late = ("--webserver-checks", "4", "--login-timeout", "1", "--unauthenticated-per-address", "160")
    clients, _ = storm(list(range(160)), *late)
    assert clients.wrong == []
    assert len(clients.back_after) == 160
    assert clients.setbacks["webserver-unavailable"]
    assert clients.setbacks["closed with 4001"]


def test_the_tabs_of_a_user_are_one_question(storm: StartStorm) -> None:
    tabs = [number % 20 for number in range(200)]
    clients, webserver = storm(tabs, "--webserver-checks", "5", "--unauthenticated-per-address", "200")
    assert clients.wrong == []
    assert len(clients.back_after) == 200
    assert webserver.most_at_once <= 5
    assert webserver.twice_at_once == set()
    assert webserver.asked.total() < 100


def test_a_hundred_people_of_one_address_log_in_at_once_with_the_defaults(storm: StartStorm) -> None:
    clients, _ = storm(list(range(100)))
    assert (len(clients.back_after), clients.wrong, clients.setbacks) == (100, [], Counter())


def test_more_people_of_one_address_come_again_and_get_in_with_the_defaults(storm: StartStorm) -> None:
    clients, _ = storm(list(range(250)))
    assert (len(clients.back_after), clients.wrong) == (250, [])
    assert clients.setbacks  # the 101st, for one
