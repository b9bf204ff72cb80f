"""The index of a message log in SQLite: which messages each user sent and received.

The index is derived from the log: it can be deleted at any time, and is built again. It reads the log like any other
reader, so the thread that writes messages never waits for it. The newest messages are indexed in memory when somebody
reads. Every `MESSAGES_PER_RUN` messages become a file, a run, in the folder ``PATH-index``; eight runs of about one
size are merged into one. A run is complete when it gets its name, which says which messages it has. So after a crash
the files are a whole index of the messages up to some number, and `catch_up` adds the others.

There is no index until somebody reads the log by user. This module must not know threads, or what a read asks for.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from twisted.logger import Logger

from chatrelay.messagelog.sqlite.blocks import Blocks
from chatrelay.messagelog.sqlite.index_columns import Columns, columns_of_block
from chatrelay.messagelog.sqlite.index_merge import merge
from chatrelay.messagelog.sqlite.index_run import UNFINISHED, DamagedRun, FileRun, LastMessage, Run
from chatrelay.messagelog.sqlite.index_tail import Hashes, MemoryRun

log = Logger("chatrelay.messagelog")

SUFFIX = "-index"
"""The end of the name of the folder."""

MESSAGES_PER_RUN = 10_000
"""The messages after which a run is written. The last ones of fewer messages are indexed in memory."""

RUNS_PER_MERGE = 8
"""The runs of about one size that are merged into one."""

MAX_RUNS = 64
"""The runs beyond which no further message is indexed until runs were merged. Each read looks into every run."""

MAX_MEMORY_RUNS = 20
"""The runs in memory beyond which no further message is indexed: the files can't be written fast enough, or at all."""

MAX_NOTED = 50_000
"""The messages after the last indexed one that are kept in memory until they are indexed. They take about 15 MB."""

NOTED_PER_SLICE = 2_000
"""The noted messages that are indexed at once, so that no other thread waits long for the GIL."""

MESSAGES_PER_REPORT = 1_000_000
"""The messages between two log messages while a long index is built."""

JUST_WRITTEN = ("hashes",)
"""The part of a run that is read again when it was just written. The rest is checked when the index is opened."""

ATTEMPTS = 5
"""How often another process lists the files, if the relay deletes some of them meanwhile."""

_BLOCKS_PER_READ = 20
_NEXT_BLOCKS = """
SELECT first_number, CAST(messages AS BLOB) FROM block WHERE first_number > ? ORDER BY first_number LIMIT ?
"""
_FIRST_NUMBER = "SELECT coalesce((SELECT min(first_number) FROM block), number + 1) FROM saved_through"
_LAST_BLOCK = "SELECT max(first_number) FROM block"
_NAME = re.compile(r"\d{12,}-\d{12,}\.run")


def _go_on() -> None:
    """Let a check of runs go on."""


class View(NamedTuple):
    """The runs that readers use. It does not change, except that messages are added to the newest run.

    :ivar runs: from the newest to the oldest, without gaps.
    """

    runs: Sequence[Run]
    hashes: Hashes


