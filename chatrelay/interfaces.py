"""The Protocols between the packages: what one package requires of another, or of an embedding program.

An `Authenticator` says whose session it is, and a `MessageLog` keeps messages: an embedding program may replace both. A
`Connection` carries bytes to one client, a `Dialect` encodes and decodes them, and a `Submitter` submits messages. This
module must not implement any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from twisted.internet.defer import Deferred

from chatrelay.model import (
    Conversation,
    InboxEntry,
    InboxState,
    LoggedMessage,
    Mark,
    MarkKey,
    Page,
    Progress,
    Selection,
    Verdict,
)
from chatrelay.model import LogUnavailable as LogUnavailable  # embedding programs import both from here
from chatrelay.model import Message as Message
from chatrelay.wire.codes import Close, Reason
from chatrelay.wire.structs import AuthRequest, Header, SendRequest

ALL_MESSAGES = Selection()
"""Chooses every message of a log."""


class Authenticator(Protocol):
    """Says whose session it is."""

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Ask once whose session it is.

        :param sessid: 1 to 4096 characters, opaque, never to be logged.
        :returns: a Deferred that fires with the verdict. When the relay cancels it, the request must be given up. It
            must not fail for any other reason: if there is no verdict, it fires with `chatrelay.model.Unavailable`.
        """


@runtime_checkable
class TicketAuthenticator(Protocol):
    """An `Authenticator` that treats a ticket differently from a session."""

    def authenticate_ticket(self, sessid: str) -> Deferred[Verdict]:
        """Ask as `Authenticator.authenticate` does, about a SESSID that is valid for one request only."""


@runtime_checkable
class Abandons(Protocol):
    """An `Authenticator` with a method that is called when nobody waits for a verdict any more."""

    def give_up(self, verdict: Deferred[Any]) -> None:
        """Note that nobody waits for this verdict any more. If there is no such method, the relay cancels the Deferred.

        :param verdict: what `authenticate` or `authenticate_ticket` returned.
        """


@runtime_checkable
class Startable(Protocol):
    """An `Authenticator` with methods that are called when the relay starts and stops.

    It has all three methods or none. A class with only some of them is not `Startable`, and none of them is called.
    """

    def startup_check(self) -> None:
        """Begin to check that the relay can get verdicts, and log a problem if it can't."""

    def stop_startup_check(self) -> None:
        """Give up a pending check, and log nothing more about it: the relay is stopping."""

    def close(self) -> Deferred[None]:
        """Give up all requests and close all connections; the Deferred fires when that is done."""


class LoginDialect(Protocol):
    """The part of every dialect that logins need."""

    def auth_response(self, value: bool, reason: Reason | None = None, /) -> bytes:
        """Encode the answer to an auth-request."""

    def refused(self, request_id: str | int, reason: Reason, /) -> bytes:
        """Encode the answer to the sender of a message that was refused."""

    def error(self, reason: Reason, detail: str, /) -> bytes:
        """Encode the answer to a frame that can't be used."""


class Dialect(LoginDialect, Protocol):
    """One WebSocket subprotocol: decodes requests, and encodes answers and deliveries. `chatrelay.wire.v1` is one."""

    def decode(self, payload: bytes, /) -> AuthRequest | SendRequest:
        """Decode a client's text message.

        :raises chatrelay.wire.structs.UnusableFrame: if it is not a request.
        """

    def read_header(self, payload: bytes, /) -> Header:
        """Read the type and the id of a client's text message, and nothing else of it.

        :raises chatrelay.wire.structs.UnusableFrame: if its type is not one that clients send.
        """

    def delivery(self, message: Message, /) -> bytes:
        """Encode a message for its recipient."""

    def accepted(self, message: Message, /) -> bytes:
        """Encode the answer to the sender of a message that was accepted."""


class Connection(Protocol):
    """One client's open WebSocket, as the relay sees it."""

    @property
    def dialect(self) -> Dialect:
        """The dialect in which messages are delivered to this client."""

    def send(self, payload: bytes) -> bool:
        """Append one text message to the outgoing buffer. This must never raise.

        :param payload: the message, encoded.
        :returns: True if it was appended: the connection is open, and its unread messages stay within its budget (C2 of
            the promise, docs/design.rst).
        """

    def close(self, close: Close) -> None:
        """Begin the closing handshake. Messages that the client sends from now on are ignored.

        :param close: the code and the reason to send; one of those in `chatrelay.wire.codes`.
        """


