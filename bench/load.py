"""The load generator: it keeps connections busy, counts answers and deliveries, and measures the server's CPU time.

Connections are in pairs that write to each other. Every answer and every delivery is checked. A refusal, a wrong
recipient, an unexpected answer, a closed connection or a missing answer ends the run with an error. The frames are made
beforehand and masked with one fixed key. All messages that one read makes possible are sent with one write. So a
message costs this process less than it costs the fastest peer.

It is a separate process. Its plan is JSON on the command line, and its results go to standard output as JSON:

    python -m bench.load '{"kind": "closed", "port": 8080, "pids": [4711], …}'
"""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import struct
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.proc import cpu_seconds_of, process_and_descendants, resident_kib_of

CONTENT = "Forty bytes of somebody's conversation.."
CONNECTING_AT_ONCE = 32
PATIENCE = 15.0
"""The seconds after which a missing answer or delivery counts as lost."""

MAX_PENDING = 5_000
"""The most unanswered messages at a fixed rate. chatrelay refuses messages as ``busy`` if 10,000 wait for its log. At
2,000 a second, as many arrive while the machine holds it up for five seconds."""

QUANTILES = 1000
"""The number of parts into which the reported latencies are divided."""

MASK = b"\x37\xfa\x21\x3d"


@dataclass(frozen=True)
class Plan:
    """The plan of the load generator.

    :ivar kind: ``closed`` keeps `in_flight` messages of every connection pending; ``open`` sends `rate` messages a
        second, unless `MAX_PENDING` are unanswered; ``idle`` only connects and logs in; ``login`` connects, logs in and
        disconnects repeatedly, `in_flight` at once.
    :ivar pid: the server's process. Its descendants count, too.
    :ivar dialect: ``v1``, ``v2`` or ``mqtt``.
    :ivar warm_up: seconds of load before the measurement.
    :ivar window: measured seconds.
    :ivar authority: a PEM file; if it is given, connections use TLS.
    """

    kind: str
    port: int
    pid: int
    connections: int
    in_flight: int = 1
    rate: float = 0.0
    dialect: str = "v1"
    warm_up: float = 1.0
    window: float = 4.0
    authority: str | None = None