class Index:
    """The index of one message log. One thread may call `work`, and any threads the rest.

    :param path: of the message log.
    :param random_bytes: returns so many random bytes.
    :ivar folder: has the files.
    :ivar view: what readers use.
    :ivar failure: why the last attempt to write a file failed; None if it succeeded.
    """

    def __init__(
        self,
        path: str,
        random_bytes: Callable[[int], bytes] = os.urandom,
        messages_per_run: int = MESSAGES_PER_RUN,
    ) -> None:
        self.folder = path + SUFFIX
        self.view = View((), Hashes(random_bytes(16)))
        self.failure: OSError | None = None
        self._random_bytes = random_bytes
        self._size = messages_per_run
        self._epoch = ""
        self._files: list[FileRun] = []  # oldest first, as in the next list
        self._memory: list[MemoryRun] = []
        self._through = 0  # the number of the last indexed message
        self._noted: deque[Columns] = deque()  # what was just committed, oldest first; there may be gaps
        self._work: Iterator[None] | None = None
        self._reported = 0
        self._hashes = self.view.hashes
        self._lock = threading.RLock()

    @property
    def has_files(self) -> bool:
        """Whether there is an index in files."""
        return os.path.isdir(self.folder)

    def open(self, connection: sqlite3.Connection, epoch: str, check_open: Callable[[], None] = _go_on) -> None:
        """Take the runs that are complete and belong to the message log, and delete the others.

        :param epoch: of the message log. Runs of another epoch are deleted.
        :param check_open: called after each MiB of the runs, which are all read. What it raises ends that.
        :raises sqlite3.Error: where the message log can't be read.
        :raises OSError: where the folder can't be read or written.
        """
        with self._lock:
            self._epoch = epoch
            self._memory = []
            self._files = self._usable_runs(connection, check_open)
            key = self._files[0].header.hash_key if self._files else self._random_bytes(16)
            self._hashes = Hashes(key)
            self._through = self._reported = self._files[-1].last if self._files else 0
            self._publish()

    def _usable_runs(self, connection: sqlite3.Connection, check_open: Callable[[], None]) -> list[FileRun]:
        """Return the longest row of runs without gaps, and delete all other files."""
        found = []
        for name in sorted(os.listdir(self.folder)) if self.has_files else ():
            path = os.path.join(self.folder, name)
            if name.endswith(UNFINISHED):
                os.unlink(path)
            elif _NAME.fullmatch(name):
                try:
                    run = FileRun(path)
                    check_run(run, connection, self._epoch, check_open)
                except DamagedRun as error:
                    log.warn("{error}: the index of the message log is built again", error=error)
                    os.unlink(path)
                else:
                    found.append(run)
        # After a crash in a merge, both the merged run and some of its parts are there.
        found.sort(key=lambda run: (run.first, -run.last))
        usable: list[FileRun] = []
        for run in found:
            follows = not usable or run.first == usable[-1].last + 1
            if follows and (not usable or run.header.hash_key == usable[0].header.hash_key):
                usable.append(run)
            else:
                os.unlink(run.path)
        first = first_number(connection)
        if usable and usable[0].first > first:
            for run in usable:
                os.unlink(run.path)
            return []
        while usable and usable[0].last < first:
            os.unlink(usable.pop(0).path)
        return usable

    def drop_deleted(self, connection: sqlite3.Connection) -> None:
        """Delete the runs all of whose messages were deleted from the log.

        :raises sqlite3.Error: where the log can't be read.
        :raises OSError: where a file can't be deleted.
        """
        with self._lock:
            first = first_number(connection)
            dropped: list[FileRun] = []
            while self._files and self._files[0].last < first:
                dropped.append(self._files.pop(0))
            while not self._files and self._memory and self._memory[0].last < first:
                del self._memory[0]
                self._publish()
            if dropped:
                self._publish()
        for run in dropped:
            _unlink(run.path)

    def discard(self) -> None:
        """Delete all runs, because one is damaged. `catch_up` builds them again.

        :raises OSError: where a file can't be deleted.
        """
        with self._lock:
            files, self._files = self._files, []
            self._memory = []
            self._through = self._reported = 0
            self._hashes = Hashes(self._random_bytes(16))
            self._publish()
            for run in files:
                _unlink(run.path)

    # Reading the log ----------------------------------------------------------

    def behind(self, connection: sqlite3.Connection) -> int:
        """Return the approximate number of messages that are not indexed yet, within the messages of a block."""
        (last,) = connection.execute(_LAST_BLOCK).fetchone()
        return max(0, (last or 0) - self._through)

    @property
    def is_full(self) -> bool:
        """Whether no further message is indexed until files were written."""
        return len(self._memory) >= MAX_MEMORY_RUNS or len(self._files) >= MAX_RUNS

    def catch_up(self, connection: sqlite3.Connection) -> bool:
        """Index the next messages of the log in memory, some thousand at most; return whether there are no more.

        If too much waits to be written, none are indexed.

        :raises sqlite3.Error: where the log can't be read.
        :raises msgspec.MsgspecError: where a block is damaged.
        """
        with self._lock:
            if self._add_noted():
                return False
            # What was not noted is in the log alone.
            blocks = connection.execute(_NEXT_BLOCKS, (self._through, _BLOCKS_PER_READ)).fetchall()
            if blocks and self.is_full:
                return False
            for first, text in blocks:
                if first != self._through + 1 and (self._files or self._memory):
                    # The messages in between were deleted before they were indexed.
                    self.discard()
                    return False
                columns = columns_of_block(first, text)
                if columns is not None:
                    self._add(columns)
            return len(blocks) < _BLOCKS_PER_READ

    def _add(self, columns: Columns) -> None:
        if not self._memory or self._memory[-1].count >= self._size:
            self._memory.append(MemoryRun(columns.first, self._hashes))
            self._publish()
        self._memory[-1].add(columns)
        self._through = columns.last

    def _add_noted(self) -> bool:
        """Index the noted messages that come next, some thousand at most; return whether there are more of them."""
        noted, through = self._noted, self._through + NOTED_PER_SLICE
        while noted and noted[0].first <= self._through + 1 and not self.is_full:
            if self._through >= through:
                return True
            columns = noted.popleft()
            if columns.first == self._through + 1:  # else it was read from the log before
                self._add(columns)
        return False

    def note(self, columns: Columns) -> None:
        """Keep messages that were committed, so that `catch_up` need not read them. Only the writing thread calls this.

        If too many wait, or if some are not noted, the others are read from the log.
        """
        if columns.last - self._through <= MAX_NOTED:
            self._noted.append(columns)

    @property
    def noted(self) -> int:
        """The number of messages since the last indexed one, as far as they were noted."""
        try:
            return self._noted[-1].last - self._through
        except IndexError:  # there are none: another thread may just have indexed the last of them
            return 0

    # Writing files ------------------------------------------------------------

    def work(self) -> bool:
        """Write a part of a file, if there is something to write; return whether there may be more.

        :raises OSError: where a file can't be read or written.
        :raises DamagedRun: where a run can't be read. Call `discard`.
        """
        if self._work is None:
            self._work = self._next_work()
        if self._work is None:
            return False
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except BaseException as error:
            self._work = None
            self.failure = error if isinstance(error, OSError) else None
            raise
        self.failure = None
        return True

    def _next_work(self) -> Iterator[None] | None:
        if self._memory and self._memory[0].count >= self._size:
            return self._write_run(self._memory[0])
        due = self._due_for_merging()
        return self._merge(due) if due else None

    def _write_run(self, run: MemoryRun) -> Iterator[None]:
        """Replace the oldest run in memory by a file."""
        with suppress(FileExistsError):
            os.mkdir(self.folder, 0o700)
        path = self._path(run.first, run.last)
        yield from run.write(path, self._epoch)
        written = FileRun(path)
        written.check(JUST_WRITTEN)
        with self._lock:
            if run not in self._memory:  # `open` or `discard` was called meanwhile
                _unlink(path)
                return
            self._memory.remove(run)
            self._files.append(written)
            self._publish()
        self._report(run.last)

    def _merge(self, runs: Sequence[FileRun]) -> Iterator[None]:
        """Replace some runs by one."""
        path = self._path(runs[0].first, runs[-1].last)
        yield from merge(runs, path)
        merged = FileRun(path)
        merged.check(JUST_WRITTEN)
        with self._lock:
            if not set(runs) <= set(self._files):  # `open` or `discard` was called meanwhile
                _unlink(path)
                return
            at = self._files.index(runs[0])
            self._files[at : at + len(runs)] = [merged]
            self._publish()
        for run in runs:
            _unlink(run.path)
            yield

    def _due_for_merging(self) -> Sequence[FileRun]:
        """Return the oldest consecutive runs of one size, if there are enough of them."""
        for start in range(len(self._files) - RUNS_PER_MERGE + 1):
            runs = self._files[start : start + RUNS_PER_MERGE]
            if len({(self._level(run), run.base) for run in runs}) == 1:
                return runs
        return ()

    def _level(self, run: FileRun) -> int:
        level, messages = 0, run.count // self._size
        while messages >= RUNS_PER_MERGE:
            level += 1
            messages //= RUNS_PER_MERGE
        return level

    def _path(self, first: int, last: int) -> str:
        return os.path.join(self.folder, f"{first:012}-{last:012}.run")

    def _publish(self) -> None:
        self.view = View((*reversed(self._memory), *reversed(self._files)), self._hashes)

    def _report(self, through: int) -> None:
        if through - self._reported >= MESSAGES_PER_REPORT:
            self._reported = through
            log.info("the index of the message log has {through} messages", through=through)