class V2Dialect(Protocol):
    """Encodes what occupies places of an inbox; `chatrelay.wire.v2` is one. The rest of it is the session's."""

    def delivery(self, message: Message | LoggedMessage, place: int, /) -> bytes:
        """Encode a message for a user who has it at `place`."""

    def void(self, first: int, last: int, /) -> bytes:
        """Encode that nothing is at the places from `first` to `last`, which may be the same."""

    def erased(self, place: int, ranges: Sequence[tuple[int, int]], /) -> bytes:
        """Encode the entry at `place`: what was at these ranges of places was erased.

        :param ranges: the first and the last place of each.
        """


class InboxConnection(Protocol):
    """A client's open WebSocket, as the cursor of an inbox sees it."""

    @property
    def unsent(self) -> int:
        """The bytes that wait in this process until the client has read what is before them."""

    @property
    def is_behind(self) -> bool:
        """Whether bytes from an earlier turn of the reactor wait in this process."""

    def send(self, payload: bytes) -> bool:
        """Append one text message, as `Connection.send` does. Once it has returned False, it always does."""

    def call_when_drained(self, call: Callable[[], None]) -> None:
        """Call `call` once, in a later turn of the reactor, when less than 64 KiB are unsent.

        There is never more than one call that waits. It need not come after the connection has closed.
        """

    def close(self, close: Close) -> None:
        """Begin the closing handshake, as `Connection.close` does."""


class MessageReader(Protocol):
    """Reads a message log, even while a relay writes to it."""

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every committed message, oldest first, including those that reached nobody.

        Messages that are committed meanwhile may be among them. Close the generator if it is not read to its end.

        :raises LogUnavailable: if the log can't be read; the text is a sentence with the remedy.
        """


class LogFollower(Protocol):
    """Reads what is added to a message log after it was made."""

    @property
    def through(self) -> int:
        """The number of the last message in the log when the follower was made; 0 if there was none."""

    @property
    def first(self) -> int:
        """The smallest number that a new message may have.

        It is at most `through` where several relays write: a message may be committed after one with a larger number.
        """

    def new_messages(self) -> Sequence[LoggedMessage]:
        """Return messages that were committed since the last call, but not many at once. Each is returned once.

        :raises LogReplaced: if another message log, or an earlier copy, was put in this one's place.
        :raises LogUnavailable: if the log can't be read now. Call again later.
        """

    def close(self) -> None:
        """Close what is open."""


class LogReader(MessageReader, Protocol):
    """A `MessageReader` that can choose messages, and read an inbox. It needs no reactor, and no relay that runs.

    Its methods raise `LogUnavailable` as `MessageReader.messages` does. As far as the log has an index, it reads no
    more of the log than it must.
    """

    def messages(
        self, selection: Selection = ALL_MESSAGES, *, through: int | None = None, newest_first: bool = False
    ) -> Generator[LoggedMessage, None, None]:
        """Yield the committed messages that are wanted, including those that reached nobody.

        :param through: the number of the last message that is wanted; None for all.
        """

    def epoch(self) -> str:
        """Return the log's epoch; empty if no relay has opened the log yet."""

    def inbox(self, user: str) -> InboxState:
        """Return a user's inbox, with the marks that are kept with it."""

    def entries(self, user: str, after: int, through: int) -> Generator[InboxEntry, None, None]:
        """Yield the entries of a user's places beyond `after`, up to `through`, void ones included."""

    def follower(self) -> LogFollower:
        """Return a reader of the messages that are committed from now on."""


class Submitter(Protocol):
    """Submits messages to `chatrelay.relay.delivery.Relay`, and learns whether each was accepted or refused.

    For each message, one of the two methods is called, once. Neither may raise.
    """

    def accepted(self, message: Message) -> None:
        """Act on a message that was logged and handed over to its recipient (C1 and C2 of the promise)."""

    def refused(self, message: Message, reason: Reason) -> None:
        """Act on a message that was not delivered."""


