"""The trial of ``again``: `test_again` runs it on the relay, `test_the_checkers` on broken builds.

Two people speak v2, with two devices each; a third one speaks v1. A relay is killed again and again on one message log.
After each restart, the people of v2 send everything again that was not answered. What every device has, and what every
answer said, is compared with the log as SQLite reads it.
"""

from __future__ import annotations

import enum
import random
import signal
import socket
import sqlite3
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.support import PATIENCE, v2
from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.programs import RelayProcess, Site
from tests.support.promise import Account, Request, Trial, read_log
from tests.support.v2_client import Device
from tests.trials.durability import Stage

UNBOUNDED = ("--stranger-messages", "0", "--offline-messages", "0")
"""Options with which nobody's inbox is full."""

WAITS = "from tests.trials.broken import build; build('waits after each commit')"
"""The time between a commit and its answers is long enough to see the commit, and to kill the relay then."""

ALL = 10**9


SECONDS_OF_A_READ = 0.25
"""The time that a client leaves between two requests for history; the relay takes five a second."""


class Moment(enum.Enum):
    """When a relay is killed."""

    RANDOM = enum.auto()
    AFTER_COMMIT = enum.auto()
    """Just after a commit, before its answers."""
    AFTER_LEAVING = enum.auto()
    """Shortly after the recipient of a message of v1 has left, who was there when it was sent."""


MOMENTS = (*[Moment.AFTER_COMMIT] * 5, Moment.RANDOM, Moment.AFTER_LEAVING, Moment.RANDOM)
"""The moments of the kills, one after another; then from the beginning."""


@dataclass(frozen=True)
class Answer:
    """One answer ``value:true``.

    :ivar round: the round in which it came.
    """

    n: int
    at: int
    round: int


@dataclass
class Sent:
    """One message that was sent.

    :ivar round: the round in which it was sent first.
    :ivar answers: all that came.
    """

    request: dict[str, Any]
    round: int
    answers: list[Answer] = field(default_factory=list)


class Person:
    """A user with two devices of v2, who sends from one of them at a time.

    :ivar sent: what this user has sent, in order, by id.
    :ivar heard: the messages of others that each device was sent.
    """

    def __init__(self, site: Site, uid: str) -> None:
        site.users[uid] = uid
        self.uid = uid
        self.devices = [Device("", uid, max_queue=None) for _ in range(2)]
        self.sent: dict[str, Sent] = {}
        self.heard: list[list[dict[str, Any]]] = [[], []]
        self._sender = 0

    @property
    def unanswered(self) -> list[Sent]:
        """What was not answered yet."""
        return [sent for sent in self.sent.values() if not sent.answers]

    def connect(self, url: str, sender: int, other: bool) -> None:
        """Log in with one device, or with both; each is sent what it missed.

        :param sender: the device that sends from now on.
        """
        self._sender = sender
        for number, device in enumerate(self.devices):
            if number == sender or other:
                device.url = url
                had = device.epoch
                answer = device.connect()
                assert answer["response"] is True, answer
                assert had is None or answer.get("recovered") is True, f"not recovered: {answer}"

    def say_again(self, both: bool) -> int:
        """Send everything again that was not answered; return how much it was.

        :param both: whether from both devices, if both are here.
        """
        unanswered = self.unanswered
        for number, device in enumerate(self.devices):
            if device.client is not None and (both or number == self._sender):
                for sent in unanswered:
                    device.say({**sent.request, "again": True})
        return len(unanswered)

    def return_at_once(self) -> int:
        """Cut the sender's connection with whatever is under way, come back, and send again."""
        device = self.devices[self._sender]
        cut(device)
        self.connect(device.url, self._sender, other=False)
        return self.say_again(both=False)

    def say(self, to: str, content: str, round: int) -> None:
        """Send a new message."""
        request = v2.message(to, content, time_stamp=len(self.sent))
        self.sent[request["id"]] = Sent(request, round)
        self.devices[self._sender].say(request)

    def hear(self, number: int, round: int) -> dict[str, Any]:
        """Read the next frame of a device."""
        frame: dict[str, Any] = self.devices[number].hear()
        if frame["type"] == "send-request-response":
            response = frame["response"]
            assert response["value"] is True, f"nothing may be refused: {frame}"
            self.sent[response["id"]].answers.append(Answer(response["n"], response["at"], round))
        elif frame["type"] == "message" and frame["message"]["fromuID"] != self.uid:
            self.heard[number].append({"type": "message", "message": frame["message"]})
        return frame

    def hear_to_the_end(self, round: int) -> None:
        """Read all devices until their connections end."""
        for number, device in enumerate(self.devices):
            if device.client is not None:
                try:
                    while True:
                        self.hear(number, round)
                except ConnectionClosed as end:
                    assert end.rcvd is None, f"a device of {self.uid} was closed: {end}"
                    device.disconnect()

    def catch_up(self, round: int) -> None:
        """Read until everything is answered, and both devices have everything."""
        while unanswered := self.unanswered:
            try:
                self.hear(self._sender, round)
            except TimeoutError:
                text = f"{len(unanswered)} messages that were sent again are not answered"
                raise AssertionError(text) from None
        for number, device in enumerate(self.devices):
            device.say(v2.ping())
            while (frame := self.hear(number, round))["type"] != "pong":
                pass
            while device.place < frame["last"]:
                self.hear(number, round)

    def accounts(self) -> Iterator[Account]:
        """Return what happened in the words of v1, in which the checker of the promise reads.

        Messages from one user to another are in order, whoever sends again from whichever device. Messages to different
        recipients are not, so each recipient has an account.
        """
        for to in sorted({sent.request["message"]["touID"] for sent in self.sent.values()}):
            all_sent = [sent for sent in self.sent.values() if sent.request["message"]["touID"] == to]
            requests = [_request(sent.request) for sent in all_sent]
            yield Account(self.uid, requests, [_answer_of_v1(sent.request) for sent in all_sent if sent.answers])
        for heard in self.heard:
            yield Account(self.uid, (), heard)


