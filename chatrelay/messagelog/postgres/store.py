"""The store of a message log in PostgreSQL: one call of one function for each batch.

It is synchronous. This module must not know threads or the reactor.

The function numbers the messages, inserts them and commits, so a relay that is stopped in between holds no lock. A
commit whose answer was lost is never repeated blindly: the store connects again, raises its fence, and reads the number
of its last batch, which the function writes in the same transaction.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
from twisted.internet.defer import Deferred

from chatrelay.interfaces import CommitUnknown
from chatrelay.messagelog.postgres import queries, schema
from chatrelay.messagelog.postgres.address import Address
from chatrelay.messagelog.postgres.arrays import integers, small_integers, texts, unpack_integers
from chatrelay.messagelog.postgres.batch import Batch
from chatrelay.messagelog.postgres.connection import Connection, ConnectionLost, NotConnected, Parameter, ServerError
from chatrelay.messagelog.postgres.failures import (
    DEADLOCK_DETECTED,
    LOCK_NOT_AVAILABLE,
    SERIALIZATION_FAILURE,
    explained,
    unavailable,
)
from chatrelay.model import InboxState, LogUnavailable, Mark, MarkKind, Message

MICROSECONDS = 1_000_000
"""Microseconds in a second. The tables keep times as integers, which are exact."""

AGAIN_SECONDS = 24 * 3600.0
"""The default of the time for which the unique ids are kept, and unique."""

FOREVER = 2**62
"""Microseconds that are more than any time since 1970."""

MAX_TRIES = 5
"""How often a batch is tried that the server rolled back because of another transaction."""

MAX_DROPPED_IDS = 5_000
"""The most old ids that are deleted at once, because no message is written meanwhile."""

MAX_TRIMMED = 500
"""The most messages that are deleted at once. No message is written meanwhile."""

SESSION = """
SET client_encoding = 'UTF8';
SET lock_timeout = '5s';
SET statement_timeout = '8s';
-- Without "on", an answer would come before the sync.
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local');
-- Every statement finds few rows by an index. The statistics of a table that grows fast are behind, so the planner
-- could choose to read a whole table.
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan;
-- A plan that reads a table all the same, such as one of one row, has an enormous cost now, and would be compiled.
SET jit = off;
"""
"""The settings of each connection. The time-outs are shorter than `ANSWER_SECONDS`, so that the server rolls back."""

_APPEND = "SELECT numbers, bases FROM chatrelay.append($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16)"
_BEGIN_WRITER = """
INSERT INTO chatrelay.writer AS w (node, fence) VALUES ($1, $2)
ON CONFLICT (node) DO UPDATE SET fence = excluded.fence RETURNING w.batch, w.numbers
"""
_END_WRITER = "DELETE FROM chatrelay.writer WHERE node = $1 AND fence = $2"
_DROP_WRITERS = "DELETE FROM chatrelay.writer WHERE written_at < now() - interval '30 days' AND node <> $1"
_DROP_COVERED = "DELETE FROM chatrelay.mark WHERE uid = '' AND kind = $1 AND peer <> '' AND value <= $2"
_DROP_REVOCATIONS = "DELETE FROM chatrelay.mark WHERE uid = '' AND kind = $1 AND value < $2"
_PLACES = "SELECT number, from_place, to_place FROM chatrelay.message WHERE number = ANY($1::bigint[])"
_MARK_UNDELIVERED = "UPDATE chatrelay.message SET delivered = false WHERE number = ANY($1::bigint[]) AND delivered"
_SAVE_MARKS = """
INSERT INTO chatrelay.mark AS m (uid, kind, peer, value)
SELECT * FROM unnest($1::text[], $2::smallint[], $3::text[], $4::bigint[])
ON CONFLICT (uid, kind, peer) DO UPDATE SET value = excluded.value WHERE excluded.value > m.value
"""
_DROP_IDS = """
DELETE FROM chatrelay.sent_id WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM chatrelay.sent_id WHERE received_at < $1 LIMIT $2
)) RETURNING 1
"""
_TRIM_LOCK = 0x63686174_7472696D
"""The number of the lock under which one relay deletes messages at a time: "chattrim" in ASCII."""

# It is one statement, so a relay that is stopped in between holds no lock. The rows of each table are locked in the
# order in which other statements lock them.
_TRIM = """
WITH oldest AS MATERIALIZED (
    SELECT number, received_at, from_uid, from_place, to_uid, to_place FROM chatrelay.message
    WHERE (SELECT pg_try_advisory_xact_lock($2::bigint)) ORDER BY number LIMIT $3::bigint
), old AS MATERIALIZED (
    SELECT * FROM oldest
    WHERE number < (SELECT coalesce(min(number), 9223372036854775807) FROM oldest WHERE received_at >= $1)
), firsts AS MATERIALIZED (
    SELECT uid, max(place) + 1 AS place FROM (
        SELECT from_uid AS uid, from_place AS place FROM old UNION ALL SELECT to_uid, to_place FROM old
    ) AS places GROUP BY uid
), moved AS (
    INSERT INTO chatrelay.inbox AS i (uid, last_place, first_place)
    SELECT uid, place - 1, place FROM firsts ORDER BY uid
    ON CONFLICT (uid) DO UPDATE SET first_place = greatest(i.first_place, excluded.first_place)
), outdated AS MATERIALIZED (
    SELECT m.uid, m.kind, m.peer FROM firsts AS f JOIN chatrelay.mark AS m
        ON m.uid = f.uid AND m.kind = $4::smallint AND m.value < f.place
    ORDER BY m.uid, m.kind, m.peer FOR UPDATE OF m
), unmarked AS (
    DELETE FROM chatrelay.mark AS m USING outdated AS o WHERE m.uid = o.uid AND m.kind = o.kind AND m.peer = o.peer
)
DELETE FROM chatrelay.message WHERE number IN (SELECT number FROM old) RETURNING 1
"""
_TRIES_LATER = (DEADLOCK_DETECTED, SERIALIZATION_FAILURE, LOCK_NOT_AVAILABLE)

_IDENTITY = """
SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
    left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (SELECT oid FROM pg_database WHERE datname = current_database()), 'chatrelay.life'::regclass::oid)
