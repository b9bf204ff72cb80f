"""Which of the site's sessions each connection came in by, so that it can be ended from outside.

Pure. A SESSID is never kept here, only a keyed hash of it: enough to find the
connections of a session when it is named again, and of no use to anybody who
gets to see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from chatrelay.interfaces import Connection
from chatrelay.model import user_key
from chatrelay.relay.directory import Directory
from chatrelay.wire import codes

DIGEST_SIZE = 16
"""Bytes of a SESSID's hash."""


def digest(sessid: str, key: bytes) -> bytes:
    """What a SESSID is known by, without keeping it.

    :param key: at most 64 random bytes.
    """
    return hashlib.blake2b(sessid.encode("utf-8", "surrogateescape"), key=key, digest_size=DIGEST_SIZE).digest()


class _Pending:
    """A SESSID that the webserver is being asked about.

    :ivar digest: of the SESSID.
    :ivar connections: those that wait for the answer.
    :ivar since: how often anything had been ended when it was asked: the answer may be older than what was ended later.
    """

    __slots__ = ("connections", "digest", "since")

    def __init__(self, digest: bytes, since: int) -> None:
        self.digest = digest
        self.connections: dict[Connection, None] = {}
        self.since = since


class SessionIndex:
    """The connections that are logged in, or about to be, by SESSID.

    :param directory: the connections by user.
    :param key: of the hashes, at most 64 random bytes.
    """

    def __init__(self, directory: Directory, key: bytes) -> None:
        self._directory = directory
        self._key = key
        self._questions: dict[bytes, _Pending] = {}
        self._pending: dict[Connection, _Pending] = {}
        self._connections: dict[bytes, dict[Connection, None]] = {}
        self._digests: dict[Connection, frozenset[bytes]] = {}
        # The users, and the sessions by their digests, that were ended while anything was being asked, each with the
        # number of its end; in the order of those.
        self._ended: dict[str | bytes, int] = {}
        self._ends = 0

    def asked(self, connection: Connection, sessid: str) -> None:
        """The webserver is asked whose session it is that `connection` brought."""
        digest = self._digest(sessid)
        # Who asks about the same SESSID meanwhile may get the same answer, and so shares what makes it too old.
        question = self._questions.get(digest)
        if question is None:
            question = self._questions[digest] = _Pending(digest, self._ends)
        question.connections[connection] = None
        self._pending[connection] = question

    def answered(self, connection: Connection, user: str | None, session: str | None = None) -> bool:
        """The webserver has answered: `user` is logged in; None where nobody is.

        :param session: the SESSID that the answer names; None where it names none.
        :returns: whether that counts. It does not where this session or all of this user's were ended meanwhile.
        """
        question = self._pending.pop(connection, None)
        if question is None:
            return True
        counts = (
            user is None
            or not self._ended
            or not (
                self._has_ended(question, user)
                or self._has_ended(question, question.digest)
                or (session is not None and self._has_ended(question, self._digest(session)))
            )
        )
        del question.connections[connection]
        if not question.connections:
            del self._questions[question.digest]
            if self._ended:
                self._forget_ends()
        return counts

    def entered(self, connection: Connection, names: Iterable[str]) -> None:
        """`connection` is logged in by a session of these names, SESSIDs all of them, whatever it came in by before."""
        self._forget(connection)
        digests = self._digests[connection] = frozenset(map(self._digest, names))
        for digest in digests:
            self._connections.setdefault(digest, {})[connection] = None

    def left(self, connection: Connection) -> None:
        """`connection` is closing; nothing happens where it was not known."""
        self.answered(connection, None)
        self._forget(connection)

    def end_user(self, uid: str | int) -> int:
        """Close every connection of a user, with 4505.

        A login of the user's that the webserver is being asked about ends when the answer comes.

        :returns: how many were closed.
        """
        user = user_key(uid)
        self._note_end(user)
        return _close(self._directory.connections_of(user))

    def end_session(self, sessid: str) -> int:
        """Close every connection that came in by this SESSID or is about to, with 4505.

        A login by something else, such as a one-time ticket, ends when the answer comes and names this SESSID.

        :returns: how many were closed.
        """
        digest = self._digest(sessid)
        self._note_end(digest)
        question = self._questions.get(digest)
        pending = () if question is None else question.connections
        # One that logs in again by the same SESSID is among both.
        return _close(dict.fromkeys((*self._connections.get(digest, ()), *pending)))

    def __len__(self) -> int:
        """How many connections are known."""
        return len(self._pending.keys() | self._digests.keys())

    def _note_end(self, name: str | bytes) -> None:
        if self._questions:
            self._ends += 1
            self._ended.pop(name, None)
            self._ended[name] = self._ends

    def _has_ended(self, question: _Pending, name: str | bytes) -> bool:
        return self._ended.get(name, 0) > question.since

    def _forget_ends(self) -> None:
        """Forget what was ended before the oldest of the questions was put."""
        oldest = next(iter(self._questions.values()), None)
        while self._ended:
            name = next(iter(self._ended))
            if oldest is not None and self._ended[name] > oldest.since:
                break
            del self._ended[name]

    def _forget(self, connection: Connection) -> None:
        for digest in self._digests.pop(connection, ()):
            others = self._connections[digest]
            del others[connection]
            if not others:
                del self._connections[digest]

    def _digest(self, sessid: str) -> bytes:
        return digest(sessid, self._key)


def _close(connections: Iterable[Connection]) -> int:
    ending = tuple(connections)  # closing one takes it out of where it was found
    for connection in ending:
        connection.close(codes.ENDED)
    return len(ending)
