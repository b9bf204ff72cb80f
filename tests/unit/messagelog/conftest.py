"""The log that the tests of backups and of restores copy or replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sqlite_logs import fill


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a message log with 250 messages that no process has open."""
    path = tmp_path / "log.sqlite3"
    fill(path, 3, 247).close()
    return path
