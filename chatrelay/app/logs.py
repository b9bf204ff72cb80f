"""Write the log of a relay under twistd in a separate thread, so that a slow reader of the log can't stop the relay.

This module does not choose the format or the level of the log, and does not touch the log of an embedding program.
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

MAX_QUEUED_BYTES = 1024 * 1024
"""The most bytes of lines that may wait to be written."""

MAX_QUEUED_EVENTS = 10_000
"""The most log events that may wait to be written."""

MAX_WRITE_BYTES = select.PIPE_BUF
"""The most bytes of one write, unless a single line has more.

The kernel writes up to this much to a pipe as a whole (pipe(7)). So a line is never mixed with the lines of other
processes on the pipe, and a kill never leaves half a line.
"""

FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 30.0
"""The wait after a failed write. It doubles with each failure, up to the second value."""

MAX_FINISH_SECONDS = 2.0
"""The longest that the end of the process waits for lines to be written."""

TWISTED_NAMES = ("LogFile._file", "LogFile._openFile")
"""The undocumented names of Twisted's log file that are used here. A test checks them."""

Render = Callable[[LogEvent], str | None]
"""Returns the line of an event, with its line end; None or an empty text for an event without a text."""

Write = Callable[[bytes], int]
"""Writes as much as it can of some bytes, which are lines or the rest of lines, and returns how many bytes it wrote.

It may block without a limit. It raises `OSError` if nothing can be written. It is called in one thread.
"""


def descriptor_writer(descriptor: int) -> Write:
    """Return a function that writes to a descriptor, which other processes may share, such as standard output.

    It never changes whether the descriptor blocks, because that would change for all processes that share it.
    """

    def write(data: bytes) -> int:
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:
                ready = select.poll()
                ready.register(descriptor, select.POLLOUT)
                ready.poll()

    return write


