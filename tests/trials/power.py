"""What a disk may hold after a power cut at any moment of a relay that ran under strace.

The relay is not changed for this, and nothing is copied while it runs. strace records every system call on the message
log's files, with the bytes, and every byte that was sent to a client, in order. `Recording` reads that. `Disk` replays
it up to a moment and knows what was synced by then; any part of the rest may have reached the disk, in sectors and in
any order. `Recording.accounts` has what the clients had received by then.

The files are those of the log, its -wal and -journal, and the note by which a relay recognises its log (.lock).

The model of a disk: a sync that returned 0 has made durable everything that was written to the file before it began. Of
other writes, each 512 bytes are old or new, never a mixture. A new file has its name, and a removed one loses it, once
its folder is synced, and perhaps before. After a failed sync, part of its data is lost for good, even though a later
sync succeeds and the file reads as if the data were there (Linux forgets it). The -shm file, which SQLite maps, never
syncs and makes again, is gone.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.frames import FIN, TEXT, split
from tests.support.promise import Account
from tests.support.saturation import Talker

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

WRITES = ("pwrite64", "ftruncate")
SYNCS = ("fdatasync", "fsync")
OTHER_WAYS = ("write", "writev", "pwritev", "pwritev2", "fallocate", "rename", "mmap")
"""Other calls that change files. SQLite uses none of them on a log's, and a recording with one is refused."""

TRACED = (*WRITES, *SYNCS, *OTHER_WAYS, "openat", "unlink", "sendto")

PARTS = ("nothing", "all", "the first", "some")
"""How much of the unsynced data reached the disk: of the changes in order, or of their sectors."""


