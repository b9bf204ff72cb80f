"""Awareness: tell users about each other's receipts, presence and typing, and keep their marks.

Pure: the directory, the inboxes, the message log and the clocks are passed in. This module must not know how anything
is encoded. It passes each event of the relay to the parts that need it.

Everything here is about people who speak v2, except that users of v1 are online, too.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxLog
from chatrelay.model import InboxState, LogUnavailable, MarkKind, Message, is_here
from chatrelay.relay.acquaintance import Acquaintances, Pair
from chatrelay.relay.directory import Directory
from chatrelay.relay.inbox import Inboxes
from chatrelay.relay.marks import Marks
from chatrelay.relay.overview import Overview
from chatrelay.relay.presence import Presence, PresenceDialect, Watcher
from chatrelay.relay.receipts import ReceiptDialect, Receipts
from chatrelay.relay.typing import Typing, TypingDialect

log = Logger("chatrelay.relay")

MICROSECONDS = 1_000_000
"""Microseconds in a second."""


class AwarenessDialect(ReceiptDialect, PresenceDialect, TypingDialect, Protocol):
    """Encodes all that is told; `chatrelay.wire.v2` is one."""


class Awareness:
    """The parts that tell people of each other.

    :param dialect: encodes what is told.
    :param message_log: where marks are kept.
    :param directory: the connections by user.
    :param inboxes: the cursors of all connections.
    :param asking: who is known to a user, for questions that this user causes.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param clock: for timers.
    :param call_soon: runs a callable in a later turn of the reactor.
    :param sends_receipts: whether receipts are sent.
    :param presence: ``known``, ``everybody`` or ``off``: of whom people are told that they are online.
    :ivar marks: the marks that are not saved yet.
    :ivar receipts: what was received and read.
    :ivar typing: who is typing.
    :ivar presence: who is online; None if nobody is told.
    :ivar told_pairs: pairs for which `committed` would only note the message among the arrivals.
    :ivar overview: how far conversations have been received and read.
    """

    def __init__(
        self,
        dialect: AwarenessDialect,
        message_log: InboxLog,
        directory: Directory,
        inboxes: Inboxes,
        asking: Acquaintances,
        now: Callable[[], float],
        clock: Any,
        call_soon: Callable[[Callable[[], None]], object],
        sends_receipts: bool = True,
        presence: str = "known",
    ) -> None:
        self._log = message_log
        self._connections_of = directory.connections_of
        self._inboxes = inboxes
        self._asking = asking
        self._told = Acquaintances(message_log.reader, by_second=True)
        self.told_pairs: Container[Pair] = self._told.known_pairs
        self.marks = Marks(message_log, call_soon, clock)
        self.receipts = Receipts(
            dialect, message_log.reader, inboxes, asking, self._told, self.marks, clock, sends_receipts
        )
        self.typing = Typing(dialect, inboxes, self._told, clock)
        self.presence: Presence | None = None
        if presence != "off":
            self.presence = Presence(dialect, self._connections_of, now, clock, call_soon, presence == "everybody")
        self.overview = Overview(message_log.reader, asking, self.marks, sends_receipts)
        # Even, and greater than in earlier runs unless the clock was set back. It tells nothing of when a user came.
        self._stays = 2 * int(now() * MICROSECONDS)
        self._departures = 0  # users who have left, and whose last place is not known yet
        self._waiting: list[Deferred[None]] = []
        directory.watch(self.connected, self.disconnected)
        asking.observer = self.became_known

    @property
    def features(self) -> Sequence[str]:
        """The features that are on, as clients are told."""
        has = {"receipts": self.receipts.are_sent, "presence": self.presence is not None, "typing": True}
        return [feature for feature, is_on in has.items() if is_on]

    # Called by the relay --------------------------------------------------------

    def committed(self, message: Message, pair: Pair) -> None:
        """Note a message that stands.

        :param pair: the sender and the recipient.
        """
        sender, recipient = pair
        if (recipient, sender) not in self._told.known_pairs:
            self._told.wrote(sender, recipient)
        arrivals = self.receipts.arrivals.get(recipient)
        if arrivals is not None:
            arrivals.add(message.to_place, sender, message.from_place)

    def forget(self) -> None:
        """Forget who is known to whom, because messages are not in the message log any more."""
        self._told.forget()

    def forget_unknown(self) -> None:
        """Note that messages are committed for which `committed` is not called."""
        self._told.forget_unknown()

    def became_known(self, pair: Pair, was_unknown: bool) -> None:
        """Note that the second user is known to the first one.

        :param was_unknown: whether it is certain that this is new.
        """
        if self.presence is not None:
            self.presence.became_known(*pair)
        if was_unknown:
            self.receipts.became_known(pair)

    # Called by the directory, for all dialects ------------------------------------

    def connected(self, user: str) -> None:
        """Note that a user who had no connection has one."""
        if self.presence is not None:
            self.presence.connected(user)
        self._stays += 2
        self.marks.set(user, MarkKind.STAYS, "", self._stays - 1)

    def disconnected(self, user: str) -> None:
        """Note that the last connection of a user has gone."""
        if self.presence is not None:
            self.marks.set(user, MarkKind.LAST_SEEN, "", self.presence.disconnected(user))
        self._departures += 1
        self._stays += 2
        departed = maybeDeferred(self._log.inbox, user).addCallback(self._departed, user, self._stays)
        departed.addErrback(_not_kept)
        departed.addErrback(self._report)
        departed.addCallback(self._departure_over)

    def _departed(self, state: InboxState, user: str, stays: int) -> None:
        # Somebody who has come back meanwhile has missed nothing, leaves at a later place, and has a greater mark.
        self.marks.set(user, MarkKind.LEFT_AT, "", state.last)
        self.marks.set(user, MarkKind.STAYS, "", stays)

    def _departure_over(self, _: None) -> None:
        self._departures -= 1
        if not self._departures:
            self.marks.save()
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def _report(self, failure: Failure) -> None:
        log.failure("noting that a user has left failed; please report it", failure=failure)

    # Called by sessions -----------------------------------------------------------

    async def watch(self, watcher: Watcher, users: Sequence[str]) -> tuple[Sequence[str], dict[str, int | None]]:
        """Replace whom a connection watches, and return who is online and who is not, as `Presence.watch` does.

        :raises LogUnavailable: if the log can't be read.
        :raises LogBusy: if too many reads wait.
        """
        presence = self.presence
        assert presence is not None
        is_for_everybody = presence.is_for_everybody
        found = set(users if is_for_everybody else await self._asking.look_up_all(watcher.user, users))
        away = [user for user in users if user in found and not presence.is_online(user)]
        kinds = (MarkKind.LAST_SEEN, MarkKind.STAYS)
        marks = await self.marks.read([(user, kind, "") for user in away for kind in kinds])
        last_seen = {
            user: value
            for (user, kind, _), value in marks.items()
            if kind is MarkKind.LAST_SEEN and not is_here(marks.get((user, MarkKind.STAYS, ""), 0))
        }
        # Somebody may have written meanwhile.
        found.update(user for user in users if self._asking.known((watcher.user, user)))
        if watcher.is_closed:
            return (), {}
        online, offline = presence.watch(watcher, users, found, last_seen)
        return online, dict(offline)

    def closed(self, watcher: Watcher) -> None:
        """End the watches of a connection that is closing or gone."""
        watcher.is_closed = True
        if self.presence is not None:
            self.presence.end(watcher)

    def stop(self) -> Deferred[None]:
        """Stop all timers, and pass all marks to the log; the Deferred fires when the log may be stopped.

        All connections must be closed.
        """
        self.receipts.stop()
        self.typing.stop()
        if self.presence is not None:
            self.presence.stop()
        self.marks.stop()
        if not self._departures:
            return succeed(None)
        self._waiting.append(Deferred())
        return self._waiting[-1]


def _not_kept(failure: Failure) -> None:
    failure.trap(LogUnavailable)
