"""A relay that is held up, as by a suspended machine, reads what came meanwhile before it checks a deadline."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE, eventually, v1
from tests.support.client import SocketClient
from tests.support.evidence import Evidence
from tests.support.frames import CONTINUATION, HANDSHAKE, frame
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED
from tests.trials.crowd import Crowd, opened, to_the_end

pytestmark = pytest.mark.alone

LOGINS = 20

HELD_UP = 6.0
"""Seconds, longer than each of these times."""

TIMES = (
    *("--webserver-timeout", "2", "--login-timeout", "4", "--handshake-timeout", "3", "--message-timeout", "3"),
    *("--ping-interval", "1", "--ping-timeout", "3", "--breaker-failures", "5"),
)

LONG = 25.0
"""Seconds, in full, with the defaults: longer than each time limit that is tested here."""


@contextmanager
def stopped(relay: RelayProcess) -> Iterator[None]:
    """Stop the process inside the block."""
    os.kill(relay.pid, signal.SIGSTOP)
    try:
        status = Path(f"/proc/{relay.pid}/stat")
        eventually(lambda: status.read_text("ascii").rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(relay.pid, signal.SIGCONT)


class Held:
    """A site that holds its responses until the test releases them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.answers = threading.Event()
        site.answer = self._answer

    def _answer(self, request: Any) -> None:
        assert self.answers.wait(PATIENCE + LONG)
        request.reply(200, {"loggedin": True, "uID": 7})


@pytest.mark.parametrize("reactor", [None, "chatrelay-epoll"])
def test_input_that_came_while_the_relay_was_held_up_is_in_time(
    start_relay: StartRelay, site: Site, full: bool, evidence: Evidence, reactor: str | None
) -> None:
    """Hold it up for 6 s with shorter time limits; in full for 25 s with the defaults."""
    seconds, times = (LONG, ()) if full else (HELD_UP, TIMES)
    relay = start_relay(
        *times,
        *("--connections-per-user", "0", "--ops-listen", "tcp:0"),
        reactor=reactor,
    )
    with ExitStack() as stack, Crowd(relay.port) as crowd:
        bo = stack.enter_context(relay.client())
        assert bo.log_in("bo-session") == ADMITTED
        writer = SocketClient(opened(crowd, "127.0.0.1"))
        assert writer.log_in("alice-session") == ADMITTED
        held = Held(site)
        visitors = [stack.enter_context(relay.client()) for _ in range(LOGINS)]
        quiet, silent = SocketClient(opened(crowd, "127.0.0.1")), SocketClient(opened(crowd, "127.0.0.1"))
        half, mute = crowd.connect("127.0.0.1", HANDSHAKE[:40]), crowd.connect("127.0.0.1")
        asks_ops = http.client.HTTPConnection("127.0.0.1", relay.ops_port, timeout=PATIENCE)
        asks_ops.connect()
        text = v1.encoded(v1.message(2))
        writer.write(frame(text[:20], fin=False))
        asked = len(site.asked)
        for number, visitor in enumerate(visitors):
            visitor.say_login(f"visitor-{number}")
        eventually(lambda: len(site.asked) >= asked + LOGINS)

        begun = time.monotonic()
        with stopped(relay):
            held.answers.set()
            writer.write(frame(text[20:], CONTINUATION))
            half.sendall(HANDSHAKE[40:])
            quiet.say_login("quiet-session")
            asks_ops.request("GET", "/healthz")
            time.sleep(seconds)
        evidence.count("seconds held up", round(time.monotonic() - begun), round(seconds))

        evidence.count("logins that go on", sum(visitor.hear() == ADMITTED for visitor in visitors), LOGINS)
        assert writer.hear() == {"type": "send-request-response", "response": {"id": 1, "value": True}}
        assert bo.hear()["message"]["content"] == "hej"
        assert half.recv(4096).startswith(b"HTTP/1.1 101 ")
        assert quiet.hear() == ADMITTED
        assert asks_ops.getresponse().status == 200
        asks_ops.close()
        for nobody in (silent.socket, mute):
            nobody.settimeout(PATIENCE + LONG)
        # A client that has sent nothing has its time, and at most a little more.
        assert silent.hear() == 4001
        assert to_the_end(mute) == b""
        evidence.figure(f"who sent nothing was closed within {time.monotonic() - begun - seconds:.1f} s")
        # Pings go on, and everybody is there.
        time.sleep(0 if full else 5)
        bo.send(7, "are you all there?")
        assert all(visitor.hear()["message"]["content"] == "are you all there?" for visitor in visitors)
    assert not [line for line in relay.output if "could not be asked" in line or "in a row" in line]
