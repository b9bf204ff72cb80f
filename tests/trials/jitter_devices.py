"""The devices of the trial of jitter: clients of v2, of v1 and of Socket.IO on the same bad network.

Each connects, logs in, sends what its user writes, and comes back after each cut, as the documentation of its protocol
advises. None shares code with the relay. This module must not know when something is cut, or which messages must have
arrived: `tests.trials.jitter` does.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import uuid
from abc import ABC, abstractmethod
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from tests.support import v1, v2
from tests.support.frames import handshake
from tests.trials.lines import Line

FIRST_WAIT, LONGEST_WAIT = 0.3, 2.0
"""The approximate seconds before the first retry to connect, and the most: the wait doubles with each failure."""

RECEIVED_SECONDS = 0.5
"""The seconds for which a device of v2 collects what it has received before it says so."""

ACK_SECONDS = 10.0
"""The ``ackTimeout`` of Socket.IO's client, as in its documentation."""

CARELESS_PLACE = 1000
"""The place that a careless device says to have received at once: one beyond what it was sent."""

CONTENT_BYTES = 40


@dataclass(eq=False)
class Written:
    """A message that a user has written.

    :ivar number: its place among all that were written.
    :ivar device: which of the sender's devices sends it.
    :ivar at: when it was written.
    :ivar stream_place: which of this device's messages it is.
    :ivar by_v1: whether a guest sent it, by version 1.
    :ivar value: the answer; None without one.
    :ivar is_lost: whether its client has given up to find out what became of it.
    :ivar was_sent: whether it was sent before.
    :ivar acknowledged_at: when a device of the recipient first said to have received it.
    :ivar taken_at: the time that the relay gives it.
    """

    number: int
    id: str
    sender: User
    device: int
    at: float
    stream_place: int
    by_v1: bool = False
    value: bool | None = None
    reason: str = ""
    is_lost: bool = False
    was_sent: bool = False
    acknowledged_at: float = math.inf
    taken_at: int | None = None

    @property
    def content(self) -> str:
        """The content, which begins with the number."""
        return f"{self.number:07} ".ljust(CONTENT_BYTES, "x")

    @property
    def to(self) -> User:
        """The recipient."""
        assert self.sender.partner is not None
        return self.sender.partner


@dataclass(eq=False)
class User:
    """One of two users who write to each other.

    :ivar devices: two, of the dialect of the trial.
    :ivar guest: a third one that speaks version 1, if there is one.
    :ivar careless_until: when the connection ended on which a device said to have received what it was not sent.
    """

    number: int
    partner: User | None = None
    devices: list[Device] = field(default_factory=list)
    guest: Device | None = None
    careless_until: float = -math.inf

    @property
    def uid(self) -> str:
        """The uID."""
        return f"user-{self.number}"

    @property
    def sessid(self) -> str:
        """The SESSID, which the site knows."""
        return f"session-{self.number}"


@dataclass
class Receipt:
    """What a user was told of messages that a peer has received.

    :ivar place: a place in the inbox of `user`; 0 for nothing yet.
    """

    user: User
    place: int
    at: float
    frame: str


class Ledger:
    """What happened.

    :ivar written: all messages, by number.
    :ivar wrong: what must not happen.
    :ivar delays: seconds from writing to arrival, for each device of a recipient.
    :ivar setbacks: why devices had to try again, and how often.
    :ivar last_arrival: when something arrived for the last time.
    """

    def __init__(self) -> None:
        self.time = asyncio.get_running_loop().time
        self.written: list[Written] = []
        self.wrong: list[str] = []
        self.delays = array("d")
        self.receipts: list[Receipt] = []
        self.counts: Counter[str] = Counter()
        self.setbacks: Counter[str] = Counter()
        self.last_arrival = self.time()

    def write(self, sender: User, device: Device) -> Written:
        """Note a message that a user writes."""
        written = Written(
            len(self.written),
            str(uuid.uuid4()),
            sender,
            device.number,
            self.time(),
            device.streamed,
            device.number == 2,
        )
        device.streamed += 1
        self.written.append(written)
        return written


