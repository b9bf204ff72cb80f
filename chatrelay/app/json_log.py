"""Log events as JSON, one object a line: ``--log-format json``.

What strangers sent may hold anything: quotes, line breaks, half a character,
what moves a terminal's cursor. Here it is inside a JSON string of one line of
ASCII, and can't pass for another line, another field or another level.

`twisted.logger.eventAsJSON` is not used: it writes all that an event carries,
the names of Python's objects among it, and numbers that are no JSON.
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
"""What `twisted.python.log` puts into each of its events for its own purposes."""


def line_of(event: LogEvent) -> str:
    """An event as a line.

    :returns: an object with ``time`` (RFC 3339, UTC; null where the event has
        none), ``level``, ``namespace``, ``format`` (the text before anything
        was filled in), ``text``, ``fields`` (what was filled in, and more) and,
        for a failure, ``traceback``. ASCII, with the line's end.
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
        # Twisted's own way to a traceback does not fail, whatever was raised.
        failed = {"log_format": "", "log_failure": event["log_failure"]}
        record["traceback"] = plain(eventAsText(failed, includeTimestamp=False, includeSystem=False).strip())
    return json.dumps(record, allow_nan=False) + "\n"


def rfc3339(time: float) -> str:
    """Seconds since the epoch as a date and time of UTC (RFC 3339)."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def plain(value: object) -> str | int | float | bool | None:
    """A value as one that JSON has, and every reader of JSON takes; where it has none, its `repr`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)  # of an enumeration, perhaps
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    # Half a surrogate pair is no character, and some readers refuse a line for it.
    text = value if isinstance(value, str) else safe_repr(value)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
