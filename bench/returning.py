"""The clients of `bench.returns`: they speak v2, come back after a restart, and check everything that they are sent.

A client waits as long as ``closing`` says. If it is refused or closed, it tries again after a wait that doubles each
time, as docs/protocol.rst says. This module must not know how a relay is started, or what a return costs.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import cast

import msgspec

from bench.instructions import CONTENT, HANDSHAKE_V2, ID, frame
from bench.load import masked

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""The approximate seconds before a client's first try after a failure; they double with each failure."""

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0xA
SWITCHED = b"HTTP/1.1 101 "


class _Inside(msgspec.Struct, rename={"sender": "fromuID", "recipient": "touID"}):
    sender: str
    recipient: str
    content: str


class _Delivery(msgspec.Struct, tag_field="type", tag="message"):
    n: int
    id: str
    message: _Inside


class _Login(msgspec.Struct, tag_field="type", tag="auth-response"):
    response: bool
    n: int = 0
    epoch: str = ""
    recovered: bool | None = None
    resume: str | None = None
    reason: str | None = None


class _Closing(msgspec.Struct, tag_field="type", tag="closing", rename={"retry_after": "retryAfter"}):
    retry_after: int
    resume: str | None = None


class _Resume(msgspec.Struct, tag_field="type", tag="resume"):
    resume: str


_decode = msgspec.json.Decoder(_Delivery | _Login | _Closing | _Resume).decode