class Device(ABC):
    """One device of a user.

    :param address: where it comes from: any of 127.0.0.0/8.
    :param delay: seconds that bytes take in each direction.
    :ivar queue: what was written, and is to be sent.
    :ivar pending: what was sent, and is not answered, by id.
    :ivar arrivals: numbers of the messages of the partner that arrived, in order.
    :ivar own: numbers of the user's own messages that arrived.
    :ivar is_in: whether it is logged in.
    :ivar is_careless: whether its first connection says to have received what it was not sent; only in v2.
    """

    is_careless = False

    def __init__(self, ledger: Ledger, user: User, number: int, address: str, delay: float) -> None:
        self.ledger = ledger
        self.user = user
        self.number = number
        self._address = address
        self._delay = delay
        self._network = asyncio.Event()
        self._network.set()
        self._line: Line | None = None
        self._old: Line | None = None  # which the server takes for open
        self._wait = FIRST_WAIT
        self._return_after = 0.0
        self.is_in = False
        self.streamed = 0
        self.queue: deque[Written] = deque()
        self.pending: dict[str, Written] = {}
        self.arrivals: list[int] = []
        self.seen: set[int] = set()
        self.own: list[int] = []

    def __str__(self) -> str:
        return f"device {self.number} of {self.user.uid}"

    @abstractmethod
    def _handshake(self) -> bytes:
        """Return the opening handshake."""

    @abstractmethod
    def _log_in(self) -> None:
        """Begin the login, on a new connection."""

    @abstractmethod
    def _hear(self, payload: bytes) -> None:
        """Take a text frame."""

    @abstractmethod
    def _pump(self) -> None:
        """Send what can be sent now."""

    @abstractmethod
    def _disconnected(self) -> None:
        """Note that the connection has ended."""

    def _old_has_ended(self) -> None:
        """Note that the server, too, knows of the end of the connection before."""
        if self.is_careless and self.user.careless_until == math.inf:
            self.user.careless_until = self.ledger.time()

    @property
    def is_done(self) -> bool:
        """Whether it is logged in, and everything that was written has been sent and answered."""
        return self.is_in and not self.queue and not self.pending

    def write(self) -> None:
        """Write a message to the partner."""
        self.queue.append(self.ledger.write(self.user, self))
        if self.is_in:
            self._pump()

    async def live(self, port: int) -> None:
        """Connect, and come back whenever the connection ends, until cancelled."""
        while True:
            await self._network.wait()
            try:
                line = await Line.connect(port, self._address, self._handshake(), self._hear, self._delay)
            except (OSError, TimeoutError) as error:
                self.ledger.setbacks[type(error).__name__] += 1
                await self._pause()
                continue
            if not self._network.is_set():
                line.reset()
                continue
            self._line = line
            self._return_after = 0.0
            self._log_in()
            line.begin()
            code = await line.ended
            was_in, self.is_in, self._line = self.is_in, False, None
            if line is not self._old:
                self._old_has_ended()
            self._disconnected()
            if was_in:
                self._wait = FIRST_WAIT
            if code is not None:
                self.ledger.setbacks[f"closed with {code}"] += 1
                if code >= 4500:
                    self.ledger.wrong.append(f"{self} was closed with {code}")
            if self._network.is_set():
                await self._pause()

    def cut(self, seconds: float, quiet: bool) -> None:
        """Take the network away for some seconds.

        :param quiet: whether the server notices only when the device is back.
        """
        self._network.clear()
        asyncio.get_running_loop().call_later(seconds, self._network.set)
        line = self._line
        if line is None or line.is_lost:
            return
        self.ledger.counts["connections cut"] += 1
        self.ledger.counts["of them unnoticed by the server"] += quiet
        line.lose()
        self.ledger.counts["bytes lost"] += line.bytes_lost
        if quiet:
            self._drop_old()
            self._old = line
        else:
            line.reset()

    def leave(self) -> None:
        """Disconnect."""
        self._drop_old()
        if self._line is not None:
            self._line.reset()

    def _entered(self) -> None:
        """Note that the login has succeeded."""
        self.is_in = True
        self.ledger.counts["logins"] += 1
        self._drop_old()

    def _drop_old(self) -> None:
        if self._old is not None:
            self._old.reset()
            self._old = None
            self._old_has_ended()

    async def _pause(self) -> None:
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT)
        wait, self._return_after = max(self._return_after, wait * random.uniform(0.5, 1.5)), 0.0
        await asyncio.sleep(wait)

    def _say(self, value: object) -> None:
        if self._line is not None:
            self._line.say(v1.encoded(value))

    def _arrived(self, number: int) -> None:
        ledger = self.ledger
        ledger.last_arrival = ledger.time()
        written = ledger.written[number]
        if written.sender is self.user:
            self.own.append(number)
            return
        self.arrivals.append(number)
        if number not in self.seen:
            self.seen.add(number)
            if not written.by_v1:
                ledger.delays.append(ledger.last_arrival - written.at)

    def _answered(self, written: Written, value: bool, reason: str = "") -> None:
        self.pending.pop(written.id, None)
        written.value = value
        written.reason = reason


