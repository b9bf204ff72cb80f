"""Text in columns on a terminal, where some characters take two columns and some none.

Pure: rows in, lines out. The caller escapes control characters. This module must not know any command.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice

ROWS_AT_ONCE = 100
"""The rows whose cells get the width of the widest of them."""

GAP = "  "


class Table:
    """A table that is printed while its rows come.

    :param titles: of the columns.
    :param right: the indexes of the columns whose cells end at the right.
    """

    def __init__(self, titles: Sequence[str], right: Set[int] = frozenset()) -> None:
        self._titles = titles
        self._right = right
        self._widths = [0] * len(titles)

    def lines(self, rows: Iterable[Sequence[str]]) -> Iterator[str]:
        """Yield the lines; none if there are no rows."""
        rest = iter(rows)
        is_first = True
        while some := list(islice(rest, ROWS_AT_ONCE)):
            if is_first:
                yield ""
                some.insert(0, [title.upper() for title in self._titles])
                is_first = False
            for column in range(len(self._titles) - 1):
                self._widths[column] = max(self._widths[column], *(width(row[column]) for row in some), 0)
            yield from map(self._line, some)

    def _line(self, row: Sequence[str]) -> str:
        cells = []
        for column, cell in enumerate(row):
            padding = " " * (self._widths[column] - width(cell))
            cells.append(padding + cell if column in self._right else cell + padding)
        return GAP.join(cells).rstrip()


def width(text: str) -> int:
    """Return how many columns a text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut(text: str, columns: int) -> str:
    """Return a text that takes at most so many columns. If it was longer, it ends with an ellipsis."""
    if width(text) <= columns:
        return text
    taken = 0
    for index, character in enumerate(text):
        taken += _width(character)
        if taken > columns - 1:
            return text[:index] + "…"
    return text


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
