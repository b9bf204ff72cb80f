"""Single messages that are read out of a block: by number, and by their place in an inbox without splitting the block."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from unittest.mock import patch

import msgspec
import pytest

from chatrelay.messagelog.sqlite import blocks
from chatrelay.messagelog.sqlite.blocks import Blocks, StoredMessage
from chatrelay.messagelog.sqlite.schema import INSERT_BLOCK, json_text

FIRST = 7
Row = tuple[str, int, str, int, str | int, str | int, str, int, int]

ROWS: list[Row] = [
    ("ann", 1, "bo", 1, "id-000001", "t", "hej", 1, 1),
    ("bo", 2, "ann", 2, "id-000002", 3, 'å € 😀 \\ " \n', 2, 1),
    # These have texts that end like a row, begin like one, or look like a place.
    ("a[", 1, "bo", 3, "bo", 4, '"bo",4,', 3, 0),
    ("bo", 4, "a],[", 1, "ann", 3, "],[", 4, 0),
    ("ann", 3, '"', 1, "x", "],[", 'x],["ann",4,"bo",5,"id",1,"false",9,1],["', 5, 1),
    ("å", 1, "å", 1, "id", "", "to myself", 6, 1),
    ("bo", 5, "ann", 4, "bo", 2, "[[]]", 7, 0),
]
OTHERS: list[Row] = [("cy", place, "di", place, place, place, "x", 1, 1) for place in (1, 2)]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Return a database with one block, and others around it."""
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.execute("CREATE TABLE block (first_number INTEGER PRIMARY KEY, messages TEXT NOT NULL)")
    for first, rows in ((FIRST - 2, OTHERS), (FIRST, ROWS), (FIRST + len(ROWS), OTHERS)):
        made.execute(INSERT_BLOCK, (first, json_text(rows)))
    yield made
    made.close()


def places() -> list[tuple[int, str, int]]:
    """Return the number of each message, and each place that it has, with the user."""
    found = []
    for number, row in enumerate(ROWS, FIRST):
        found += [(number, row[0], row[1]), (number, row[2], row[3])]
    return found


@pytest.mark.parametrize(("number", "user", "place"), places())
def test_message_is_found_by_any_of_its_places(
    connection: sqlite3.Connection, number: int, user: str, place: int
) -> None:
    expected = msgspec.convert(ROWS[number - FIRST], StoredMessage)
    assert Blocks(connection).at_place(number, user, place) == expected
    assert Blocks(connection).message(number) == expected


def test_block_is_not_split_for_one_message(connection: sqlite3.Connection) -> None:
    with patch.object(blocks, "_split", side_effect=AssertionError):
        for number, user, place in places()[:2] + places()[-2:]:
            assert Blocks(connection).at_place(number, user, place) is not None


def test_block_is_read_and_split_once_for_several_messages(connection: sqlite3.Connection) -> None:
    of_bo = [each for each in places() if each[1] == "bo"]
    expected = [Blocks(connection).message(number) for number, _, _ in of_bo]
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    found = Blocks(connection)
    with patch.object(blocks, "_split", side_effect=blocks._split) as split:
        assert [found.at_place(*each) for each in of_bo] == expected
    assert (len(statements), split.call_count) == (1, 1)


def test_other_place_of_the_index_finds_the_message_that_has_the_number(connection: sqlite3.Connection) -> None:
    found = Blocks(connection).at_place(FIRST, "bo", 99)
    assert found == Blocks(connection).message(FIRST)


def test_messages_of_several_blocks_are_found_in_any_order(connection: sqlite3.Connection) -> None:
    wanted = [(FIRST - 2, "cy", 1), *places(), (FIRST + len(ROWS), "di", 1), (FIRST + len(ROWS) + 1, "di", 2)]
    for order in (wanted, wanted[::-1], wanted[::3] + wanted[1::3]):
        found = Blocks(connection)
        assert [found.at_place(*each) for each in order] == [Blocks(connection).message(each[0]) for each in order]


@pytest.mark.parametrize("number", [FIRST - 3, FIRST + len(ROWS) + 2])
def test_number_outside_the_block_is_no_message(connection: sqlite3.Connection, number: int) -> None:
    assert Blocks(connection).at_place(number, "nobody", 1) is None
    assert Blocks(connection).message(number) is None


@pytest.mark.parametrize("text", ["x", '[["bo",1,"ann"', "[[1]]", '["bo",1,'])
def test_damaged_block_is_an_error(connection: sqlite3.Connection, text: str) -> None:
    connection.execute("UPDATE block SET messages = ? WHERE first_number = ?", (text, FIRST))
    with pytest.raises(msgspec.MsgspecError):
        Blocks(connection).at_place(FIRST, "bo", 1)
