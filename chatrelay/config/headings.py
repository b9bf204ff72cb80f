"""The groups of the options, under which ``--help`` and the page of options list them.

Pure. This module must not know what an option means: it names the first option of each group.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from chatrelay.config.options import Config

_FIRST_OF_GROUP = {
    "auth_url": "Authentication",
    "listen": "Listening",
    "message_log": "Message log and log messages",
    "webserver_timeout": "Requests to your site",
    "connections": "Limits on connections and logins",
    "message_size": "Limits on sending",
    "offline": "Stored messages",
    "receipts": "Receipts and presence",
    "unread_size": "Slow and disconnected clients",
    "compression": "Performance and shutdown",
}
"""The first option of each group -> the heading. A group has all options up to the next group's first one.

The groups are in the order of the attributes of `Config`, and the first group begins with the first attribute.
"""


def _groups() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the heading of each group, and the attributes of `Config` in it."""
    names = [field.name for field in attrs.fields(Config)]
    starts = [names.index(first) for first in _FIRST_OF_GROUP]
    for heading, start, end in zip(_FIRST_OF_GROUP.values(), starts, [*starts[1:], len(names)], strict=True):
        yield heading, tuple(names[start:end])


HEADINGS = tuple(_groups())
"""How ``--help`` and the page of options group the options: (heading, attributes of `Config`)."""