def recorder(trace: Path, *inject: str) -> tuple[str, ...]:
    """Return the strace command under which a relay runs for a `Recording`.

    :param inject: faults, as strace's ``-e inject=`` takes them.
    """
    faults = [word for fault in inject for word in ("-e", f"inject={fault}")]
    options = ("-f", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", f"trace={','.join(TRACED)}")
    return ("strace", "-o", str(trace), *options, *faults)


@dataclass(eq=False)
class Call:
    """A system call.

    :ivar arguments: as strace shows them.
    :ivar result: what it returned; None where it did not return.
    """

    name: str
    arguments: str
    result: int | None = None

    @property
    def file(self) -> str:
        """The path of the file that its first argument refers to."""
        return _text(self.arguments[self.arguments.index("<") + 1 : self.arguments.index(">")])

    @property
    def data(self) -> bytes:
        """The first string among its arguments."""
        return _bytes(self.arguments.split('"', 2)[1])

    @property
    def last_number(self) -> int:
        """Its last argument."""
        return int(self.arguments.rpartition(" ")[2])


def _bytes(shown: str) -> bytes:
    return bytes.fromhex(shown.replace("\\x", ""))


def _text(shown: str) -> str:
    return _bytes(shown).decode() if shown.startswith("\\x") else shown


_RESULT = re.compile(r"\) += (-?\d+|\?)")


def system_calls(trace: Path) -> Iterator[tuple[Call, bool]]:
    """Yield the calls in the order in which they began and ended: (call, whether this is its end)."""
    under_way: dict[str, Call] = {}
    for line in trace.read_text().splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.startswith(("+++", "---")):
            continue
        if rest.startswith("<..."):
            call = under_way.pop(thread)
        else:
            name, _, arguments = rest.partition("(")
            if arguments.endswith(" <unfinished ...>"):
                call = under_way[thread] = Call(name, arguments.removesuffix(" <unfinished ...>"))
                yield call, False
                continue
            call = Call(name, arguments[: arguments.index(")")])  # in hexadecimal, no string has a parenthesis
            yield call, False
        found = _RESULT.search(rest, rest.index(")"))
        assert found, f"strace wrote what is not understood: {line[:200]}"
        if found[1] != "?":
            call.result = int(found[1])
            yield call, True


@dataclass(eq=False)
class Change:
    """Bytes to be written, or a length to cut a file to (`data` is None)."""

    offset: int
    data: bytes | None

    def make(self, content: bytearray) -> None:
        """Change the content of a file."""
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
        else:
            content.extend(bytes(max(0, self.offset - len(content))))
            content[self.offset : self.offset + len(self.data)] = self.data

    def sectors(self) -> Iterator[Change]:
        """Yield the same change, one sector at a time."""
        if self.data is None:
            yield self
            return
        start, end = self.offset, self.offset + len(self.data)
        while start < end:
            stop = min(end, (start // SECTOR + 1) * SECTOR)
            yield Change(start, self.data[start - self.offset : stop - self.offset])
            start = stop


@dataclass(eq=False)
class File:
    """A file: what is certainly on the disk, and the changes that may be."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)


@dataclass(eq=False)
class Name:
    """The file that a name in a folder certainly stands for, and those that it may stand for since."""

    durable: File | None = None
    since: list[File | None] = field(default_factory=list)

    @property
    def now(self) -> File | None:
        """Return what a program that opens it gets."""
        return self.since[-1] if self.since else self.durable


class Disk:
    """The files of a message log on a disk, while system calls change them.

    :param path: the log; all else is passed over.
    :param chance: decides what a failed sync has written.
    :param before: the folder that has what is on the disk at the beginning; None for an empty disk.
    """

    def __init__(self, path: Path, chance: random.Random, before: Path | None = None) -> None:
        self._folder = str(path.parent)
        self._chance = chance
        self._names = {f"{path}{suffix}": Name() for suffix in ("", "-wal", "-journal", ".lock")}
        if before is not None:
            for each in self._names:
                if (found := before / Path(each).name).exists():
                    self._names[each] = Name(File(bytearray(found.read_bytes())))
        self._shown = [f"{_hex(path)}>" for path in self._names]
        # Pending calls: a change; a sync of a file with the changes before it; a sync of the folder, likewise.
        self._changing: dict[Call, tuple[File, Change]] = {}
        self._syncing: dict[Call, tuple[File, list[Change]]] = {}
        self._naming: dict[Call, list[tuple[Name, int]]] = {}

    def begin(self, call: Call) -> None:
        """Begin a call; what it changes may be on the disk from now on."""
        if call.name in SYNCS and call.file == self._folder:
            self._naming[call] = [(name, len(name.since)) for name in self._names.values()]
        elif call.name in OTHER_WAYS:
            ours = any(shown in call.arguments for shown in self._shown)
            assert not ours or (call.name == "mmap" and "PROT_WRITE" not in call.arguments), f"not understood: {call}"
        elif call.name in (*WRITES, *SYNCS) and (file := self._file(call.file)):
            if call.name in SYNCS:
                self._syncing[call] = (file, list(file.pending))
            else:
                change = Change(call.last_number, call.data if call.name == "pwrite64" else None)
                file.pending.append(change)
                self._changing[call] = (file, change)

    def end(self, call: Call) -> None:
        """End a call."""
        result = call.result
        assert result is not None
        if call in self._changing:
            file, change = self._changing.pop(call)
            if result < 0:
                file.pending.remove(change)
            elif change.data is not None:
                change.data = change.data[:result]
        elif call in self._syncing:
            file, changes = self._syncing.pop(call)
            for change in changes if result == 0 else _part(changes, self._chance.choice(PARTS), self._chance):
                change.make(file.durable)
            file.pending = [change for change in file.pending if change not in changes]
        elif call in self._naming:
            for name, count in self._naming.pop(call):
                if count and result == 0:
                    name.durable = name.since[count - 1]
                    del name.since[:count]
        elif call.name in ("openat", "unlink") and result >= 0 and (name := self._names.get(call.data.decode())):
            if call.name == "unlink":
                name.since.append(None)
            elif name.now is None:
                name.since.append(File())

    def after_a_power_cut(self, folder: Path, how_much: str, chance: random.Random) -> Path:
        """Write what may be on the disk after a power cut into a folder.

        :param how_much: one of `PARTS`.
        :returns: the message log.
        """
        folder.mkdir()
        for path, name in self._names.items():
            states = [name.durable, *name.since]
            place = {"nothing": 0, "all": -1}.get(how_much, chance.randrange(len(states)))
            file = states[place]
            if file is not None:
                content = bytearray(file.durable)
                for change in _part(file.pending, how_much, chance):
                    change.make(content)
                (folder / Path(path).name).write_bytes(content)
        return folder / Path(next(iter(self._names))).name

    @property
    def is_all_synced(self) -> bool:
        """Whether a power cut could lose nothing."""
        return not any(name.since or (name.durable and name.durable.pending) for name in self._names.values())

    def _file(self, path: str) -> File | None:
        name = self._names.get(path)
        return None if name is None else name.now


def _hex(path: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in path.encode())


def _part(changes: Sequence[Change], how_much: str, chance: random.Random) -> list[Change]:
    """Return those of some changes that reach the disk, in order."""
    sectors = [sector for change in changes for sector in change.sectors()]
    if how_much == "some":
        share = chance.random()
        return [sector for sector in sectors if chance.random() < share]
    return sectors[: {"nothing": 0, "all": len(sectors)}.get(how_much, chance.randint(0, len(sectors)))]


class Recording:
    """A relay's system calls, from its start to its end.

    :param trace: what strace wrote.
    :param path: the message log.
    :param before: the folder that has a copy of its files from before the start; None if there were none.
    :ivar first: the first moment at which something was sent to a client.
    :ivar all_syncs: the moments just before a sync of the log's files returned.
    :ivar syncs: those of them after `first`.
    :ivar failed_syncs: how many syncs failed.
    :ivar restarts: how often the WAL was restarted, after its contents were copied into the file.
    """

    def __init__(self, trace: Path, path: Path, before: Path | None = None) -> None:
        self._path = path
        self._before = before
        self.calls = list(system_calls(trace))
        self._streams: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        began: dict[Call, int] = {}
        for moment, (call, is_end) in enumerate(self.calls):
            if call.name == "sendto":
                if not is_end:
                    began[call] = moment
                elif call.result and call.result > 0:
                    self._streams[call.file].append((began[call], call.data[: call.result]))
        for parts in self._streams.values():
            parts.sort(key=lambda part: part[0])
        replies = [parts[0][0] for parts in self._streams.values() if parts[0][1].startswith(b"HTTP/1.1 101 ")]
        self.first = min(replies)
        self.all_syncs = [
            moment
            for moment, (call, is_end) in enumerate(self.calls)
            if is_end and call.name in SYNCS and call.file.startswith(str(path))
        ]
        self.syncs = [moment for moment in self.all_syncs if moment > self.first]
        self.failed_syncs = sum(1 for call, is_end in self.calls if is_end and call.name in SYNCS and call.result != 0)
        wal = f"{path}-wal"
        self.restarts = sum(
            1
            for call, is_end in self.calls
            if is_end and call.name == "pwrite64" and call.file == wal and call.last_number == 0
        )

    def moments(self, count: int, chance: random.Random) -> list[int]:
        """Return some moments after the first reply to a client, in order."""
        return sorted(chance.sample(range(self.first, len(self.calls)), count))

    def disks(self, moments: Sequence[int], chance: random.Random) -> Iterator[tuple[int, Disk]]:
        """Yield the disk as it was just before each of these moments, which are in order."""
        disk = Disk(self._path, chance, self._before)
        done = 0
        for moment in moments:
            for call, is_end in self.calls[done:moment]:
                (disk.end if is_end else disk.begin)(call)
            done = moment
            yield moment, disk

    def heard_by(self, talkers: Sequence[Talker]) -> Told:
        """Return what each of these clients was sent, and when; check that the recording has every byte."""
        by_stream = {b"".join(data for _, data in parts): parts for parts in self._streams.values()}
        told = Told(talkers)
        for talker in talkers:
            parts = by_stream.get(talker.stream)
            assert parts is not None, f"what {talker.uid!r} heard is not what strace saw"
            told.add(parts)
        return told


class Told:
    """What clients had received at any moment of a recording."""

    def __init__(self, talkers: Sequence[Talker]) -> None:
        self._talkers = [(talker.uid, talker.requests) for talker in talkers]
        self._heard: list[list[tuple[int, Any]]] = []

    def add(self, parts: Sequence[tuple[int, bytes]]) -> None:
        """Add the stream of the next client: (moment, bytes) for each send."""
        stream = b"".join(data for _, data in parts)
        ends = []
        total = 0
        for moment, data in parts:
            total += len(data)
            ends.append((total, moment))
        start = stream.index(b"\r\n\r\n") + 4
        heard: list[tuple[int, Any]] = []
        place = 0
        for first, payload, end in split(stream, start):
            while ends[place][0] < end:
                place += 1
            if first == FIN | TEXT:
                heard.append((ends[place][1], json.loads(payload)))
        self._heard.append(heard[1:])  # the login's answer is not a message's

    def successes(self) -> list[tuple[int, str]]:
        """Return when a message was delivered or acknowledged, and its content, in order."""
        found = []
        for (_, requests), heard in zip(self._talkers, self._heard, strict=True):
            contents = {request.id: request.content for request in requests}
            for moment, frame in heard:
                if frame["type"] == "message":
                    found.append((moment, frame["message"]["content"]))
                elif frame["response"]["value"]:
                    found.append((moment, contents[frame["response"]["id"]]))
        return sorted(found)

    def accounts(self, moment: int) -> list[Account]:
        """Return what each client could report if the power had failed at a moment: everything sent to it until
        then.
        """
        return [
            Account(uid, requests, [frame for when, frame in heard if when < moment])
            for (uid, requests), heard in zip(self._talkers, self._heard, strict=True)
        ]
