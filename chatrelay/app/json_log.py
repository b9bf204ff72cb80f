"""Format log events as JSON, one object a line (``--log-format json``).

Clients may send anything: quotes, line breaks, half a character, a terminal's control characters. Here all of it is
inside a JSON string on one line of ASCII, so it can't look like another line, another field or another level. This
module only formats; `chatrelay.app.logs` writes.

`twisted.logger.eventAsJSON` is not used, because it writes everything in an event, including the names of Python
objects, and numbers that are not valid JSON.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from twisted.logger import LogEvent, eventAsText, formatEvent
from twisted.python.reflect import safe_repr

from chatrelay.model import MAX_INTEGER

LEGACY_NAMESPACE = "log_legacy"
LEGACY_FIELDS = frozenset(
    {"failure", "format", "isError", "logLevel", "message", "printed", "system", "text", "time", "why"}
)
"""Fields that `twisted.python.log` adds to each of its events for its own use."""


def line_of(event: LogEvent) -> str:
    """Return an event as a line of ASCII, with its line end.

    :returns: an object with ``time`` (RFC 3339, UTC; null if the event has none), ``level``, ``namespace``,
        ``format`` (the text with its placeholders), ``text``, ``fields`` (the values for the placeholders, and others)
        and, for a failure, ``traceback``.
    """
    time = event.get("log_time")
    level = event.get("log_level")
    namespace = event.get("log_namespace")
    theirs = LEGACY_FIELDS if namespace == LEGACY_NAMESPACE else ()
    record: dict[str, Any] = {
        "time": None if time is None else rfc3339(time),
        "level": None if level is None else plain(level.name),
        "namespace": plain(namespace),
        "format": plain(event.get("log_format")),
        "text": plain(formatEvent(event)),
        "fields": {
            plain(name): plain(value)
            for name, value in event.items()
            if not name.startswith("log_") and name not in theirs
        },
    }
    if "log_failure" in event:
        # Twisted's own function for a traceback never fails, whatever was raised.
        failed = {"log_format": "", "log_failure": event["log_failure"]}
        record["traceback"] = plain(eventAsText(failed, includeTimestamp=False, includeSystem=False).strip())
    return json.dumps(record, allow_nan=False) + "\n"


def rfc3339(time: float) -> str:
    """Return seconds since the epoch as a date and time of UTC (RFC 3339)."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def plain(value: object) -> str | int | float | bool | None:
    """Return a value as one that every reader of JSON accepts, or else its `repr`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)  # it may be a member of an enumeration
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    # Half a surrogate pair is not a character, and some readers refuse the whole line.
    text = value if isinstance(value, str) else safe_repr(value)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
