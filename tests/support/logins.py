"""Clients that log in without a WebSocket, for tests of the flow of a login."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from chatrelay.auth.login import Logins
from chatrelay.interfaces import Connection
from chatrelay.model import LoggedIn, Verdict
from chatrelay.relay.directory import Directory
from chatrelay.testing import RecordedConnection
from chatrelay.wire.codes import Close


class RecordedSession:
    """The login state of a client.

    :ivar verdicts: those that it got.
    :ivar preparing: what fires when it is prepared for a verdict; None if it needs no preparation.
    :ivar refuses: whether it refuses every user, as a session does whose inbox can't be loaded.
    :ivar takes_tokens: whether it has resume tokens.
    :ivar tokens: those that it was sent. The first is that of the answer to its login.
    :ivar failures: how many tokens of its own could not be used.
    """

    def __init__(
        self,
        connection: RecordedConnection,
        directory: Directory,
        make_token: Callable[[Connection], str | None] | None = None,
    ) -> None:
        self.verdicts: list[Verdict] = []
        self.preparing: Deferred[None] | None = None
        self.refuses = False
        self.takes_tokens = make_token is not None
        self.tokens: list[str | None] = []
        self.failures = 0
        self._make_token = make_token
        self._connection = connection
        self._directory = directory
        self._user: str | None = None

    @property
    def logged_in(self) -> bool:
        """Whether somebody is logged in."""
        return self._user is not None

    def prepare(self, verdict: Verdict) -> Deferred[None] | None:
        """Return what the test has set, for a user who logs in."""
        return self.preparing if isinstance(verdict, LoggedIn) else None

    def answered(self, verdict: Verdict) -> bool:
        """Take a verdict, as `Session.answered` does."""
        self.verdicts.append(verdict)
        if not isinstance(verdict, LoggedIn) or self.refuses:
            return False
        if self._user is None:
            self._user = verdict.user
            self._directory.add(verdict.user, self._connection)
            if self._make_token is not None:
                self.tokens.append(self._make_token(self._connection))
        return self._user == verdict.user

    def send_token(self, token: str) -> None:
        """Take a new token."""
        self.tokens.append(token)

    def resume_failed(self) -> None:
        """Count a token that could not be used."""
        self.failures += 1

    def closed(self) -> None:
        """Leave the directory."""
        if self._user is not None:
            self._directory.remove(self._user, self._connection)
            self._user = None


class RecordedClient:
    """A client that logs in.

    :ivar first_logins: how often it had to apply the limits of a user.
    """

    def __init__(self, directory: Directory, make_token: Callable[[Connection], str | None] | None = None) -> None:
        self.outgoing = RecordedConnection()
        self.session = RecordedSession(self.outgoing, directory, make_token)
        self.first_logins = 0

    def apply_user_limits(self) -> None:
        """Count a first login."""
        self.first_logins += 1


class ClosingConnection(RecordedConnection):
    """A connection that leaves the logins when it is closed, as a real one does."""

    def __init__(self, logins: Logins) -> None:
        super().__init__()
        self._logins = logins
        self.session: RecordedSession | None = None

    def close(self, close: Close) -> None:
        """Close, and leave."""
        super().close(close)
        self._logins.disconnected(self)
        if self.session is not None:
            self.session.closed()
