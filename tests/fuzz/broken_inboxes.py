"""Relays that break a rule of v2, each in one way. `tests.fuzz.test_inboxes` must find each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import succeed

from chatrelay.messagelog.memory import MemoryInboxReader, MemoryMessageLog, MemoryRow
from chatrelay.model import Message, Page
from chatrelay.relay import resending
from chatrelay.relay.acquaintance import Acquaintances
from chatrelay.relay.delivery import Relay
from chatrelay.relay.inbox import Cursor, Inbox, Inboxes, State
from chatrelay.relay.resending import Waiting
from chatrelay.relay.storing import Storing

_enter, _answer, _offer, _page_read = Inboxes.enter, Cursor.answer, Cursor.offer, Cursor._page_read
_keep, _submit, _hand_over = MemoryMessageLog._keep, Storing.submit, Relay._hand_over


def _answers_only_beyond_the_cursor(self: Cursor, place: int, payload: bytes) -> bool:
    return place > self.place and _answer(self, place, payload)


def _begins_one_too_far(self: Inboxes, user: str, connection: Any, last: int, after: int | None = None) -> Cursor:
    return _enter(self, user, connection, last, after if after is None or after >= last else after + 1)


def _begins_one_too_early(self: Inboxes, user: str, connection: Any, last: int, after: int | None = None) -> Cursor:
    return _enter(self, user, connection, last, after and after - 1)


def _sends_a_place_at_the_cursor_again(self: Cursor, page: Page) -> None:
    for entry in page.entries:
        if entry.place <= self.place and entry.message is not None:
            self.connection.send(self._inboxes.dialect.delivery(entry.message, entry.place))
    _send_page(self, page)


_send_page = Cursor._send_page


def _gives_a_place_twice(self: MemoryMessageLog, message: Message) -> int:
    number = _keep(self, message)
    inbox = self.inboxes[str(message.to_uid)]
    if len(inbox) % 7 == 0:
        row: MemoryRow = self.rows[-1]
        message.to_place = row.to_place = row.to_place - 1
    return number


def _gives_a_trimmed_place_again(self: MemoryMessageLog, message: Message) -> int:
    number = _keep(self, message)
    user = str(message.to_uid)
    if self.first_places.get(user, 1) == message.to_place:  # nothing but this message is kept
        row: MemoryRow = self.rows[-1]
        message.to_place = row.to_place = 1
    return number


def _skips_trimmed_places(self: Cursor, page: Page) -> None:
    first = self._inboxes._log.first_places.get(self._inbox.user, 1)  # type: ignore[attr-defined]
    self.place = max(self.place, first - 1)
    _send_page(self, page)


def _forgets_own_devices(self: Relay, message: Message, pair: Any, answered: Any, storing: Storing) -> bool:
    with patch.object(Inbox, "deliver", _delivers_to_recipients_only(message, pair)):
        return _hand_over(self, message, pair, answered, storing)


def _delivers_to_recipients_only(message: Message, pair: Any) -> Any:
    def deliver(self: Inbox, message: Message, place: int, besides: Any = None) -> bool:
        return (pair[0] != pair[1] and self.user == pair[0]) or _deliver(self, message, place, besides)

    return deliver


_deliver = Inbox.deliver


def _is_live_after_a_page(self: Cursor, page: Page, after: int) -> None:
    if self.state is State.READING:
        self._send_page(page)
        self._stop_time()
        self.place = self._inbox.last
        self.state = State.LIVE


def _ignores_again(self: Storing, message: Message, submitter: Any, again: bool, reject: bool | None) -> None:
    _submit(self, message, submitter, False, reject)


def _nothing(*_: Any) -> None:
    """Find nothing."""


def _finds_nothing(*_: Any) -> Any:
    return succeed(None)


_SECOND_ROW = "is answered with|several places"
_GAP = r"is sent \d|of \d+ places"

BROKEN_INBOXES: dict[str, tuple[Callable[[], Any], str]] = {
    "sends past an unsettled place": (
        lambda: patch.object(Inboxes, "settled", lambda self, user, last: last),
        "and is void|refused, and seen",
    ),
    "drops an answer at or below the cursor": (
        lambda: patch.object(Cursor, "answer", _answers_only_beyond_the_cursor),
        "each request is answered once",
    ),
    "replays from a place too far": (lambda: patch.object(Inboxes, "enter", _begins_one_too_far), _GAP),
    "replays from a place too early": (lambda: patch.object(Inboxes, "enter", _begins_one_too_early), _GAP),
    "sends a place twice": (lambda: patch.object(Cursor, "_send_page", _sends_a_place_at_the_cursor_again), _GAP),
    "gives a place twice": (lambda: patch.object(MemoryMessageLog, "_keep", _gives_a_place_twice), "the places of"),
    "gives a trimmed place again": (
        lambda: patch.object(MemoryMessageLog, "_keep", _gives_a_trimmed_place_again),
        f"the places of|{_GAP}",
    ),
    "replays past trimmed places without a void": (
        lambda: patch.object(Cursor, "_send_page", _skips_trimmed_places),
        _GAP,
    ),
    "forgets own devices": (lambda: patch.object(Relay, "_hand_over", _forgets_own_devices), _GAP),
    "answers a message that came again by a second row": (
        lambda: patch.object(MemoryInboxReader, "find", _finds_nothing),
        _SECOND_ROW,
    ),
    "does not look through what waits for the log": (lambda: patch.object(Waiting, "find", _nothing), _SECOND_ROW),
    "forgets the ids that came again": (lambda: patch.object(resending, "REMEMBERED_SECONDS", 0.0), _SECOND_ROW),
    "treats what comes again as a first": (lambda: patch.object(Storing, "submit", _ignores_again), _SECOND_ROW),
    "loses the race of replay and live": (lambda: patch.object(Cursor, "_page_read", _is_live_after_a_page), _GAP),
    "tells of an erasure before anything is erased": (
        lambda: patch.object(MemoryMessageLog, "_blank", _nothing),
        "was erased, and it is there|were erased",
    ),
    "tells a live device of no erasure": (lambda: patch.object(Storing, "erased", _nothing), _GAP),
    "tells of people who are unknown": (lambda: patch.object(Acquaintances, "known", lambda *_: True), "is told of"),
}
"""Name of the defect -> context manager that causes it, and what is said of it."""
