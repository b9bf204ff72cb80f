"""The variants of the index benchmark: each finds the same messages, so that their costs can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import message_index
from bench.message_index import VARIANTS, Runs, messages


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_finds_the_last_messages_between_two_users(name: str, tmp_path: Path) -> None:
    rows = messages(users=3, count=400)
    variant = VARIANTS[name](tmp_path)
    for start in range(0, len(rows), 100):
        chosen = rows[start : start + 100]
        if isinstance(variant, Runs):
            variant.write_log(chosen)
        for _ in variant.add(chosen):
            pass
    for user, peer in (("0", "1"), ("1", "0"), ("2", "2")):
        expected = [row[0] for row in rows if (row[1], row[3]) in ((user, peer), (peer, user))]
        assert variant.history(user, peer) == expected[::-1][: message_index.PAGE]


def test_table_has_a_line_for_each_variant() -> None:
    table = message_index.table(users=5, count=10_000, rounds=1)
    assert [row[0] for row in table.rows] == list(VARIANTS)
