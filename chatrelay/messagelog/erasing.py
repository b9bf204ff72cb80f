"""Erasing messages in a message log, as a process that is not the relay asks for it.

Each kind of message log has a `LogEraser` of its own. This module must not know any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs


@attrs.frozen
class ErasureProgress:
    """How far an erasure is.

    :ivar done: how many messages of the log were examined.
    :ivar total: how many there are.
    :ivar erased: how many were erased.
    :ivar is_finished: whether the erasure is finished: nothing of the messages is left in the log's files.
    :ivar waits_for: what the erasure waits for; empty for nothing.
    """

    done: int
    total: int
    erased: int
    is_finished: bool = False
    waits_for: str = ""


class LogEraser(Protocol):
    """Erases messages in a message log, whether a relay writes to it or not."""

    @property
    def copies(self) -> Sequence[str]:
        """The paths of copies of the log that are known, and that an erasure does not change."""

    def erase(self, user: str, *, received: bool) -> Iterator[ErasureProgress]:
        """Erase the messages that a user wrote up to now, and yield the progress now and then, until it is finished.

        The places of the messages become void, and their users are told by an entry of their inboxes. If the iterator
        is not read to its end, a relay continues the erasure.

        :param user: the key of the user.
        :param received: whether messages that were sent to the user are erased, too.
        :raises LogUnavailable: if the log can't be read or written; the text is a sentence with the remedy.
        """
