"""The tables of a message log in PostgreSQL, their migrations, and the one function that writes a batch.

All are in a schema of their own, ``chatrelay``. This module must not know when a batch is written, or what failed.
"""

from __future__ import annotations

from chatrelay.messagelog.postgres.connection import Connection
from chatrelay.model import LogUnavailable

MIN_SERVER_VERSION = 140_000
"""The lowest version of the server."""

MIGRATION_SECONDS = 24 * 3600.0
"""The time that a migration may take. It changes whole tables."""

_ADVISORY_LOCK = 0x63686174_72656C61
"""The number of the lock under which one process migrates at a time: "chatrela" in ASCII."""

DUPLICATES = "CR001"
"""The SQLSTATE with which `append` refuses ids that are in the log already. The detail is a JSON array for each: the
index in the batch, from 1, and the number and the two places of the message that is there."""

FENCED = "CR002"
"""The SQLSTATE with which `append` refuses a batch of a writer that has connected again since."""

HAS_UNIQUE_ID = 1
INTEGER_TIME_STAMP = 2
REGISTERS_ID = 4
"""The flags of a message in `append`. An id that comes twice in a batch is registered with the last message."""

_FIRST = """
-- The last places. A transaction that appends to an inbox locks its row until it commits. So places have no holes, even
-- while several relays write. Rows are updated often, and a page with free space keeps the new versions beside the old.
CREATE TABLE chatrelay.inbox (
    uid text COLLATE "C" PRIMARY KEY,
    last_place bigint NOT NULL,
    first_place bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 50);

CREATE SEQUENCE chatrelay.message_number;

CREATE TABLE chatrelay.message (
    number bigint PRIMARY KEY,
    from_place bigint NOT NULL,
    to_place bigint NOT NULL,
    received_at bigint NOT NULL, -- microseconds since 1970 UTC
    delivered boolean NOT NULL DEFAULT true,
    has_unique_id boolean NOT NULL,
    time_stamp_is_integer boolean NOT NULL,
    from_uid text COLLATE "C" NOT NULL,
    to_uid text COLLATE "C" NOT NULL,
    client_id text COLLATE "C" NOT NULL,
    time_stamp text COLLATE "C" NOT NULL,
    content text COLLATE "C" NOT NULL
);
-- A user's inbox, in two halves. A message to oneself is in the first only.
CREATE UNIQUE INDEX message_sent ON chatrelay.message (from_uid, from_place);
CREATE UNIQUE INDEX message_received ON chatrelay.message (to_uid, to_place) WHERE from_uid <> to_uid;
-- A conversation, from each side.
CREATE INDEX message_sent_to ON chatrelay.message (from_uid, to_uid, from_place);
CREATE INDEX message_received_from ON chatrelay.message (to_uid, from_uid, to_place);

-- The unique ids of the last time in which a client may send a message again.
CREATE TABLE chatrelay.sent_id (
    uid text COLLATE "C",
    client_id text COLLATE "C",
    number bigint NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (uid, client_id)
);
CREATE INDEX sent_id_received_at ON chatrelay.sent_id USING brin (received_at) WITH (pages_per_range = 16);

CREATE TABLE chatrelay.mark (
    uid text COLLATE "C",
    kind smallint,
    peer text COLLATE "C",
    value bigint NOT NULL,
    PRIMARY KEY (uid, kind, peer)
) WITH (fillfactor = 70);

-- The relays that write. A relay whose connection broke during a commit reads here whether that batch was committed,
-- and raises its fence, so that a batch of the broken connection cannot be committed afterwards.
CREATE TABLE chatrelay.writer (
    node text COLLATE "C" PRIMARY KEY,
    fence bigint NOT NULL,
    batch bigint NOT NULL DEFAULT 0,
    numbers bigint[] NOT NULL DEFAULT '{}',
    written_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20);

-- The name of the log's life, and the server, timeline, database and table that it belongs to.
CREATE TABLE chatrelay.life (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    epoch text NOT NULL,
    identity text NOT NULL
);
INSERT INTO chatrelay.life (epoch, identity) VALUES ('', '');

CREATE FUNCTION chatrelay.append(
    a_node text, a_fence bigint, a_batch bigint, again_time bigint, some_unique boolean, users text[], counts bigint[],
    from_uids text[], to_uids text[], from_slots bigint[], to_slots bigint[], client_ids text[], flags smallint[],
    time_stamps text[], contents text[], times bigint[],
    OUT numbers bigint[], OUT bases bigint[]
) LANGUAGE plpgsql AS $body$
DECLARE
    locked text[];
    present json;
BEGIN
    -- The users come sorted, and their rows are locked in that order. So two writers never wait for each other.
    WITH counted AS (
        INSERT INTO chatrelay.inbox AS i (uid, last_place)
        SELECT u.uid, u.count FROM unnest(users, counts) AS u (uid, count)
        ON CONFLICT (uid) DO UPDATE SET last_place = i.last_place + excluded.last_place
        RETURNING i.uid, i.last_place
    )
    SELECT array_agg(c.uid), array_agg(c.last_place) INTO locked, bases FROM counted AS c;
    IF locked IS DISTINCT FROM users THEN
        RAISE EXCEPTION 'the rows of table inbox came in another order than the users';
    END IF;
    IF some_unique THEN
        -- This is a statement of its own, because only a statement that begins after the locks sees what the writers
        -- that held them have committed.
        SELECT json_agg(json_build_array(n.index, m.number, m.from_place, m.to_place)) INTO present
        FROM unnest(from_uids, client_ids, times, flags) WITH ORDINALITY AS n (uid, client_id, time, flag, index)
        JOIN chatrelay.sent_id AS s
            ON s.uid = n.uid AND s.client_id = n.client_id AND s.received_at > n.time - again_time
        JOIN chatrelay.message AS m ON m.number = s.number AND m.delivered
        WHERE n.flag & 1 <> 0;
        IF present IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'CR001', MESSAGE = 'ids that are in the log', DETAIL = present::text;
        END IF;
    END IF;
    numbers := ARRAY(SELECT nextval('chatrelay.message_number') FROM generate_series(1, cardinality(from_uids)));
    INSERT INTO chatrelay.message (
        number, from_place, to_place, received_at, has_unique_id, time_stamp_is_integer, from_uid, to_uid, client_id,
        time_stamp, content
    )
    -- A slot is the user's index in the upper 32 bits, and the count of the user's messages so far in the lower.
    SELECT
        numbers[n.index],
        bases[n.from_slot >> 32] - counts[n.from_slot >> 32] + (n.from_slot & 4294967295),
        bases[n.to_slot >> 32] - counts[n.to_slot >> 32] + (n.to_slot & 4294967295),
        n.time, n.flag & 1 <> 0, n.flag & 2 <> 0, n.from_uid, n.to_uid, n.client_id, n.time_stamp, n.content
    FROM unnest(from_uids, to_uids, from_slots, to_slots, client_ids, flags, time_stamps, contents, times)
        WITH ORDINALITY AS n (
            from_uid, to_uid, from_slot, to_slot, client_id, flag, time_stamp, content, time, index
        );
    IF some_unique THEN
        INSERT INTO chatrelay.sent_id AS s (uid, client_id, number, received_at)
        SELECT n.uid, n.client_id, numbers[n.index], n.time
        FROM unnest(from_uids, client_ids, times, flags) WITH ORDINALITY AS n (uid, client_id, time, flag, index)
        WHERE n.flag & 4 <> 0
        ON CONFLICT (uid, client_id) DO UPDATE SET number = excluded.number, received_at = excluded.received_at;
    END IF;
    UPDATE chatrelay.writer AS w SET batch = a_batch, numbers = append.numbers, written_at = now()
    WHERE w.node = a_node AND w.fence = a_fence;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'CR002', MESSAGE = 'this writer has connected again since';
    END IF;
END
$body$;
"""

