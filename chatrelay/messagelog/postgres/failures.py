"""Explain an error of a PostgreSQL server to the operator: what it means, and what to do about it.

Pure: errors in, sentences out. This module must not connect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chatrelay.messagelog.postgres.address import Address
from chatrelay.messagelog.postgres.connection import ConnectionLost, NotConnected, ServerError
from chatrelay.model import LogUnavailable

LOCK_NOT_AVAILABLE = "55P03"
DEADLOCK_DETECTED = "40P01"
SERIALIZATION_FAILURE = "40001"

_OTHER_LOCK = (
    "another session holds a lock on the tables: SELECT pid, state, query FROM pg_stat_activity shows it, and SELECT "
    "pg_terminate_backend(pid) ends it"
)
_READ_ONLY = "the database is read-only: name the server that can be written, or allow writing there"

_BY_SQLSTATE = {
    "25006": _READ_ONLY,
    "42501": "give the user {user} that right, or make it the owner of the schema chatrelay and of what is in it",
    "42P01": "a table of the schema chatrelay is missing: restore the database from a backup",
    "42883": "a function of the schema chatrelay is missing: restore the database from a backup",
    "3F000": "the schema chatrelay is missing: restore the database from a backup",
    "53100": "the server's disk is full: free some space there",
    "53200": "the server has no memory left: see its log",
    LOCK_NOT_AVAILABLE: _OTHER_LOCK,
    "57014": "the server took too long for one statement: see whether it is overloaded or a session holds a lock",
    "57P01": "the server ended the connection",
    "57P02": "the server ended the connection, because one of its processes crashed: see its log",
    "57P03": "the server is starting or stopping: wait",
    "58030": "the server's disk fails: see its log",
    "XX001": "the database is damaged: restore it from a backup",
    "XX002": "an index of the database is damaged: REINDEX SCHEMA chatrelay",
    "22021": "make a database whose encoding is UTF8",
    "22P05": "make a database whose encoding is UTF8",
}
"""What to do, by SQLSTATE."""

_BY_TEXT = (
    # libpq gives no code for a failed connection. The first part that fits counts.
    (
        "no password supplied",
        "give the password in a password file: ~/.pgpass, or passfile=… in the URL, with mode 0600",
    ),
    (
        "password authentication failed",
        "check the user and the password: in a password file (~/.pgpass, or passfile=… in the URL), a line for this "
        "host, port, database and user must have it",
    ),
    ("pg_hba.conf", "allow this user to log in to this database from this host in the server's pg_hba.conf"),
    ("role", "make the user: CREATE ROLE {user} LOGIN PASSWORD '…'"),
    ("database", "make the database: CREATE DATABASE {database} OWNER {user}"),
    ("CONNECT privilege", "GRANT CONNECT ON DATABASE {database} TO {user}"),
    ("too many clients", "raise max_connections of the server; a relay takes three connections"),
    ("remaining connection slots", "raise max_connections of the server; a relay takes three connections"),
    ("certificate", "check sslmode and sslrootcert in the URL, and the name in the server's certificate"),
    ("does not support SSL", "set up TLS in the server (ssl = on), or change sslmode in the URL"),
    ("resolve host", "check the host in the URL"),
    ("translate host name", "check the host in the URL"),
    ("service not known", "check the host in the URL"),
    ("starting up", "wait"),
    ("shutting down", "wait"),
    ("timeout expired", "see whether the server is overloaded or stopped, and whether a firewall is in between"),
)

_SERVER_AWAY = "see whether PostgreSQL runs there and listens on that address"


def explain(error: ServerError | ConnectionLost | NotConnected, address: Address) -> str:
    """Return what is wrong, and the remedy, as a part of a sentence."""
    text = error.text.rstrip(".")
    if isinstance(error, NotConnected):
        remedy = next((remedy for part, remedy in _BY_TEXT if _fits(part, text)), _SERVER_AWAY)
    else:
        remedy = _BY_SQLSTATE.get(error.sqlstate, "")
    remedy = remedy.replace("{user}", address.user or "of the relay").replace("{database}", address.database)
    return f"{text}: {remedy}" if remedy else text


def _fits(part: str, text: str) -> bool:
    if part in ("role", "database"):
        return f'{part} "' in text and "does not exist" in text
    return part in text


@contextmanager
def explained(address: Address, verb: str) -> Iterator[None]:
    """Raise `LogUnavailable` with the log's name, the reason and the remedy, for each failure in the block.

    :param verb: what can't be done with the log: "written" or "read".
    :raises LogUnavailable: also for one that is raised in the block, whose text is only the reason with the remedy.
    """
    try:
        yield
    except (ServerError, ConnectionLost, NotConnected) as error:
        raise unavailable(error, address, verb) from error
    except LogUnavailable as error:
        raise LogUnavailable(f"the message log {address.name} cannot be {verb}: {error}") from error


def unavailable(error: ServerError | ConnectionLost | NotConnected, address: Address, verb: str) -> LogUnavailable:
    """Return the error that tells the operator about one of the server's."""
    return LogUnavailable(f"the message log {address.name} cannot be {verb}: {explain(error, address)}")
