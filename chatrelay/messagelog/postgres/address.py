"""The address of a PostgreSQL server: the URL of a message log, checked, and named without its password.

This module never connects. A password is given to libpq only, and never appears in an error message or a log message.
"""

from __future__ import annotations

from itertools import zip_longest
from urllib.parse import unquote

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_DEFAULTS = {
    # The thread that writes must notice within a minute that a network or a machine has gone.
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "application_name": "chatrelay",
}
"""Settings of libpq for those that the URL leaves out."""

HIDDEN = "***"
"""The text that stands for a password."""


class BadAddress(ValueError):
    """A URL that libpq can't use. The text gives the remedy, and nothing of the URL."""


@attrs.frozen
class Address:
    """Where a message log is, and as whom to log in there.

    :ivar name: its URL without the password and the parameters, for messages.
    :ivar database: the name of the database; the user's name if the URL has none, and empty if it has neither.
    :ivar user: the name of the user; empty if the URL has none.
    :ivar conninfo: everything for libpq, the password included.
    """

    name: str
    database: str
    user: str
    conninfo: str = attrs.field(repr=False)
    _hidden: tuple[str, ...] = attrs.field(repr=False)

    def hide(self, text: str) -> str:
        """Return a text of libpq's or of the server's without the password."""
        for hidden in self._hidden:
            text = text.replace(hidden, HIDDEN)
        return text


def parse(url: str) -> Address:
    """Parse the URL of a message log.

    :param url: as in PostgreSQL's documentation, 34.1.1.2: ``postgresql://user@host:port/database?sslmode=verify-full``.
    :raises BadAddress: if libpq can't use it.
    """
    _, _, rest = url.partition("://")
    # libpq quotes what it does not understand, and that may be a part of a password.
    may_have_password = "@" in rest or "password" in rest
    why = ""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error as error:
        parameters = {}
        why = "" if may_have_password else f" (libpq: {' '.join(str(error).split())})"
    user, password, hosts, ports, database = (
        str(parameters.get(key) or "") for key in ("user", "password", "host", "port", "dbname")
    )
    # libpq takes a "/" as the end of the hosts, and the first "@" as their beginning. So an unescaped one in a password
    # makes a host or a database of the rest. Some versions of libpq accept white space.
    is_misread = "@" in hosts + database or not set(ports) <= set("0123456789,")
    if (not parameters and rest.strip("/")) or is_misread or url.split() != [url]:
        raise BadAddress(
            "the URL of the message log is not a PostgreSQL URL: write postgresql://USER@HOST:PORT/DATABASE, with "
            f"special characters as %XX{why}"
        )
    servers = ",".join(
        f"{host}:{port}" if port else host
        for host, port in zip_longest(hosts.split(","), ports.split(","), fillvalue="")
    )
    name = f"postgresql://{user}{'@' if user else ''}{servers}/{database or user}"
    raw_password = rest.partition("@")[0].partition(":")[2] if "@" in rest else ""
    # The longest first: one may be a part of another.
    hidden = sorted({each for each in (password, raw_password, unquote(raw_password)) if each}, key=len, reverse=True)
    conninfo = make_conninfo("", **{**_DEFAULTS, **parameters})
    return Address(name, database or user, user, conninfo, tuple(hidden))
