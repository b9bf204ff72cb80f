"""Check the promise (docs/design.rst) against what clients saw and what the message log has.

Every connection gives an `Account`: what it sent, and what it received, in order. `Trial` checks the accounts of one
round after another, and at the end the log that all rounds have written. Every violation is an AssertionError that
names the promise. This module does not know where accounts come from, and shares no code with the relay.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

UID = str | int


class Request(NamedTuple):
    """One message that a client asked the relay to send. Its content is unique."""

    id: str | int
    time_stamp: str | int
    to: UID
    content: str


class Row(NamedTuple):
    """One message in the log."""

    from_uid: str
    to_uid: str
    id: str | int
    time_stamp: str | int
    content: str
    delivered: int


@dataclass
class Account:
    """What happened on one connection, as its client saw it.

    :ivar uid: its user, as the site says.
    :ivar requests: what was sent, in order.
    :ivar heard: the JSON values of the frames that came after the login, in order; gone through more than once.
    :ivar code: the close code that came, None where the connection was cut.
    :ivar stayed: whether it was open and read from before the first message until after the last.
    """

    uid: UID
    requests: Sequence[Request]
    heard: Iterable[Any]
    code: int | None = None
    stayed: bool = True


@dataclass(slots=True)
class _Fate:
    """What is known of one request.

    :ivar sender: number of the sending connection.
    :ivar place: which of that connection's requests it was.
    :ivar uid: the sender, as the site says.
    :ivar value: the answer, None where none came.
    :ivar reason: why not, where it was no.
    """

    sender: int
    place: int
    uid: UID
    request: Request
    value: bool | None = None
    reason: str = ""
    delivered: bool = False


class Trial:
    """Accounts of one or more rounds, and what they show.

    :ivar counts: how many requests were `sent`, `acknowledged`, `refused`, left `unanswered`, and how many
        acknowledged ones had reached `nobody` by the time the relay was gone.
    :ivar reasons: how many requests were refused for which reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._fates: dict[str, _Fate] = {}
        self._connections = 0

    def add(self, accounts: Sequence[Account], *, settled: bool) -> None:
        """Check one round.

        :param settled: whether every answer was awaited and the relay went on; otherwise it was killed meanwhile.
        """
        fates: dict[str, _Fate] = {}
        for sender, account in enumerate(accounts, self._connections):
            for place, request in enumerate(account.requests):
                assert request.content not in fates and request.content not in self._fates, "a content sent twice"
                fates[request.content] = _Fate(sender, place, account.uid, request)
        self._connections += len(accounts)
        for account in accounts:
            _answers(account, fates)
        received = [_deliveries(account, fates) for account in accounts]
        for fate in fates.values():
            self.counts["sent"] += 1
            self.counts["acknowledged"] += fate.value is True
            self.counts["refused"] += fate.value is False
            self.counts["unanswered"] += fate.value is None
            self.reasons.update([fate.reason] if fate.value is False else [])
            self.counts["nobody"] += fate.value is True and not fate.delivered
        if settled:
            _settled(accounts, fates, received)
        self._fates.update(fates)

    def check_log(self, log: Sequence[Row], *, refused_may_stand: bool = False) -> None:
        """Compare the log, in the order of its numbers, with all rounds.

        :param refused_may_stand: whether refused messages may be there without a mark.
        """
        logged: dict[str, Row] = {}
        last: dict[int, int] = {}
        for row in log:
            assert row.content not in logged, f"C1: {row.content!r} is in the log more than once"
            logged[row.content] = row
            fate = self._fates.get(row.content)
            assert fate is not None, f"{row.content!r} is in the log, and nobody sent it"
            sent = Row(
                str(fate.uid),
                str(fate.request.to),
                fate.request.id,
                fate.request.time_stamp,
                row.content,
                row.delivered,
            )
            assert _exactly(*row) == _exactly(*sent), f"logged as {row}, sent as {sent}"
            assert last.get(fate.sender, -1) < fate.place, f"C7: {row.content!r} is out of order in the log"
            last[fate.sender] = fate.place
        for content, fate in self._fates.items():
            found = logged.get(content)
            if fate.value:
                assert found is not None, f"C1: {content!r} was acknowledged and is not in the log"
                assert found.delivered, f"C1: {content!r} was acknowledged and is marked undelivered"
            elif fate.value is False and not refused_may_stand:
                assert found is None or not found.delivered, f"C3: {content!r} was refused and stands in the log"
            assert found is not None or not fate.delivered, f"C8: {content!r} was delivered and is not in the log"

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items())


