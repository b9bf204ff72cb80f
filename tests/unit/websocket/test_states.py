"""The table of a connection's states matches the code."""

from __future__ import annotations

import inspect

from chatrelay.websocket.states import ConnectionState, Event


def rows(of: type, columns: int) -> list[list[str]]:
    """Return the rows of a docstring's tables with this many columns, or more where the last column is prose."""
    lines = [line.split() for line in (inspect.getdoc(of) or "").splitlines()]
    return [words for words in lines if len(words) >= columns]


def test_table_of_states_matches_the_code() -> None:
    events = [event.name.lower() for event in Event]
    table = [row for row in rows(ConnectionState, 1 + len(events)) if len(row) == 1 + len(events) and row[0][0] != "="]
    heading, *states = [row for row in table if row[0] == "state" or "." in row]
    assert heading == ["state", *events]
    assert [row[0] for row in states] == [state.name for state in ConnectionState]
    for name, *cells in states:
        for event, cell in zip(Event, cells, strict=True):
            expected = name if cell == "." else cell
            assert ConnectionState[name].after(event).name == expected, (name, event)


def test_each_state_and_event_is_explained() -> None:
    for enumeration in (ConnectionState, Event):
        explained = [row[0].upper() for row in rows(enumeration, 4) if row[0].upper() in enumeration.__members__]
        assert set(explained) == set(enumeration.__members__)


def test_every_connection_ends_in_the_state_lost() -> None:
    for state in ConnectionState:
        assert state.after(Event.LOST) is ConnectionState.LOST


def test_closed_connection_never_opens_again() -> None:
    reached = {ConnectionState.CLOSED, ConnectionState.REJECTED, ConnectionState.REFUSED}
    for _ in ConnectionState:
        reached |= {state.after(event) for state in reached for event in Event}
    assert not any(state.is_open or state.reads for state in reached)
