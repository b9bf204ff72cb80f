"""The queue and the thread of the log: order, limit, number of dropped events, errors, rotation, end of the process."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.logger import LogEvent, Logger, LogLevel
from twisted.python.logfile import LogFile

from chatrelay.app import logs
from chatrelay.app.logs import LogQueue, RotatedFile, descriptor_writer, syslog_render, write_to_syslog
from tests.support import ROOT

PATIENCE = 15.0


class Reader:
    """Reads lines when the test allows it.

    :ivar text: what it has read.
    :ivar goes_on: set while it reads.
    :ivar error: raised instead of reading.
    :ivar most: bytes that it reads in one call.
    """

    def __init__(self) -> None:
        self.text = b""
        self.goes_on = threading.Event()
        self.error: OSError | None = None
        self.most = 1 << 30
        self.asked = threading.Event()

    def write_some(self, data: bytes) -> int:
        self.asked.set()
        assert self.goes_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        taken = data[: self.most]
        self.text += taken
        return len(taken)


def text_of(event: LogEvent) -> str | None:
    """Return the line of an event: its format, with the number of dropped lines."""
    text = event["log_format"]
    return f"{text}\n".replace("{count}", str(event.get("count"))) if text else None


@pytest.fixture
def reader() -> Reader:
    """Return a reader that reads nothing until `goes_on` is set."""
    return Reader()


@pytest.fixture
def queue(reader: Reader) -> LogQueue:
    """Return a queue whose thread runs."""
    queue = LogQueue(text_of, reader.write_some)
    queue.start()
    return queue


def log(queue: LogQueue, text: str) -> None:
    """Log an event."""
    queue({"log_format": text})


def test_lines_are_written_in_order(queue: LogQueue, reader: Reader) -> None:
    reader.goes_on.set()
    for number in range(1000):
        log(queue, str(number))
    log(queue, "")
    queue.finish()
    assert reader.text.decode().split() == [str(number) for number in range(1000)]


def test_a_write_has_whole_lines_and_fits_into_a_pipe() -> None:
    writes: list[bytes] = []
    queue = LogQueue(text_of, lambda data: writes.append(data) or len(data))  # type: ignore[func-returns-value]
    for number in range(300):
        log(queue, "x" * (1 + number % 99))
    log(queue, "y" * 10_000)
    log(queue, "z")
    queue.start()
    queue.finish()
    assert b"".join(writes).count(b"\n") == 302
    assert all(data.endswith(b"\n") for data in writes)
    assert sorted(map(len, writes))[-2] <= logs.MAX_WRITE_BYTES < len(max(writes, key=len)) == 10_001
    assert len(writes) < 30


@pytest.mark.parametrize("size", [10, 1000])
def test_full_queue_drops_events_and_logs_their_number_in_their_place(
    queue: LogQueue, reader: Reader, size: int
) -> None:
    logged = 20_000 if size == 10 else 3000
    for number in range(logged):
        log(queue, f"{number:0{size}}")
    waiting = queue._bytes
    assert waiting <= logs.MAX_QUEUED_BYTES
    assert queue._events <= logs.MAX_QUEUED_EVENTS
    assert max(waiting / logs.MAX_QUEUED_BYTES, queue._events / logs.MAX_QUEUED_EVENTS) > 0.99
    reader.goes_on.set()
    until = time.monotonic() + PATIENCE
    while b"dropped" not in reader.text and time.monotonic() < until:
        time.sleep(0.01)
    log(queue, "after")
    queue.finish()
    lines = reader.text.decode().splitlines()
    told = [int(line) for line in lines if line.isdigit()]
    (at,) = (number for number, line in enumerate(lines) if "dropped" in line)
    found = re.match(r"(\d+) lines of this log were dropped", lines[at])
    assert found
    assert len(told) + int(found[1]) == logged
    assert told == list(range(len(told)))
    assert lines[at + 1 :] == ["after"]


def test_event_larger_than_an_empty_queue_is_written(queue: LogQueue, reader: Reader) -> None:
    log(queue, "x" * (logs.MAX_QUEUED_BYTES + 1))
    log(queue, "dropped")
    reader.goes_on.set()
    queue.finish()
    lines = reader.text.decode().splitlines()
    assert len(lines[0]) == logs.MAX_QUEUED_BYTES + 1
    assert lines[1].startswith("1 lines of this log were dropped")


def test_logging_never_waits_and_finish_waits_up_to_its_limit(
    queue: LogQueue, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_FINISH_SECONDS", 0.2)
    log(queue, "unread")
    began = time.monotonic()
    queue.finish()
    assert 0.2 <= time.monotonic() - began < PATIENCE
    began = time.monotonic()
    for _ in range(100):
        log(queue, "later")
    queue.finish()
    assert time.monotonic() - began < 0.2 * 50  # one time limit for all of them, not one for each
    reader.goes_on.set()


def test_event_after_finish_is_written_before_the_call_returns(queue: LogQueue, reader: Reader) -> None:
    reader.goes_on.set()
    queue.finish()
    for text in ("Main loop terminated.", "Server Shut Down."):
        log(queue, text)
        assert reader.text.decode().endswith(f"{text}\n")


def test_rest_of_a_line_follows_after_a_failed_write(
    queue: LogQueue, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FIRST_RETRY_SECONDS", 0.001)
    reader.most = 3
    log(queue, "a line cut by an error")
    reader.error = OSError(errno.ENOSPC, "No space left on device")
    reader.goes_on.set()
    time.sleep(0.05)
    reader.error = None
    log(queue, "another")
    queue.finish()
    assert reader.text == b"a line cut by an error\nanother\n"


def test_failing_output_does_not_delay_the_end_of_the_process(queue: LogQueue, reader: Reader) -> None:
    reader.error = OSError(errno.EPIPE, "Broken pipe")
    reader.goes_on.set()
    for _ in range(100):
        log(queue, "nobody reads this")
    began = time.monotonic()
    queue.finish()
    assert time.monotonic() - began < logs.MAX_FINISH_SECONDS
    assert reader.text == b""


def test_finish_without_start_writes_the_queue(reader: Reader) -> None:
    reader.goes_on.set()
    queue = LogQueue(text_of, reader.write_some)  # as twistd in the background before it forks
    log(queue, "why it cannot start")
    assert reader.text == b""
    queue.finish()
    assert reader.text == b"why it cannot start\n"


def test_event_logged_while_an_event_is_logged_is_written(reader: Reader) -> None:
    def render(event: LogEvent) -> str:
        if event["log_format"] == "outer":
            log(queue, "inner")  # as the destructor of a Deferred does, or Twisted's handler of a signal
        return f"{event['log_format']}\n"

    queue = LogQueue(render, reader.write_some)
    queue.start()
    reader.goes_on.set()
    log(queue, "outer")
    queue.finish()
    assert sorted(reader.text.decode().split()) == ["inner", "outer"]


def test_character_outside_the_encoding_is_escaped(reader: Reader) -> None:
    reader.goes_on.set()
    queue = LogQueue(text_of, reader.write_some, "ascii")
    queue.start()
    log(queue, "Å\ud800")
    queue.finish()
    assert reader.text == b"\\xc5\\ud800\n"


def test_idle_thread_does_not_wake_up(queue: LogQueue, reader: Reader) -> None:
    reader.goes_on.set()
    log(queue, "once")
    queue.finish()
    assert queue._thread is not None

    def switches() -> list[str]:
        status = Path(f"/proc/self/task/{queue._thread.native_id}/status").read_text()  # type: ignore[union-attr]
        return re.findall(r"ctxt_switches:\s*(\d+)", status)

    until = time.monotonic() + PATIENCE
    while (before := switches()) != (time.sleep(0.2), switches())[1]:
        assert time.monotonic() < until, before


def test_non_blocking_descriptor_is_polled_and_stays_non_blocking() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    queue = LogQueue(text_of, descriptor_writer(theirs))
    queue.start()
    for _ in range(200):
        log(queue, "x" * 999)
    text = b""
    while len(text) < 200_000:
        text += os.read(ours, 65536)
    queue.finish()
    assert text == (b"x" * 999 + b"\n") * 200
    assert not os.get_blocking(theirs)
    os.close(ours)
    os.close(theirs)


# Files ---------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> RotatedFile:
    """Return a new log file."""
    return RotatedFile.fromFullPath(str(tmp_path / "log"))


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, with their contents."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rotation_begins_a_new_file_and_reopens_a_moved_one(file: RotatedFile, tmp_path: Path) -> None:
    queue = LogQueue(text_of, file.write_some)
    queue.start()
    log(queue, "first")
    queue.rotate(file.rotate)
    log(queue, "second")
    queue.finish()
    assert files(tmp_path) == {"log.1": b"first\n", "log": b"second\n"}
    os.rename(tmp_path / "log", tmp_path / "log-20261127")  # as logrotate does
    queue.rotate(file.rotate)
    log(queue, "third")
    queue.finish()
    assert files(tmp_path) == {"log.1": b"first\n", "log-20261127": b"second\n", "log": b"third\n"}
    file.close()


def test_full_file_is_rotated(file: RotatedFile, tmp_path: Path) -> None:
    file.rotateLength = 10
    for line in (b"123456789\n", b"next\n"):
        assert file.write_some(line) == len(line)
    assert files(tmp_path) == {"log.1": b"123456789\n", "log": b"next\n"}
    file.close()


def test_failed_rotation_is_logged_and_logging_continues(
    file: RotatedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = LogQueue(text_of, file.write_some)
    queue.start()
    log(queue, "before")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        queue.rotate(file.rotate)
        log(queue, "after")
        queue.finish()
    lines = files(tmp_path)["log"].decode().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == ["after", "the log file can't be rotated: {error}"]
    file.close()


def test_forbidden_rotation_raises_and_the_file_is_kept(
    file: RotatedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twisted checks the permission and returns silently. (The tests may run as root, who may write anywhere.)
    monkeypatch.setattr(os, "access", lambda *_: False)
    file.write_some(b"before\n")
    with pytest.raises(PermissionError, match="The relay may not write in its folder"):
        file.rotate()
    file.rotateLength = 1
    file.write_some(b"after\n")
    assert files(tmp_path) == {"log": b"before\nafter\n"}
    file.close()


def test_failed_rotation_of_a_full_file_is_retried_after_as_much_again(
    file: RotatedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def fail(*names: object) -> None:
        tried.append(names)
        raise OSError(errno.EIO, "Input/output error")

    file.rotateLength = 20
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        for number in range(5):
            assert file.write_some(b"%08d\n" % number) == 9
        assert len(tried) == 1
    for number in range(5, 7):
        file.write_some(b"%08d\n" % number)
    assert files(tmp_path) == {
        "log.1": b"".join(b"%08d\n" % number for number in range(6)),
        "log": b"00000006\n",
    }
    file.close()


def test_emptied_file_has_no_hole_and_is_rotated_by_its_new_size(file: RotatedFile, tmp_path: Path) -> None:
    file.rotateLength = 20
    for line in (b"first 789\n", b"second 89\n"):
        file.write_some(line)
    os.truncate(tmp_path / "log", 0)  # as logrotate's copytruncate does
    for line in (b"third 789\n", b"fourth 89\n", b"fifth 789\n"):
        file.write_some(line)
    assert files(tmp_path) == {"log.1": b"third 789\nfourth 89\n", "log": b"fifth 789\n"}
    file.close()


def test_device_is_not_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed: list[object] = []
    monkeypatch.setattr(os, "rename", lambda *names: renamed.append(names))
    device = RotatedFile.fromFullPath("/dev/null", rotateLength=10)
    for _ in range(5):
        device.write_some(b"123456789\n")
    with pytest.raises(OSError, match="not a regular file"):
        device.rotate()
    assert renamed == []
    device.close()


def test_line_cut_by_a_full_disk_is_completed(tmp_path: Path) -> None:
    # A size limit of the process has the effect of a full disk: a part of a line is written, then nothing.
    program = """
