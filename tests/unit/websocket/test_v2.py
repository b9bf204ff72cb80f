"""Connections that speak v2, byte by byte: the choice of the dialect, live messages, replay, compression, stopping."""

from __future__ import annotations

import zlib
from typing import Any

from chatrelay.messagelog.memory import NoMessageLog
from chatrelay.testing import HeldMessageLog, KnownSessions
from chatrelay.websocket.registry import MIN_RETRY_SECONDS
from tests.support import v1, v2
from tests.support.frames import DEFLATE, TEXT, frames
from tests.support.memory import MemoryClient, Transport
from tests.support.relay_case import FAST_PATH, WebSocketTestCase, chat_factory
from tests.support.v2 import OFFER


class V2Client(MemoryClient):
    """A client that speaks v2.

    :ivar place: the last place that it was sent, or that its login named.
    """

    place = 0

    def __init__(self, factory: Any, *headers: str) -> None:
        super().__init__(factory, Transport())
        self.open(OFFER, *headers)

    def enter(self, sessid: str, after: Any = None) -> Any:
        """Log in; return the answer. What follows it stays to be heard."""
        self.say(v2.login(sessid, after))
        answer, *self._heard = self.hear()
        return answer

    _heard: list[Any] = []  # replaced, never changed

    def hears(self) -> list[Any]:
        """Return what came since the last look."""
        heard, self._heard = [*self._heard, *self.hear()], []
        return heard


class V2TestCase(WebSocketTestCase):
    """A relay with an inbox log, where Alice is 1 and Bo is 2."""

    def enter(self, sessid: str = "alice", after: Any = None, *headers: str) -> V2Client:
        """Connect and log in."""
        client = V2Client(self.factory, *headers)
        self.assertTrue(client.enter(sessid, after)["response"])
        return client

    def send(self, client: MemoryClient, to: Any, content: str = "hej", **more: Any) -> None:
        """Send a message, and let the relay log it."""
        client.say(v2.message(to, content, **more))
        self.clock.advance(0)

    def make_them_known(self) -> None:
        """Have Alice and Bo write to each other once."""
        alice, bo = self.enter("alice"), self.enter("bo")
        self.send(alice, 2)
        self.send(bo, 1)
        for client in (alice, bo):
            client.lost()


class Choice(V2TestCase):
    """The subprotocol that the relay chooses."""

    def chosen(self, *offered: str) -> str | None:
        """Return the dialect that the relay chooses of those that are offered."""
        answer = self.client().shake(f"Sec-WebSocket-Protocol: {', '.join(offered)}").decode()
        if not answer.startswith("HTTP/1.1 101 "):
            return None
        found = [line for line in answer.splitlines() if line.lower().startswith("sec-websocket-protocol:")]
        return found[0].partition(":")[2].strip()

    def test_v2_is_chosen_wherever_it_is_offered(self) -> None:
        self.assertEqual(self.chosen("chatrelay.v2"), "chatrelay.v2")
        self.assertEqual(self.chosen("chatrelay.v1", "chatrelay.v2"), "chatrelay.v2")
        self.assertEqual(self.chosen("chatrelay.v2", "x", "chatrelay.v1"), "chatrelay.v2")
        self.assertEqual(self.chosen("chatrelay.v1"), "chatrelay.v1")

    def test_v2_is_not_offered_without_an_inbox_log(self) -> None:
        known = KnownSessions({"alice": 1})
        self.factory = chat_factory(self.factory.parts.config, self.clock, known, NoMessageLog())
        self.assertIsNone(self.chosen("chatrelay.v2"))
        self.assertEqual(self.chosen("chatrelay.v2", "chatrelay.v1"), "chatrelay.v1")

    def test_client_that_offers_nothing_speaks_v1(self) -> None:
        client = self.client().open().log_in()
        client.send(1)
        self.clock.advance(0)
        self.assertEqual(
            client.hear(),
            [
                {"type": "message", "message": {"timeStamp": 1, "fromuID": 1, "touID": 1, "content": "hej"}},
                {"type": "send-request-response", "response": {"id": 1, "value": True}},
            ],
        )


