"""The file of the key of resume tokens: made where it is absent, and refused with the remedy."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from chatrelay.app import option_files
from chatrelay.app.option_files import read_resume_key
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config


def refusal(path: Path) -> str:
    """Return why a file is refused."""
    with pytest.raises(ConfigError) as refused:
        read_resume_key(str(path))
    assert "resume-key-file" in str(refused.value)
    return str(refused.value)


def test_absent_file_is_made_for_its_owner_only_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        key = read_resume_key(str(path))
    finally:
        os.umask(before)
    assert len(key) == 32
    assert key != read_resume_key(str(tmp_path / "another"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (read_resume_key(str(path)), path.read_bytes()) == (key, key)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["another", "key"]


def test_relays_that_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    starts = threading.Barrier(8)

    def start() -> None:
        starts.wait()
        keys.append(read_resume_key(str(tmp_path / "key")))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(keys), len(set(keys)), os.listdir(tmp_path)) == (8, 1, ["key"])


def test_file_that_appears_meanwhile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    make = option_files._make_key

    def make_late(name: str) -> None:
        path.write_bytes(b"k" * 32)
        path.chmod(0o600)
        make(name)

    monkeypatch.setattr(option_files, "_make_key", make_late)
    assert read_resume_key(str(path)) == b"k" * 32
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(mode)
    assert f"may be used by other users (mode {mode:o})" in refusal(path)
    assert f"chmod 600 {path}" in refusal(path)
    path.chmod(0o400)
    assert read_resume_key(str(path)) == b"k" * 32


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_file_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * size)
    path.chmod(0o600)
    assert "must have exactly 32 random bytes: remove it, and the relay makes another" in refusal(path)
    assert path.read_bytes() == b"k" * size


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "dangling" in refusal(tmp_path / "dangling")
    missing = tmp_path / "nowhere"
    assert f"{missing / 'key'} can't be made: there is no folder {missing}" in refusal(missing / "key")


def test_key_file_needs_a_message_log_that_lasts() -> None:
    for log in ("memory:", "none"):
        with pytest.raises(ConfigError, match="needs a message log that outlasts the relay"):
            Config(resume_key_file="key", message_log=log)
    assert Config(resume_key_file="key", message_log="sqlite:x").resume_key_file == "key"


def test_resume_time_is_at_most_a_day() -> None:
    assert Config(resume_time=86_400).resume_time == 86_400
    assert Config(resume_time=0).resume_time == 0
    for seconds in (86_401, -1):
        with pytest.raises(ConfigError, match="resume-time"):
            Config(resume_time=seconds)