"""
_BEGIN_LIFE = "UPDATE chatrelay.life SET epoch = $1, identity = $2 WHERE identity <> $2"
_EPOCH = "SELECT epoch FROM chatrelay.life"


@attrs.define
class _Doubt:
    """A batch of which it is not known whether it was committed."""

    batch: Batch
    number: int
    outcome: Deferred[bool]


class PostgresStore:
    """A message log's database, as one of the relays that write to it.

    Every method raises `LogUnavailable` if the server can't be used. Then the store is closed, and `open` may be called
    again.

    :param address: where the database is.
    :param again_seconds: the time for which unique ids are kept, and unique; 0 for no limit.
    :param now: the wall clock, in seconds since 1970 UTC.
    :ivar epoch: the name of the log's life; empty before it was first opened.
    """

    def __init__(
        self, address: Address, again_seconds: float = AGAIN_SECONDS, now: Callable[[], float] = time.time
    ) -> None:
        self._address = address
        self._again_time = int(again_seconds * MICROSECONDS)
        self._now = now
        self._connection: Connection | None = None
        self._node = secrets.token_urlsafe(12)
        self._fence = 0
        self._batch = 0
        self._doubt: _Doubt | None = None
        self._undelivered: list[int] = []  # marks that are not in the database yet
        self.epoch = ""
        self._settled: list[tuple[Deferred[bool], bool]] = []

    @property
    def name(self) -> str:
        """The URL without its password and parameters."""
        return self._address.name

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    def open(self) -> None:
        """Connect, migrate the tables, find out about a doubtful batch, and write the pending marks."""
        self.close()
        try:
            with explained(self._address, "written"):
                self._connection = connection = Connection(self._address)
                connection.run(SESSION)
                schema.check_server(connection)
                schema.migrate(connection)
                connection.prepare(_APPEND)
                self._begin_writer(connection)
        except LogUnavailable:
            self.close()
            raise

    def take_settled(self) -> list[tuple[Deferred[bool], bool]]:
        """Return the outcomes that are known and were not returned yet, each with its value. The caller fires them."""
        settled, self._settled = self._settled, []
        return settled

    def append(self, messages: Sequence[Message]) -> list[int]:
        """Commit and sync a batch; return the numbers of its messages.

        A message whose unique id the log has already is not written again: it gets the number and the places of the
        message that is there.

        :raises CommitUnknown: if the batch may be in the log.
        """
        batch = Batch(messages, self._again_time or FOREVER)
        tries = 0
        while batch.is_pending:
            connection = self._ready()
            try:
                self._append(connection, batch)
            except ServerError as error:
                tries += 1
                if error.sqlstate == schema.DUPLICATES:
                    batch.leave_out(json.loads(error.detail))
                elif error.sqlstate not in (DEADLOCK_DETECTED, SERIALIZATION_FAILURE) or tries >= MAX_TRIES:
                    raise self._failed(error) from error
            except ConnectionLost as error:
                raise self._unknown(batch, error) from error
        return batch.numbers

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        """Commit that these messages reached nobody. After a failure, `open` does it."""
        self._undelivered.extend(numbers)
        self._query(_MARK_UNDELIVERED, [integers(self._undelivered)])
        self._undelivered = []

    def save_marks(self, marks: Sequence[Mark]) -> None:
        """Commit marks."""
        largest: dict[tuple[str, int, str], int] = {}
        for user, kind, peer, value in marks:
            key = (user, kind.value, peer)
            largest[key] = max(value, largest.get(key, value))
        if not largest:
            return
        users, kinds, peers = zip(*(keys := sorted(largest)), strict=True)
        values = integers([largest[key] for key in keys])
        self._query(_SAVE_MARKS, [texts(users), small_integers(kinds), texts(peers), values])
        if (all_revoked := largest.get(("", MarkKind.REVOKED.value, ""))) is not None:
            self._query(_DROP_COVERED, [MarkKind.REVOKED.value, all_revoked])

    def inbox(self, user: str) -> InboxState:
        """Return the state of a user's inbox."""
        try:
            return queries.inbox(self._ready(), user)
        except (ServerError, ConnectionLost) as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """Notice that the server ended the connection, and delete old ids."""
        if self._connection is None:
            return
        try:
            self._connection.check()
        except ConnectionLost as error:
            raise self._failed(error) from error

    def drop_ids(self) -> bool:
        """Delete some ids that are older than they are kept; return whether there may be more."""
        if not self._again_time:
            return False
        before = int(self._now() * MICROSECONDS) - self._again_time
        return len(self._query(_DROP_IDS, [before, MAX_DROPPED_IDS])) == MAX_DROPPED_IDS

    def trim(self, before: int) -> int:
        """Delete some of the oldest messages that were received before a time; return how many were deleted.

        :param before: microseconds since 1970 UTC.
        :returns: also 0 if another relay is deleting, or another session holds a lock. Then try again later.
        """
        try:
            return len(self._ready().query(_TRIM, [before, _TRIM_LOCK, MAX_TRIMMED, MarkKind.READ.value]))
        except ServerError as error:
            if error.sqlstate in _TRIES_LATER:
                return 0
            raise self._failed(error) from error
        except ConnectionLost as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the connection. If nothing is in doubt, the database forgets this writer."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._doubt is None and not self._undelivered:
            with suppress(ServerError, ConnectionLost):  # another writer deletes the row after 30 days
                connection.query(_END_WRITER, [self._node, self._fence], seconds=1.0)
        connection.close()

    # Opening --------------------------------------------------------------------------

    def _begin_writer(self, connection: Connection) -> None:
        """Raise the fence, and learn what became of the last batch. This proves that the database can be written."""
        self._fence += 1
        row = connection.query(_BEGIN_WRITER, [self._node, self._fence], binary=True)[0]
        last_batch, numbers = int.from_bytes(row[0] or b"", "big"), unpack_integers(row[1] or b"")
        self._begin_life(connection)
        doubt = self._doubt
        if doubt is not None:
            is_committed = last_batch == doubt.number
            if is_committed:
                found = connection.query(_PLACES, [integers(numbers)])
                places = {int(row[0] or 0): (int(row[1] or 0), int(row[2] or 0)) for row in found}
                doubt.batch.committed(numbers, [places[number] for number in numbers])
                self._undelivered.extend(doubt.batch.without_unique_id())
            self._write_undelivered(connection)
            self._doubt = None
            self._settled.append((doubt.outcome, is_committed))
        else:
            self._write_undelivered(connection)
        connection.query(_DROP_WRITERS, [self._node])
        connection.query(_DROP_REVOCATIONS, [MarkKind.REVOKED.value, int(self._now())])

    def _write_undelivered(self, connection: Connection) -> None:
        if self._undelivered:
            connection.query(_MARK_UNDELIVERED, [integers(self._undelivered)])
            self._undelivered = []

    def _begin_life(self, connection: Connection) -> None:
        """Read the epoch. Begin a new one if the database was restored, copied, or taken over by a standby."""
        identity = (connection.query(_IDENTITY)[0][0] or b"").decode()
        connection.query(_BEGIN_LIFE, [secrets.token_urlsafe(12), identity])
        epoch = (connection.query(_EPOCH)[0][0] or b"").decode()
        if self.epoch not in ("", epoch):
            self._undelivered = []  # these numbers may be other messages now
        self.epoch = epoch

    # Writing --------------------------------------------------------------------------

    def _append(self, connection: Connection, batch: Batch) -> None:
        self._batch += 1
        parameters = [self._node, self._fence, self._batch, *batch.parameters()]
        row = connection.query(_APPEND, parameters, binary=True)[0]
        batch.numbered(unpack_integers(row[0] or b""), unpack_integers(row[1] or b""))

    def _query(self, statement: str, parameters: Sequence[Parameter]) -> list[tuple[bytes | None, ...]]:
        try:
            return self._ready().query(statement, parameters)
        except (ServerError, ConnectionLost) as error:
            raise self._failed(error) from error

    def _ready(self) -> Connection:
        if self._connection is None:
            raise LogUnavailable(f"the message log {self.name} is not open")
        return self._connection

    def _unknown(self, batch: Batch, error: ConnectionLost) -> CommitUnknown:
        outcome: Deferred[bool] = Deferred()
        self._doubt = _Doubt(batch, self._batch, outcome)
        return CommitUnknown(str(self._failed(error)), outcome)

    def _failed(self, error: ServerError | ConnectionLost | NotConnected) -> LogUnavailable:
        """Close the store; return the error to raise."""
        self.close()
        return unavailable(error, self._address, "written")
