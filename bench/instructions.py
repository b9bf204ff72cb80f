"""Count the instructions of a message and of a login with Valgrind, which does not depend on the machine's load.

    python -m bench.instructions             a message and a login, both of v1
    python -m bench.instructions message     or login
    python -m bench.instructions v2          a message of v2, between users who know each other; the log is on
    python -m bench.instructions return      a return by v2 with a resume token and 20 missed messages; the log is on
    python -m bench.instructions --log       with the message log in SQLite on
    python -m bench.instructions --tree DIR  another checkout of chatrelay, with the load of this one

The relay runs under Valgrind's callgrind with few options: the message log is off, and the rate limits are not reached.
The clients are plain sockets in this process, and the site is a thread of it. Messages are sent in lockstep: each of 64
connections sends eight to its partner, and the next eight after all answers and deliveries have arrived. The relay is
stopped (SIGSTOP) while they send, so that it always finds all messages at once. Two runs that differ only in the number
of messages give the instructions of one, because the start and the stop are in both. Only the relay's own instructions
are counted, in Python and C, and not those of the kernel.

Clients of v2 send UUIDs as ids, as clients do, and no ``received`` frames. After their first messages, in both runs,
they know each other, so that the answers say ``delivered``.

A return is a handshake, a login by a resume token, the replay of 20 messages, each from another block of the log, and
the end of the connection.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from urllib.parse import parse_qs

from bench.ports import free_port
from bench.servers import ROOT, SERVERS, Place

CONNECTIONS, IN_FLIGHT = 64, 8
ROUNDS = (4, 44)
"""The rounds of messages in the shorter and in the longer run."""

LOGINS = (50, 350)
"""The logins, or returns, in the shorter and in the longer run."""

MISSED = 20
"""The messages that a client has missed when it returns."""

CONTENT = "x" * 40
ID = "00000000-0000-4000-8000-%012d"
"""The id of a message of v2, for its number: as long as a UUID, and never the same."""

PATIENCE = 600.0
"""The seconds in which a relay must start. Valgrind makes it fifty times as slow, and other programs may be busy."""

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: relay.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HANDSHAKE_V2 = HANDSHAKE[:-2] + b"Sec-WebSocket-Protocol: chatrelay.v2\r\n\r\n"
Load = Callable[[subprocess.Popen[bytes], int, int], None]
NAMES = {"v2": "message of v2"}
"""What is printed for a load, if it is not its name."""

COLLECTED = re.compile(r"Collected : (\d+)")


def frame(value: object) -> bytes:
    """Return a client's text frame (RFC 6455, section 5.2). The mask is one byte four times."""
    payload = json.dumps(value, separators=(",", ":")).encode()
    length = len(payload)
    head = struct.pack("!BB", 0x81, 0x80 | length) if length < 126 else struct.pack("!BBH", 0x81, 0xFE, length)
    return head + b"\x55" * 4 + bytes(byte ^ 0x55 for byte in payload)


def frames_in(connection: socket.socket) -> Iterator[bytes]:
    """Yield the payloads of the frames that a server sends, each of at most 64 KiB.

    :raises ConnectionError: if the connection ends.
    """
    data = b""
    while True:
        start = 0
        while len(data) - start >= 4:  # no frame of the relay is shorter
            size, payload = data[start + 1], start + 2
            if size >= 126:
                size, payload = int.from_bytes(data[payload : payload + 2], "big"), payload + 2
            if len(data) < payload + size:
                break
            start = payload + size
            yield data[payload:start]
        more = connection.recv(65536)
        if not more:
            raise ConnectionError(f"the relay ended the connection after {data!r}")
        data = data[start:] + more


def received(connection: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes.

    :raises ConnectionError: if the connection ends earlier.
    """
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError(f"the relay ended the connection after {data!r}")
        data += more
    return data


@contextmanager
def site() -> Iterator[str]:
    """Run a site that answers each SESSID with itself as the uID, and keeps connections open; yield its URL."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)

    def answer(connection: socket.socket) -> None:
        data = b""
        with connection:
            while True:
                head, end, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                size = int(length[1]) if length else 0
                if end and len(body) >= size:
                    data = body[size:]
                    uid = parse_qs(body[:size].decode())["SESSID"][0]
                    verdict = json.dumps({"loggedin": True, "uID": uid}).encode()
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                        % (len(verdict), verdict)
                    )
                    continue
                try:
                    more = connection.recv(65536)
                except ConnectionResetError:
                    return
                if not more:
                    return
                data += more

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/session"


