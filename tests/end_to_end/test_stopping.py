"""How a relay with connected users stops."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import Any

from tests.support import PATIENCE, eventually
from tests.support.frames import HANDSHAKE
from tests.support.programs import HIGH_RATES, RelayProcess, Site, StartRelay
from tests.support.promise import deliveries


def test_sigterm_under_load_acknowledges_nothing_it_did_not_log(start_relay: StartRelay) -> None:
    relay = start_relay(*HIGH_RATES, "--unread-size", "0")  # however slowly this machine reads
    alice, bo = relay.client(), relay.client()
    alice.log_in("alice-session")
    bo.log_in("bo-session")
    sent = 0

    def talk() -> None:
        nonlocal sent
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                alice.send(2, f"message {sent}", id=str(sent))
                sent += 1
        except ConnectionClosed:
            pass

    ends: dict[str, tuple[int | None, list[Any]]] = {}
    threads = [
        threading.Thread(target=talk),
        threading.Thread(target=lambda: ends.update(alice=alice.closed())),
        threading.Thread(target=lambda: ends.update(bo=bo.closed())),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    relay.process.terminate()
    for thread in threads:
        thread.join(2 * PATIENCE)
    code, frames = ends["alice"]
    assert code == 4000
    assert relay.wait() == -signal.SIGTERM
    assert not [line for line in relay.output if "Traceback" in line or "Unhandled" in line]
    answers = {int(frame["response"]["id"]): frame["response"] for frame in frames}
    assert sorted(answers) == list(range(len(frames)))
    assert sent > len(answers) > 50
    code, delivered = ends["bo"]
    assert code == 4000
    heard = [int(frame["message"]["content"].removeprefix("message ")) for frame in delivered]
    assert len(heard) > 50
    assert heard == sorted(set(heard))
    delivered_numbers = set(heard)
    for number, answer in answers.items():
        assert answer["value"] == (number in delivered_numbers)
        if not answer["value"] and answer["reason"] != "busy":
            # Connections are closed in turns, in random order. If bo's turn came first, the last messages had no recipient.
            assert answer["reason"] == "receiving-user-not-connected"
            assert number > heard[-1]
    logged = deliveries(relay.folder / "chatrelay.sqlite3")
    assert {content for content, was_delivered in logged if was_delivered} >= {f"message {number}" for number in heard}


def test_second_signal_ends_the_relay_at_once(relay: RelayProcess) -> None:
    # A client that never answers the close frame keeps the relay waiting.
    with socket.create_connection(("127.0.0.1", relay.port)) as deaf:
        deaf.sendall(HANDSHAKE)
        assert deaf.recv(1000).startswith(b"HTTP/1.1 101")
        relay.process.terminate()
        relay.said("Port .* Closed")
        time.sleep(0.3)
        assert relay.process.poll() is None
        began = time.monotonic()
        relay.process.terminate()
        assert relay.wait() == -signal.SIGTERM
        assert time.monotonic() - began < 1
    assert not [line for line in relay.output if "Traceback" in line or "Unhandled" in line]


def test_client_that_does_not_answer_the_close_is_aborted(relay: RelayProcess) -> None:
    with socket.create_connection(("127.0.0.1", relay.port)):
        relay.said("listens on")
        began = time.monotonic()
        assert relay.stop() == -signal.SIGTERM
        assert time.monotonic() - began < 5


def test_site_that_stops_with_the_relay_is_not_logged_as_failing(start_relay: StartRelay, site: Site) -> None:
    stopped = threading.Event()

    def end(request: Any) -> None:
        stopped.wait(PATIENCE)
        request.close_connection = True

    site.counts_first_look, site.answer = True, end
    relay = start_relay("--drain-time", "3")
    # A client that never answers the close frame keeps the relay waiting.
    with socket.create_connection(("127.0.0.1", relay.port)) as deaf:
        deaf.sendall(HANDSHAKE)
        assert deaf.recv(1000).startswith(b"HTTP/1.1 101")
        eventually(lambda: site.asked)
        relay.process.terminate()
        relay.said("Port .* Closed")
        stopped.set()
        relay.wait()
    assert not [line for line in relay.output if "the startup check" in line or "Unhandled" in line]