class RotatedFile(LogFile):
    """The log file that twistd's ``--logfile`` names, with its rotation at 1 MB.

    It fixes these faults of Twisted's own class: after a full disk it drops the rest of the line, and after a failed
    rotation it stays closed. It continues to write to a file that was moved away, and leaves a hole in a file that was
    emptied. It does not report that a rotation is not permitted, and it renames devices such as /dev/null.
    """

    _is_between_lines = True
    _rotates_from = 0  # bytes, where a rotation has failed

    def _openFile(self) -> None:
        super()._openFile()
        descriptor = self._file.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)

    def write_some(self, data: bytes) -> int:
        """Write as much as there is room for; see `Write`. First begin a new file if this one is full."""
        if self._file.closed:  # a rotation failed halfway
            self._openFile()
        # Another program may have emptied it, such as logrotate with copytruncate. A device has no size and is never
        # rotated.
        self.size = os.fstat(self._file.fileno()).st_size
        # The rest of a line goes to the file that has the beginning of the line.
        if self._is_between_lines and self.shouldRotate() and self.size >= self._rotates_from:
            self._rotate_by_size()
        written: int = self._file.write(data)
        self._is_between_lines = written == len(data)
        self.size += written
        return written

    def _rotate_by_size(self) -> None:
        """Begin a new file. If that fails, go on with the old one and try again when it has grown by the same size."""
        self._rotates_from = self.size + self.rotateLength
        try:
            super().rotate()
        except OSError:
            if self._file.closed:
                self._openFile()
        else:
            self._rotates_from = 0

    def rotate(self) -> None:
        """Begin a new file. If the old one was moved away, as logrotate does, only open a file of the same name.

        :raises OSError: if that fails.
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


def write_to_syslog(data: bytes) -> int:
    """Pass the first line to syslog(3), which reports no errors. A line begins with its priority and a space."""
    line, end, _ = data.partition(b"\n")
    priority, _, text = line.partition(b" ")
    syslog.syslog(int(priority), text.decode("utf-8"))
    return len(line + end)


def syslog_render(prefix: str) -> Render:
    """Return a function that makes lines for `write_to_syslog`, with the text of Twisted's own observer.

    :param prefix: twistd's ``--prefix``.
    """
    observer = SyslogObserver(prefix)
    emit = LegacyLogObserverWrapper(observer.emit)  # type: ignore[arg-type]

    def render(event: LogEvent) -> str:
        messages: list[str] = []

        def add(priority: int, text: str) -> None:
            # Without NUL, which ends a text in C, and without line ends.
            messages.append(f"{priority} {' '.join(text.replace(chr(0), ' ').splitlines())}\n")

        outer, observer.syslog = observer.syslog, add  # this function may be called while it runs
        try:
            emit(event)
        finally:
            observer.syslog = outer
        return "".join(messages)

    return render


@implementer(ILogObserver)
class LogQueue:
    """Queues the lines of log events for the thread that writes them.

    When the queue is full, events are dropped and counted until half of the queue is free again. Then a line in their
    place gives the number of dropped events.

    The standard library's `logging.handlers.QueueListener` has no limit, does not count, and can't end within a time.

    :param render: makes the line of an event; called in the thread that logs.
    :param write: writes lines.
    :param encoding: the encoding of the output. A character that the encoding does not have is written as a backslash
        escape.
    """

    # SimpleQueue and RLock, because the same thread may log while it is in this code: in the destructor of a failed
    # Deferred, or in Twisted's handler of SIGTERM.

    def __init__(self, render: Render, write: Write, encoding: str = "utf-8") -> None:
        self.log = Logger("chatrelay.app", observer=self._add)  # type: ignore[arg-type]
        self._render = render
        self._write_some = write
        self._encoding = encoding
        self._queue: SimpleQueue[bytes | Callable[[], None]] = SimpleQueue()
        self._lock = threading.RLock()
        self._events = 0
        self._bytes = 0
        self._is_full = False
        self._dropped = 0
        self._finished_by: float | None = None
        self._is_finishing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Until then lines are only queued. The process must not fork after this."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
            self._thread.start()

    def __call__(self, event: LogEvent) -> None:
        """Queue the line of an event."""
        with self._lock:
            if self._is_full:
                self._dropped += 1
            else:
                self._add(event)
        if self._finished_by is not None:
            self._wait()

    def rotate(self, rotate: Callable[[], None]) -> None:
        """Have the thread rotate its output, after it has written everything that was logged before."""

        def rotate_or_log() -> None:
            try:
                rotate()
            except OSError as error:
                self.log.error("the log file can't be rotated: {error}", error=str(error))

        self._queue.put(rotate_or_log)

    def finish(self) -> None:
        """Wait until everything is written, now and after each later event, for `MAX_FINISH_SECONDS` in all.

        An output that fails from now on is not tried again.
        """
        if self._finished_by is None:
            self._finished_by = time.monotonic() + MAX_FINISH_SECONDS
            self._is_finishing.set()
        self._wait()

    def _add(self, event: LogEvent) -> None:
        text = self._render(event)
        if not text:
            return
        line = text.encode(self._encoding, "backslashreplace")
        with self._lock:
            # An event that is larger than the queue is accepted when the queue is empty.
            if self._events and (self._events >= MAX_QUEUED_EVENTS or self._bytes + len(line) > MAX_QUEUED_BYTES):
                self._is_full = True
                self._dropped += 1
            else:
                self._events += 1
                self._bytes += len(line)
                self._queue.put(line)

    def _wait(self) -> None:
        assert self._finished_by is not None
        while self._events:
            if self._thread is None:  # the relay failed to start before `start`, and no thread can start at exit
                self._write_next()
                continue
            written = threading.Event()
            self._queue.put(written.set)
            if not written.wait(max(0.0, self._finished_by - time.monotonic())):
                break

    def _write_for_ever(self) -> None:
        # A terminal may be set to stop a background process that writes to it (stty tostop). While the signal is
        # blocked, the kernel lets the thread write.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        while True:
            self._write_next()

    _next: bytes | None = None

    def _write_next(self) -> None:
        """Wait for the next queued item, then write lines, or call the function that was queued between them."""
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
            if size + len(item) > MAX_WRITE_BYTES:
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
                self._dropped += events
            if self._is_full and self._events <= MAX_QUEUED_EVENTS // 2 and self._bytes <= MAX_QUEUED_BYTES // 2:
                self._is_full = False
                self.log.warn(
                    "{count} lines of this log were dropped: its reader was too slow, or the log could not be written",
                    count=self._dropped,
                )
                self._dropped = 0
        if after is not None:
            after()

    def _write(self, rest: bytes) -> bool:
        wait = FIRST_RETRY_SECONDS
        while rest:
            is_last = self._is_finishing.is_set()
            try:
                rest = rest[self._write_some(rest) :]
            except OSError:
                if is_last:
                    return False
                self._is_finishing.wait(wait)
                wait = min(2 * wait, MAX_RETRY_SECONDS)
        return True