def opened(port: int, handshake: bytes = HANDSHAKE) -> socket.socket:
    """Connect, and complete the opening handshake."""
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(handshake)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += received(connection, 1)
    return connection


def log_in(connection: socket.socket, uid: str) -> None:
    """Log in on an open connection.

    :raises ConnectionError: if the relay refuses the login.
    """
    connection.sendall(frame({"type": "auth-request", "SESSID": uid}))
    yes = b'{"type":"auth-response","response":true}'
    answer = received(connection, 2 + len(yes))[2:]
    if answer != yes:
        raise ConnectionError(f"not logged in: {answer!r}")


def logged_in(port: int, uid: str) -> socket.socket:
    """Return a connection that is logged in as a user."""
    connection = opened(port)
    log_in(connection, uid)
    return connection


@contextmanager
def stopped(relay: subprocess.Popen[bytes]) -> Iterator[None]:
    """Suspend the relay during the block."""
    relay.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        relay.send_signal(signal.SIGCONT)


def messages(relay: subprocess.Popen[bytes], port: int, rounds: int) -> None:
    """Send messages in lockstep."""
    connections = [logged_in(port, f"user-{number:03}") for number in range(CONNECTIONS)]

    def request(number: int, slot: int) -> bytes:
        message = {"timeStamp": f"{slot}", "touID": f"user-{number ^ 1:03}", "content": CONTENT}
        return frame({"type": "message-send-request", "id": f"{slot}", "message": message})

    requests = [b"".join(request(number, slot) for slot in range(IN_FLIGHT)) for number in range(CONNECTIONS)]
    answer = b'{"type":"send-request-response","response":{"id":"0","value":true}}'
    delivery = (
        b'{"type":"message","message":{"timeStamp":"0","fromuID":"user-000","touID":"user-000","content":"%b"}}'
        % CONTENT.encode()
    )
    expected = IN_FLIGHT * (2 + len(answer) + 4 + len(delivery))
    for _ in range(rounds):
        with stopped(relay):
            for connection, data in zip(connections, requests, strict=True):
                connection.sendall(data)
        for connection in connections:
            received(connection, expected)
    for connection in connections:
        connection.close()


def logged_in_v2(port: int, uid: str) -> socket.socket:
    """Return a connection that is logged in as a user by v2.

    :raises ConnectionError: if the relay refuses the login.
    """
    connection = opened(port, HANDSHAKE_V2)
    connection.sendall(frame({"type": "auth-request", "SESSID": uid}))
    answer = next(frames_in(connection))
    if json.loads(answer).get("response") is not True:
        raise ConnectionError(f"not logged in: {answer!r}")
    return connection


def messages_v2(relay: subprocess.Popen[bytes], port: int, rounds: int, in_flight: int = IN_FLIGHT) -> None:
    """Send messages of v2 in lockstep, each with an id of its own.

    :param in_flight: the messages that each connection sends in a round.

    :raises ConnectionError: if an answer or a delivery is missing, or if the last ones do not say ``delivered``.
    """
    connections = [logged_in_v2(port, f"user-{number:03}") for number in range(CONNECTIONS)]
    numbers = count()

    def request(number: int) -> bytes:
        message = {"timeStamp": "0", "touID": f"user-{number ^ 1:03}", "content": CONTENT}
        return frame({"type": "message-send-request", "id": ID % next(numbers), "message": message})

    for turn in range(rounds):
        requests = [b"".join(request(number) for _ in range(in_flight)) for number in range(CONNECTIONS)]
        with stopped(relay):
            for connection, data in zip(connections, requests, strict=True):
                connection.sendall(data)
        for connection in connections:
            frames = list(islice(frames_in(connection), 2 * in_flight))
            delivered = sum(payload.endswith(b'"delivery":"delivered"}}') for payload in frames)
            if turn and delivered != in_flight:
                raise ConnectionError(f"the relay sent {frames!r}")
    for connection in connections:
        connection.close()


