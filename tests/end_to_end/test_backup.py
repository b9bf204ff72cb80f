"""`chatrelay backup` and `chatrelay restore`: beside a relay under load, killed at every step, and on a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE
from tests.support.command_line import arguments, on_a_terminal
from tests.support.programs import HIGH_RATES, StartRelay
from tests.support.promise import read_log
from tests.support.saturation import USERS, Crowd, Part, by_turns
from tests.support.sqlite_logs import contents as contents_of
from tests.support.sqlite_logs import expected, fill, killed

SIDES = ("-wal", "-shm", "-journal")


def command(*words: object, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal."""
    line, environment = arguments(words, prelude)
    return subprocess.run(
        line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=4 * PATIENCE
    )


def contents(path: Path) -> list[str]:
    """Return the contents that `chatrelay messages` prints, which must be those in the file."""
    printed = command("messages", path)
    assert printed.returncode == 0, printed.stderr
    found = [json.loads(line)["content"] for line in printed.stdout.splitlines()]
    assert found == [row.content for row in read_log(path)]
    return found


# Under load ------------------------------------------------------------------


def acknowledged(crowd: Crowd) -> set[str]:
    """Return the contents of the messages that were acknowledged so far."""
    found = set()
    for talker in crowd.talkers:
        account = talker.account()
        contents = {request.id: request.content for request in account.requests}
        for frame in account.heard:
            if frame["type"] == "send-request-response" and frame["response"]["value"]:
                found.add(contents[frame["response"]["id"]])
    return found


def test_backup_of_a_relay_under_load_is_whole_and_refuses_no_message(
    start_relay: StartRelay, site: Any, tmp_path: Path
) -> None:
    log, destination = tmp_path / "chatrelay.sqlite3", tmp_path / "copy"
    relay = start_relay(*HIGH_RATES, measured=False)
    with Crowd(relay, site) as crowd:
        for seed, uid in enumerate(USERS):
            crowd.join(uid, Part(by_turns(USERS, seed), window=8, padding=2000))
        crowd.begin()
        crowd.press(0.1, answers=3000)
        before = acknowledged(crowd)
        answered = crowd.accepted
        line, environment = arguments(("backup", log, destination, "--json"))
        # Commits come between any two steps of the copy: one that began again after each would never end.
        with subprocess.Popen(
            line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            crowd.until(lambda: process.poll() is not None, "make a backup", 4 * PATIENCE)
            printed, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        meanwhile = crowd.accepted - answered
        crowd.press(0.1, answers=10)
        crowd.settle()
        assert crowd.refused == 0
        assert meanwhile > 100
        after = acknowledged(crowd)
    copied = contents(destination)
    assert json.loads(printed)["messages"] == len(copied)
    assert before <= set(copied)
    relay.stop()
    everything = contents(log)
    assert set(copied) <= set(everything)
    assert copied == everything[: len(copied)]  # without holes
    assert after == set(everything)
    # And back, while no relay runs.
    restored = command("restore", log, destination, "--yes", "--json")
    assert restored.returncode == 0, restored.stderr
    kept = json.loads(restored.stdout)["kept"]
    assert contents(log) == copied
    assert contents(Path(kept)) == everything
    with start_relay().client() as alice:
        alice.log_in("alice-session")
        alice.send(1, "afterwards")
        assert alice.hear()["message"]["content"] == "afterwards"
    assert contents(log) == [*copied, "afterwards"]


def test_restore_over_the_log_of_a_running_relay_is_refused(start_relay: StartRelay, tmp_path: Path) -> None:
    fill(tmp_path / "source", 40).close()
    assert command("backup", tmp_path / "source", tmp_path / "backup").returncode == 0
    log = tmp_path / "chatrelay.sqlite3"
    with start_relay().client() as alice:
        alice.log_in("alice-session")
        refused = command("restore", log, tmp_path / "backup", "--yes")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == f"chatrelay: a relay or another command has {log} open: stop it first\n"
        alice.send(1, "still here")
        assert alice.hear()["message"]["content"] == "still here"
    assert contents(log) == ["still here"]


# Killed ----------------------------------------------------------------------

CALLS = ("open", "link", "rename", "replace", "unlink", "fsync", "fdatasync", "fchmod", "pwrite")

KILLER = f"""
import os, signal, sqlite3
import chatrelay.messagelog.sqlite.backup as backup
count = 0
def killing(real):
    def call(*arguments, **options):
        global count
        for _ in "ba":  # before it, and after
            count += 1
            if count == AT:
                os.kill(os.getpid(), signal.SIGKILL)
            if _ == "b":
                result = real(*arguments, **options)
        return result
    return call
for name in {CALLS!r}:
    setattr(os, name, killing(getattr(os, name)))
# As often as possible, for a small database.
backup.PAGES_PER_STEP, backup.BYTES_PER_SYNC = 5, 4096
"""
"""Kills the process before or after the ``AT``-th system call that changes something."""


def killed_everywhere(words: Callable[[], tuple[object, ...]]) -> Iterator[bool]:
    """Run a command repeatedly, killed one step later each time, until it ends; yield whether it was killed."""
    at = 0
    while True:
        at += 1
        ended = command(*words(), prelude=f"AT = {at}\n{KILLER}")
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        yield ended.returncode != 0
        if ended.returncode == 0:
            assert at > 10
            return


def test_backup_killed_at_any_step_leaves_a_whole_copy_or_none(tmp_path: Path) -> None:
    log, destination = tmp_path / "log", tmp_path / "copy"
    fill(log, 3, 247).close()
    for _ in killed_everywhere(lambda: ("backup", log, destination)):
        if destination.exists():
            assert contents_of(destination) == expected(250)
            destination.unlink()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.lock"]


def test_restore_killed_at_any_step_leaves_the_old_log_or_the_new_one(tmp_path: Path) -> None:
    log, backup = tmp_path / "log", tmp_path / "backup"
    fill(tmp_path / "source", 40).close()
    assert command("backup", tmp_path / "source", backup).returncode == 0
    old, new = expected(63), expected(40)
    left = set()

    def words() -> tuple[object, ...]:
        for name in os.listdir(tmp_path):
            if name != "backup":
                (tmp_path / name).unlink()
        killed(log, 3, 60)
        return ("restore", log, backup, "--yes")

    for was_killed in killed_everywhere(words):
        # The files are read as a relay would find them.
        found = contents_of(log)
        assert found in (old, new)
        left.add((was_killed, found == new))
        if found == old and was_killed:
            again = command("restore", log, backup, "--yes", "--json")
            assert again.returncode == 0, again.stderr
        assert contents_of(log) == new
        kept = [name for name in os.listdir(tmp_path) if "replaced" in name and not name.endswith(SIDES)]
        assert [contents_of(tmp_path / name) for name in kept] == [old]
        assert not [name for name in os.listdir(tmp_path) if "unfinished" in name]
        assert os.stat(log).st_nlink == 1
    assert left == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("name", ["backup", "restore"])
def test_interrupted_command_is_reported_and_leaves_no_file(
    tmp_path: Path, name: str, sign: signal.Signals, status: int
) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    fill(log, 250).close()
    if name == "restore":
        fill(other, 40).close()
    before = set(os.listdir(tmp_path))
    slow = """
import signal, time, chatrelay.app.cli.terminal as terminal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs the tests in the background
def report(self, *_):
    print("begun", flush=True)
    while True:  # a signal that comes just before a sleep begins does not end it
        time.sleep(0.1)
terminal.Progress.__call__ = report
"""
    line, environment = arguments((name, log, other, "--yes"), slow)
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sign)
        _, errors = process.communicate(timeout=PATIENCE)
    done = {"backup": "no backup was made", "restore": "nothing was restored"}[name]
    assert (process.returncode, errors) == (status, f"chatrelay: interrupted; {done}\n")
    left = {file for file in os.listdir(tmp_path) if not file.endswith(SIDES)}
    assert left - before == set()
    assert contents(log) == expected(250)


