"""Clients that all log in at once: after a restart, or in an office in the morning."""

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

from tests.support import v1
from tests.support.processes import cpu_seconds
from tests.support.programs import RelayProcess
from tests.support.v1 import ADMITTED, UNAVAILABLE
from tests.trials.webserver import SeparateSite

ANSWER_SECONDS = 0.05
"""The seconds that the site takes for an answer."""

OFFICE = 100
"""The clients that share an address by default."""

WITHIN = 60.0
"""Seconds after which all clients are logged in."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""The approximate wait before a client's first retry; it doubles with each failure."""


class Connection(WSListener):
    """A client's connection: what it receives, in order; at the end the close code, or None for none."""

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
        self.transport.send(WSMsgType.TEXT, v1.encoded(message))


@dataclass
class Storm:
    """Clients that connect all at once, and their outcomes.

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
        """Let one client for each session return, and wait until all are logged in."""
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
        """Connect and log in, repeatedly on the same connection while it lasts; return whether that succeeded."""
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
            connection.say(v1.login(f"session-{number}"))
            answer = await connection.heard.get()
            if answer == ADMITTED:
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
        """Find out whose connection it is: a message to oneself names its sender."""
        request = v1.message(uid, f"Am I {uid}?", id=uid)
        connection.say(request)
        message = {"type": "message", "message": {**request["message"], "fromuID": uid}}
        answer = {"type": "send-request-response", "response": {"id": uid, "value": True}}
        for expected in (message, answer):
            heard = await connection.heard.get()
            # Another connection of the same user may have done so, too.
            while heard == message and expected == answer:
                heard = await connection.heard.get()
            if heard != expected:
                self.wrong.append(heard)

    def leave(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.disconnect(graceful=False)


StartStorm = Callable[..., tuple[Storm, SeparateSite]]


@pytest.fixture
def storm(tmp_path: Path) -> StartStorm:
    """Start a site and a relay with some options, and let clients come: one for each session number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the relay, too

    async def run(
        sessions: list[int], *options: str, office: int = OFFICE, answer_seconds: float = ANSWER_SECONDS
    ) -> tuple[Storm, SeparateSite]:
        with (
            SeparateSite(answer_seconds) as site,
            RelayProcess(
                tmp_path,
                *("--auth-url", site.url, *options),
                listen="tcp:0:interface=127.0.0.1:backlog=4096",
                measured=False,
            ) as relay,
        ):
            storm = Storm(relay.url, office)
            await asyncio.wait_for(storm.come(sessions), 5 * WITHIN)
            storm.relay_seconds, storm.own_seconds = cpu_seconds(relay.process.pid), time.process_time()
            storm.leave()
        assert not [line for line in relay.output if "session-" in line or "Traceback" in line]
        return storm, site

    return lambda sessions, *options, **others: asyncio.run(run(sessions, *options, **others))
