"""The checker of the promise finds and names each promise that is broken on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.promise import Account, Request, Row, Trial, read_log


def request(name: str, number: int, to: str | int) -> Request:
    """Return a request as the crowd sends them."""
    return Request(number, str(number), to, f"{name}/{number}")


def delivery(uid: str | int, sent: Request) -> dict[str, Any]:
    """Return what reaches a recipient."""
    message = {"timeStamp": sent.time_stamp, "fromuID": uid, "touID": sent.to, "content": sent.content}
    return {"type": "message", "message": message}


def answer(sent: Request, reason: str | None = None) -> dict[str, Any]:
    """Return the answer to the sender."""
    response = {"id": sent.id, "value": reason is None}
    return {"type": "send-request-response", "response": response if reason is None else {**response, "reason": reason}}


GONE = "receiving-user-not-connected"
TO_BO = [request("alice", number, 2) for number in range(3)]
TO_NOBODY = request("alice", 3, "nobody")
FROM_BO = request("bo", 0, 1)


class Scene:
    """Alice (1) sends three messages to two connections of Bo (2) and one to an absent user; Bo sends one back. All
    succeed.
    """

    def __init__(self) -> None:
        self.alice: list[Any] = [answer(TO_NOBODY, GONE), *map(answer, TO_BO), delivery(2, FROM_BO)]
        self.bo: list[Any] = [*(delivery(1, sent) for sent in TO_BO), answer(FROM_BO)]
        self.bo_again: list[Any] = [delivery(1, sent) for sent in TO_BO]
        self.log = [
            *(Row("1", "2", sent.id, sent.time_stamp, sent.content, 1) for sent in TO_BO),
            Row("2", "1", FROM_BO.id, FROM_BO.time_stamp, FROM_BO.content, 1),
        ]
        self.settled = True

    def check(self) -> Trial:
        """Check the scene against the promise."""
        trial = Trial()
        accounts = [
            Account(1, [*TO_BO, TO_NOBODY], self.alice),
            Account(2, [FROM_BO], self.bo),
            Account(2, [], self.bo_again),
        ]
        trial.add(accounts, settled=self.settled)
        trial.check_log(self.log)
        return trial


def test_kept_promise_passes() -> None:
    trial = Scene().check()
    assert str(trial) == "5 sent, 4 acknowledged, 1 refused, 0 unanswered, 0 nobody"


def test_kept_promise_passes_after_a_kill() -> None:
    scene = Scene()
    scene.settled = False
    scene.alice.remove(answer(TO_BO[2]))  # logged, but not answered
    scene.bo_again.pop()
    scene.bo.remove(delivery(1, TO_BO[1]))  # handed over, and never sent
    scene.bo_again.pop()
    assert str(scene.check()) == "5 sent, 3 acknowledged, 1 refused, 1 unanswered, 1 nobody"
    scene = Scene()
    scene.log.append(Row("1", "nobody", TO_NOBODY.id, TO_NOBODY.time_stamp, TO_NOBODY.content, 0))
    scene.check()  # a recipient who disconnected between the check and the delivery has a marked row


def broken(found: str, breaks: Callable[[Scene], object]) -> Any:
    """Return a test case: how the checker must name the broken promise, and a function that breaks it."""
    return pytest.param(found, breaks, id=found)


def in_message(frame: dict[str, Any], **values: object) -> None:
    frame["message"].update(values)


BROKEN = [
    broken("C1: 'alice/1' is in the log more than once", lambda scene: scene.log.append(scene.log[1])),
    broken("C1: 'alice/1' was acknowledged and is not in the log", lambda scene: scene.log.pop(1)),
    broken("C1: .* is marked undelivered", lambda scene: mark(scene, 1)),
    broken("C2: 'alice/2' .* did not reach every connection", lambda scene: scene.bo_again.pop()),
    broken("C3: 'alice/1' was refused and delivered", lambda scene: refuse(scene, TO_BO[1])),
    broken("C3: 'alice/3' was refused and stands in the log", lambda scene: log_refused(scene)),
    broken("C7: 'alice/0' came out of order, or twice", lambda scene: scene.bo.insert(2, scene.bo[0])),
    broken("C7: 'alice/0' came out of order", lambda scene: scene.bo.insert(0, scene.bo.pop(2))),
    broken("C7: 'alice/0' is out of order in the log", lambda scene: scene.log.insert(0, scene.log.pop(2))),
    broken("C8: 'alice/2' was delivered and is not in the log", lambda scene: unanswered(scene, TO_BO[2])),
    broken("C9: 'alice/1' was answered more than once", lambda scene: scene.alice.append(answer(TO_BO[1]))),
    broken("C9: 'alice/1' was not answered", lambda scene: scene.alice.remove(answer(TO_BO[1]))),
    broken("C9: nobody asked", lambda scene: scene.alice.append(answer(request("alice", 9, 2)))),
    broken("C9: nobody asked: .*'1'", lambda scene: scene.alice[2]["response"].update(id="1")),
    broken("the answer to 'alice/0' came out of order", lambda scene: scene.alice.append(scene.alice.pop(1))),
    broken("delivered, and nobody sent it", lambda scene: in_message(scene.bo[0], content="alice/9")),
    broken("delivered to 1", lambda scene: scene.alice.append(scene.bo[0])),
    broken("sent as .*, delivered as .*2", lambda scene: in_message(scene.bo[0], fromuID=2)),
    broken("sent as .*, delivered as .*0", lambda scene: in_message(scene.bo[0], timeStamp=0)),
    broken("sent as .*, delivered as .*'2'", lambda scene: in_message(scene.bo[0], touID="2")),
    broken("logged as .*, sent as", lambda scene: relog(scene, from_uid="3")),
    broken("logged as .*, sent as.*'0'", lambda scene: relog(scene, time_stamp=0)),
    broken("in the log, and nobody sent it", lambda scene: relog(scene, content="alice/9")),
    broken("not of the wire: .*extra", lambda scene: in_message(scene.bo[0], extra=1)),
    broken("not of the wire: .*reason", lambda scene: scene.alice[1]["response"].update(reason=GONE)),
    broken("not of the wire: .*False", lambda scene: scene.alice[0]["response"].pop("reason")),
    broken("not of the wire: .*error", lambda scene: scene.alice.append({"type": "error", "reason": "", "detail": ""})),
]


def mark(scene: Scene, place: int) -> None:
    scene.log[place] = scene.log[place]._replace(delivered=0)


def relog(scene: Scene, **values: Any) -> None:
    scene.log[0] = scene.log[0]._replace(**values)


def refuse(scene: Scene, sent: Request) -> None:
    scene.alice[scene.alice.index(answer(sent))] = answer(sent, GONE)


def log_refused(scene: Scene) -> None:
    scene.log.append(Row("1", "nobody", TO_NOBODY.id, TO_NOBODY.time_stamp, TO_NOBODY.content, 1))


def unanswered(scene: Scene, sent: Request) -> None:
    """Kill the relay before the answer, and lose the row with it."""
    scene.settled = False
    scene.alice.remove(answer(sent))
    scene.log = [row for row in scene.log if row.content != sent.content]


@pytest.mark.parametrize(("found", "breaks"), BROKEN)
def test_broken_promise_is_found(found: str, breaks: Callable[[Scene], object]) -> None:
    scene = Scene()
    breaks(scene)
    with pytest.raises(AssertionError, match=found):
        scene.check()


def test_content_in_two_rounds_is_an_error_of_the_trial() -> None:
    trial = Scene().check()
    with pytest.raises(AssertionError, match="sent twice"):
        trial.add([Account(1, TO_BO, [])], settled=False)


@pytest.mark.parametrize(
    "breaks",
    [
        "UPDATE inbox SET last_place = 9",
        "DELETE FROM message WHERE number = 2",
        "UPDATE message SET to_place = 2 WHERE number = 3",
    ],
)
def test_inbox_with_holes_is_found(tmp_path: Path, breaks: str) -> None:
    path = tmp_path / "log.sqlite3"
    with closing(sqlite3.connect(path)) as log:
        log.executescript("""
            CREATE TABLE inbox (uid TEXT PRIMARY KEY, last_place INTEGER NOT NULL);
            CREATE TABLE message (number INTEGER PRIMARY KEY, from_uid, from_place, to_uid, to_place,
                                  client_id, time_stamp, content, delivered);
            INSERT INTO inbox VALUES ('1', 3), ('2', 3);
            INSERT INTO message VALUES (1, '1', 1, '2', 1, 7, '7', 'a', 1),
                                       (2, '2', 2, '1', 2, 8, '8', 'b', 0),
                                       (3, '1', 3, '2', 3, 9, '9', 'c', 1);
        """)
    assert [(row.content, row.delivered) for row in read_log(path)] == [("a", 1), ("b", 0), ("c", 1)]
    with closing(sqlite3.connect(path, isolation_level=None)) as log:
        log.execute(breaks)
    with pytest.raises(AssertionError, match="has holes"):
        read_log(path)