def cut(*devices: Device) -> None:
    """End the connections of devices without a close frame, with whatever is under way."""
    clients = [device.client.socket for device in devices if device.client is not None]
    for client in clients:
        client.socket.shutdown(socket.SHUT_RDWR)
    for device in devices:
        device.disconnect()


class PersonOfV1:
    """A user with one connection of v1 in each round.

    :ivar accounts: what happened on each.
    """

    def __init__(self, site: Site, uid: str) -> None:
        site.users[uid] = uid
        self.uid = uid
        self.accounts: list[Account] = []
        self._client: Client | None = None
        self._requests: list[Request] = []

    def connect(self, url: str) -> None:
        """Log in."""
        self._client = Client(url, max_queue=None)
        assert self._client.log_in(self.uid) == {"type": "auth-response", "response": True}
        self._requests = []

    def say(self, to: str, content: str) -> None:
        """Send a message."""
        assert self._client is not None
        request = Request(len(self._requests), str(len(self._requests)), to, content)
        self._requests.append(request)
        self._client.send(to, content, request.id, request.time_stamp)

    def hear_to_the_end(self) -> None:
        """Read until the connection ends."""
        assert self._client is not None
        code, heard = self._client.closed()
        self._client.close()
        self.accounts.append(Account(self.uid, self._requests, heard, code))