@dataclass
class Sample:
    """The results of one run, within the window.

    :ivar messages: answered messages (or logins).
    :ivar deliveries: messages that reached their recipients.
    :ivar cpu: CPU seconds of the server.
    :ivar load_cpu: CPU seconds of the load generator.
    :ivar kib_per_connection: the memory of the server for each idle connection.
    :ivar late: with a rate, the seconds by which the latest hundredth of the messages was sent too late.
    :ivar latencies: quantiles of seconds from sending to arrival, evenly spaced.
    """

    seconds: float
    messages: int
    deliveries: int
    cpu: float
    load_cpu: float
    kib_per_connection: float = 0.0
    late: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Trouble(Exception):
    """An error of the server, or of the load generator."""


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a complete frame of a client (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    else:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    key = (MASK * (size // 4 + 1))[:size]
    body = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + MASK + body.to_bytes(size, "big")


class Load:
    """One run.

    :ivar running: whether an answered message is sent again.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.members: list[Member] = []
        self.sent = self.answers = self.deliveries = 0
        self.running = False
        self.sent_at: dict[str, float] = {}
        self.latencies: list[float] = []
        self.late: list[float] = []
        self._tasks: list[asyncio.Future[None]] = []
        self._trouble: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._member, self._busy = Member, Busy
        if plan.dialect == "mqtt":
            from bench.mqtt import MqttMember

            self._member = MqttMember
        elif plan.dialect == "v2":
            from bench.member_v2 import BusyV2, MemberV2

            self._member, self._busy = MemberV2, BusyV2
        self._tls = None if plan.authority is None else ssl.create_default_context(cafile=plan.authority)

    def fail(self, what: str) -> None:
        """End the run."""
        if not self._trouble.done():
            self._trouble.set_exception(Trouble(what))

    def _watch(self, task: asyncio.Future[None]) -> None:
        """End the run when a task in the background fails."""

        def ended(task: asyncio.Future[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self.fail(repr(error))

        self._tasks.append(task)  # asyncio itself keeps no reference to it
        task.add_done_callback(ended)

    async def unless_trouble(self, doing: Coroutine[Any, Any, Any]) -> Any:
        """Wait for `doing`, or for the first error.

        :raises Trouble: that error.
        """
        task = asyncio.ensure_future(doing)
        await asyncio.wait((task, self._trouble), return_when=asyncio.FIRST_COMPLETED)
        if self._trouble.done():
            task.cancel()
            self._trouble.result()
        return task.result()

    async def connect(self, number: int) -> Member:
        """Connect and log in."""
        member = self._member(self, number)
        scheme = "ws" if self._tls is None else "wss"
        await ws_connect(
            lambda: member,
            f"{scheme}://127.0.0.1:{self.plan.port}{member.path}",
            ssl_context=self._tls,
            extra_headers=member.headers,
            websocket_handshake_timeout=PATIENCE,
            read_buffer_init_size=2048,
        )
        await asyncio.wait_for(member.logged_in, PATIENCE)
        return member

    async def connect_until(self, count: int) -> None:
        """Make logged-in connections until there are `count`."""
        turns = asyncio.Semaphore(CONNECTING_AT_ONCE)

        async def one(number: int) -> Member:
            async with turns:
                return await self.connect(number)

        numbers = range(len(self.members), count)
        self.members += await self.unless_trouble(_all([one(number) for number in numbers]))

    async def run(self) -> Sample:
        """Execute the plan."""
        runs: dict[str, Callable[[], Coroutine[Any, Any, Sample]]] = {
            "closed": self._closed,
            "open": self._open,
            "idle": self._idle,
            "login": self._login,
        }
        return await runs[self.plan.kind]()

    async def _closed(self) -> Sample:
        await self.connect_until(self.plan.connections)
        _no_collections()
        self.running = True
        for busy in [self._busy(member) for member in self.members]:
            busy.begin()
        sample = await self._measure()
        await self._drain()
        return sample

    async def _open(self) -> Sample:
        await self.connect_until(self.plan.connections)
        _no_collections()
        self.running = True
        self._watch(asyncio.ensure_future(self._send_at_rate()))
        sample = await self._measure()
        await self._drain()
        sample.latencies = quantiles(self.latencies)
        sample.late = sorted(self.late)[int(len(self.late) * 0.99)] if self.late else 0.0
        return sample

    async def _send_at_rate(self) -> None:
        began = time.perf_counter()
        while self.running:
            due = min(int((time.perf_counter() - began) * self.plan.rate), self.answers + MAX_PENDING)
            while self.sent < due:
                member = self.members[self.sent % len(self.members)]
                now = self.sent_at[str(self.sent)] = time.perf_counter()
                self.late.append(now - began - (self.sent + 1) / self.plan.rate)
                member.send_one(str(self.sent))
                self.sent += 1
            # uvloop counts in milliseconds. A shorter wait would be zero, and the loop would never rest.
            next_due = (self.sent + 1) / self.plan.rate - (time.perf_counter() - began)
            await asyncio.sleep(max(0.001, next_due))

    async def _idle(self) -> Sample:
        pids = process_and_descendants(self.plan.pid)
        # The first hundred connections pay for objects that are made once.
        await self.connect_until(100)
        await self.unless_trouble(asyncio.sleep(self.plan.warm_up))
        before = resident_kib_of(pids)
        await self.connect_until(self.plan.connections)
        await self.unless_trouble(asyncio.sleep(self.plan.warm_up))
        after = resident_kib_of(pids)
        sample = await self._measure()
        sample.kib_per_connection = (after - before) / (self.plan.connections - 100)
        return sample

    async def _login(self) -> Sample:
        self.running = True

        async def one_after_another(number: int) -> None:
            while self.running:
                member = await self.connect(number)
                number += self.plan.in_flight
                member.leave()
                self.answers += 1
                self.deliveries += 1

        doing = [asyncio.ensure_future(one_after_another(number)) for number in range(self.plan.in_flight)]
        for task in doing:
            self._watch(task)
        sample = await self._measure()
        self.running = False
        await self.unless_trouble(_all(doing))
        return sample

    async def _measure(self) -> Sample:
        """Warm up, then measure the window."""
        await self.unless_trouble(asyncio.sleep(self.plan.warm_up))
        pids = process_and_descendants(self.plan.pid)
        self.latencies.clear()
        self.late.clear()
        before = self._look(pids)
        await self.unless_trouble(asyncio.sleep(self.plan.window))
        after = self._look(pids)
        seconds, cpu, load_cpu, messages, deliveries = (b - a for a, b in zip(before, after, strict=True))
        self.latencies, self.late = list(self.latencies), list(self.late)  # later messages are not measured
        return Sample(seconds, int(messages), int(deliveries), cpu, load_cpu)

    def _look(self, pids: list[int]) -> tuple[float, float, float, int, int]:
        return time.perf_counter(), cpu_seconds_of(pids), time.process_time(), self.answers, self.deliveries

    async def _drain(self) -> None:
        """Stop sending; wait until every message is answered and delivered."""
        self.running = False
        until = time.perf_counter() + PATIENCE
        while not self.sent == self.answers == self.deliveries:
            if time.perf_counter() > until or max(self.answers, self.deliveries) > self.sent:
                raise Trouble(f"{self.sent} messages sent, {self.answers} answered, {self.deliveries} delivered")
            await self.unless_trouble(asyncio.sleep(0.05))


class Member(WSListener):
    """One connection of a user who writes to one other user, with chatrelay's own protocol.

    :ivar logged_in: done when the server has accepted the login.
    """

    path: ClassVar[str] = "/"
    headers: ClassVar[dict[str, str]] = {}
    opcode: ClassVar[WSMsgType] = WSMsgType.TEXT

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.uid = f"user-{number}"
        self.to_uid = f"user-{number ^ 1}"
        self.logged_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaving = False

    # The protocol -------------------------------------------------------------

    def log_in(self) -> None:
        """Send the login."""
        self.transport.send(self.opcode, json.dumps({"type": "auth-request", "SESSID": self.uid}).encode())

    def request(self, number: str) -> bytes:
        """Return the frame that sends a message."""
        message = {"timeStamp": number, "touID": self.to_uid, "content": CONTENT}
        request = {"type": "message-send-request", "id": number, "message": message}
        return json.dumps(request, separators=(",", ":")).encode()

    def meaning(self, payload: bytes) -> tuple[str, str]:
        """Decode a frame: ``("login", "")``, ``("answer", number)``, ``("delivery", number)``, or ``("", "")``.

        :raises Trouble: for an unexpected frame. Errors of the decoder are raised, too.
        """
        match json.loads(payload):
            case {"type": "auth-response", "response": True, **rest} if not rest:
                return "login", ""
            case {"type": "send-request-response", "response": {"id": str(number), "value": True, **rest}} if not rest:
                return "answer", number
            case {
                "type": "message",
                "message": {"timeStamp": str(number), "fromuID": self.to_uid, "touID": self.uid, "content": content},
            } if content == CONTENT:
                return "delivery", number
        raise Trouble("an unexpected frame")

    # One at a time ------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Log in: the handshake is complete. picows calls this."""
        self.transport = transport
        self.log_in()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Count a received frame. picows calls this."""
        payload = frame.get_payload_as_bytes()
        load = self.load
        try:
            if frame.msg_type != self.opcode:
                raise Trouble(f"a frame of type {frame.msg_type}")
            what, number = self.meaning(payload)
            if what == "answer":
                load.answers += 1
            elif what == "delivery":
                load.latencies.append(time.perf_counter() - load.sent_at.pop(number))
                load.deliveries += 1
            elif what == "login":
                self.logged_in.set_result(None)
        except Exception as error:
            load.fail(f"{self.uid} got {payload!r}: {error!r}")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Report a connection that the server closed. picows calls this."""
        if not self._leaving:
            self.load.fail(f"the server closed the connection of {self.uid}")

    def send_one(self, number: str) -> None:
        """Send one message with a number."""
        self.transport.send(self.opcode, self.request(number))

    def leave(self) -> None:
        """Close the connection."""
        self._leaving = True
        self.transport.disconnect(graceful=False)


READ_INTO = memoryview(bytearray(65536))
"""One buffer for all connections. Each read is processed before the next one."""


class Busy(asyncio.BufferedProtocol):
    """A member's connection that is kept busy. It replaces picows after the login.

    The meaning of a whole read is looked up by its bytes. Only bytes that were never read before are decoded.
    """

    __slots__ = ("_frames", "_known_frames", "_known_reads", "_load", "_member", "_requests", "_rest", "_write")

    DELIVERY = -1
    """The value in `_known_frames` for a delivery. For an answer, it is the number of the request to send again."""

    WHOLE_READS = 2
    """The most frames of a read that is remembered as a whole."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._load = load = member.load
        opcode = member.opcode.value
        self._requests = [masked(opcode, member.request(str(slot))) for slot in range(load.plan.in_flight)]
        self._known_frames: dict[bytes, int] = {}
        self._known_reads: dict[bytes, tuple[int, int, bytes]] = {}
        self._rest = b""
        transport = member.transport.underlying_transport
        self._write = transport.write
        transport.set_protocol(self)

    def begin(self) -> None:
        """Send as many messages as may be pending."""
        self._load.sent += len(self._requests)
        self._write(b"".join(self._requests))

    def get_buffer(self, size_hint: int) -> memoryview:
        """Return the buffer for the next read. asyncio calls this."""
        return READ_INTO

    def buffer_updated(self, size: int) -> None:
        """Count the frames in the bytes that were read, and send again. asyncio calls this."""
        data = bytes(READ_INTO[:size])
        if self._rest:
            data = self._rest + data
            self._rest = b""
        answers, deliveries, again = self._known_reads.get(data) or self._taken_apart(data)
        load = self._load
        load.deliveries += deliveries
        if answers:
            load.answers += answers
            if load.running:
                load.sent += answers
                self._write(again)

    def connection_lost(self, error: Exception | None) -> None:
        """Report a connection that the server closed. asyncio calls this."""
        self._load.fail(f"the server closed the connection of {self._member.uid}")

    def _taken_apart(self, data: bytes) -> tuple[int, int, bytes]:
        """Return the number of answers and deliveries in a read, and the requests to send again; keep the rest."""
        known = self._known_frames
        slots: list[int] = []
        start = frames = 0
        size = len(data)
        while size - start >= 2:
            length = data[start + 1]
            payload = start + 2
            if length >= 126:
                payload += 2 if length == 126 else 8
                if size < payload:
                    break
                length = int.from_bytes(data[start + 2 : payload], "big")
            end = payload + length
            if size < end:
                break
            frame = data[start:end]
            slot = known.get(frame)
            if slot is None:
                slot = known[frame] = self._looked_at(data[start], data[payload:end])
            if slot != self.DELIVERY:
                slots.append(slot)
            frames += 1
            start = end
        found = len(slots), frames - len(slots), b"".join([self._requests[slot] for slot in slots])
        if start < size:
            self._rest = data[start:]
        elif frames <= self.WHOLE_READS:
            self._known_reads[data] = found
        return found

    def _looked_at(self, head: int, payload: bytes) -> int:
        """Return the meaning of a new frame."""
        try:
            if head != 0x80 | self._member.opcode.value:
                raise Trouble(f"a frame that begins with {head:#x}")
            what, number = self._member.meaning(payload)
            if what not in ("answer", "delivery"):
                raise Trouble("a frame that is not expected now")
            return self.DELIVERY if what == "delivery" else int(number)
        except Exception as error:
            self._load.fail(f"{self._member.uid} got {payload!r}: {error!r}")
            return self.DELIVERY


def quantiles(values: list[float]) -> list[float]:
    """Return at most `QUANTILES` + 1 values, evenly spaced in their order, including the least and the greatest."""
    ordered = sorted(values)
    if len(ordered) <= QUANTILES:
        return ordered
    return [ordered[round(part * (len(ordered) - 1) / QUANTILES)] for part in range(QUANTILES + 1)]


async def _all(doing: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*doing))


def _no_collections() -> None:
    """Turn the garbage collector off, because it would pause the load. Nothing here makes reference cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()


async def _run(plan: Plan) -> Sample:
    return await Load(plan).run()


def main(text: str) -> int:
    """Execute the plan given as JSON; print the results."""
    try:
        sample = uvloop.run(_run(Plan(**json.loads(text))))
    except (Trouble, OSError, TimeoutError, ValueError) as error:
        print(json.dumps({"trouble": str(error) or repr(error)}))
        return 1
    print(json.dumps(asdict(sample)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
