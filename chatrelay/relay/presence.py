"""Presence: tell connections which users are online, and when they last were.

Pure: the directory, the dialect and the clock are passed in. This module must not know how a connection opens, who is
known to whom, or how a mark is kept.

A connection may watch some users. It is told about those who have written to its user, or do so later. Only these
watches are active: any other watch leaves no trace at the watched user, and costs that user nothing.

- A user is offline only when five seconds have passed since the last connection closed, in v1 or v2.
- A connection gets at most one frame about a user in five seconds, and that has the latest state.
- If many connections watch a user, they are told in slices, so that other work is not delayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from chatrelay.interfaces import InboxConnection
from chatrelay.limits.timers import DeadlineTimer

OFFLINE_SECONDS = 5.0
"""Seconds after which somebody without a connection is offline."""

FRAME_SECONDS = 5.0
"""The shortest time between two frames about one user to one connection."""

SLICE = 500
"""The most connections that are told of a user in one turn of the reactor."""

MILLISECONDS = 1000
"""Milliseconds in a second."""


class PresenceDialect(Protocol):
    """Encodes what is told of users; `chatrelay.wire.v2` is one."""

    def presence(self, user: str, online: bool, last_seen: int | None = None, /) -> bytes:
        """Encode that a user has connected or disconnected.

        :param last_seen: when, in milliseconds since 1970 UTC; None if that is not known.
        """


@attrs.define(eq=False)
class Watcher:
    """The watches of one connection.

    :ivar user: the key of its user.
    :ivar connection: the connection.
    :ivar is_closed: whether the connection is closing or gone.
    :ivar told: by watched user, whether the connection was told that they are online; None for a watch that is not
        active, because they are unknown.
    """

    user: str
    connection: InboxConnection
    told: dict[str, bool | None] = attrs.field(factory=dict)
    is_closed: bool = False


class Presence:
    """The users who are online, and the connections that watch them.

    :param dialect: encodes what is told.
    :param is_connected: returns whether a user has a connection.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param clock: for timers.
    :param call_soon: runs a callable in a later turn of the reactor.
    :ivar is_for_everybody: whether people are told of those who have never written to them, too.
    """

    def __init__(
        self,
        dialect: PresenceDialect,
        is_connected: Callable[[str], object],
        now: Callable[[], float],
        clock: Any,
        call_soon: Callable[[Callable[[], None]], object],
        is_for_everybody: bool = False,
    ) -> None:
        self._dialect = dialect
        self._is_connected = is_connected
        self._now = now
        self._call_soon = call_soon
        self.is_for_everybody = is_for_everybody
        self._watchers: dict[str, dict[Watcher, None]] = {}  # by the user who watches
        self._watched: dict[str, dict[Watcher, None]] = {}  # by the user who is watched; active watches only
        self._clock = clock
        self._last_seen: dict[str, int] = {}  # of watched users
        # Those who have just left: when, in seconds of the clock, and as `disconnected` returns it. The oldest first.
        self._leaving: dict[str, tuple[float, int]] = {}
        self._awaited: set[str] = set()  # those of them who are watched
        self._timer: Any = None  # for the one who left first, while any is awaited
        self._told: DeadlineTimer[tuple[Watcher, str]] = DeadlineTimer(clock, FRAME_SECONDS, self._frame_over)
        self._recent: set[tuple[Watcher, str]] = set()  # those that got a frame within the last five seconds
        self._slices: deque[tuple[str, Iterator[Watcher]]] = deque()

    def __len__(self) -> int:
        """Return how many watches are active."""
        return sum(map(len, self._watched.values()))

    # Connections --------------------------------------------------------------

    def connected(self, user: str) -> None:
        """Note that a user who had no connection has one."""
        left = self._leaving.pop(user, None)
        self._awaited.discard(user)
        self._last_seen.pop(user, None)
        # Nobody was told of a user who left less than five seconds ago. So connecting again and again costs nothing.
        if left is None or not 0 <= self._clock.seconds() - left[0] < OFFLINE_SECONDS:
            self._changed(user)

    def disconnected(self, user: str) -> int:
        """Note that the last connection of a user has gone.

        :returns: the time, in milliseconds since 1970 UTC.
        """
        left_at = int(self._now() * MILLISECONDS)
        self._leaving[user] = (self._clock.seconds(), left_at)
        self._forget_those_who_left()
        if user in self._watched:
            self._last_seen[user] = left_at
            self._wait(user)
        return left_at

    def is_online(self, user: str) -> bool:
        """Return whether others are told that a user is online."""
        if self._is_connected(user):
            return True
        left = self._leaving.get(user)
        return left is not None and 0 <= self._clock.seconds() - left[0] < OFFLINE_SECONDS

    def last_seen(self, user: str) -> int | None:
        """Return when a user was last connected, in milliseconds since 1970 UTC; None if that is not known here."""
        return self._last_seen.get(user)

    # Watches ------------------------------------------------------------------

    def watch(
        self, watcher: Watcher, users: Collection[str], known: Collection[str], last_seen: Mapping[str, int]
    ) -> tuple[Sequence[str], Mapping[str, int | None]]:
        """Replace whom a connection watches.

        :param users: the keys of all of them.
        :param known: those of whom the connection may be told.
        :param last_seen: when each was last connected, as far as that is known.
        :returns: those who are online, and those who are offline with the time when they were last connected.
        """
        self.end(watcher)
        if users:
            self._watchers.setdefault(watcher.user, {})[watcher] = None
        online: list[str] = []
        offline: dict[str, int | None] = {}
        for user in users:
            if user not in known:
                watcher.told[user] = None
                continue
            self._begin(watcher, user)
            is_online = watcher.told[user] = self.is_online(user)
            if is_online:
                online.append(user)
            else:
                if user in last_seen:
                    self._last_seen.setdefault(user, last_seen[user])
                offline[user] = self._last_seen.get(user)
        return online, offline

    def end(self, watcher: Watcher) -> None:
        """End all watches of a connection."""
        for user, told in watcher.told.items():
            if told is not None:
                watchers = self._watched[user]
                del watchers[watcher]
                if not watchers:
                    del self._watched[user]
                    self._awaited.discard(user)
                    self._last_seen.pop(user, None)
        if watcher.told:
            watchers = self._watchers[watcher.user]
            del watchers[watcher]
            if not watchers:
                del self._watchers[watcher.user]
            watcher.told.clear()

    def became_known(self, user: str, other: str) -> None:
        """Begin to tell the connections of `user` of `other`, who has written to them."""
        for watcher in tuple(self._watchers.get(user, ())):
            if other in watcher.told and watcher.told[other] is None:
                self._begin(watcher, other)
                self._tell(watcher, other, self.is_online(other))

    def _begin(self, watcher: Watcher, user: str) -> None:
        """Make a watch active. If the user has just left, the connection will be told so."""
        watchers = self._watched.setdefault(user, {})
        watchers[watcher] = None
        left = self._leaving.get(user)
        if left is not None:
            self._last_seen[user] = left[1]
            self._wait(user)

    def stop(self) -> None:
        """Forget who has left: all connections are closed."""
        self._told.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kept in (self._leaving, self._awaited, self._recent, self._slices, self._last_seen):
            kept.clear()

    # Telling ------------------------------------------------------------------

    def _changed(self, user: str) -> None:
        watchers = self._watched.get(user)
        if watchers:
            if not self._slices:
                self._call_soon(self._next_slice)
            self._slices.append((user, iter(tuple(watchers))))

    def _next_slice(self) -> None:
        """Tell some connections of the user who has changed first. What they are told is the state of now."""
        if not self._slices:
            return
        user, watchers = self._slices[0]
        is_online = self.is_online(user)
        for _ in range(SLICE):
            watcher = next(watchers, None)
            if watcher is None:
                self._slices.popleft()
                break
            self._tell_change(watcher, user, is_online)
        if self._slices:
            self._call_soon(self._next_slice)

    def _tell_change(self, watcher: Watcher, user: str, is_online: bool) -> None:
        told = watcher.told.get(user)
        if told is not None and told is not is_online and (watcher, user) not in self._recent:
            self._tell(watcher, user, is_online)

    def _tell(self, watcher: Watcher, user: str, is_online: bool) -> None:
        watcher.told[user] = is_online
        self._recent.add((watcher, user))
        self._told.start((watcher, user))
        watcher.connection.send(self._dialect.presence(user, is_online, self._last_seen.get(user)))

    def _frame_over(self, key: tuple[Watcher, str]) -> None:
        self._recent.discard(key)
        watcher, user = key
        self._tell_change(watcher, user, self.is_online(user))

    # Leaving ------------------------------------------------------------------

    def _wait(self, user: str) -> None:
        """Wait until a user is offline who has just left. So that moment does not depend on who watches them."""
        self._awaited.add(user)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is None and self._awaited:
            left_at, _ = next(iter(self._leaving.values()))
            seconds = left_at + OFFLINE_SECONDS - self._clock.seconds()
            self._timer = self._clock.callLater(min(max(0.0, seconds), OFFLINE_SECONDS), self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        self._forget_those_who_left()
        self._set_timer()

    def _forget_those_who_left(self) -> None:
        """Forget those who left so long ago that they are offline, and tell of them."""
        now = self._clock.seconds()
        while self._leaving:
            user, (left_at, _) = next(iter(self._leaving.items()))
            if now - OFFLINE_SECONDS < left_at <= now:
                break
            del self._leaving[user]
            self._awaited.discard(user)
            self._changed(user)