class Killings:
    """A relay that is killed again and again.

    :param seed: for what happens at random.
    """

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._choose = random.Random(seed)
        self._people = [Person(stage.site, uid) for uid in ("anna", "bert")]
        self._of_v1 = PersonOfV1(stage.site, "clara")
        self._said = 0
        self._started: list[float] = []  # milliseconds since 1970, of each relay
        self.counts: Counter[str] = Counter()

    def kill(self, moment: Moment) -> None:
        """Start a relay, let everybody send, and kill it."""
        round = len(self._started)
        with self._relay("" if moment is Moment.RANDOM else WAITS) as relay:
            for person in self._people:
                other = round == 0 or self._choose.random() < 0.5
                person.connect(relay.url, self._choose.randrange(2) if round else 0, other)
            self._of_v1.connect(relay.url)
            with last_number(self._stage.log) as last:
                for person in self._people:
                    self.counts["sent again"] += person.say_again(both=self._choose.random() < 0.5)
                for _ in range(self._choose.randrange(moment is not Moment.RANDOM, 4)):
                    before = last()
                    for _ in range(self._choose.randrange(3, 8)):
                        self._say(round)
                    if self._choose.random() < 0.3:
                        self.counts["sent again"] += self._choose.choice(self._people).return_at_once()
                        self.counts["connections cut"] += 1
                    if moment is Moment.RANDOM:
                        time.sleep(self._choose.uniform(0.0, 0.03))
                    else:
                        self._until_committed(last, before)
                if moment is Moment.AFTER_LEAVING:
                    self._leave(last)
                relay.process.send_signal(signal.SIGKILL)
            for person in self._people:
                person.hear_to_the_end(round)
            self._of_v1.hear_to_the_end()
            status = relay.wait()
            assert status == -signal.SIGKILL, status

    def settle(self) -> None:
        """Start a relay for the last time; let everything be answered, and every device have everything."""
        round = len(self._started)
        with self._relay() as relay:
            for person in self._people:
                person.connect(relay.url, 0, True)
                self.counts["sent again"] += person.say_again(both=True)
            for person in self._people:
                person.catch_up(round)
            for person in self._people:
                person.catch_up(round)  # what the others sent meanwhile
                self._check_reads(relay, person)
                for device in person.devices:
                    device.disconnect()
            relay.stop()

    def check(self) -> None:
        """Compare what everybody was told with the log."""
        rows = read_places(self._stage.log)
        for person in self._people:
            inbox = inbox_of(person.uid, rows)
            for device in person.devices:
                assert device.inbox == inbox, f"a device of {person.uid} has not what the log has"
            places: dict[str, list[Place]] = {}
            for row in rows:
                if row.unique_id is not None and row.from_uid == person.uid:
                    places.setdefault(row.unique_id, []).append(row)
            assert places.keys() <= person.sent.keys(), f"{person.uid} has not sent what is in the log"
            for id, sent in person.sent.items():
                found = places.get(id, [])
                assert len(found) == 1, f"{id!r} was sent again, and has {len(found)} places"
                assert found[0].delivered, f"{id!r} was accepted, and is void"
                for answer in sent.answers:
                    assert (answer.n, answer.at) == (found[0].from_place, found[0].received_at // 1000), (
                        f"{id!r} was answered with {answer}, and is at {found[0].from_place}"
                    )
                self._count(sent)
        trial = Trial()
        accounts = [account for person in self._people for account in person.accounts()]
        trial.add([*accounts, *self._of_v1.accounts], settled=False)
        trial.check_log(read_log(self._stage.log))
        requests = [request.content for account in self._of_v1.accounts for request in account.requests]
        self.counts["void messages"] = sum(not row.delivered for row in rows)
        self.counts["messages of v1"] = len(requests)
        self.counts["deliveries to v1"] = sum(
            frame["type"] == "message" for account in self._of_v1.accounts for frame in account.heard
        )
        self.counts["messages of v1 that were not answered"] = len(requests) - sum(
            frame["type"] == "send-request-response" for account in self._of_v1.accounts for frame in account.heard
        )
        print(trial, dict(self.counts), sep="\n")

    @property
    def hits(self) -> int:
        """How many kills came between the commit of a message of v2 and its answer."""
        return len(
            {
                self._round_of(sent.answers[0].at)
                for person in self._people
                for sent in person.sent.values()
                if self._round_of(sent.answers[0].at) < sent.answers[0].round
            }
        )

    def _count(self, sent: Sent) -> None:
        """Count what became of a message; the time of its row says in which round it was committed."""
        self.counts["messages of v2"] += 1
        committed, answered = self._round_of(sent.answers[0].at), sent.answers[0].round
        self.counts["answered from the log"] += committed < answered
        self.counts["first taken when sent again"] += sent.round < committed
        self.counts["answered more than once"] += len(sent.answers) > 1

    def _round_of(self, at: int) -> int:
        return bisect_right(self._started, at) - 1

    @contextmanager
    def _relay(self, prelude: str = "") -> Iterator[RelayProcess]:
        self._started.append(time.time() * 1000)
        with self._stage.relay(*UNBOUNDED, prelude=prelude) as relay:
            yield relay

    def _say(self, round: int) -> None:
        self._said += 1
        content = f"{self._said}/{'å' * self._choose.randrange(40)}"
        sender, other = self._choose.sample(self._people, 2)
        match self._choose.randrange(10):
            case 0 | 1:
                self._of_v1.say(other.uid, content)
            case 2 | 3:
                sender.say(self._of_v1.uid, content, round)
            case 4:
                sender.say(sender.uid, content, round)
            case _:
                sender.say(other.uid, content, round)

    def _leave(self, last: LastNumber) -> None:
        """Let a message of v1 be committed whose recipient leaves before it is handed over: its places become void."""
        person = self._choose.choice(self._people)
        before = last()
        self._said += 1
        self._of_v1.say(person.uid, str(self._said))
        self._until_committed(last, before)
        cut(*person.devices)
        time.sleep(self._choose.uniform(0.0, 0.4))

    def _until_committed(self, last: LastNumber, before: int) -> None:
        until = time.monotonic() + PATIENCE
        while last() <= before:
            assert time.monotonic() < until, f"{PATIENCE} s were not enough for a commit"

    def _check_reads(self, relay: RelayProcess, person: Person) -> None:
        """Compare the replay from the beginning, and the history of each conversation, with what a device has."""
        device = Device(relay.url, person.uid, max_queue=None)
        device.epoch = person.devices[0].epoch
        answer = device.connect()
        assert answer.get("recovered") is True, answer
        device.catch_up(answer["n"])
        assert device.inbox == person.devices[0].inbox, f"the replay for {person.uid} is another inbox"
        found: dict[int, Any] = {}
        for uid in (self._of_v1.uid, *(person.uid for person in self._people)):
            before = ALL
            more = True
            while more:
                time.sleep(SECONDS_OF_A_READ)
                page = device.ask(v2.history(uid, before=before, limit=100))
                assert page["value"] is True, page
                more = page["more"]
                for entry in page["messages"]:
                    before = entry.pop("n")
                    assert before not in found, f"place {before} is in two conversations"
                    found[before] = entry
        stands = {place: kept for place, kept in device.inbox.items() if kept is not None}
        assert found == stands, f"the history of {person.uid} has not what the devices have"
        device.disconnect()