class Messages(V2TestCase):
    """Live messages, and those that were missed."""

    def test_message_between_two_who_know_each_other_is_delivered(self) -> None:
        self.make_them_known()
        alice, bo = self.enter("alice"), self.enter("bo")
        self.send(alice, 2, id="0b9d-4711")
        ((message),) = bo.hears()
        self.assertEqual((message["type"], message["n"], message["id"]), ("message", 3, "0b9d-4711"))
        (answer,) = alice.hears()
        self.assertEqual(answer["response"]["delivery"], "delivered")
        self.assertEqual((answer["response"]["n"], answer["response"]["at"]), (3, message["at"]))

    def test_message_to_somebody_away_is_stored_and_replayed(self) -> None:
        bo = V2Client(self.factory)
        first = bo.enter("bo")
        bo.lost()
        alice = self.enter()
        for number in range(3):
            self.send(alice, "2", str(number))
        self.assertEqual([answer["response"]["delivery"] for answer in alice.hears()], ["stored"] * 3)
        bo = V2Client(self.factory)
        answer = bo.enter("bo", v2.after(first, 1))
        self.assertEqual((answer["n"], answer["recovered"]), (3, True))
        heard = bo.hears()
        self.assertEqual([(each["n"], each["message"]["content"]) for each in heard], [(2, "1"), (3, "2")])
        self.assertEqual(heard[0]["message"]["touID"], "2")

    def test_devices_of_a_user_see_the_same_places(self) -> None:
        devices = [self.enter() for _ in range(3)]
        bo = self.enter("bo")
        for number, device in enumerate(devices):
            self.send(device, 2, str(number))
            self.send(bo, 1, f"to {number}")
        seen = []
        for device in devices:
            heard = device.hears()
            places = [each["n"] if "n" in each else each["response"]["n"] for each in heard]
            self.assertEqual(places, [1, 2, 3, 4, 5, 6])
            seen.append([each for each in heard if each["type"] == "message"])
        self.assertEqual([len(each) for each in seen], [5, 5, 5])

    def test_v1_and_v2_talk_to_each_other(self) -> None:
        alice = self.enter()
        bo = self.client().open().log_in("bo")
        bo.send(1, "from v1", 5)
        self.clock.advance(0)
        self.assertEqual(bo.hear(), [{"type": "send-request-response", "response": {"id": 5, "value": True}}])
        self.send(alice, 2, "from v2")
        inside = {"timeStamp": 1, "fromuID": 1, "touID": 2, "content": "from v2"}
        self.assertEqual(bo.hear(), [{"type": "message", "message": inside}])
        message, answer = alice.hears()
        self.assertEqual((message["n"], "id" in message, message["message"]["fromuID"]), (1, False, "2"))
        self.assertEqual((answer["response"]["n"], answer["response"]["delivery"]), (2, "delivered"))

    def test_login_enters_between_two_batches(self) -> None:
        log = HeldMessageLog()
        self.factory = chat_factory(
            self.factory.parts.config, self.clock, KnownSessions({"alice": 1, "bo": 2}), log, chance=lambda: 0.5
        )
        alice = self.enter()
        self.send(alice, 2, "1")
        bo = V2Client(self.factory)
        bo.say(v2.login("bo"))
        self.assertEqual(bo.hear(), [])  # the inbox is looked up behind the batch
        self.send(alice, 2, "2")
        log.commit()
        self.clock.advance(0)
        (answer,) = bo.hear()
        self.assertEqual(answer["n"], 1)
        log.commit()
        (message,) = bo.hear()
        self.assertEqual((message["n"], message["message"]["content"]), (2, "2"))

    def test_history_and_conversations_are_answered(self) -> None:
        alice = self.enter()
        self.send(alice, 2, "one")
        alice.hears()
        alice.say(v2.history(2))
        alice.say(v2.conversations())
        found, listed = alice.hears()
        self.assertEqual([each["message"]["content"] for each in found["response"]["messages"]], ["one"])
        self.assertEqual([each["with"] for each in listed["response"]["conversations"]], ["2"])

    def test_slow_reader_is_sent_a_long_replay_in_pieces(self) -> None:
        alice = self.enter()
        bo = V2Client(self.factory)
        first = bo.enter("bo")
        bo.lost()
        for number in range(20):
            self.send(alice, 2, str(number) + "x" * 15_000)
            alice.hears()
            self.clock.advance(1)
        bo = V2Client(self.factory)
        bo.transport.write = self.slow(bo)  # type: ignore[method-assign]
        bo.say(v2.login("bo", v2.after(first, 0)))
        for _ in range(20):
            self.clock.advance(0)
        sent_at_once = len(bo.transport.value())
        self.assertLess(sent_at_once, 200_000)
        for _ in range(20):
            bo.protocol.outgoing.resumeProducing()
            self.clock.advance(0)
            self.clock.advance(0)
        _, *messages = bo.hears()
        self.assertEqual([each["n"] for each in messages], list(range(1, 21)))
        self.assertGreater(len(bo.transport.value()) + sent_at_once, 0)

    def slow(self, client: MemoryClient) -> Any:
        """Return a ``write`` of a transport that asks for a pause at once."""
        write = client.transport.write

        def write_and_pause(data: bytes) -> None:
            write(data)
            client.protocol.outgoing.pauseProducing()

        return write_and_pause