class _Paced(Device):
    """A device that keeps the relay's limits on messages."""

    _burst, _rate = 30.0, 10.0
    _tokens, _tokens_at = 0.0, 0.0
    _is_waiting = False

    @abstractmethod
    def _send(self, written: Written) -> None:
        """Send a message."""

    def _pump(self) -> None:
        now = self.ledger.time()
        self._tokens = min(self._burst, self._tokens + (now - self._tokens_at) * self._rate)
        self._tokens_at = now
        while self.queue and self._tokens >= 1:
            self._tokens -= 1
            written = self.queue.popleft()
            self.pending[written.id] = written
            self._send(written)
            written.was_sent = True
        if self.queue and not self._is_waiting:
            self._is_waiting = True
            asyncio.get_running_loop().call_later(1 / self._rate, self._pump_later)

    def _pump_later(self) -> None:
        self._is_waiting = False
        if self.is_in:
            self._pump()

    def _start_pacing(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._tokens, self._tokens_at = burst - 1, self.ledger.time()


class DeviceOfV2(_Paced):
    """A client of ``chatrelay.v2``: it keeps its inbox, resumes, and sends everything again that was not answered.

    :ivar place: the last place that it was sent.
    :ivar inbox: by place, the number of the message; None for a void place.
    :ivar last: the last place, as the relay said when it was asked at the end; None before. So is `is_told`: whether it was
        told of the conversations.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._epoch: str | None = None
        self._resume: str | None = None
        self._said = 0  # up to which it has said to have received
        self._is_collecting = False
        self.place = 0
        self.inbox: dict[int, int | None] = {}
        self.last: int | None = None
        self.is_told = False

    def _handshake(self) -> bytes:
        return handshake(v2.OFFER)

    def _log_in(self) -> None:
        after = None if self._epoch is None else {"epoch": self._epoch, "n": self.place}
        more = {} if self._resume is None else {"resume": self._resume}
        self._say(v2.login(self.user.sessid, after, **more))

    def _disconnected(self) -> None:
        # What was sent and not answered comes first when it is back, in the order in which it was sent.
        self.queue.extendleft(reversed(self.pending.values()))
        self.pending.clear()

    def _hear(self, payload: bytes) -> None:
        frame = json.loads(payload)
        match frame["type"]:
            case "message":
                self._occupy(frame["n"], self._number_of(frame))
            case "send-request-response":
                self._hear_answer(frame["response"])
            case "receipt":
                if "read" in frame or frame["with"] != self.user.partner.uid:  # type: ignore[union-attr]
                    self.ledger.wrong.append(f"{self} was told what nobody said: {frame}")
                self._told(frame.get("received", 0), frame["type"])
            case "void":
                for place in range(frame.get("from", frame["n"]), frame["n"] + 1):
                    self._occupy(place, None)
            case "auth-response":
                self._hear_login(frame)
            case "conversations-response":
                self._hear_conversations(frame["response"])
            case "pong":
                self.last = frame["last"]
            case "resume":
                self._resume = frame["resume"]
            case "closing":
                self._resume = frame.get("resume", self._resume)
                self._return_after = frame["retryAfter"] / 1000
            case _:
                self.ledger.wrong.append(f"{self} was sent {frame}")

    def finish(self) -> None:
        """Ask for the last place, and for the conversations."""
        self.last = None
        self._acknowledge()
        self._say(v2.ping())
        self.is_told = False
        self._say(v2.conversations())

    def _hear_login(self, answer: dict[str, Any]) -> None:
        if not answer["response"]:
            self.ledger.setbacks[answer.get("reason", "denied")] += 1
            assert self._line is not None
            self._line.reset()
            return
        if self._epoch is None:
            self.place = answer["n"]
        elif answer.get("recovered") is not True or answer["epoch"] != self._epoch:
            self.ledger.wrong.append(f"{self} was not recovered: {answer}")
        is_first = self._epoch is None
        self._epoch, self._resume = answer["epoch"], answer["resume"]
        limits = answer["limits"]
        self._start_pacing(limits["messageBurst"], limits["messagesPerSecond"])
        self._entered()
        if self.is_careless and is_first:
            self.user.careless_until = math.inf
            self._say({"type": "received", "received": CARELESS_PLACE})
        elif self.place:
            self._acknowledge()
        self._say(v2.conversations())
        self._pump()

    def _send(self, written: Written) -> None:
        request = v2.message(written.to.uid, written.content, written.id, written.number)
        if written.was_sent:
            request["again"] = True
            self.ledger.counts["messages sent again"] += 1
        self._say(request)

    def _hear_answer(self, response: dict[str, Any]) -> None:
        written = self.pending.get(response["id"])
        if written is None:
            self.ledger.wrong.append(f"{self} was answered twice, or without asking: {response}")
        elif response["value"]:
            self._answered(written, True)
            self._took(written, response["at"])
            if response["n"] == self.place + 1:
                self._occupy(response["n"], written.number)
            elif response["n"] <= self.place and self.inbox.get(response["n"]) != written.number:
                self.ledger.wrong.append(f"{self} has something else at the place of {written.content!r}: {response}")
        else:
            self._answered(written, False, response["reason"])

    def _number_of(self, frame: dict[str, Any]) -> int:
        """Return the number of a message that arrived, and check that it is as it was written."""
        message = frame["message"]
        number = int(message["content"][:7])
        written = self.ledger.written[number]
        sent = {"fromuID": written.sender.uid, "touID": written.to.uid, "content": written.content, "timeStamp": number}
        if message != sent or frame.get("id") != (None if written.by_v1 else written.id):
            self.ledger.wrong.append(f"{self} was sent {frame}, and {sent} was written")
        self._took(written, frame["at"])
        return number

    def _took(self, written: Written, at: int) -> None:
        if written.taken_at not in (None, at):
            self.ledger.wrong.append(f"{self} was told another time for {written.content!r}: {at}")
        written.taken_at = at

    def _occupy(self, place: int, number: int | None) -> None:
        if place != self.place + 1:
            self.ledger.wrong.append(f"{self}: place {place} came after place {self.place}")
        self.place = place
        self.inbox[place] = number
        self.ledger.last_arrival = self.ledger.time()
        if number is not None:
            self._arrived(number)
        if not self._is_collecting:
            self._is_collecting = True
            asyncio.get_running_loop().call_later(RECEIVED_SECONDS, self._collected)

    def _collected(self) -> None:
        self._is_collecting = False
        if self.is_in:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Say how far it has received."""
        now = self.ledger.time()
        for place in range(self._said + 1, self.place + 1):
            number = self.inbox.get(place)
            if number is not None and self.ledger.written[number].to is self.user:
                written = self.ledger.written[number]
                written.acknowledged_at = min(written.acknowledged_at, now)
        self._said = self.place
        self._say({"type": "received", "received": self.place})

    def _hear_conversations(self, response: dict[str, Any]) -> None:
        if not response["value"]:
            self.ledger.setbacks[response["reason"]] += 1
            return
        for conversation in response["conversations"]:
            self._told(conversation.get("received", 0), "conversations-response")
        self.is_told = True

    def _told(self, place: int, frame: str) -> None:
        if place:
            self.ledger.receipts.append(Receipt(self.user, place, self.ledger.time(), frame))


class DeviceOfV1(_Paced):
    """A client of version 1. What was sent and not answered when the connection ends remains unknown."""

    def _handshake(self) -> bytes:
        return handshake()

    def _log_in(self) -> None:
        self._say(v1.login(self.user.sessid))

    def _disconnected(self) -> None:
        for written in self.pending.values():
            written.is_lost = True
        self.pending.clear()

    def _hear(self, payload: bytes) -> None:
        frame = json.loads(payload)
        match frame["type"]:
            case "message":
                self._arrived(int(frame["message"]["content"][:7]))
            case "send-request-response":
                response = frame["response"]
                self._answered(self.pending[response["id"]], response["value"], response.get("reason", ""))
            case "auth-response":
                if frame["response"]:
                    self._start_pacing(30, 10)
                    self._entered()
                    self._pump()
                else:
                    self.ledger.setbacks[frame.get("reason", "denied")] += 1
                    assert self._line is not None
                    self._line.reset()

    def _send(self, written: Written) -> None:
        self._say(v1.message(written.to.uid, written.content, written.id, written.number))


class DeviceOfSocketIO(Device):
    """A client of Socket.IO 4, as the official one with ``retries`` without end, and ``ackTimeout``.

    It speaks Engine.IO 4 over WebSocket alone. It sends one message at a time, and sends it again until it is
    acknowledged. If the server offers connection state recovery, it asks for it with the offset of the last packet.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pid: str | None = None
        self._offset: str | None = None
        self._acks = 0
        self._waits_for: int | None = None  # the number of the acknowledgement that is pending

    def _handshake(self) -> bytes:
        return handshake(target="/socket.io/?EIO=4&transport=websocket")

    def _log_in(self) -> None:
        pass  # the server speaks first

    def _disconnected(self) -> None:
        self._waits_for = None

    @property
    def is_done(self) -> bool:
        return self.is_in and not self.queue

    def _hear(self, payload: bytes) -> None:
        text = payload.decode()
        kind, rest = text[:1], text[1:]
        if kind == "0":
            auth = {"token": self.user.sessid}
            if self._pid is not None:
                auth |= {"pid": self._pid} | ({} if self._offset is None else {"offset": self._offset})
            self._say_text("40" + json.dumps(auth))
        elif kind == "2":
            self._say_text("3")
        elif kind == "4":
            self._hear_packet(rest[:1], rest[1:])

    def _hear_packet(self, kind: str, rest: str) -> None:
        if kind == "0":
            pid = json.loads(rest).get("pid")
            self.ledger.counts["connections recovered"] += pid is not None and pid == self._pid
            self._pid = pid
            self._entered()
            self._pump()
        elif kind == "2":
            arguments = json.loads(rest)
            self._arrived(int(arguments[1]["content"][:7]))
            if self._pid is not None and isinstance(arguments[-1], str):
                self._offset = arguments[-1]
        elif kind == "3":
            number, _, _ = rest.partition("[")
            if int(number) == self._waits_for:
                self._waits_for = None
                self._answered(self.queue.popleft(), True)
                self._pump()
        else:
            self.ledger.wrong.append(f"{self} was sent the packet {kind}{rest}")

    def _pump(self) -> None:
        if self.queue and self._waits_for is None:
            written = self.queue[0]
            self.ledger.counts["messages sent again"] += written.was_sent
            written.was_sent = True
            number = self._waits_for = self._acks
            self._acks += 1
            message = {"id": written.id, "to": written.to.uid, "content": written.content, "timeStamp": written.number}
            self._say_text(f"42{number}" + json.dumps(["message", message]))
            asyncio.get_running_loop().call_later(ACK_SECONDS, self._not_acknowledged, number)

    def _not_acknowledged(self, number: int) -> None:
        if self._waits_for == number and self.is_in:
            self._waits_for = None
            self._pump()

    def _say_text(self, text: str) -> None:
        if self._line is not None:
            self._line.say(text.encode())