def read_log(path: Path) -> list[Row]:
    """Read a message log that nobody writes any more; check its file and its inboxes."""
    try:
        with closing(sqlite3.connect(path)) as log:
            assert log.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            last_places = dict(log.execute("SELECT uid, last_place FROM inbox").fetchall())
            places: dict[str, set[int]] = {uid: set() for uid in last_places}
            rows = []
            for *row, from_place, to_place in log.execute(
                """SELECT from_uid, to_uid, client_id, time_stamp, content, delivered, from_place, to_place
                   FROM message ORDER BY number"""
            ):
                rows.append(Row(*row))
                places[row[0]].add(from_place)
                places[row[1]].add(to_place)
    except sqlite3.DatabaseError as error:
        raise AssertionError(f"C1: SQLite can't read the log: {error}") from error
    for uid, taken in places.items():
        assert taken == set(range(1, last_places[uid] + 1)), f"the inbox of {uid} has holes"
    return rows


def deliveries(path: Path) -> list[tuple[str, int]]:
    """Return the contents in a message log that nobody writes any more, and whether each was delivered."""
    return [(row.content, row.delivered) for row in read_log(path)]


def _answers(account: Account, fates: dict[str, _Fate]) -> None:
    """Check C9, and that the answers `true` come in the order of the requests."""
    requests = {request.id: request for request in account.requests}
    last_accepted = -1
    for frame in account.heard:
        if frame.get("type") != "send-request-response":
            continue
        assert frame.keys() == {"type", "response"}, f"not of the wire: {frame}"
        response = frame["response"]
        value = response.get("value")
        expected = {"id", "value"} if value is True else {"id", "value", "reason"}
        assert response.keys() == expected and isinstance(value, bool), f"not of the wire: {frame}"
        request = requests.get(response["id"])
        assert request is not None and _exactly(request.id) == _exactly(response["id"]), f"C9: nobody asked: {frame}"
        fate = fates[request.content]
        assert fate.value is None, f"C9: {request.content!r} was answered more than once"
        fate.value = value
        fate.reason = response.get("reason", "")
        if value:
            assert fate.place > last_accepted, f"the answer to {request.content!r} came out of order"
            last_accepted = fate.place


def _deliveries(account: Account, fates: dict[str, _Fate]) -> set[str]:
    """Check C3, C7, and that deliveries are as they were sent, to this user; return what was received."""
    received: set[str] = set()
    last: dict[int, int] = {}
    for frame in account.heard:
        if frame.get("type") == "send-request-response":
            continue
        assert frame.keys() == {"type", "message"} and frame["type"] == "message", f"not of the wire: {frame}"
        message = frame["message"]
        assert message.keys() == {"timeStamp", "fromuID", "touID", "content"}, f"not of the wire: {frame}"
        fate = fates.get(message["content"])
        assert fate is not None, f"delivered, and nobody sent it: {frame}"
        assert str(message["touID"]) == str(account.uid), f"delivered to {account.uid!r}: {frame}"
        as_sent = (fate.uid, fate.request.to, fate.request.time_stamp)
        as_come = (message["fromuID"], message["touID"], message["timeStamp"])
        assert _exactly(*as_come) == _exactly(*as_sent), f"sent as {as_sent}, delivered as {as_come}"
        assert fate.value is not False, f"C3: {message['content']!r} was refused and delivered"
        assert last.get(fate.sender, -1) < fate.place, f"C7: {message['content']!r} came out of order, or twice"
        last[fate.sender] = fate.place
        fate.delivered = True
        received.add(fate.request.content)  # the same text once more would be more memory
    return received


def _settled(accounts: Sequence[Account], fates: dict[str, _Fate], received: Sequence[set[str]]) -> None:
    """Check that each connection that stayed has every answer, and every message that was acknowledged."""
    arrived: dict[str, list[set[str]]] = {}
    for account, contents in zip(accounts, received, strict=True):
        if account.stayed:
            arrived.setdefault(str(account.uid), []).append(contents)
            for request in account.requests:
                assert fates[request.content].value is not None, f"C9: {request.content!r} was not answered"
    for content, fate in fates.items():
        if fate.value:
            for contents in arrived.get(str(fate.request.to), ()):
                assert content in contents, f"C2: {content!r} was acknowledged and did not reach every connection"


def _exactly(*values: object) -> list[tuple[type, object]]:
    """Return values that are equal only where their types are, too: to Python, 1 == 1.0."""
    return [(type(value), value) for value in values]