class StoreSubmitter(Protocol):
    """Submits messages with ``Relay.store(message, submitter, again, reject)``, and learns what became of each.

    For each message, one of the three methods is called, once. None may raise.
    """

    @property
    def connection(self) -> InboxConnection | None:
        """The connection whose answer takes the message's place, if it has a cursor.

        `stored` must then pass its answer to `chatrelay.relay.inbox.Cursor.answer`. The message itself goes to the
        user's other cursors.
        """

    def stored(self, message: Message, place: int, at: int, delivered: bool) -> None:
        """Act on a message that is logged and will never be refused.

        :param message: the message that was submitted. If it was sent again, its own places are not set.
        :param place: the message's place in the sender's inbox.
        :param at: when the relay received it first: microseconds since 1970 UTC, as `LoggedMessage.received_at`.
        :param delivered: whether it was handed over (the promise's C2), and the sender may know that.
        """

    def refused(self, message: Message, reason: Reason) -> None:
        """Act on a message that is not logged."""

    def unknown(self, message: Message) -> None:
        """Close the connection with 4005: it is not known in time whether the message is logged."""


class MessageLog(Protocol):
    """The durable record of messages. All methods are called in the reactor's thread."""

    @property
    def is_open(self) -> bool:
        """Whether the log can be written, as far as is known."""

    @property
    def is_alive(self) -> bool:
        """Whether the log can ever be written again: False if a part that it needs, such as a thread, has ended.

        Only ``twistd chatrelay`` reads this. If it is False, the relay stops notifying systemd, so systemd restarts it.
        """

    def start(self) -> None:
        """Open the log, and block until it can be written.

        :raises LogUnavailable: with a sentence that names the log and the remedy.
        """

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Commit a batch: all of it or none, synced to the disk, and numbered in the order given.

        :returns: a Deferred that fires with the numbers of the messages, in that order, or fails with `LogUnavailable`.
        """

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Note that these messages reached nobody.

        :returns: a Deferred that fires when that is committed, or fails with `LogUnavailable`. After a failure, the log
            must commit the marks itself when it recovers.
        """

    def stop(self) -> Deferred[None]:
        """Close the log when all earlier calls are done; the Deferred fires when it is closed."""


@runtime_checkable
class SlowStart(Protocol):
    """A `MessageLog` whose `start` may take long, because it changes what an older version has written."""

    on_progress: Callable[[], object]
    """Called about once a second while `start` runs. The process sets it, so that systemd keeps waiting."""


class LogReplaced(Exception):
    """Another message log is in the place of the one that was read. The text is a sentence with the remedy."""


class CommitUnknown(LogUnavailable):
    """A commit failed, and it is not known whether the batch is in the log.

    :ivar outcome: fires when the log can be read again: with True if the batch is in it, as a whole, and False if it is
        not and never will be. If it is, the messages have their places, those with a unique id stand, and the others
        are marked as undelivered. It fires before any later batch is committed. It never fails, but may never fire.
    """

    def __init__(self, text: str, outcome: Deferred[bool]) -> None:
        super().__init__(text)
        self.outcome = outcome


@runtime_checkable
class InboxLog(MessageLog, Protocol):
    """A `MessageLog` that numbers the messages of each user, and can be read by user. The dialect v2 needs one.

    Its `append` sets `from_place` and `to_place` of each message before its Deferred fires. When a commit may have
    succeeded although it failed, the Deferred fails with `CommitUnknown`.
    """

    @property
    def epoch(self) -> str:
        """A name that changes when a backup is restored, or the file is replaced.

        Places from before the change are not valid after it. The name is 1 to 64 printable ASCII characters; `start`
        reads it.
        """

    @property
    def reader(self) -> InboxReader:
        """Reads this log."""

    def inbox(self, user: str) -> Deferred[InboxState]:
        """Look up a user's inbox.

        :param user: the key of the user. An unknown user has an empty inbox.
        :returns: a Deferred that fires when the Deferreds of all earlier batches have fired, with the state after them,
            and before that of any later batch. It fails with `LogUnavailable` if the log can't be read.
        """

    def save_marks(self, marks: Sequence[Mark]) -> Deferred[None]:
        """Keep marks. A mark replaces the kept one only if it is greater. Any mark replaces none.

        Most marks may wait up to a second for a batch, but those of kind `MarkKind.REVOKED` are committed at once. The
        log may drop the latter when the time that is their value has passed. One with an empty `Mark.peer` stands for
        all: the log drops those whose value is not greater.

        :returns: a Deferred that fires when they are committed, or fails with `LogUnavailable`; then they are not kept.
        """


