"""A submitter of messages that only records the outcomes."""

from __future__ import annotations

from chatrelay.model import Message
from chatrelay.wire.codes import Reason

Answer = tuple[str | int, bool, Reason | None]
"""The id of a message, whether it was accepted, and why not."""


class RecordedSubmitter:
    """A `chatrelay.interfaces.Submitter` that keeps its answers."""

    def __init__(self) -> None:
        self._answers: list[Answer] = []

    def accepted(self, message: Message) -> None:
        """Keep the answer."""
        self._answers.append((message.client_id, True, None))

    def refused(self, message: Message, reason: Reason) -> None:
        """Keep the answer."""
        self._answers.append((message.client_id, False, reason))

    def take(self) -> list[Answer]:
        """Return the answers since the last call."""
        answers, self._answers = self._answers, []
        return answers
