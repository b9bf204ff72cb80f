"""Writes the log of a relay under twistd in a thread of its own, so that nothing that reads the log can stop the relay.

Format and level of the log are decided elsewhere, and an embedding program's log does not come here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import syslog
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from twisted.logger import ILogObserver, LegacyLogObserverWrapper, LogEvent, Logger
from twisted.python.logfile import LogFile
from twisted.python.syslog import SyslogObserver
from zope.interface import implementer

MAX_BYTES = 1024 * 1024
"""Bytes of lines that may wait to be written."""

MAX_EVENTS = 10_000
"""Log events that may wait to be written."""

ONE_WRITE = select.PIPE_BUF
"""Bytes that one write may have, unless a single line has more.

The kernel writes that much to a pipe as a whole (pipe(7)), so a line is never
mixed with those of other processes on the pipe, or left as half a line by a kill.
"""

FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0
"""Seconds between two attempts to write where an attempt failed. They double."""

FINISH_TIME = 2.0
"""Seconds that the end of the process waits for lines to be written."""

TWISTED_NAMES = ("LogFile._file", "LogFile._openFile")
"""What we use of Twisted's log file that its documentation does not promise; a test looks it up."""

Render = Callable[[LogEvent], str | None]
"""Makes the text of an event, with its line's end; None or nothing for an event that has no text."""


Take = Callable[[bytes], int]
"""Writes the beginning of some bytes, which are whole lines or the end of them, and returns how much that was.

It may wait for as long as it takes. It raises `OSError` where nothing can be written. It is called in one thread.
"""


def take_by_descriptor(descriptor: int) -> Take:
    """Write to a descriptor that may be shared with other processes, such as standard output.

    It is left blocking or non-blocking as it is, since that belongs to all who share it.
    """

    def take(data: bytes) -> int:
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:
                ready = select.poll()
                ready.register(descriptor, select.POLLOUT)
                ready.poll()

    return take


