"""The Protocols between the packages: what one package requires of another, or of an embedding program.

An `Authenticator` says whose session it is, and a `MessageLog` keeps messages: an embedding program may replace both. A
`Connection` carries bytes to one client, a `Dialect` encodes and decodes them, and a `Submitter` submits messages. This
module must not implement any of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

from twisted.internet.defer import Deferred

from chatrelay.model import LoggedMessage, Verdict
from chatrelay.model import LogUnavailable as LogUnavailable  # embedding programs import both from here
from chatrelay.model import Message as Message
from chatrelay.wire.codes import Close, Reason
from chatrelay.wire.structs import AuthRequest, Header, SendRequest


class Authenticator(Protocol):
    """Says whose session it is."""

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Ask once whose session it is.

        :param sessid: 1 to 4096 characters, opaque, never to be logged.
        :returns: a Deferred that fires with the verdict. If it is cancelled, give the request up. It must not fail for
            any other reason: if there is no verdict, fire it with `chatrelay.model.Unavailable`.
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
        """Note that nobody waits for this verdict. If there is no such method, the relay cancels the Deferred.

        :param verdict: what `authenticate` or `authenticate_ticket` returned.
        """


@runtime_checkable
class Startable(Protocol):
    """An `Authenticator` with methods that are called when the relay starts and stops."""

    def startup_check(self) -> None:
        """Begin to check that the relay can get verdicts, and log a problem if it can't."""

    def stop_startup_check(self) -> None:
        """Give a pending check up, and log nothing more about it: the relay is stopping."""

    def close(self) -> Deferred[None]:
        """Give up all requests and close all connections; the Deferred fires when that is done."""


class Dialect(Protocol):
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

    def refused(self, request_id: str | int, reason: Reason, /) -> bytes:
        """Encode the answer to the sender of a message that was refused."""

    def auth_response(self, value: bool, reason: Reason | None = None, /) -> bytes:
        """Encode the answer to an auth-request."""

    def error(self, reason: Reason, detail: str, /) -> bytes:
        """Encode the answer to a frame that can't be used."""


class Connection(Protocol):
    """One client's open WebSocket, as the relay sees it."""

    @property
    def dialect(self) -> Dialect:
        """The dialect in which messages are delivered to this client."""

    def send(self, payload: bytes) -> bool:
        """Append one text message to the outgoing buffer. This must never raise.

        :param payload: the message, encoded.
        :returns: whether it was appended. It is if the connection is open and the message is within the budget (the
            promise's C2).
        """

    def close(self, close: Close) -> None:
        """Begin the closing handshake. From now on, no message of the client is taken.

        :param close: the code and the reason to send; one of those in `chatrelay.wire.codes`.
        """


class MessageReader(Protocol):
    """Reads a message log, also while a relay writes to it."""

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every committed message, oldest first, including those that reached nobody.

        Messages that are committed meanwhile may be among them. Close the generator if it is not read to its end.

        :raises LogUnavailable: if the log can't be read; the text is a sentence with the remedy.
        """


class Submitter(Protocol):
    """Submits messages to `chatrelay.relay.delivery.Relay`, and learns whether each was accepted or refused.

    For each message, one of the two methods is called, once. Neither may raise.
    """

    def accepted(self, message: Message) -> None:
        """Act on a message that is logged and appended to a connection of its recipient (the promise's C1, C2)."""

    def refused(self, message: Message, reason: Reason) -> None:
        """Act on a message that was not delivered."""


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

        :returns: a Deferred that fires when that is committed, or fails with `LogUnavailable`. After a failure the log
            itself must commit it when it recovers.
        """

    def stop(self) -> Deferred[None]:
        """Close the log when all earlier calls are done; the Deferred fires when it is closed."""