def test_full_disk_is_reported_in_one_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fill(log, 250).close()
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({8 * 4096}, {8 * 4096}))"
    ended = command("backup", log, tmp_path / "copy", prelude=limited)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert f"chatrelay: {tmp_path}/copy.unfinished cannot be written: " in ended.stderr
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "copy.unfinished").exists()


# On a terminal ---------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_and_erased(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fill(log, *[500] * 10).close()
    status, said = on_a_terminal("backup", log, tmp_path / "copy")
    assert status == 0
    *progress, report = said.split("\r")
    assert progress[0] == ""
    assert {re.fullmatch(r"(copying|checking) [ \d]\d % *| *", line) is not None for line in progress} == {True}
    assert [line for line in progress if "copying" in line]
    assert [line for line in progress if "checking" in line]
    assert not progress[-1].strip()
    assert re.fullmatch(r"backed up 5,000 messages \([\d.]+ [KM]iB\), the last one at .*Z, to .*/copy\n", report)


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1), ("\x03", 130)])
def test_restore_on_a_terminal_asks_before_it_replaces(tmp_path: Path, answer: str, status: int) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    fill(log, 5).close()
    fill(other, 3).close()
    ended, said = on_a_terminal("restore", log, other, answer=answer)
    assert ended == status, said
    assert f"{log} exists, and has 5 messages (" in said
    assert "Replace it with 3 messages (" in said
    assert contents(log) == expected(5 if status else 3)
    (tmp_path / "copy").write_text("precious")
    ended, said = on_a_terminal("backup", other, tmp_path / "copy", answer=answer)
    assert ended == status, said
    assert f"{tmp_path}/copy exists. Replace it? [y/N] " in said
    if status:
        assert (tmp_path / "copy").read_text() == "precious"
    else:
        assert contents(tmp_path / "copy") == expected(3)


def test_restore_without_a_terminal_neither_asks_nor_replaces(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    fill(log, 5).close()
    fill(other, 3).close()
    ended = command("restore", log, other)
    assert ended.returncode == 1
    assert re.fullmatch(
        f"chatrelay: {log} exists, and has 5 messages .*: replace it with --yes. The old file is kept under another name\n",
        ended.stderr,
    )
    ended = command("backup", log, other)
    assert ended.returncode == 1
    assert ended.stderr == f"chatrelay: {other} exists: name another destination, or replace it with --yes\n"
    assert contents(log) == expected(5)
    assert contents(other) == expected(3)