@dataclass(frozen=True)
class Place:
    """One message in the log, with its places."""

    from_uid: str
    from_place: int
    to_uid: str
    to_place: int
    unique_id: str | None
    time_stamp: str | int
    content: str
    received_at: int
    delivered: int


def read_places(path: Path) -> list[Place]:
    """Read a message log that nobody writes any more."""
    with closing(sqlite3.connect(path)) as log:
        return [
            Place(*row)
            for row in log.execute(
                """SELECT from_uid, from_place, to_uid, to_place, unique_id, time_stamp, content, received_at, delivered
                   FROM message ORDER BY number"""
            )
        ]


def inbox_of(uid: str, rows: Iterable[Place]) -> dict[int, Any]:
    """Return the inbox of a user as a device has it."""
    inbox: dict[int, Any] = {}
    for row in rows:
        message = {
            "timeStamp": row.time_stamp,
            "fromuID": row.from_uid,
            "touID": row.to_uid,
            "content": row.content,
        }
        kept = {"at": row.received_at // 1000, "message": message}
        if row.unique_id is not None:
            kept["id"] = row.unique_id
        for user, place in {(row.from_uid, row.from_place), (row.to_uid, row.to_place)}:
            if user == uid:
                assert place not in inbox, f"place {place} of {uid} was given twice"
                inbox[place] = kept if row.delivered else None
    assert sorted(inbox) == list(range(1, len(inbox) + 1)), f"the inbox of {uid} has holes"
    return inbox


class LastNumber:
    """The number of the last message in a log that a relay writes."""

    def __init__(self, log: sqlite3.Connection) -> None:
        self._log = log

    def __call__(self) -> int:
        number: int
        (number,) = self._log.execute(
            "SELECT coalesce(max(number), 0) FROM message WHERE block = (SELECT max(first_number) FROM block)"
        ).fetchone()
        return number


@contextmanager
def last_number(path: Path) -> Iterator[LastNumber]:
    """Look into a log that a relay writes. It is opened for reading only: closing it must copy no write-ahead log."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as log:
        yield LastNumber(log)


def _request(request: dict[str, Any]) -> Request:
    message = request["message"]
    return Request(request["id"], message["timeStamp"], message["touID"], message["content"])


def _answer_of_v1(request: dict[str, Any]) -> dict[str, Any]:
    return {"type": "send-request-response", "response": {"id": request["id"], "value": True}}


def killed_between_commit_and_answer(stage: Stage, evidence: Evidence, kills: int) -> None:
    """Kill a relay by SIGKILL, mostly just after a commit; let people send everything again that was not answered."""
    killings = Killings(stage, seed=kills)
    try:
        for number in range(kills):
            killings.kill(MOMENTS[number % len(MOMENTS)])
        killings.settle()
    except ConnectionClosed as end:
        raise AssertionError(f"somebody was closed: {end}") from end
    killings.check()
    counts = killings.counts
    evidence.count("kills", kills, at_least=kills)
    evidence.count("kills between a commit and its answer", killings.hits, at_least=kills // 3)
    evidence.count("connections cut besides", counts["connections cut"], at_least=kills // 4)
    evidence.count("messages sent again", counts["sent again"], at_least=kills * 3)
    evidence.count("messages of v2", counts["messages of v2"], at_least=kills * 5)
    evidence.count("answered from the log", counts["answered from the log"], at_least=kills)
    evidence.count("first taken when sent again", counts["first taken when sent again"], at_least=kills // 20)
    evidence.count("answered more than once", counts["answered more than once"], at_least=kills // 20)
    evidence.count("messages of v1", counts["messages of v1"], at_least=kills // 2)
    evidence.count("deliveries to v1", counts["deliveries to v1"], at_least=kills // 20)
    evidence.count("void messages", counts["void messages"], at_least=kills // 50)
