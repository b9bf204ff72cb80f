"""A batch of messages as the parameters of one call, and its places as the answer gives them.

Pure: messages in, arrays out; numbers in, places out. This module must not know how the call is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatrelay.messagelog.postgres.arrays import integers, small_integers, texts
from chatrelay.messagelog.postgres.connection import Parameter
from chatrelay.messagelog.postgres.schema import HAS_UNIQUE_ID, INTEGER_TIME_STAMP, REGISTERS_ID
from chatrelay.model import Message, user_key

_MICROSECONDS = 1_000_000


class Batch:
    """The messages of one `append`, of which some may be in the log already.

    :param again_time: microseconds for which an id is unique.
    """

    def __init__(self, messages: Sequence[Message], again_time: int) -> None:
        self._messages = messages
        self._again_time = again_time
        self._numbers: dict[int, int] = {}  # by index in `messages`
        self._repeated: dict[int, int] = {}  # the index of a message with the same id, that is written
        self._registers: set[int] = set()  # the index of the last message with its id
        self._pending = list(range(len(messages)))  # the indexes of what must be written
        self._slots: list[tuple[int, int]] = []  # of the pending messages
        self._counts: list[int] = []
        if any(message.has_unique_id for message in messages):
            self._find_repeated()

    @property
    def is_pending(self) -> bool:
        """Whether a message of the batch must still be written."""
        return bool(self._pending)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the messages, once none is pending. The places of the messages are set by then."""
        for index, first in self._repeated.items():
            self._set(index, self._numbers[first], self._messages[first].from_place, self._messages[first].to_place)
        return [self._numbers[index] for index in range(len(self._messages))]

    def _find_repeated(self) -> None:
        """Find messages that repeat the id of another in this batch."""
        first_of: dict[tuple[str, str | int], int] = {}
        for index, message in enumerate(self._messages):
            if not message.has_unique_id:
                continue
            key = (user_key(message.from_uid), message.client_id)
            first = first_of.get(key)
            if first is not None and self._received(first) > self._received(index) - self._again_time:
                self._repeated[index] = first
            else:
                first_of[key] = index
        self._registers = set(first_of.values())
        self._pending = [index for index in self._pending if index not in self._repeated]

    def _received(self, index: int) -> int:
        return int(self._messages[index].received_at * _MICROSECONDS)

    def parameters(self) -> list[Parameter]:
        """Return the parameters of the function ``append``, from the fourth on, for the pending messages."""
        messages = [self._messages[index] for index in self._pending]
        from_uids = [user_key(message.from_uid) for message in messages]
        to_uids = [user_key(message.to_uid) for message in messages]
        users = sorted({*from_uids, *to_uids})
        slots = {user: index << 32 for index, user in enumerate(users, 1)}
        from_slots: list[int] = []
        to_slots: list[int] = []
        for from_uid, to_uid in zip(from_uids, to_uids, strict=True):
            slots[to_uid] = slot = slots[to_uid] + 1
            to_slots.append(slot)
            if from_uid != to_uid:
                slots[from_uid] = slot = slots[from_uid] + 1
            from_slots.append(slot)
        self._counts = [slots[user] & 0xFFFFFFFF for user in users]
        self._slots = list(zip(from_slots, to_slots, strict=True))
        return [
            self._again_time,
            "t" if self._registers else "f",
            texts(users),
            integers(self._counts),
            texts(from_uids),
            texts(to_uids),
            integers(from_slots),
            integers(to_slots),
            texts([str(message.client_id) for message in messages]),
            small_integers([self._flags(index) for index in self._pending]),
            texts([str(message.time_stamp) for message in messages]),
            texts([message.content for message in messages]),
            integers([int(message.received_at * _MICROSECONDS) for message in messages]),
        ]

    def _flags(self, index: int) -> int:
        message = self._messages[index]
        flags = 0 if isinstance(message.time_stamp, str) else INTEGER_TIME_STAMP
        if message.has_unique_id:
            flags |= HAS_UNIQUE_ID | (REGISTERS_ID if index in self._registers else 0)
        return flags

    def leave_out(self, found: Sequence[tuple[int, int, int, int]]) -> None:
        """Take the places of messages that are in the log already, and leave those messages out of the next call.

        :param found: for each, its index in the last call, from 1, and the number and the two places in the log.
        """
        indexes = [self._pending[position - 1] for position, _, _, _ in found]
        for index, (_, number, from_place, to_place) in zip(indexes, found, strict=True):
            self._set(index, number, from_place, to_place)
        self._pending = [index for index in self._pending if index not in indexes]

    def numbered(self, numbers: Sequence[int], last_places: Sequence[int]) -> None:
        """Take the answer of the last call, which was committed.

        :param last_places: the last place of each user after the batch.
        """
        before = [last - count for last, count in zip(last_places, self._counts, strict=True)]
        places = [
            (
                before[(from_slot >> 32) - 1] + (from_slot & 0xFFFFFFFF),
                before[(to_slot >> 32) - 1] + (to_slot & 0xFFFFFFFF),
            )
            for from_slot, to_slot in self._slots
        ]
        self.committed(numbers, places)

    def committed(self, numbers: Sequence[int], places: Sequence[tuple[int, int]]) -> None:
        """Take the numbers and the places of the pending messages, which were committed."""
        for index, number, (from_place, to_place) in zip(self._pending, numbers, places, strict=True):
            self._set(index, number, from_place, to_place)
        self._pending = []

    def without_unique_id(self) -> list[int]:
        """Return the numbers of the messages that have no unique id. None of the messages may be pending."""
        return [
            number for number, message in zip(self.numbers, self._messages, strict=True) if not message.has_unique_id
        ]

    def _set(self, index: int, number: int, from_place: int, to_place: int) -> None:
        self._numbers[index] = number
        message = self._messages[index]
        message.from_place, message.to_place = from_place, to_place