class Compressed(V2TestCase):
    """A connection with compression."""

    def test_messages_are_compressed_in_both_directions(self) -> None:
        self.factory = self.make_factory(compression=True)
        client = V2Client(self.factory, DEFLATE)
        client.say(v2.login("alice"))
        (answer,) = frames_of(client)
        self.assertEqual(answer["n"], 0)
        self.send(client, 1, "x" * 3000)
        (outcome,) = frames_of(client)
        self.assertEqual(outcome["response"]["n"], 1)
        client.say(v2.history(1))
        (found,) = frames_of(client)
        self.assertEqual(found["response"]["messages"][0]["message"]["content"], "x" * 3000)


def frames_of(client: MemoryClient) -> list[Any]:
    """Return the messages that came, some of them compressed."""
    import json

    found = []
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    stream = client.read()
    for opcode, payload in frames(stream):
        assert opcode == TEXT
        try:
            found.append(json.loads(payload))
        except ValueError:
            found.append(json.loads(inflate.decompress(payload + b"\0\0\xff\xff")))
    return found


class Stopping(V2TestCase):
    """The notice before a close with 4000."""

    def test_client_of_v2_is_told_when_to_come_back(self) -> None:
        new, old = self.enter(), self.client().open().log_in("bo")
        stopping = self.factory.registry.close_all()
        retry = int(MIN_RETRY_SECONDS * (1 + self.chance) * 1000)
        notice, end = new.hears()
        self.assertTrue(notice.pop("resume"))
        self.assertEqual(notice, {"type": "closing", "code": 4000, "retryAfter": retry})
        self.assertEqual(end, (4000, "the relay is stopping"))
        self.assertEqual(old.hear(), [(4000, "the relay is stopping")])
        for client in (new, old):
            client.lost()
        self.successResultOf(stopping)

    def test_visitor_is_told_too(self) -> None:
        client = V2Client(self.factory)
        self.factory.registry.close_all()
        self.assertEqual(
            [each["type"] if isinstance(each, dict) else each[0] for each in client.hear()], ["closing", 4000]
        )

    def test_connection_that_closes_for_another_reason_is_told_nothing(self) -> None:
        client = self.enter()
        self.factory.parts.logins.index.end_user(1)
        self.assertEqual(client.hears(), [(4505, "ended by the operator or the site")])


class Logins(V2TestCase):
    """Logins of the whole relay."""

    def test_log_that_cannot_be_read_is_answered_and_the_login_can_be_repeated(self) -> None:
        log = HeldMessageLog()
        log.holds_inboxes = True
        self.factory = chat_factory(self.factory.parts.config, self.clock, KnownSessions({"alice": 1}), log)
        client = V2Client(self.factory)
        client.say(v2.login("alice"))
        log.fail_inbox()
        self.assertEqual(client.hear(), [{**v1.DENIED, "reason": "log-unavailable"}])
        client.say(v2.login("alice"))
        self.assertEqual((client.hear(), len(self.factory.directory)), ([], 0))
        log.answer_inbox()
        self.assertTrue(client.hear()[0]["response"])
        self.assertEqual(len(self.factory.directory), 1)

    def test_client_that_disconnects_while_its_inbox_is_loaded_leaves_nothing(self) -> None:
        log = HeldMessageLog()
        log.holds_inboxes = True
        self.factory = chat_factory(self.factory.parts.config, self.clock, KnownSessions({"alice": 1}), log)
        client = V2Client(self.factory)
        client.say(v2.login("alice"))
        client.lost()
        log.answer_inbox()
        parts = self.factory.parts
        self.assertEqual((len(parts.directory), len(parts.logins), len(parts.logins.index)), (0, 0, 0))
        assert parts.v2 is not None
        self.assertEqual(len(parts.v2.inboxes), 0)

    def test_oldest_of_too_many_connections_is_closed(self) -> None:
        self.factory = self.make_factory(connections_per_user=1)
        first = self.enter()
        self.enter()
        self.assertEqual(first.hears(), [(4504, "too many connections of this user: the oldest goes")])

    def test_fast_path_is_what_the_tests_say(self) -> None:
        self.assertEqual(self.factory.parts.config.fast_path, FAST_PATH)