@runtime_checkable
class TrimmableLog(InboxLog, Protocol):
    """An `InboxLog` whose oldest messages can be deleted. The option ``keep`` needs one."""

    def trim(self, before: int) -> Deferred[int]:
        """Delete some of the oldest messages that were received before a time.

        They are deleted in the order of their numbers, up to the first one that was not received before that time. So
        every inbox keeps its last places, and `InboxState.first` is the place after those of the deleted messages.
        Their numbers and places are never given again, whether the log is opened again or not. What is kept about
        these messages is deleted with them. So are their users' marks of kind `MarkKind.READ` before the first place.

        :param before: microseconds since 1970 UTC. A message that was received at that time stays.
        :returns: a Deferred that fires when that is committed, with the number of deleted messages, or fails with
            `LogUnavailable`. It is 0 if there is nothing to delete, or another process is deleting. If it is 100 or
            more, there may be more, and the next call follows soon; otherwise it comes after a minute.
        """


@runtime_checkable
class ErasableLog(InboxLog, Protocol):
    """An `InboxLog` in which another process may erase messages: `chatrelay.messagelog.erasing`."""

    on_erased: Callable[[Mapping[str, int]], object]
    """Called after messages were erased. Its argument has the users who are told by entries of their inboxes, each with
    the last place of the inbox. The call comes before the Deferred of any later batch, or of a later call of `inbox`,
    fires. `chatrelay.build` sets it."""


class InboxReader(Protocol):
    """Reads an `InboxLog` by user, without blocking the reactor, and without keeping the log from writing.

    Each method returns a Deferred. It fails with `LogUnavailable` if the log can't be read, with
    `chatrelay.model.LogNotIndexed` if that is so only until an index of the log is made, and with
    `chatrelay.model.LogBusy` if too many reads wait. Each read sees what was committed before it.
    `chatrelay.model.InboxEntry` says when a message stands. Users are keys, as `chatrelay.model.user_key` makes them;
    `user` and `peer` may be the same.
    """

    def entries(self, user: str, after: int, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the entries of consecutive places, oldest first, void ones included.

        :param after: the place before the first one that is read.
        :param through: the last place that may be read.
        :param limit: the most entries.
        :param size: the most bytes of content, encoded as UTF-8. The first entry is read even if it has more.
        """

    def history(
        self, user: str, peer: str, *, before: int | None, after: int | None, through: int, limit: int, size: int
    ) -> Deferred[Page]:
        """Read the messages that stand between two users, as `user` sees them.

        :param before: read messages at places before this one, newest first. None for the newest ones.
        :param after: read messages at places after this one, oldest first; not together with `before`.
        :param through: the last place that may be read.
        :param limit: the most messages.
        :param size: the most bytes of content, encoded as UTF-8. The first message is read even if it has more.
        """

    def conversations(self, user: str, *, before: int | None, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read the last message that stands of each conversation of a user, newest first.

        :param before: only conversations whose last message is at a place before this one. None for the newest ones.
        :param through: the last place that may be read: later messages are treated as if they were not there.
        """

    def progress(
        self, user: str, conversations: Sequence[Conversation], *, through: int, limit: int
    ) -> Deferred[Sequence[Progress]]:
        """Read how far conversations of a user were received and read: all of them in one read, in the order given.

        The other user's marks are about the messages of `user` that stand.

        :param through: the last place that may be read.
        :param limit: the number of unread messages of a conversation at which counting stops; 0 to count none.
        """

    def find(self, sender: str, unique_id: str, since: int) -> Deferred[LoggedMessage | None]:
        """Find a message by its sender and its unique id.

        :param since: microseconds since 1970 UTC; a message that was received before is not found.
        """

    def has_written(self, sender: str, recipient: str, by_sender: bool = False) -> Deferred[bool]:
        """Return whether a message from `sender` to `recipient` stands.

        What this read costs depends on the inbox of the user who asks, and not on the other one, who may be a stranger.
        The same holds for `history`, and for `progress` with an unknown user, where `user` asks.

        :param by_sender: whether the sender asks, and not the recipient.
        """

    def writers(self, recipient: str, senders: Sequence[str]) -> Deferred[Collection[str]]:
        """Return those of some users from whom a message to `recipient` stands, in one read. `recipient` asks."""

    def place_of_sender(self, sender: str, recipient: str, through: int) -> Deferred[int]:
        """Translate a place of the recipient's into one of the sender's, for two users who know each other.

        :param through: a place in the recipient's inbox.
        :returns: a Deferred that fires with the place, in the sender's inbox, of the last message from `sender` to
            `recipient` that stands and is at or before that place; 0 if there is none.
        """

    def marks(self, keys: Sequence[MarkKey]) -> Deferred[Mapping[MarkKey, int]]:
        """Read the values of marks of any users and kinds at once. A mark that is not kept is left out.

        A mark that is still being saved may be left out, too.
        """
