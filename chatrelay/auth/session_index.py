"""The session index: the session of the site by which each connection logged in, so that sessions can be ended.

Pure. This module must not know how a login is decided. It never keeps a SESSID, only a keyed hash of it. The hash finds
the connections of a session when the site names the session again. A stolen hash does not reveal the SESSID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from chatrelay.interfaces import Connection
from chatrelay.model import user_key
from chatrelay.relay.directory import Directory
from chatrelay.wire import codes

DIGEST_BYTES = 16
"""Bytes of a SESSID's hash."""

_USER = b"chatrelay.user"


def digest(sessid: str, key: bytes) -> bytes:
    """Return the keyed hash of a SESSID.

    :param key: at most 64 random bytes.
    """
    return hashlib.blake2b(sessid.encode("utf-8", "surrogateescape"), key=key, digest_size=DIGEST_BYTES).digest()


def user_digest(user: str, key: bytes) -> bytes:
    """Return the keyed hash of a user's key. It is never that of a SESSID."""
    return hashlib.blake2b(user.encode("utf-8"), key=key, digest_size=DIGEST_BYTES, person=_USER).digest()


def _ignore(digest: bytes) -> None:
    """Do nothing about a session that was ended."""


class _PendingLogin:
    """The logins by one SESSID whose verdict is pending.

    :ivar digest: the hash of the SESSID.
    :ivar connections: the connections that wait for the verdict.
    :ivar ends_before: how many ends of sessions and users were noted before the first of these logins began. The
        verdict may be older than any later one.
    """

    __slots__ = ("connections", "digest", "ends_before")

    def __init__(self, digest: bytes, ends_before: int) -> None:
        self.digest = digest
        self.connections: dict[Connection, None] = {}
        self.ends_before = ends_before


class SessionIndex:
    """The connections that are logged in, or about to be, by session.

    :param directory: the connections by user.
    :param key: the key of the hashes, at most 64 random bytes.
    :param ended: called with the digest of each session, and of each user, that is ended.
    """

    def __init__(self, directory: Directory, key: bytes, ended: Callable[[bytes], None] = _ignore) -> None:
        self._directory = directory
        self._key = key
        self._notify_ended = ended
        self._pending: dict[bytes, _PendingLogin] = {}
        self._pending_of: dict[Connection, _PendingLogin] = {}
        self._connections: dict[bytes, dict[Connection, None]] = {}
        self._digests: dict[Connection, frozenset[bytes]] = {}
        # The users, and the digests of the sessions, that were ended while any login was pending. Each is mapped to the
        # number of its end. The oldest end is the first.
        self._ended: dict[str | bytes, int] = {}
        self._ends = 0

    def asked(self, connection: Connection, sessid: str) -> None:
        """Note that a login by `sessid` has begun on this connection."""
        self.resuming(connection, self.digest(sessid))

    def resuming(self, connection: Connection, digest: bytes) -> None:
        """Note that a login has begun on this connection, by a session of which only the digest is known.

        :param digest: names the session, or nothing else if the session has no name.
        """
        # Logins by the same SESSID may share one verdict. So an end after the first of them began makes it out of date
        # for all.
        pending = self._pending.get(digest)
        if pending is None:
            pending = self._pending[digest] = _PendingLogin(digest, self._ends)
        pending.connections[connection] = None
        self._pending_of[connection] = pending

    def answered(self, connection: Connection, user: str | None, session: str | None = None) -> bool:
        """Note the verdict on a login that `asked` has noted.

        :param user: the key of the user who is logged in; None for any other verdict.
        :param session: the SESSID that the verdict names; None if it names none.
        :returns: whether the verdict counts: False if this session, or all of this user's, were ended meanwhile.
        """
        pending = self._pending_of.pop(connection, None)
        if pending is None:
            return True
        counts = (
            user is None
            or not self._ended
            or not (
                self._has_ended(pending, user)
                or self._has_ended(pending, pending.digest)
                or (session is not None and self._has_ended(pending, self.digest(session)))
            )
        )
        del pending.connections[connection]
        if not pending.connections:
            del self._pending[pending.digest]
            if self._ended:
                self._forget_ends()
        return counts

    def entered(self, connection: Connection, names: Iterable[str]) -> None:
        """Note that a connection is logged in by a session; it replaces the session of an earlier login.

        :param names: the SESSIDs by which the session can be named.
        """
        self.resumed(connection, map(self.digest, names))

    def resumed(self, connection: Connection, names: Iterable[bytes]) -> None:
        """Note that a connection is logged in by a session, as `entered` does.

        :param names: the digests of the SESSIDs by which the session can be named.
        """
        self._forget(connection)
        digests = self._digests[connection] = frozenset(names)
        for digest in digests:
            self._connections.setdefault(digest, {})[connection] = None

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection that is closing. Unknown connections are ignored."""
        self.answered(connection, None)
        self._forget(connection)

    def end_user(self, uid: str | int) -> int:
        """Close every connection of a user, with 4505.

        A pending login of the user's is refused when its verdict comes.

        :returns: how many connections were closed.
        """
        user = user_key(uid)
        self._note_end(user)
        self._notify_ended(user_digest(user, self._key))
        return _close(self._directory.connections_of(user))

    def end_session(self, sessid: str) -> int:
        """Close every connection that is logged in by this SESSID or about to be, with 4505.

        A pending login by something else, such as a ticket, is refused if its verdict names this SESSID.

        :returns: how many connections were closed.
        """
        digest = self.digest(sessid)
        self._note_end(digest)
        self._notify_ended(digest)
        pending = self._pending.get(digest)
        about_to_be = () if pending is None else pending.connections
        # A connection that logs in again by the same SESSID is among both.
        return _close(dict.fromkeys((*self._connections.get(digest, ()), *about_to_be)))

    def __len__(self) -> int:
        """Return how many connections are known."""
        return len(self._pending_of.keys() | self._digests.keys())

    def _note_end(self, name: str | bytes) -> None:
        if self._pending:
            self._ends += 1
            self._ended.pop(name, None)
            self._ended[name] = self._ends

    def _has_ended(self, pending: _PendingLogin, name: str | bytes) -> bool:
        return self._ended.get(name, 0) > pending.ends_before

    def _forget_ends(self) -> None:
        """Forget the ends that are older than the oldest pending login."""
        oldest = next(iter(self._pending.values()), None)
        while self._ended:
            name = next(iter(self._ended))
            if oldest is not None and self._ended[name] > oldest.ends_before:
                break
            del self._ended[name]

    def _forget(self, connection: Connection) -> None:
        for digest in self._digests.pop(connection, ()):
            others = self._connections[digest]
            del others[connection]
            if not others:
                del self._connections[digest]

    def digest(self, sessid: str) -> bytes:
        """Return the keyed hash of a SESSID, by which the index knows it."""
        return digest(sessid, self._key)

    def user_digest(self, user: str) -> bytes:
        """Return the keyed hash of a user's key."""
        return user_digest(user, self._key)


def _close(connections: Iterable[Connection]) -> int:
    closing = tuple(connections)  # a copy, because closing a connection removes it from the collection
    for connection in closing:
        connection.close(codes.ENDED)
    return len(closing)