class People(V2TestCase):
    """What people are told of each other: receipts, presence and typing."""

    def setUp(self) -> None:
        super().setUp()
        self.make_them_known()
        self.alice, self.phone = self.enter("alice"), self.enter("alice")
        self.bo, self.bos_phone = self.enter("bo"), self.enter("bo")

    def heard(self) -> list[Any]:
        """Return what Alice, her phone, Bo and his phone hear that has no place."""
        self.clock.pump([0.125] * 4)
        clients = (self.alice, self.phone, self.bo, self.bos_phone)
        return [
            [frame for frame in client.hears() if frame["type"] not in ("message", "send-request-response")]
            for client in clients
        ]

    def test_sender_gets_receipts_on_all_devices_and_own_devices_the_mark(self) -> None:
        self.send(self.alice, 2)
        self.bo.say({"type": "received", "received": 3})
        receipt = {"type": "receipt", "with": "2", "received": 3}
        self.assertEqual(self.heard(), [[receipt], [receipt], [], []])
        self.bos_phone.say({"type": "read", "with": 1, "read": 3})
        receipt = {"type": "receipt", "with": "2", "read": 3}
        self.assertEqual(self.heard(), [[receipt], [receipt], [{"type": "read", "with": "1", "read": 3}], []])

    def test_typing_is_told(self) -> None:
        self.alice.say({"type": "typing", "touID": 2})
        typing = {"type": "typing", "fromuID": "1"}
        self.assertEqual(self.heard(), [[], [], [typing], [typing]])

    def test_watch_is_answered_and_followed_by_changes(self) -> None:
        self.alice.say({"type": "presence-request", "id": "p1", "of": ["2", 77]})
        response = {"id": "p1", "value": True, "online": ["2"], "offline": {}}
        self.assertEqual(self.heard()[0], [{"type": "presence-response", "response": response}])
        left_at = int(self.clock.seconds() * 1000)
        for client in (self.bo, self.bos_phone):
            client.lost()
        self.clock.pump([0.25] * 24)
        (frame,) = self.heard()[0]
        self.assertEqual((frame["type"], frame["uID"], frame["online"]), ("presence", "2", False))
        self.assertEqual(frame["lastSeen"], left_at)

    def test_login_names_the_features(self) -> None:
        answer = V2Client(self.factory).enter("alice")
        self.assertEqual(answer["features"], ["store", "receipts", "presence", "typing"])

    def test_message_that_is_sent_again_was_delivered_if_it_was_received(self) -> None:
        for client in (self.bo, self.bos_phone):
            client.lost()
        self.send(self.alice, 2, id="0b9d-4711")
        self.assertEqual(self.alice.hears()[-1]["response"]["delivery"], "stored")
        bo = self.enter("bo", after=None)
        bo.say({"type": "received", "received": 3})
        bo.lost()
        self.send(self.alice, 2, id="0b9d-4711", again=True)
        self.assertEqual(self.alice.hears()[-1]["response"]["delivery"], "delivered")

    def test_history_and_conversations_have_the_marks(self) -> None:
        self.send(self.alice, 2)
        self.bo.say({"type": "received", "received": 3})
        self.bo.say({"type": "read", "with": "1", "read": 1})
        self.heard()
        self.alice.say(v2.history(2))
        self.alice.say(v2.conversations())
        listed, found = None, None
        for frame in self.alice.hears():
            if frame["type"] == "history-response":
                found = frame["response"]
            elif frame["type"] == "conversations-response":
                (listed,) = frame["response"]["conversations"]
        assert found is not None and listed is not None
        for each in (found, listed):
            self.assertEqual((each["received"], each["read"], each["readByMe"]), (3, 1, 0))
        self.assertEqual(listed["unread"], 1)