MIGRATIONS = (_FIRST,)
"""The steps from an empty schema to the present one. A step that was released is never changed."""

_VERSION_TABLE = """
CREATE TABLE IF NOT EXISTS chatrelay.schema_version (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    version integer NOT NULL
);
INSERT INTO chatrelay.schema_version (version) VALUES (0) ON CONFLICT DO NOTHING;
"""


def check_server(connection: Connection) -> None:
    """Check that a server is new enough and can be written.

    :raises LogUnavailable: if it can't be used; the text has the remedy.
    """
    version = connection.server_version
    if version < MIN_SERVER_VERSION:
        raise LogUnavailable(
            f"the server is PostgreSQL {version // 10_000}, and chatrelay needs {MIN_SERVER_VERSION // 10_000} or "
            "newer: upgrade it"
        )
    in_recovery, read_only = connection.query("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")[0]
    if in_recovery == b"t":
        raise LogUnavailable(
            "the server is a standby, which is read-only: name the primary server, or name all servers and add "
            "target_session_attrs=read-write to the URL"
        )
    if read_only == b"on":
        raise LogUnavailable(
            "the database is read-only for this user: ALTER DATABASE … SET default_transaction_read_only = off, or the "
            "same for the user"
        )


def version_of(connection: Connection) -> int:
    """Return the version of the tables in a database; 0 if there are none.

    :raises LogUnavailable: if a newer chatrelay made them.
    """
    if not _exists(connection, "chatrelay.schema_version"):
        return 0
    rows = connection.query("SELECT version FROM chatrelay.schema_version")
    version = int(rows[0][0] or 0) if rows else 0
    if version > len(MIGRATIONS):
        raise LogUnavailable(
            f"its tables were made by a newer chatrelay (schema {version}, this one knows {len(MIGRATIONS)}): use that "
            "version"
        )
    return version


def migrate(connection: Connection) -> None:
    """Bring the tables to the present version, or make them. One process at a time does that.

    :raises LogUnavailable: if a newer chatrelay made them.
    """
    if version_of(connection) == len(MIGRATIONS):
        return
    connection.run("BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
    try:
        connection.query(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})", seconds=MIGRATION_SECONDS)
        if connection.query("SELECT 1 FROM pg_namespace WHERE nspname = 'chatrelay'") == []:
            connection.run("CREATE SCHEMA chatrelay")
        connection.run(_VERSION_TABLE)
        for migration in MIGRATIONS[version_of(connection) :]:
            connection.run(migration, seconds=MIGRATION_SECONDS)
        connection.query("UPDATE chatrelay.schema_version SET version = $1", [len(MIGRATIONS)])
        connection.run("COMMIT")
    finally:
        connection.roll_back()


def _exists(connection: Connection, table: str) -> bool:
    return connection.query("SELECT to_regclass($1)", [table])[0][0] is not None