def complete_runs(path: str, connection: sqlite3.Connection, epoch: str) -> Sequence[FileRun]:
    """Return the runs in files that can be used, oldest first and without gaps, for another process than the relay.

    The relay may replace files meanwhile. None is written or deleted. Damaged runs are left out.

    :param path: of the message log.
    :raises sqlite3.Error: where the message log can't be read.
    """
    folder = path + SUFFIX
    for _ in range(ATTEMPTS if os.path.isdir(folder) else 0):
        runs: list[FileRun] = []
        wanted = first_number(connection)
        try:
            names = [name for name in os.listdir(folder) if _NAME.fullmatch(name)]
            for name in sorted(names, key=_first_and_negative_last):
                first, last = _first_and_negative_last(name)
                if first == wanted if runs else first <= wanted <= -last:
                    run = FileRun(os.path.join(folder, name))
                    check_run(run, connection, epoch)
                    if runs and run.header.hash_key != runs[0].header.hash_key:
                        break
                    runs.append(run)
                    wanted = run.last + 1
        except FileNotFoundError:
            continue  # the relay has just merged this run with others
        except (OSError, DamagedRun):
            pass  # what was found before can be used; the rest is read from the log
        return runs
    return ()


def _first_and_negative_last(name: str) -> tuple[int, int]:
    """Return the first number in the name of a run, and minus the last one, so that sorting puts the longest first."""
    first, last = name.removesuffix(".run").split("-")
    return int(first), -int(last)


def check_run(
    run: FileRun, connection: sqlite3.Connection, epoch: str, check_open: Callable[[], None] = _go_on
) -> None:
    """Check that a run is whole and belongs to a message log.

    :param check_open: called after each MiB that was read. What it raises ends the check.
    :raises DamagedRun: if not.
    :raises sqlite3.Error: where the message log can't be read.
    """
    if run.header.epoch != epoch:
        raise DamagedRun(f"{run.path} belongs to another message log")
    message = Blocks(connection).message(run.last)
    if message is None:
        if run.last >= first_number(connection):
            raise DamagedRun(f"{run.path} has more messages than the message log")
    elif LastMessage(message.received_at, message.from_place, message.to_place) != run.header.last_message:
        raise DamagedRun(f"{run.path} belongs to another message log")
    run.check(check_open=check_open)


def first_number(connection: sqlite3.Connection) -> int:
    """Return the number of the first message that is in the log; if there is none, the one that the next will have."""
    (first,) = connection.execute(_FIRST_NUMBER).fetchone()
    return int(first)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