class RotatedFile(LogFile):
    """The log file that twistd's ``--logfile`` names, with its rotation at 1 MB.

    Twisted's own class drops the rest of a line that a full disk has cut, and stays closed where a rotation has failed.
    It goes on writing to a file that was moved away, and writes behind a hole in one that was emptied. It does not
    report that it may not rotate, and renames devices such as /dev/null.
    """

    _is_between_lines = True
    _rotates_from = 0  # bytes, where a rotation has failed

    def _openFile(self) -> None:
        super()._openFile()
        descriptor = self._file.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)

    def take(self, data: bytes) -> int:
        """Write as much as there is room for; begin a new file first where this one has its size."""
        if self._file.closed:  # a rotation failed halfway
            self._openFile()
        # Another program may have emptied it: logrotate's copytruncate does. A device has no size, and is not rotated.
        self.size = os.fstat(self._file.fileno()).st_size
        # The rest of a line after an error goes to the file that has its beginning.
        if self._is_between_lines and self.shouldRotate() and self.size >= self._rotates_from:
            self._rotate_by_size()
        written: int = self._file.write(data)
        self._is_between_lines = written == len(data)
        self.size += written
        return written

    def _rotate_by_size(self) -> None:
        """Begin a new file. Where that fails, go on with the old one until it has grown by as much again."""
        self._rotates_from = self.size + self.rotateLength
        try:
            super().rotate()
        except OSError:
            if self._file.closed:
                self._openFile()
        else:
            self._rotates_from = 0

    def rotate(self) -> None:
        """Begin a new file. Where the old one was moved away, by logrotate for one, only its name is used again.

        :raises OSError: where that can't be done.
        """
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            named = None
        if self._file.closed or named is None or not os.path.samestat(named, os.fstat(self._file.fileno())):
            self._file.close()
            self._openFile()
        elif not stat.S_ISREG(named.st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file", self.path)
        else:
            super().rotate()
            if os.path.samestat(named, os.fstat(self._file.fileno())):
                raise PermissionError(errno.EACCES, "The relay may not write in its folder, or not to it", self.path)


def take_by_syslog(data: bytes) -> int:
    """Hand the first line to syslog(3), which reports no errors. A line begins with its priority and a space."""
    line, end, _ = data.partition(b"\n")
    priority, _, text = line.partition(b" ")
    syslog.syslog(int(priority), text.decode("utf-8"))
    return len(line + end)


def syslog_render(prefix: str) -> Render:
    """Make what `take_by_syslog` takes, worded as Twisted's observer does.

    :param prefix: twistd's ``--prefix``.
    """
    observer = SyslogObserver(prefix)
    emit = LegacyLogObserverWrapper(observer.emit)  # type: ignore[arg-type]

    def render(event: LogEvent) -> str:
        messages: list[str] = []

        def add(priority: int, text: str) -> None:
            # Without NUL, at which C's text ends, and all else at which a line does.
            messages.append(f"{priority} {' '.join(text.replace(chr(0), ' ').splitlines())}\n")

        outer, observer.syslog = observer.syslog, add  # this may have been called in the middle of itself
        try:
            emit(event)
        finally:
            observer.syslog = outer
        return "".join(messages)

    return render


@implementer(ILogObserver)
class LogQueue:
    """Queues the lines of log events for the thread that writes them.

    Where the queue is full, events are left out and counted, until half of it is free again; then a line says how many
    were left out. It stands where they are missing.

    The standard library's `logging.handlers.QueueListener` has no bound, no count and no end within a time.

    :param render: makes the text of an event; called in the thread that logs.
    :param take: writes lines.
    :param encoding: of the output. A character that it does not have is written as a backslash escape.
    """

    # SimpleQueue and RLock, as a line may be logged in the middle of this code by the same thread: by the destructor of
    # a Deferred that has failed, or by Twisted's handler of SIGTERM.

    def __init__(self, render: Render, take: Take, encoding: str = "utf-8") -> None:
        self.log = Logger("chatrelay.app", observer=self._add)  # type: ignore[arg-type]
        self._render = render
        self._take = take
        self._encoding = encoding
        self._queue: SimpleQueue[bytes | Callable[[], None]] = SimpleQueue()
        self._lock = threading.RLock()
        self._events = 0
        self._bytes = 0
        self._is_full = False
        self._left_out = 0
        self._finished_by: float | None = None
        self._is_finishing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which no fork may follow. Until then lines are kept."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
            self._thread.start()

    def __call__(self, event: LogEvent) -> None:
        """Queue the line of an event."""
        with self._lock:
            if self._is_full:
                self._left_out += 1
            else:
                self._add(event)
        if self._finished_by is not None:
            self._wait()

    def rotate(self, rotate: Callable[[], None]) -> None:
        """Have the thread rotate its output when it has written what was logged before."""

        def try_it() -> None:
            try:
                rotate()
            except OSError as error:
                self.log.error("the log file can't be rotated: {error}", error=str(error))

        self._queue.put(try_it)

    def finish(self) -> None:
        """Wait until everything is written, `FINISH_TIME` seconds at most, now and with each event after this.

        An output that fails now is not tried again.
        """
        if self._finished_by is None:
            self._finished_by = time.monotonic() + FINISH_TIME
            self._is_finishing.set()
        self._wait()

    def _add(self, event: LogEvent) -> None:
        text = self._render(event)
        if not text:
            return
        line = text.encode(self._encoding, "backslashreplace")
        with self._lock:
            # An event that is larger than the queue has a place in it where it is alone.
            if self._events and (self._events >= MAX_EVENTS or self._bytes + len(line) > MAX_BYTES):
                self._is_full = True
                self._left_out += 1
            else:
                self._events += 1
                self._bytes += len(line)
                self._queue.put(line)

    def _wait(self) -> None:
        assert self._finished_by is not None
        while self._events:
            if self._thread is None:  # the start has failed before it was due; no thread can be started any more
                self._write_next()
                continue
            written = threading.Event()
            self._queue.put(written.set)
            if not written.wait(max(0.0, self._finished_by - time.monotonic())):
                break

    def _write_for_ever(self) -> None:
        # A terminal may be set to stop what writes to it from the background (stty tostop): all of the process. With
        # the signal blocked the kernel lets the thread write.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        while True:
            self._write_next()

    _next: bytes | None = None

    def _write_next(self) -> None:
        """Wait for something to do, and do it: write some lines, or what was queued between them."""
        first = self._queue.get() if self._next is None else self._next
        self._next = None
        if not isinstance(first, bytes):
            first()
            return
        lines, size = [first], len(first)
        after: Callable[[], None] | None = None
        while not self._queue.empty():
            item = self._queue.get()
            if not isinstance(item, bytes):
                after = item
                break
            if size + len(item) > ONE_WRITE:
                self._next = item
                break
            lines.append(item)
            size += len(item)
        events = len(lines)
        is_lost = not self._write(b"".join(lines))
        with self._lock:
            self._events -= events
            self._bytes -= size
            if is_lost:
                self._left_out += events
            if self._is_full and self._events <= MAX_EVENTS // 2 and self._bytes <= MAX_BYTES // 2:
                self._is_full = False
                self.log.warn(
                    "{count} lines of this log were left out: its reader was too slow, or it could not be written",
                    count=self._left_out,
                )
                self._left_out = 0
        if after is not None:
            after()

    def _write(self, rest: bytes) -> bool:
        wait = FIRST_WAIT
        while rest:
            is_last = self._is_finishing.is_set()
            try:
                rest = rest[self._take(rest) :]
            except OSError:
                if is_last:
                    return False
                self._is_finishing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        return True