import resource, sys, time
from chatrelay.app.logs import LogQueue, RotatedFile
file = RotatedFile.fromFullPath(sys.argv[1])
queue = LogQueue(lambda event: event["log_format"] + "\\n", file.write_some)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
queue.start()
for number in range(100):
    queue({"log_format": f"line {number:04} " + "x" * 90})
while file.size < 1500:
    time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while queue._events:
    time.sleep(0.01)
queue.finish()
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"line {number:04} " + "x" * 90 for number in range(100)]


def test_twisted_has_the_names_that_the_log_file_uses(file: RotatedFile) -> None:
    assert logs.TWISTED_NAMES == ("LogFile._file", "LogFile._openFile")
    assert hasattr(LogFile, "_openFile"), "Twisted has moved it; see chatrelay/app/logs.py"
    assert file._file.fileno()
    file.close()


# syslog ---------------------------------------------------------------------------


def test_syslog_gets_each_line_with_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(logs.syslog, "syslog", lambda priority, text: told.append((priority, text)))
    queue = LogQueue(syslog_render("relay"), write_to_syslog)
    queue.start()
    logger = Logger(namespace="here", observer=queue)
    logger.emit(LogLevel.info, "one\ntwo\0\x85three Å")
    queue.finish()
    assert told == [(6, "[-] one"), (6, "[-] \ttwo  three Å")]


@pytest.fixture
def hanging_syslog(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make syslog hang until the returned function is called."""
    goes_on = threading.Event()
    monkeypatch.setattr(logs.syslog, "syslog", lambda *_: goes_on.wait(PATIENCE))
    return goes_on.set


def test_hanging_syslog_does_not_block_logging(hanging_syslog: Callable[[], None]) -> None:
    queue = LogQueue(syslog_render("relay"), write_to_syslog)
    queue.start()
    began = time.monotonic()
    logger = Logger(namespace="here", observer=queue)
    for _ in range(100):
        logger.info("a line")
    assert time.monotonic() - began < PATIENCE / 3
    assert queue._events == 100
    hanging_syslog()
