"""What a burst of one client costs the others, counted in turns of a reactor that the test controls.

The sockets are real, so that Twisted decides how much one turn reads and writes. They are UNIX sockets, on which sent
bytes arrive at once. The test takes each turn: first what was due, then one read and one write of each ready socket, as
Twisted's reactors do. Nothing depends on time.
"""

from __future__ import annotations

import contextlib  # not its names: trial takes a module's `suppress` for warnings of its own
import json
import select
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.config.options import Config
from chatrelay.interfaces import MessageLog
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.testing import HeldMessageLog, KnownSessions
from tests.support import v1
from tests.support.client import Speaker
from tests.support.frames import CLOSE, FIN, HANDSHAKE, Decoder, close_code, frame
from tests.support.relay_case import FAST_PATH, chat_factory

TURN = 64 * 1024
"""Bytes of one connection that one turn takes."""

BURST = 16 * TURN
SIZE = 110
"""Bytes of each frame of a burst."""

ANSWER_TURNS = 2
"""A message is read in one turn; in the next it is committed, handed over and written."""

NEVER = 1e9
"""Seconds that no test lets pass."""


class HeldReactor(MemoryReactorClock):
    """A reactor whose turns the test takes."""

    def __init__(self) -> None:
        super().__init__()
        self._soon: list[Callable[[], object]] = []

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        """Schedule a call; without a delay it is due in the next turn, whereas a Clock would call it in this one."""
        if not delay:
            self._soon.append(lambda: callable(*args, **kw))
            delay = NEVER
        return super().callLater(delay, callable, *args, **kw)

    def turn(self) -> None:
        """Take one turn."""
        due, self._soon = self._soon, []
        for call in due:
            call()
        readable, writable, _ = select.select(self.getReaders(), self.getWriters(), [], 0)
        for transport in readable:
            transport.doRead()
        for transport in writable:
            transport.doWrite()


class Client(Speaker):
    """The client's end of one connection, logged in. It reads when the test calls `hear`.

    :param room: how much the system takes for it before it reads, in bytes.
    """

    def __init__(self, case: Fairness, sessid: str, room: int = 128 * 1024) -> None:
        self.heard: list[Any] = []
        self._unsent = b""
        self._stream = b""
        self._decoder = Decoder()
        self._socket, accepted = socket.socketpair()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
        for end in (self._socket, accepted):
            end.setblocking(False)
            case.addCleanup(end.close)
        address = ("192.0.2.1", 4321)
        protocol = case.factory.buildProtocol(IPv4Address("TCP", *address))
        transport = Server(accepted, protocol, address, None, 0, case.reactor)  # type: ignore[arg-type]
        transport.setTcpNoDelay = lambda enabled: None  # type: ignore[method-assign]  # a Unix socket has none
        protocol.makeConnection(transport)  # type: ignore[union-attr]
        case.clients.append(self)
        self.write(HANDSHAKE)
        self.say_login(sessid)
        while not self._stream.endswith(b'"response":true}'):
            case.turns(1)
            self._read()
        self._stream = b""

    @property
    def has_more(self) -> bool:
        """Whether the socket has not accepted everything yet."""
        return bool(self._unsent)

    def write(self, data: bytes) -> None:
        """Send bytes; what the socket does not accept now is sent before each of the next turns."""
        self._unsent += data
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def hear(self) -> list[Any]:
        """Return everything received since the login: JSON values, and the close code."""
        self._read()
        for first, payload in self._decoder.feed(self._stream):
            self.heard.append(close_code(payload) if first == FIN | CLOSE else json.loads(payload))
        self._stream = b""
        return self.heard

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._socket.recv(1024 * 1024):
                self._stream += data


def request(to: int, id: int, content: str = "hej") -> bytes:
    """Return the frame of a message-send-request."""
    return frame(v1.encoded(v1.message(to, content, id)))


def answer(id: int) -> dict[str, object]:
    """Return the answer that reports success."""
    return {"type": "send-request-response", "response": {"id": id, "value": True}}


class Fairness(SynchronousTestCase):
    """A relay whose reactor the test controls."""

    def setUp(self) -> None:
        self.reactor = HeldReactor()
        self.clients: list[Client] = []
        self.log = MemoryMessageLog()
        self.serve(self.log)

    def turns(self, count: int, *readers: Client) -> None:
        """Take this many turns, while some clients read."""
        for _ in range(count):
            for client in self.clients:
                client.write(b"")
            self.reactor.turn()
            for reader in readers:
                reader.hear()

    def serve(self, log: MessageLog, **options: Any) -> None:
        """Make a relay with this log and these options."""
        options |= {"messages_per_second": 0, "user_messages_per_second": 0}  # a burst is what is looked at
        sessions = KnownSessions({"alice": 1, "bo": 2, "chen": 3})
        self.factory = chat_factory(Config(fast_path=FAST_PATH, **options), self.reactor, sessions, log)


