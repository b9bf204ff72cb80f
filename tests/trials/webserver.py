"""A site in the trial's own process, on asyncio: it is slow, counts requests, and can become unreachable.

``session-N`` belongs to the user ``user-N``, and every other session to nobody.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections import Counter
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, cast
from urllib.parse import parse_qs

AT_START = "chatrelay-at-start-"
"""The beginning of the SESSID that each relay asks about at its start. It is not counted."""


class CountingSite:
    """The site.

    :param seconds: how long it takes for an answer.
    :ivar url: the URL of its session page.
    :ivar answering: whether it answers; otherwise it accepts requests and sends nothing.
    :ivar most_at_once: the highest number of requests that were pending at one time.
    :ivar asked: how often each session was asked about.
    :ivar twice_at_once: sessions that were asked about while they were being asked about.
    :ivar connections: those of the relay's that are open.
    :ivar back_since: when it began to answer again, after `cut_a_probe_and_answer`; None until then.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.answering = True
        self.most_at_once = 0
        self.asked: Counter[str] = Counter()
        self.twice_at_once: set[str] = set()
        self.connections: set[SiteConnection] = set()
        self.back_since: float | None = None
        self._to_cut = 0
        self._pending: list[str] = []
        self._port = 0

    async def listen(self) -> None:
        """Begin to listen, or listen again on the same port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: SiteConnection(self), "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/session"

    def close(self) -> None:
        """Become unreachable: close the port and all connections."""
        self._server.close()
        self._cut_all()

    def cut_a_probe_and_answer(self) -> None:
        """Recover at the worst time: just after the relay has tried it in vain.

        Open connections are aborted, and so are the next two requests: the probe, and the relay's own request that
        confirms it.
        """
        self._to_cut = 2
        self.back_since = None
        self._cut_all()

    def cuts(self) -> bool:
        """Whether to abort the connection of the request that has just arrived."""
        if not self._to_cut:
            return False
        self._to_cut -= 1
        if not self._to_cut:
            self.answering = True
            self.back_since = time.monotonic()
        return True

    def _cut_all(self) -> None:
        for connection in list(self.connections):
            connection.cut()

    def begin(self, sessid: str) -> None:
        """Note that a request has arrived."""
        if sessid.startswith(AT_START):
            return
        self.asked[sessid] += 1
        if sessid in self._pending:
            self.twice_at_once.add(sessid)
        self._pending.append(sessid)
        self.most_at_once = max(self.most_at_once, len(self._pending))

    def end(self, sessid: str) -> None:
        """Note that a request was answered, or that a request that is never answered was given up."""
        if not sessid.startswith(AT_START):
            self._pending.remove(sessid)


class SiteConnection(asyncio.Protocol):
    """One connection from the relay to the site: POSTs of a form, one after the other."""

    def __init__(self, site: CountingSite) -> None:
        self._site = site
        self._received = b""
        self._sessid: str | None = None
        self._answering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._site.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or -1)
        if len(body) == length:
            self._received = b""
            self._sessid = parse_qs(body.decode())["SESSID"][0]
            self._site.begin(self._sessid)
            if self._site.cuts():
                self.cut()
            elif self._site.answering:
                seconds = self._site.seconds
                self._answering = asyncio.get_running_loop().call_later(seconds, self._answer, self._sessid)

    def cut(self) -> None:
        """Abort the connection."""
        self._transport.abort()

    def _answer(self, sessid: str) -> None:
        self._sessid = self._answering = None
        self._site.end(sessid)
        if sessid.startswith("session-"):
            verdict: dict[str, object] = {"loggedin": True, "uID": sessid.replace("session", "user")}
        else:
            verdict = {"loggedin": False}
        body = json.dumps(verdict).encode()
        if self._transport.is_closing():
            return  # as most sites, it has worked for nobody, and finds out now
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def connection_lost(self, error: Exception | None) -> None:
        self._site.connections.discard(self)
        if self._sessid is not None and self._answering is None:
            self._site.end(self._sessid)


class SeparateSite:
    """A `CountingSite` in a separate process, which only the relay can delay.

    :ivar url: the URL of its session page.
    :ivar most_at_once: as the site's, once it has ended; so are `asked` and `twice_at_once`.
    """

    def __init__(self, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._near, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(seconds, far), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self.url: str = self._near.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._near.send(None)
        self.most_at_once: int
        self.asked: Counter[str]
        self.twice_at_once: set[str]
        self.most_at_once, self.asked, self.twice_at_once = self._near.recv()
        self._process.join()


def _serve(seconds: float, pipe: Connection) -> None:
    async def serve() -> None:
        site = CountingSite(seconds)
        await site.listen()
        pipe.send(site.url)
        await asyncio.to_thread(pipe.recv)
        pipe.send((site.most_at_once, site.asked, site.twice_at_once))

    asyncio.run(serve())
