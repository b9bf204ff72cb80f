"""Arguments that several commands share: a user, a moment and a number.

Pure: text in, values out. This module must not know any command.
"""

from __future__ import annotations

import argparse
from datetime import UTC, date, datetime, timedelta

from chatrelay.model import is_uid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

TIME_HELP = "a date (2026-11-27: 00:00 UTC) or a time with its zone (2026-11-27T13:05:09Z, 2026-11-27T14:05+01:00)"
"""What a moment looks like, for the help of a command."""


def uid(text: str) -> str:
    """Return a uID.

    :raises argparse.ArgumentTypeError: if the text can't be one.
    """
    if not is_uid(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a uID: give 1 to 64 printable characters")
    return text


def moment(text: str) -> int:
    """Return a moment in microseconds since 1970 UTC.

    :param text: as ISO 8601 writes a date, which is its first moment in UTC, or a date and a time with a zone.
    :raises argparse.ArgumentTypeError: if it is not one.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        pass
    else:
        return _microseconds(datetime(day.year, day.month, day.day, tzinfo=UTC))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {TIME_HELP}") from None
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no zone: append Z for UTC, or an offset such as +01:00")
    return _microseconds(found)


def count(text: str) -> int:
    """Return a number of 0 or more.

    :raises argparse.ArgumentTypeError: if the text is not one.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number ≥ 0")
    return int(text)


def _microseconds(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)
