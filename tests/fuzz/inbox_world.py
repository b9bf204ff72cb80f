"""Users of v2 and v1 around a relay without sockets, and what must hold of everything that they see.

`InboxWorld` joins the real `Relay`, `Storing`, `Inboxes` and `Cursor` with a message log that the test moves. A `Phone`
is a client: it keeps what it has across connections, as docs/protocol.rst tells clients to. Each action is a method.
The rules at the end of this docstring are checked at each frame that a phone reads, and when everything has come to
rest:

1. a phone sees places in ascending order without a hole, and no two phones see something else at the same place, but
   void for what was erased; what is told to be erased is void, and is told once to each user who had it;
2. a phone that was recovered has exactly what the log has;
3. an id has one place;
4. an accepted message stands, and a refused one is seen by nobody;
5. each request on a connection that lives is answered once;
6. an answer says ``delivered`` only of somebody who has written to the sender;
7. from one connection to one user, messages arrive in the order sent; a client of v1 gets v1's frames only.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from unittest.mock import patch

import attrs
from twisted.internet.defer import Deferred

from chatrelay.messagelog import memory
from chatrelay.messagelog.memory import MemoryMessageLog, MemoryRow
from chatrelay.model import InboxState, LogBusy, LogUnavailable, Message
from chatrelay.relay.inbox import can_replay
from chatrelay.relay.storing import StorePolicy
from chatrelay.testing import HeldMessageLog, RecordedConnection
from chatrelay.wire.codes import Reason
from tests.support.inboxes import InboxClient
from tests.support.store_case import Device, World

USERS = ("alice", "bo", "cy")
POLICY = StorePolicy(stranger_messages=6, offline_messages=40)
REPLAY = 60
"""Places that are replayed at most."""

TRIMMED_AT_ONCE = 4
"""Messages that are trimmed at once."""


class MovedLog(HeldMessageLog):
    """A held message log with marks that wait, a trim, and a crash.

    :ivar marking: the marks that wait: (numbers, the Deferred).
    :ivar unmarked: the numbers of messages whose mark has failed so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.marking: list[tuple[Sequence[int], Deferred[None]]] = []
        self.unmarked: set[int] = set()

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Keep a mark until `mark`."""
        self.marking.append((numbers, Deferred()))
        return self.marking[-1][1]

    def mark(self, is_committed: bool) -> None:
        """Commit the oldest mark, or fail it."""
        numbers, marked = self.marking.pop(0)
        if is_committed:
            MemoryMessageLog.mark_undelivered(self, numbers)
            self.unmarked.difference_update(numbers)
            marked.callback(None)
        else:
            self.unmarked.update(numbers)
            marked.errback(LogUnavailable("the disk is full"))

    def trim(self, before: int) -> Deferred[int]:
        """Delete old messages, a few at once. Their rows keep the messages, for the checks."""
        messages = [row.message for row in self.rows]
        with patch.object(memory, "MAX_TRIMMED", TRIMMED_AT_ONCE):
            trimmed = super().trim(before)
        for row, message in zip(self.rows, messages, strict=True):
            row.message = message
        return trimmed

    def crash(self, is_committed: bool) -> MovedLog:
        """Return the log as a new process finds it.

        :param is_committed: whether the batch that was being committed is in it.
        """
        log = MovedLog()
        log.rows, log.inboxes, log.marks, log.epoch = self.rows, self.inboxes, self.marks, self.epoch
        log.trimmed, log.first_places = self.trimmed, self.first_places
        if is_committed:
            for messages, _ in [*self.doubtful, *self.batches][:1]:
                for message in messages:
                    log._keep(message)
        return log


class Connection(Device):
    """One connection of a phone.

    :ivar asked: how often each id was submitted on it.
    :ivar answered: how often each id was answered on it.
    """

    def __init__(self, fuzzed: InboxWorld, phone: Phone, is_slow: bool) -> None:
        super().__init__(fuzzed.world, phone.user, is_slow)
        self._fuzzed = fuzzed
        self.phone = phone
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.sent: list[tuple[str, str]] = []  # (recipient, content) of messages that did not come again

    def stored(self, message: Message, place: int, at: int, delivered: bool) -> None:
        """Note the answer, and send it."""
        self._fuzzed.accepted(self.user, message, place, at, delivered)
        super().stored(message, place, at, delivered)

    def refused(self, message: Message, reason: Reason) -> None:
        """Note the answer, and send it."""
        self._fuzzed.refused.add(message.content)
        super().refused(message, reason)

    def unknown(self, message: Message) -> None:
        """Note that there is no answer, and close."""
        self.answered[str(message.client_id)] += 1
        super().unknown(message)


@attrs.define(eq=False)
class Phone:
    """A client of v2.

    :ivar start: the place after which it has everything.
    :ivar cursor: the last place that it has.
    :ivar seen: what is at each place after `start`.
    :ivar sent: the messages that it has sent: (id, recipient, content). After `again-time` it sends none of them again.
    """

    user: str
    name: int
    connection: Connection | None = None
    start: int | None = None
    cursor: int = 0
    seen: dict[int, str] = attrs.field(factory=dict)
    sent: list[tuple[str, str, str]] = attrs.field(factory=list)


class OldSubmitter:
    """A session of v1: notes what became of each message."""

    def __init__(self, fuzzed: InboxWorld) -> None:
        self._fuzzed = fuzzed
        self.answers: Counter[str] = Counter()

    def accepted(self, message: Message) -> None:
        """Note it."""
        self.answers[message.content] += 1
        self._fuzzed.accepted_v1.add(message.content)

    def refused(self, message: Message, reason: Reason) -> None:
        """Note it."""
        self.answers[message.content] += 1
        self._fuzzed.refused.add(message.content)


class InboxWorld:
    """Everything, and all actions. Numbers choose among what is there, modulo how many there are."""

    def __init__(self) -> None:
        self.log = MovedLog()
        self.world = World(POLICY, self.log)
        self.phones = [Phone(user, number) for number, user in enumerate((*USERS, *USERS[:2]))]
        self.old: dict[str, RecordedConnection | None] = dict.fromkeys(USERS)
        self.old_submitter = OldSubmitter(self)
        self.old_asked: Counter[str] = Counter()
        self.old_seen: list[tuple[str, list[str]]] = []  # the recipient, and what each connection of v1 was sent
        self.at_place: dict[tuple[str, int], str] = {}
        self.places: dict[tuple[str, str], tuple[int, int]] = {}
        self.answers: dict[str, int] = {}
        self.old_contents: dict[tuple[str, str], str] = {}  # of messages that are not sent again any more
        self.refused: set[str] = set()
        self.late: set[str] = set()  # messages that were refused, and sent again later
        self.accepted_v1: set[str] = set()
        self.unmarked: set[str] = set()  # messages of v1 without an answer, or without a mark, when the relay died
        self.erased_ids: set[tuple[str, str]] = set()
        self.erased: set[str] = set()  # contents
        self.connections: list[Connection] = []
        self.is_broken = False  # whether a rule has failed already, so that the end says nothing more
        self.failures: list[str] = []  # what is wrong with answers: a submitter must not raise
        self._numbers = itertools.count(1)

    # Phones

    def connect(self, which: int, is_slow: bool, has_after: bool) -> None:
        """Log a phone in; if it was connected, it comes by a new connection, and the old one is still there."""
        phone = self.phones[which % len(self.phones)]
        if phone.connection is not None:
            self.read(which)
            phone.connection = None  # it is dying: nobody reads it any more
        after = phone.cursor if has_after and phone.start is not None else None
        connection = Connection(self, phone, is_slow)
        self.connections.append(connection)
        phone.connection = connection
        world = self.world

        def enter(state: InboxState) -> None:
            if phone.connection is not connection:
                return
            last = world.inboxes.settled(phone.user, state.last)
            is_recovered = after is not None and can_replay(after, state.first, last, REPLAY)
            world.directory.add(phone.user, connection)  # type: ignore[arg-type]
            connection.cursor = world.inboxes.enter(phone.user, connection, state.last, after if is_recovered else None)
            connection.send(f"login {last} {int(is_recovered)}".encode())
            connection.cursor.start()

        def fail(_: object) -> None:
            connection.is_open = False
            if phone.connection is connection:
                phone.connection = None

        self.log.inbox(phone.user).addCallbacks(enter, fail)

    def cut(self, which: int, part: float) -> None:
        """Cut a phone's connection: it has read a part of what was sent."""
        phone = self.phones[which % len(self.phones)]
        connection = phone.connection
        if connection is not None:
            self._read(phone, connection.frames[: int(len(connection.frames) * part)])
            connection.leave()
            phone.connection = None

    def cut_dying(self) -> None:
        """Cut the connections that nobody reads any more."""
        read = {phone.connection for phone in self.phones}
        for connection in self.connections:
            if connection not in read and connection.is_open:
                connection.leave()

    def read(self, which: int) -> None:
        """Have a phone read everything."""
        phone = self.phones[which % len(self.phones)]
        if phone.connection is not None:
            self._read(phone, phone.connection.take())
            if not phone.connection.is_open:
                phone.connection = None
            else:
                phone.connection.drain()

    def _read(self, phone: Phone, frames: list[str]) -> None:
        connection = phone.connection
        assert connection is not None
        for frame in frames:
            first, word, *rest = frame.split()
            if first == "login":
                if rest == ["0"]:
                    phone.start = phone.cursor = int(word)
                    phone.seen = {}
            elif first == "refused":
                connection.answered[word] += 1
            elif word == "answer":
                connection.answered[rest[0]] += 1
                if int(first) == phone.cursor + 1:
                    self._sees(phone, int(first), f"message {self._content_of(phone, rest[0])}")
            elif word == "void":
                low, high = map(int, first.split("-"))
                for place in range(low, high + 1):
                    self._sees(phone, place, "void")
            else:
                self._sees(phone, int(first), f"{word} {' '.join(rest)}")
                if word == "erased":
                    self._forgets(phone, rest)

    def _forgets(self, phone: Phone, ranges: list[str]) -> None:
        for low, high in (map(int, each.split("-")) for each in ranges):
            for place in range(low, high + 1):
                row = self.log.inboxes[phone.user][place - 1]
                assert not row.is_message, f"{phone.user} is told that place {place} was erased, and it is there"
                if place in phone.seen:
                    phone.seen[place] = "void"

    def _content_of(self, phone: Phone, id: str) -> str:
        sent = {known: content for known, _, content in phone.sent}
        return sent.get(id) or self.old_contents[phone.user, id]

    def _sees(self, phone: Phone, place: int, what: str) -> None:
        if place != phone.cursor + 1:
            self.is_broken = True
            raise AssertionError(f"{phone.user} {phone.name} has {phone.cursor} and is sent {place}: {what}")
        phone.cursor = place
        phone.seen[place] = what
        before = self.at_place.setdefault((phone.user, place), what)
        if what != before:
            row = self.log.inboxes[phone.user][place - 1]
            assert row.number <= self.log.trimmed or not row.is_message, (
                f"place {place} of {phone.user} was {before}, and is {what}"
            )
            assert "void" in (what, before)

    # Messages

    def send(self, which: int, to: int, reject: bool, again: bool) -> None:
        """Have a phone send a message.

        :param again: whether it sets ``again`` although it has not sent it before, as a client may.
        """
        phone = self.phones[which % len(self.phones)]
        connection = phone.connection
        if connection is not None and connection.cursor is not None and connection.is_open:
            number = next(self._numbers)
            id, content = f"id{number:06}", f"c{number}"
            recipient = USERS[to % len(USERS)]
            phone.sent.append((id, recipient, content))
            if not again:
                connection.sent.append((recipient, content))
            self._submit(connection, recipient, id, content, again, reject or None)

    def _submit(
        self,
        connection: Connection,
        recipient: str,
        id: str,
        content: str,
        again: bool = False,
        reject: bool | None = None,
    ) -> None:
        connection.asked[id] += 1
        if content in self.refused:
            self.refused.remove(content)
            self.late.add(content)
        self.world.store(connection, recipient, id, content, again, reject)

    def send_again(self, which: int, index: int) -> None:
        """Have a phone send one of its messages again."""
        phone = self.phones[which % len(self.phones)]
        connection = phone.connection
        if phone.sent and connection is not None and connection.cursor is not None and connection.is_open:
            id, recipient, content = phone.sent[-1 - index % len(phone.sent)]
            self._submit(connection, recipient, id, content, True)

    def late_first_copy(self, which: int) -> None:
        """Have a dying connection bring a message that the phone has sent again on another one."""
        for phone in self.phones:
            dying = [c for c in self.connections if c.is_open and c.phone is phone and c is not phone.connection]
            if dying and phone.sent and phone.sent[-1][0] in self._came_again:
                connection = dying[which % len(dying)]
                if connection.cursor is not None:
                    id, recipient, content = phone.sent[-1]
                    self._submit(connection, recipient, id, content)

    @property
    def _came_again(self) -> set[str]:
        remembered = self.world.storing.resendings.remembered
        return {str(id) for _, id in remembered}

    def connect_old(self, who: int) -> None:
        """Log a client of v1 in, or out."""
        user = USERS[who % len(USERS)]
        old = self.old[user]
        if old is None:
            self.old[user] = self.world.old_client(user)
        else:
            self._old_left(user, old)
            self.old[user] = None

    def _old_left(self, user: str, old: RecordedConnection) -> None:
        self.world.directory.remove(user, old)
        for frame in old.sent:
            assert set(frame) == {"type", "message"}
        self.old_seen.append((user, [frame["message"]["content"] for frame in old.sent]))

    def send_old(self, who: int, to: int) -> None:
        """Have a client of v1 send a message."""
        content = f"v{next(self._numbers)}"
        self.old_asked[content] += 1
        message = self.world.message(USERS[who % len(USERS)], USERS[to % len(USERS)], "x", content, is_v2=False)
        self.world.relay.submit(message, self.old_submitter)

    def accepted(self, user: str, message: Message, place: int, at: int, delivered: bool) -> None:
        """Check an answer that a message of v2 gets."""
        id = str(message.client_id)
        known = self.places.setdefault((user, id), (place, at))
        if known != (place, at) and (user, id) not in self.erased_ids:  # what was erased may come as a first again
            self.failures.append(f"{id} of {user} is answered with {(place, at)}, and was with {known}")
        sender = str(message.to_uid)
        written = any((row.from_user, row.to_user) == (sender, user) and self._stood(row) for row in self.log.rows)
        if delivered and not written:
            self.failures.append(f"{user} is told of {sender}, who has never written")

    def _stands(self, row: MemoryRow) -> bool:
        return row.delivered or row.number <= self.log.trimmed

    def _stood(self, row: MemoryRow) -> bool:
        return self._stands(row) or not row.is_message

    # The log and the time

    def turn(self) -> None:
        """End the reactor's turn."""
        self.world.turn()

    def move_log(self, how: str) -> None:
        """Have the log do something, if there is something to do."""
        log = self.log
        if how == "commit" and log.batches:
            while log.doubtful:
                log.settle(False)
            self._answer_inboxes()
            log.commit()
        elif how == "fail" and log.batches:
            self._answer_inboxes()
            log.fail()
        elif how == "commit_unknown" and log.batches and not log.doubtful:
            self._answer_inboxes()
            log.commit_unknown()
        elif how in ("found", "not_found") and log.doubtful:
            log.settle(how == "found")
        elif how in ("mark", "fail_to_mark") and log.marking:
            log.mark(how == "mark")
        elif how == "read" and log.reader.waiting:
            log.reader.answer()
        elif how in ("fail_to_read", "busy") and log.reader.waiting:
            log.reader.fail(LogBusy("too many reads") if how == "busy" else None)
        elif how == "hold_reads":
            log.reader.holds = not log.reader.holds
        elif how == "hold_inboxes":
            log.holds_inboxes = not log.holds_inboxes
        elif how == "inbox" and log._inboxes and log._inboxes[0][0] <= log._done:
            log.answer_inbox()

    def _answer_inboxes(self) -> None:
        while self.log._inboxes and self.log._inboxes[0][0] <= self.log._done:
            if self.log.doubtful:
                self.log.fail_inbox()
            else:
                self.log.answer_inbox()

    def forget_acquaintances(self) -> None:
        """Forget who is known, as a full cache does with some."""
        self.world.storing.acquaintances.forget()

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.world.pass_seconds(seconds)

    def erase(self, who: int, received: bool) -> None:
        """Erase what a user wrote, if the log is open."""
        if not self.log.doubtful:
            user = USERS[who % len(USERS)]
            for row in self.log.rows:
                if row.is_message and (row.from_user == user or (received and row.to_user == user)):
                    self.erased.add(row.message.content)
                    self.erased_ids.add((row.from_user, str(row.message.client_id)))
            self.log.erase(user, received=received)

    def trim(self, rounds: int = 1) -> None:
        """Delete what is older than the time for which ids are found, a few messages in each round."""
        before = int((self.world.clock.seconds() - POLICY.again_time) * 1_000_000)
        for _ in range(rounds):
            self.log.trim(before)

    def pass_a_day(self) -> None:
        """Let a day and a half pass at once, when what waits for the log is done."""
        for _ in range(3):
            self._finish()
            self.world.commit()
        self.world.clock.advance(1.5 * POLICY.again_time)
        self.old_contents.update({(p.user, id): content for p in self.phones for id, _, content in p.sent})
        for phone in self.phones:
            phone.sent = []

    def restart(self, is_committed: bool) -> None:
        """Kill the relay, and start it again. What was not read is lost."""
        for phone in self.phones:
            self.cut(phone.name, 0.5)
        answered = self.old_submitter.answers
        self.unmarked.update(content for content in self.old_asked if not answered[content])
        lost = self.log.unmarked.union(*(numbers for numbers, _ in self.log.marking))
        self.unmarked.update(self.log.rows[number - 1].message.content for number in lost)
        for user, old in self.old.items():
            if old is not None:
                self._old_left(user, old)
        self.old = dict.fromkeys(USERS)
        for connection in self.connections:
            connection.is_open = False
        now = self.world.clock.seconds()
        self.log = self.log.crash(is_committed)
        self.world = World(POLICY, self.log)
        self.world.clock.advance(now + 1 - self.world.clock.seconds())

    # The end

    def come_to_rest(self) -> None:
        """Let everything be committed, read and answered, and check what is there then."""
        log = self.log
        for _ in range(400):
            self._finish()
            self.world.commit()
            for phone in self.phones:
                self.read(phone.name)
            for connection in self.connections:
                if connection.is_open:
                    InboxClient.drain(connection)
            if not (log.batches or log.marking or log.reader.waiting or log._inboxes or self.world.storing.waiting):
                is_quiet = all(self._has_everything(phone) for phone in self.phones)
                if is_quiet and not self.world.clock.getDelayedCalls():
                    break
            self.world.pass_seconds(0.5)
        self._check()

    def _finish(self) -> None:
        """Have the log finish what it has begun, but for batches."""
        log = self.log
        log.reader.holds = log.holds_inboxes = False
        while log.doubtful:
            log.settle(True)
        self._answer_inboxes()
        while log.marking:
            log.mark(True)
        while log.reader.waiting:
            log.reader.answer()

    def _has_everything(self, phone: Phone) -> bool:
        return phone.connection is None or phone.cursor == len(self.log.inboxes.get(phone.user, ()))

    def _check(self) -> None:
        log = self.log
        assert not self.failures, self.failures
        for phone in self.phones:
            if phone.connection is not None:
                assert phone.connection.is_open and phone.start is not None
                last = len(log.inboxes.get(phone.user, ()))
                assert phone.cursor == last, f"{phone.user} {phone.name} has {phone.cursor} of {last} places"
                assert list(phone.seen) == list(range(phone.start + 1, last + 1))
                assert phone.connection.answered == phone.connection.asked, "each request is answered once"
        for (user, place), what in self.at_place.items():
            row = log.inboxes[user][place - 1]
            if row.number > log.trimmed and (row.is_message or row.erased):
                expected = f"message {row.message.content}" if row.delivered else "void"
                if row.erased:
                    expected = f"erased {' '.join(f'{low}-{high}' for low, high in row.erased)}"
                assert what == expected, f"place {place} of {user} was {what}, and is {expected}"
        for user, rows in log.inboxes.items():
            assert [row.place(user) for row in rows] == list(range(1, len(rows) + 1)), f"the places of {user}"
            kept = [row for row in rows if row.number > log.trimmed]
            told = [place for row in kept for low, high in row.erased for place in range(low, high + 1)]
            told = [place for place in told if rows[place - 1] in kept]
            erased = [row.place(user) for row in kept if not row.is_message and not row.erased]
            assert sorted(told) == erased, f"{user} is told of {told}, and {erased} were erased"
        ids = Counter((row.from_user, row.message.client_id) for row in log.rows if row.message.has_unique_id)
        assert not [id for id, count in ids.items() if count > 1], f"an id has several places: {ids.most_common(3)}"
        stands = {row.message.content: row for row in log.rows if self._stands(row)}
        by_id = {(row.from_user, str(row.message.client_id)): row for row in stands.values()}
        for (user, id), (place, _) in self.places.items():
            assert (user, id) in self.erased_ids or by_id[user, id].from_place == place, (
                f"{id} of {user} was answered with {place}"
            )
        assert self.accepted_v1 <= set(stands) | self.erased, "an accepted message of v1 does not stand"
        accepted = {
            content for phone in self.phones for id, _, content in phone.sent if (phone.user, id) in self.places
        }
        shown = {what.removeprefix("message ") for what in self.at_place.values()}
        shown.update(content for _, contents in self.old_seen for content in contents)
        for user, old in self.old.items():
            if old is not None:
                contents = [frame["message"]["content"] for frame in old.sent]
                shown.update(contents)
                self.old_seen.append((user, contents))
        wrong = (self.refused - accepted - self.unmarked) & shown
        assert not wrong, f"refused, and seen: {wrong}"
        assert self.old_submitter.answers.keys() | self.unmarked >= self.old_asked.keys(), "an answer of v1 is missing"
        assert max(self.old_submitter.answers.values(), default=1) == 1, "an answer of v1 came twice"
        self._check_order()

    def _check_order(self) -> None:
        """Check that nobody overtakes on the way from one connection to one user."""
        # What was refused or erased may come again as a first, later than what was sent after it.
        late = self.late | self.erased
        place_of = {row.message.content: row.to_place for row in self.log.rows if row.message.content not in late}
        for connection in self.connections:
            for user in USERS:
                places = [place_of[c] for to, c in connection.sent if to == user and c in place_of]
                assert places == sorted(places), f"messages from a connection of {connection.user} to {user}: {places}"
        for user, contents in self.old_seen:
            places = [place_of[content] for content in contents if content not in self.erased]
            assert places == sorted(set(places)), f"a client of {user} that speaks v1 was sent {places}"
