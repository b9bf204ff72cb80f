"""Resumption: give each connection its resume tokens, and find what a token stands for.

A token lasts as long as the relay would have trusted the session without asking the site. So a connection gets a new
one after each re-check that the site confirms. A session without re-checks gets one each half of ``resume-time``.

This module must not know how tokens are sealed (`chatrelay.auth.resume`), how a login is decided
(`chatrelay.auth.login`), or frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from chatrelay.auth.resume import ID_BYTES, MAX_LIFE_SECONDS, Grant, Sealer
from chatrelay.auth.revocations import Revocations
from chatrelay.auth.session_index import digest, user_digest
from chatrelay.interfaces import Connection
from chatrelay.limits.deadlines import Deadlines

MAX_RENEWALS = 500
"""The most tokens that one sweep renews, so that it does not hold up the relay. Sweeps come four times a second."""


class TokenTaker(Protocol):
    """A client that can be sent a token at any time; `chatrelay.relay.session_v2.SessionV2` is one."""

    def send_token(self, token: str) -> None:
        """Send the client a new token, which replaces the one it has."""


class _Holder:
    """A connection that is logged in and gets tokens.

    :ivar client: sends it tokens.
    :ivar grant: what its next token says.
    """

    __slots__ = ("client", "grant")

    def __init__(self, client: TokenTaker, grant: Grant) -> None:
        self.client = client
        self.grant = grant


class Resumption:
    """The connections that get tokens, and the tokens.

    :param sealer: seals and opens tokens.
    :param revocations: the sessions whose tokens can't be used.
    :param resume_time: how long a token of a session without re-checks lasts, in seconds; more than 0.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param seconds: the reactor's time.
    :param random_bytes: returns as many random bytes as it is asked for.
    :ivar digest_key: the key for digests of sessions and users.
    """

    def __init__(
        self,
        sealer: Sealer,
        revocations: Revocations,
        resume_time: float,
        now: Callable[[], float],
        seconds: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._sealer = sealer
        self.digest_key = sealer.digest_key
        self._revocations = revocations
        self._resume_time = resume_time
        self._now = now
        self._seconds = seconds
        self._random_bytes = random_bytes
        self._holders: dict[Connection, _Holder] = {}
        self._connections: dict[bytes, Connection] = {}  # the holders, by id
        self._renewals: Deadlines[Any] = Deadlines(resume_time / 2)

    # Giving tokens -----------------------------------------------------------

    def logged_in(
        self,
        connection: Connection,
        client: TokenTaker,
        uid: str | int,
        handle: str | None,
        names: Sequence[bytes],
        cookie: bytes | None,
        wait: float | None,
        asked_at: float,
    ) -> None:
        """Note that the site has just confirmed the session by which a connection logs in.

        :param handle: the SESSID about which re-checks ask; None if there are none.
        :param names: the digests of the SESSIDs by which the session can be ended.
        :param cookie: the digest of the session cookie, if the login was by cookie; else None.
        :param wait: seconds until the next re-check; None if there is none.
        :param asked_at: when the site was asked, in seconds since 1970 UTC. What was revoked later stays revoked,
            though the answer came after that.
        """
        before = self._holders.get(connection)
        identity = self._random_bytes(ID_BYTES) if before is None else before.grant.connection
        expires, due = self._ends(wait, asked_at)
        self._hold(connection, client, Grant(uid, handle, tuple(names), cookie, expires, due, identity, asked_at))

    def resumed(self, connection: Connection, client: TokenTaker, grant: Grant, wait: float | None) -> None:
        """Note that a connection logs in by a token. Its own tokens end when that one does.

        :param grant: what the token says.
        :param wait: seconds until the next re-check; None if there is none.
        """
        due = None if wait is None else self._now() + wait
        self._hold(connection, client, attrs.evolve(grant, due=due, connection=self._random_bytes(ID_BYTES)))

    def _hold(self, connection: Connection, client: TokenTaker, grant: Grant) -> None:
        self._holders[connection] = _Holder(client, grant)
        self._connections[grant.connection] = connection
        if grant.due is None:
            self._renewals.start(connection, self._seconds())
        else:
            self._renewals.stop(connection)

    def token(self, connection: Connection) -> str | None:
        """Return a token for a connection; None if it gets none, or the site must be asked first."""
        holder = self._holders.get(connection)
        if holder is None or self._now() >= holder.grant.expires:
            return None
        return self._sealer.seal(holder.grant)

    def confirmed(self, connections: Sequence[Connection], wait: float, asked_at: float) -> None:
        """Send these connections new tokens: the site has just confirmed their session.

        :param wait: seconds until the next re-check.
        :param asked_at: when the site was asked, in seconds since 1970 UTC.
        """
        for connection in connections:
            self._extend(connection, wait, asked_at)
            self._send_token(connection)

    def put_off(self, connections: Sequence[Connection], wait: float, asked_at: float) -> None:
        """Note that the site has just confirmed the session of these connections at another's login.

        They get no new token now, but the one at their end lasts until the next re-check. The parameters are as in
        `confirmed`.
        """
        for connection in connections:
            self._extend(connection, wait, asked_at)

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection that is closing. Unknown connections are ignored."""
        holder = self._holders.pop(connection, None)
        if holder is not None:
            del self._connections[holder.grant.connection]
            self._renewals.stop(connection)

    def sweep(self) -> None:
        """Send new tokens to connections whose sessions are not re-checked, each half of ``resume-time``."""
        now = self._seconds()
        for _ in range(MAX_RENEWALS):
            if not self._renewals or self._renewals.earliest() > now:
                break
            connection = self._renewals.first()
            self._renewals.start(connection, now)
            self._extend(connection, None, self._holders[connection].grant.confirmed)
            self._send_token(connection)
        self._revocations.sweep()

    def _send_token(self, connection: Connection) -> None:
        token = self.token(connection)
        if token is not None:
            self._holders[connection].client.send_token(token)

    def _extend(self, connection: Connection, wait: float | None, asked_at: float) -> None:
        """Let the next token of a connection last until the next re-check.

        :param wait: seconds until then, if the site has just confirmed the session; None for a session that is not
            re-checked.
        :param asked_at: when the site was asked about it.
        """
        holder = self._holders.get(connection)
        if holder is not None:
            expires, due = self._ends(wait, asked_at)
            holder.grant = attrs.evolve(holder.grant, expires=expires, due=due, confirmed=asked_at)

    def _ends(self, wait: float | None, asked_at: float) -> tuple[float, float | None]:
        """Return when a token ends that is given now, and when the re-check is due."""
        now = self._now()
        if wait is None:
            return now + self._resume_time, None
        # A revocation that came before the answer must be kept until the token ends.
        return min(now + wait, asked_at + MAX_LIFE_SECONDS), now + wait

    # Revoking ----------------------------------------------------------------

    def revoke(self, digest: bytes) -> None:
        """Let no token of a session or a user be used any more, given its digest."""
        self._revocations.add(digest)

    def revoke_session(self, sessid: str) -> None:
        """Let no token of a session be used any more."""
        self._revocations.add(digest(sessid, self.digest_key))

    def denied(self, sessid: str) -> None:
        """Revoke the tokens of a session that the site has denied at a login.

        Anybody can have logins denied. So these revocations are saved together, four times a second at most.
        """
        self._revocations.add(digest(sessid, self.digest_key), at_once=False)

    def revocations_saved(self) -> Deferred[None]:
        """Return a Deferred as `Revocations.saved` does."""
        return self._revocations.saved()

    # Using tokens ------------------------------------------------------------

    def open(self, token: str, cookie: bytes | None) -> Grant | None:
        """Return what a token says; None if it can't be used.

        :param cookie: the digest of the session cookie in the client's handshake; None if there is none.
        """
        grant = self._sealer.open(token, self._now())
        if grant is None or (grant.cookie is not None and grant.cookie != cookie):
            return None
        return grant

    def find_revoked(self, grant: Grant) -> Deferred[bool | None]:
        """Look whether the session or the user of a grant was revoked, as `Revocations.find` does."""
        return self._revocations.find(self._revocable(grant), grant.confirmed)

    def is_usable(self, grant: Grant) -> bool:
        """Return whether a grant that was not revoked a moment ago can be used now."""
        return self._now() < grant.expires and not self._revocations.has(self._revocable(grant), grant.confirmed)

    def holder(self, grant: Grant) -> Connection | None:
        """Return the connection that got a token with this grant, if it is still logged in here."""
        return self._connections.get(grant.connection)

    def wait(self, grant: Grant) -> float:
        """Return the seconds until the re-check that is due; until the end of the token if none was."""
        return max(0.0, (grant.expires if grant.due is None else grant.due) - self._now())

    def __len__(self) -> int:
        """Return how many connections get tokens."""
        return len(self._holders)

    def _revocable(self, grant: Grant) -> tuple[bytes, ...]:
        return (user_digest(grant.user, self.digest_key), *grant.names)