class Bursts(Fairness):
    """One client has sent more than the relay can read at once."""

    def burst(self, to: int = 1) -> Client:
        """Return Alice, whose socket stays full of messages of `SIZE` bytes."""
        alice = Client(self, "alice")
        alice.write(b"".join(request(to, 10_000 + number) for number in range(BURST // SIZE)))
        return alice

    def test_turn_of_the_reactor_reads_a_bounded_part_of_a_burst(self) -> None:
        alice = self.burst()
        for turns in (1, 2, 3):
            self.turns(1)
            # Messages read in the previous turn have been committed in this one.
            self.assertLessEqual(len(self.log.rows), (turns - 1) * TURN // SIZE + 1)
        self.assertGreater(len(self.log.rows), TURN // SIZE)
        self.assertTrue(alice.has_more)

    def test_burst_does_not_delay_the_answers_of_another_client(self) -> None:
        bo = Client(self, "bo")
        bo.write(request(2, 1))
        turns_alone = self.turns_until_answered(bo, 1)
        alice = self.burst()
        for id in range(2, 5):
            bo.write(request(2, id))
            self.assertEqual(self.turns_until_answered(bo, id), turns_alone)
        self.assertLessEqual(turns_alone, ANSWER_TURNS)
        self.assertTrue(alice.has_more)
        answered = sum(heard["type"] == "send-request-response" for heard in alice.hear())
        self.assertLessEqual(answered, (3 * ANSWER_TURNS * TURN) // SIZE + 1)

    def turns_until_answered(self, client: Client, id: int) -> int:
        """Return the number of turns until a message is answered."""
        for turns in range(1, 50):
            self.turns(1)
            if answer(id) in client.hear():
                return turns
        raise AssertionError("not answered in 50 turns")

    def test_messages_of_one_turn_are_one_batch(self) -> None:
        log = HeldMessageLog()
        self.serve(log)
        alice, bo = Client(self, "alice"), Client(self, "bo")
        alice.write(b"".join(request(2, id) for id in range(400)))
        bo.write(request(1, 1))
        self.turns(2)
        ((batch, _),) = log.batches
        self.assertEqual(len(batch), 401)

    def test_message_waits_for_no_more_than_two_commits(self) -> None:
        log = HeldMessageLog()
        self.serve(log)
        bo = Client(self, "bo")
        alice = self.burst()
        self.turns(2)
        self.assertEqual(len(log.batches), 1)
        bo.write(request(2, 1))
        self.turns(3)  # meanwhile the burst goes on
        for _ in range(2):
            self.assertEqual(bo.hear(), [])
            self.assertEqual(len(log.batches), 1)
            log.commit()
            self.turns(1)
        self.assertIn(answer(1), bo.hear())
        self.assertGreater(len(log.rows), 2 * (TURN // SIZE))
        self.assertTrue(alice.has_more)

    def test_messages_are_logged_in_the_order_they_were_read(self) -> None:
        alice, bo, chen = (Client(self, sessid) for sessid in ("alice", "bo", "chen"))
        for round in range(10):
            alice.write(b"".join(request(3, round * 100 + id, f"alice {round * 100 + id}") for id in range(100)))
            bo.write(request(3, round, f"bo {round}"))
            self.turns(1, alice, bo, chen)
        self.turns(ANSWER_TURNS, alice, bo, chen)
        contents = [heard["message"]["content"] for heard in chen.hear()]
        self.assertEqual(contents, [row.message.content for row in self.log.rows])
        for name, count in (("alice", 1000), ("bo", 10)):
            mine = [content for content in contents if content.startswith(name)]
            self.assertEqual(mine, [f"{name} {number}" for number in range(count)])
        self.assertEqual(alice.hear(), [answer(id) for id in range(1000)])
        self.assertEqual(bo.hear(), [answer(id) for id in range(10)])


class BackPressure(Fairness):
    """One client does not read."""

    BUDGET = 100_000

    def test_burst_to_a_slow_reader_is_accepted_up_to_its_budget(self) -> None:
        self.serve(self.log, unread_size=self.BUDGET)
        alice, deaf, chen = Client(self, "alice"), Client(self, "bo", room=4096), Client(self, "chen")
        answers = alice.heard
        id = 0
        while not answers or answers[-1]["response"]["value"]:
            self.assertLess(id, 2000, "all was taken for one who does not read")
            alice.write(b"".join(request(2, id + number, "x" * 10_000) for number in range(20)))
            id += 20
            while len(answers) < id:
                self.turns(1, alice)
        chen.write(request(3, 1))
        self.turns(ANSWER_TURNS, chen)
        self.assertIn(answer(1), chen.heard)
        self.assertEqual([each["response"]["id"] for each in answers], list(range(id)))
        accepted = sum(each["response"]["value"] for each in answers)
        self.assertEqual([each["response"]["value"] for each in answers], [True] * accepted + [False] * (id - accepted))
        refusals = {each["response"].get("reason") for each in answers[accepted:]}
        self.assertEqual(refusals, {"receiving-user-not-connected"})
        # Now it reads: everything that was promised is there, and then why it ends.
        while deaf.heard[-1:] != [4002]:
            self.turns(1, deaf)
        self.assertEqual(len(deaf.heard), accepted + 1)
        # A turn's worth may be on its way to the transport, and another in it, before the client counts as behind.
        self.assertLessEqual(accepted * 10_000, self.BUDGET + 2 * TURN)
        self.assertGreater(accepted * 10_000, self.BUDGET - 10_100)