class Crowd:
    """What the clients have in common.

    :param port: where the relay listens.
    :param count: the number of clients.
    :param missed: the messages that each has missed. The one at place `n` of client `c` has the number that
        `number(c, n)` returns.
    :ivar with_tokens: whether clients log in with their resume tokens.
    :ivar setbacks: why clients had to try again, and how often.
    :ivar wrong: what should never have come.
    :ivar on_complete: called when the last client has everything.
    """

    def __init__(self, port: int, count: int, missed: int, addresses: int, number: Callable[[int, int], int]) -> None:
        self.port = port
        self.missed = missed
        self.number = number
        self.with_tokens = True
        self.setbacks: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.on_complete: Callable[[], None] = lambda: None
        self.clients = [Client(self, each, _address(each * addresses // count)) for each in range(count)]
        self._incomplete = 0

    async def log_in(self, at_once: int) -> None:
        """Log all clients in for the first time.

        :param at_once: how many at once.
        """
        turns = asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with turns:
                await client.log_in()

        await asyncio.gather(*map(one, self.clients))

    def expect_return(self, with_tokens: bool) -> asyncio.Future[None]:
        """Have all clients come back after their next close; return what is done when the last one has everything.

        :param with_tokens: whether they log in with their resume tokens, or only with their SESSIDs.
        """
        everybody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.with_tokens = with_tokens
        self.setbacks.clear()
        self._incomplete = len(self.clients)

        def complete() -> None:
            self._incomplete -= 1
            if not self._incomplete:
                self.on_complete()
                everybody.set_result(None)

        for client in self.clients:
            client.expect_return(complete)
        return everybody

    async def all_logged_in(self) -> None:
        """Wait until all clients are logged in: some may have been closed after their return."""
        while not all(client.is_logged_in for client in self.clients):
            await asyncio.sleep(0.1)

    def leave(self) -> None:
        """Close all connections."""
        for client in self.clients:
            client.leave()


def _address(number: int) -> str:
    """Return an address of this machine."""
    return f"127.1.{number >> 8}.{number & 255}"


def _do_nothing() -> None:
    pass


class Client:
    """One user's client, on one connection after the other.

    :param number: names the user.
    :param address: where it connects from.
    :ivar is_logged_in: whether it is logged in.
    """

    def __init__(self, crowd: Crowd, number: int, address: str) -> None:
        self.crowd = crowd
        self.uid = f"user-{number}"
        self._number = number
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._token: str | None = None
        self._epoch = ""
        self._place = 0  # the last one that it has
        self._answered: asyncio.Future[_Login | None] | None = None
        self._complete: Callable[[], None] | None = None  # called when it has everything
        self.is_logged_in = False
        self._is_away = False  # whether it has been closed by the restart
        self._retry_after = 0.0
        self._returning: asyncio.Task[None] | None = None  # asyncio itself keeps no reference to it

    # What it does -------------------------------------------------------------

    async def log_in(self) -> None:
        """Log in for the first time, with what was there before as if it were not read."""
        self._complete = _do_nothing  # it comes back, too, if it is closed before the restart
        while (answer := await self._try({"type": "auth-request", "SESSID": self.uid})) is None:
            await asyncio.sleep(FIRST_WAIT)
        self._epoch = answer.epoch

    def expect_return(self, complete: Callable[[], None]) -> None:
        """Come back after the next close, as a client that has missed the last messages.

        :param complete: called when the client has them all.
        """
        self._complete = complete
        self._is_away = False
        self._place = 0

    def leave(self) -> None:
        """Close the connection, for good."""
        self._complete = None
        if self._transport is not None:
            self._transport.abort()

    async def _come_back(self, wait: float) -> None:
        await asyncio.sleep(wait)
        wait = FIRST_WAIT
        while True:
            request = {"type": "auth-request", "SESSID": self.uid, "after": {"epoch": self._epoch, "n": self._place}}
            if self.crowd.with_tokens:
                request["resume"] = self._token
            answer = await self._try(request)
            if answer is not None:
                break
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _try(self, request: dict[str, object]) -> _Login | None:
        """Connect, and send an auth-request; return the answer if the client is logged in."""
        loop = asyncio.get_running_loop()
        answered = self._answered = loop.create_future()
        data = frame(request)
        try:
            await loop.create_connection(
                lambda: _Connection(self, data), "127.0.0.1", self.crowd.port, local_addr=(self._address, 0)
            )
        except OSError as error:
            self.crowd.setbacks[type(error).__name__] += 1
            return None
        answer = await answered
        if answer is not None and not answer.response:
            self.crowd.setbacks[answer.reason or "denied"] += 1
            self._hang_up()
            return None
        return answer

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What it is told ----------------------------------------------------------

    def connected(self, transport: asyncio.Transport) -> None:
        """Note the present connection."""
        self._transport = transport

    def received(self, payload: bytes) -> None:
        """Act on a text frame."""
        try:
            message = _decode(payload)
        except msgspec.MsgspecError as error:
            self._is_wrong(f"{payload!r}: {error}")
            return
        if isinstance(message, _Delivery):
            self._delivered(message)
        elif isinstance(message, _Login):
            self._logged_in(message)
        else:
            self._token = message.resume
            if isinstance(message, _Closing):
                self._retry_after = message.retry_after / 1000

    def _logged_in(self, answer: _Login) -> None:
        if answer.response:
            self.is_logged_in = True
            self._token = answer.resume
            if self._is_away and not (answer.recovered is True and answer.n == self.crowd.missed):
                self._is_wrong(f"{answer}")
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)

    def _delivered(self, message: _Delivery) -> None:
        if self._place == self.crowd.missed:
            self._is_wrong(f"{message} came after the last one")
            return
        expected = ID % self.crowd.number(self._number, self._place + 1)
        if (message.n, message.id) != (self._place + 1, expected):
            self._is_wrong(f"place {message.n} with the id {message.id} came after place {self._place}")
        if (message.message.recipient, message.message.content) != (self.uid, CONTENT):
            self._is_wrong(f"{message}")
        self._place += 1
        if self._place == self.crowd.missed and self._complete is not None:
            self._complete()

    def disconnected(self, code: int | None) -> None:
        """Note that the relay has closed the connection, or cut it.

        :param code: the close code; None for none.
        """
        self._transport = None
        was_logged_in, self.is_logged_in = self.is_logged_in, False
        if not was_logged_in:  # `_come_back`, or `log_in`, tries again
            if self._answered is not None and not self._answered.done():
                self.crowd.setbacks[f"closed with {code}"] += 1
                self._answered.set_result(None)
        elif self._complete is not None:
            if code is not None and code >= 4500:
                self._is_wrong(f"closed with {code}")
            if self._is_away:
                self.crowd.setbacks[f"closed with {code} after the login"] += 1
            self._returning = asyncio.ensure_future(self._come_back(FIRST_WAIT if self._is_away else self._retry_after))
            self._is_away = True

    def _is_wrong(self, what: str) -> None:
        self.crowd.wrong.append(f"{self.uid}: {what}")


class _Connection(asyncio.Protocol):
    """A WebSocket of a client. It answers pings and the close.

    :param request: the frame that is sent after the handshake.
    """

    def __init__(self, client: Client, request: bytes) -> None:
        self._client = client
        self._request: bytes | None = request
        self._data = b""
        self._code: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._client.connected(self._transport)
        self._transport.write(HANDSHAKE_V2)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._request is not None:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(SWITCHED):
                self._client.crowd.setbacks[head.partition(b"\r\n")[0].decode()] += 1
                self._transport.abort()
                return
            self._data = rest
            self._transport.write(self._request)
            self._request = None
        self._take_frames()

    def _take_frames(self) -> None:
        data, start = self._data, 0
        while len(data) - start >= 2:
            size, payload = data[start + 1], start + 2
            if size >= 126:
                payload += 2 if size == 126 else 8
                size = int.from_bytes(data[start + 2 : payload], "big")
            if len(data) < payload + size:
                break
            self._take(data[start], data[payload : payload + size])
            start = payload + size
        self._data = data[start:]

    def _take(self, head: int, payload: bytes) -> None:
        if head == TEXT:
            self._client.received(payload)
        elif head == PING:
            self._transport.write(masked(PONG, payload))
        elif head == CLOSE:
            self._code = int.from_bytes(payload[:2], "big")
            self._transport.write(masked(CLOSE & 15, payload[:2]))
            self._transport.close()
        else:
            self._client.crowd.wrong.append(f"a frame that begins with {head:#x}")

    def connection_lost(self, error: Exception | None) -> None:
        self._client.disconnected(self._code)
