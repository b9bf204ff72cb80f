"""Merge consecutive runs of the index into one, in slices.

It reads and writes ranges of hashes, so its memory is bounded by the users of the runs (eight bytes for each user of a
run), and not by their messages. This module must not know which runs are to be merged, or when.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise, repeat

from chatrelay.messagelog.sqlite.index_run import FileRun, Header, Row, RunWriter

USERS_PER_SLICE = 128
"""The approximate number of users of a run that are merged at once, so that no other thread waits long for the GIL."""

VALUES_PER_SLICE = 10_000
"""The most values of four bytes that are written at once."""

VALUES_PER_WINDOW = 1_000
"""The values of a run that are read at once, if they are needed for several users."""

_SPAN = 2**64


def merge(runs: Sequence[FileRun], path: str) -> Iterator[None]:
    """Write the messages of consecutive runs with one base into one file, with pauses where other threads may work.

    :raises OSError: where the file can't be written.
    :raises chatrelay.messagelog.sqlite.index_run.DamagedRun: where a run can't be read.
    """
    slices = max(1, *(run.header.users // USERS_PER_SLICE for run in runs))
    remaps: list[array[int]] = [array("I") for _ in runs]  # for each run, the side in the merged run of each side
    hashes = array("Q")  # of the merged run
    starts: list[list[int]] = [[0] * len(runs)]  # for each slice, its first position in each run
    for number in range(1, slices + 1):
        found = [_hashes_below(run, at, _SPAN * number // slices) for run, at in zip(runs, starts[-1], strict=True)]
        union = sorted(set().union(*found))
        new_side = {hashed: 2 * position for position, hashed in enumerate(union, len(hashes))}
        for remap, some in zip(remaps, found, strict=True):
            sides = array("I", [0]) * (2 * len(some))
            sides[::2] = array("I", map(new_side.__getitem__, some))
            sides[1::2] = array("I", [new_side[hashed] + 1 for hashed in some])
            remap += sides
        hashes.extend(union)
        starts.append([at + len(some) for at, some in zip(starts[-1], found, strict=True)])
        yield
    headers = [run.header for run in runs]
    header = Header(
        headers[0].hash_key,
        headers[0].epoch,
        headers[0].first,
        headers[-1].last,
        len(hashes),
        entries=sum(each.entries for each in headers),
        ids=sum(each.ids for each in headers),
        latest=max(each.latest for each in headers),
        last_message=headers[-1].last_message,
    )
    with closing(RunWriter(path, header)) as writer:
        for start in range(0, len(hashes), VALUES_PER_SLICE):
            writer.write("hashes", hashes[start : start + VALUES_PER_SLICE].tobytes())
            yield
        merging = _Merging(runs, remaps, writer)
        for begins, ends in pairwise(starts):
            yield from merging.slice(begins, ends)
        writer.finish()


def _hashes_below(run: FileRun, start: int, limit: int) -> list[int]:
    """Return the hashes of a run from a position on that are below a limit."""
    found: list[int] = []
    while start < run.header.users:
        hashes = run.hashes(start, start + 2 * USERS_PER_SLICE)
        count = bisect_left(hashes, limit)
        found += hashes[:count]
        start += count
        if count < len(hashes):
            break
    return found


class _Merging:
    """Writes the users of some runs, slice by slice."""

    def __init__(self, runs: Sequence[FileRun], remaps: Sequence[Sequence[int]], writer: RunWriter) -> None:
        self._runs = runs
        self._remaps = remaps
        self._writer = writer
        self._entries = 0
        self._ids = 0

    def slice(self, begins: Sequence[int], ends: Sequence[int]) -> Iterator[None]:
        """Write the users between two positions of each run."""
        parts: list[tuple[int, int, Row]] = []  # for each run and user: the new side, the run, and the row
        for number, (run, begin, end) in enumerate(zip(self._runs, begins, ends, strict=True)):
            if begin < end:
                new_sides = self._remaps[number][begin * 2 : end * 2 : 2]
                parts += zip(new_sides, repeat(number), run.rows(begin, end), strict=False)
        parts.sort()
        rows: list[int] = []
        last = -1
        for side, _, (first_place, start, stop, ids_start, ids_stop) in parts:
            self._entries += stop - start
            self._ids += ids_stop - ids_start
            if side == last:
                rows[-2:] = self._entries, self._ids
            else:
                rows += first_place, self._entries, self._ids
                last = side
        self._writer.write("rows", array("I", rows).tobytes())
        yield
        ranges = [(number, start, stop) for _, number, (_, start, stop, _, _) in parts]
        yield from self._copy("codes", ranges)
        yield from self._copy("sides", ranges)
        ids = [(number, start, stop) for _, number, (_, _, _, start, stop) in parts if start < stop]
        if ids:
            yield from self._copy("id_hashes", ids)
            yield from self._copy("id_codes", ids)

    def _copy(self, section: str, ranges: Sequence[tuple[int, int, int]]) -> Iterator[None]:
        """Copy ranges of a section. Those of one run are in ascending order.

        :param ranges: for each range the number of its run, and where it begins and ends.
        """
        windows = [b""] * len(self._runs)  # of each run: what was read, and where it begins and ends
        firsts, lasts = [0] * len(self._runs), [0] * len(self._runs)
        pieces: list[bytes] = []
        size = 0
        for number, begin, end in ranges:
            for start in range(begin, end, VALUES_PER_SLICE):
                stop = end if end - start <= VALUES_PER_SLICE else start + VALUES_PER_SLICE
                if stop > lasts[number]:
                    firsts[number] = start
                    lasts[number] = max(stop, start + self._window(number, section, start))
                    windows[number] = self._read(number, section, start, lasts[number])
                first = firsts[number]
                pieces.append(windows[number][(start - first) * 4 : (stop - first) * 4])
                size += stop - start
                if size >= VALUES_PER_SLICE:
                    self._writer.write(section, b"".join(pieces))
                    pieces.clear()
                    size = 0
                    yield
        self._writer.write(section, b"".join(pieces))
        yield

    def _window(self, number: int, section: str, start: int) -> int:
        header = self._runs[number].header
        count = header.ids if section.startswith("id") else header.entries
        return min(VALUES_PER_WINDOW, count - start)

    def _read(self, number: int, section: str, start: int, stop: int) -> bytes:
        data = self._runs[number].read(section, start, stop)
        if section == "sides":
            data = array("I", map(self._remaps[number].__getitem__, memoryview(data).cast("I"))).tobytes()
        return data