def logins(relay: subprocess.Popen[bytes], port: int, logins: int) -> None:
    """Log in and disconnect, one client after the other."""
    for number in range(logins):
        logged_in(port, f"user-{number:03}").close()


def returns(relay: subprocess.Popen[bytes], port: int, returns: int) -> None:
    """Have clients of v2 return, one after the other, with a resume token and `MISSED` messages to be sent.

    :raises ConnectionError: if the relay refuses a token, or sends something else than all of these messages.
    """
    messages_v2(relay, port, MISSED // 2, in_flight=1)  # a user's own messages are replayed, too
    tokens: dict[str, str] = {}
    epoch = ""
    for number in range(CONNECTIONS + returns):
        uid = f"user-{number % CONNECTIONS:03}"
        connection = opened(port, HANDSHAKE_V2)
        request: dict[str, object] = {"type": "auth-request", "SESSID": uid}
        if uid in tokens:
            request = {"type": "auth-request", "resume": tokens[uid], "after": {"epoch": epoch, "n": 0}}
        connection.sendall(frame(request))
        frames = frames_in(connection)
        answer = json.loads(next(frames))
        if answer.get("recovered", True) is not True or answer.get("n") != MISSED:
            raise ConnectionError(f"the relay answered {answer!r}")
        if uid in tokens and [json.loads(next(frames))["n"] for _ in range(MISSED)] != list(range(1, MISSED + 1)):
            raise ConnectionError("the messages did not come in order")
        epoch, tokens[uid] = answer["epoch"], answer["resume"]
        connection.close()


def instructions(tree: Path, server: str, load: Load, amount: int, options: Sequence[str] = ()) -> int:
    """Return all instructions of a relay from its start to its end, with a load in between.

    :param server: its name in `SERVERS`.
    :param options: further options of the relay.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as name, site() as url:
        folder = Path(name)
        nothing = folder / "none"
        command = [*SERVERS[server].command(Place(port, folder, url, nothing, nothing)), *options]
        counter = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "HOME": name}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # otherwise the first run would compile new modules
        output = folder / "output"  # an unread pipe would stop the relay
        with (
            output.open("wb") as file,
            subprocess.Popen(
                [*counter, *command], cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
            ) as running,
        ):
            try:
                until = time.monotonic() + PATIENCE
                while running.poll() is None and time.monotonic() < until:
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.1)
                load(running, port, amount)
            finally:
                running.terminate()
                running.wait(PATIENCE)
        said = output.read_text(errors="replace")
    found = COLLECTED.search(said)
    if found is None:
        raise RuntimeError(f"Valgrind has counted nothing:\n{said[-2000:]}")
    return int(found[1])


def main(command_line: list[str]) -> int:
    """Count, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("what", nargs="*", metavar="message|login|v2|return")
    parser.add_argument("--log", action="store_true", help="with the message log in SQLite on")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout of chatrelay")
    arguments = parser.parse_args(command_line)
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed: apt-get install valgrind")
    per_round = CONNECTIONS * IN_FLIGHT
    chosen = arguments.what or ["message", "login"]
    loads: dict[str, tuple[Load, tuple[int, int], int]] = {
        "message": (messages, ROUNDS, per_round),
        "login": (logins, LOGINS, 1),
        "v2": (messages_v2, ROUNDS, per_round),
        "return": (returns, LOGINS, 1),
    }
    if not set(loads) >= set(chosen):
        parser.error("choose from " + ", ".join(loads))
    for what in dict.fromkeys(chosen):
        load, (few, many), units = loads[what]
        server = "chatrelay-log" if arguments.log or what in ("v2", "return") else "chatrelay"
        # Valgrind is slow, so a resume token must last for longer than the default.
        options = ["--recheck-interval=86400"] if what == "return" else []
        counts = [instructions(arguments.tree.resolve(), server, load, amount, options) for amount in (few, many)]
        each = (counts[1] - counts[0]) / ((many - few) * units)
        print(f"{each:,.0f} instructions per {NAMES.get(what, what)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
