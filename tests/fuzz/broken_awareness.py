"""Relays that tell people too much of each other, each in one way. `tests.fuzz.test_awareness` must find each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from chatrelay.interfaces import InboxConnection
from chatrelay.messagelog.sqlite import batch, inbox_queries, index_search
from chatrelay.model import LoggedMessage, MarkKind
from chatrelay.relay import receipts as receipts_module
from chatrelay.relay.acquaintance import Acquaintances, Pair
from chatrelay.relay.answers import Answers
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.inbox import Cursor
from chatrelay.relay.overview import Overview
from chatrelay.relay.presence import Presence, Watcher
from chatrelay.relay.receipts import Receipts
from chatrelay.relay.typing import Typing

_known, _watch, _typed, _marks_of = Acquaintances.known, Presence.watch, Typing.typed, Overview.marks_of
_offer, _connect, _give = Receipts._offer, Awareness.__init__, Answers.give


def _not_clamped(place: int, cursor: Cursor) -> int:
    return place


def _everybody_is_known(self: Acquaintances, pair: Pair) -> bool | None:
    return True


def _strangers_are_in_the_answer(
    self: Presence, watcher: Watcher, users: Collection[str], known: Collection[str], last_seen: Mapping[str, int]
) -> Any:
    return _watch(self, watcher, users, users, last_seen)


def _unknown_people_are_followed(self: Presence, user: str) -> None:
    for watchers in self._watchers.values():
        for watcher in watchers:
            if user in watcher.told:
                watcher.connection.send(self._dialect.presence(user, self.is_online(user), None))


def _looks_up_only_people_who_are_here(self: Typing, user: str, peer: str, connection: InboxConnection) -> None:
    if self._inboxes.get(peer) is not None:
        _typed(self, user, peer, connection)


async def _reads_marks_of_strangers(
    self: Overview, user: str, last: Mapping[str, LoggedMessage | None], through: int | None = None
) -> Any:
    with patch.object(Acquaintances, "known", _everybody_is_known):
        return await _marks_of(self, user, last, through)


async def _asks_only_if_here(self: Receipts, peer: str, user: str) -> bool:
    return self._inboxes.get(peer) is not None and await _has_written(self, peer, user)


_has_written = Receipts._has_written


def _searches_the_smaller_inbox(*arguments: Any, **keywords: Any) -> Any:
    with patch.object(index_search, "MAX_UNCOMPARED", 0):
        yield from _between(*arguments, **{**keywords, "in_smaller": True})


def _searches_where_the_other_is(runs: Sequence[Any], user: Any, peer: Any, *arguments: Any, **keywords: Any) -> Any:
    runs = [run for run in runs if run.position(peer) is not None]
    return _between(runs, user, peer, *arguments, **keywords)


def _searches_the_inbox_of_the_other(self: Acquaintances, reader: Any, by_second: bool = False) -> None:
    _acquaintances(self, reader, not by_second)


_between, _acquaintances = inbox_queries.between, Acquaintances.__init__


def _looks_up_nothing(self: Any, user: str) -> None:
    """Rely on the places that are in memory."""


def _one_cache(self: Awareness, *arguments: Any, **keywords: Any) -> None:
    _connect(self, *arguments, **keywords)
    self._told = self.typing._told = self.receipts._told = self._asking


def _forgets_what_was_told(self: Receipts, state: Any, to: str, received: int = 0, read: int = 0) -> None:
    state.told.clear()
    _offer(self, state, to, received, read)


async def _work_in_vain(self: Receipts, state: Any) -> None:
    await self._marks.read([(state.user, MarkKind.READ, state.user)])
    self._give_up(state)


def _is_in_the_answer(self: Answers, *arguments: Any) -> Any:
    with patch.object(Acquaintances, "known", _everybody_is_known):
        return _give(self, *arguments)


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: patch.object(owner, name, value)


UNTRUE: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "a receipt is sent too far": _replaced(Receipts, "_clamped", staticmethod(_not_clamped)),
    "a receipt is sent to strangers": _replaced(Acquaintances, "known", _everybody_is_known),
    "a receipt is sent again": _replaced(Receipts, "_offer", _forgets_what_was_told),
    "receipts come too often": _replaced(receipts_module, "RECEIPT_SECONDS", 0.1),
    "a mark that waits for a read is forgotten": _replaced(Receipts, "_work", _work_in_vain),
}
"""Receipts that are not true, by what is wrong."""

COSTLY: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Sequence[str]]] = {
    "the smaller inbox is searched": (
        _replaced(inbox_queries, "between", _searches_the_smaller_inbox),
        ("away", "missing"),
    ),
    "the index is searched only where the other is": (
        _replaced(inbox_queries, "between", _searches_where_the_other_is),
        ("busy", "missing"),
    ),
    "the inbox of the other is searched": (
        _replaced(Acquaintances, "__init__", _searches_the_inbox_of_the_other),
        ("away", "missing"),
    ),
    "a place in memory saves a read": (
        _replaced(batch.LastPlaces, "look_up", _looks_up_nothing),
        ("busy", "missing"),
    ),
    "typing is looked up for people who are here": (
        _replaced(Typing, "typed", _looks_up_only_people_who_are_here),
        ("connected", "away"),
    ),
}
"""Relays that work more for some strangers than for others, by why; and the kinds of person between whom that shows."""

TELLTALE: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "presence is told to strangers": _replaced(Presence, "watch", _strangers_are_in_the_answer),
    "a watch follows strangers": _replaced(Presence, "_changed", _unknown_people_are_followed),
    "typing is told of strangers": _replaced(Acquaintances, "known", _everybody_is_known),
    "typing is looked up for people who are here": _replaced(Typing, "typed", _looks_up_only_people_who_are_here),
    "a read mark is looked up for people who are here": _replaced(Receipts, "_has_written", _asks_only_if_here),
    "marks of strangers are shown": _replaced(Overview, "marks_of", _reads_marks_of_strangers),
    "what one user asks is answered from what another did": _replaced(Awareness, "__init__", _one_cache),
    "strangers are in the answer to a message": _replaced(Answers, "give", _is_in_the_answer),
}
"""Relays by which strangers learn something, by what."""
