"""Read from Linux what processes and the machine are doing: CPU time, memory, model, kernel, the time of a sync.

The parsers take text and are pure. The rest reads /proc and writes to one disk.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import timeit
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def cpu_ticks(stat: str) -> int:
    """Return the user and system time of a process with all its threads, from the text of /proc/PID/stat.

    The time of children that have ended and were waited for counts, too.

    :returns: clock ticks, `TICKS_PER_SECOND` of which are a second.
    """
    # The second field is the program's name in parentheses, which may contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    utime, stime, cutime, cstime = (int(field) for field in fields[11:15])
    return utime + stime + cutime + cstime


def resident_kib(status: str) -> int:
    """Return the resident memory of a process in KiB, from the text of /proc/PID/status."""
    return _kib_of("VmRSS", status)


def _kib_of(name: str, status: str) -> int:
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name}: has the process ended?")


def cpu_model(cpuinfo: str) -> str:
    """Return the first processor's name, from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return "unknown"


def process_and_descendants(pid: int) -> list[int]:
    """Return a process and all its descendants that exist now."""
    found = [pid]
    for known in found:
        for children in (PROC / str(known) / "task").glob("*/children"):
            found.extend(int(child) for child in children.read_text().split())
    return found


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used so far, in seconds. One that has ended counts as none."""
    ticks = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += cpu_ticks((PROC / str(pid) / "stat").read_text())
    return ticks / TICKS_PER_SECOND


def resident_kib_of(pids: Iterable[int]) -> int:
    """Return the resident memory of running processes in KiB."""
    return sum(resident_kib((PROC / str(pid) / "status").read_text()) for pid in pids)


def thread_seconds_of(pid: int) -> float:
    """Return the CPU time of the present threads of a process, in seconds, exact to far less than a clock tick."""
    stats = [(task / "schedstat").read_text() for task in (PROC / str(pid) / "task").iterdir()]
    return sum(int(stat.split()[0]) for stat in stats) / 1e9


def reset_peak(pid: int) -> None:
    """Have `peak_kib_of` count from now on; see proc(5), clear_refs."""
    (PROC / str(pid) / "clear_refs").write_text("5")


def peak_kib_of(pid: int) -> int:
    """Return the largest resident memory of a running process in KiB."""
    return _kib_of("VmHWM", (PROC / str(pid) / "status").read_text())


def sync_seconds(folder: Path, times: int = 100) -> list[float]:
    """Measure how long fdatasync takes after writing 4 KiB in a folder; return `times` measurements, sorted."""
    path = folder / "sync-trial"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - before)
    path.unlink()
    return sorted(taken)


def describe_sync(taken: list[float]) -> str:
    """Return a description of sorted times of syncs."""
    worst = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    return f"median {statistics.median(taken) * 1000:.2f} ms, p99 {worst * 1000:.2f} ms"


def call_milliseconds(calls: int = 1_000_000, times: int = 5) -> float:
    """Measure `calls` calls of an empty function in this Python; return the shortest of `times` measurements.

    Builds of Python differ by up to a factor of two, and `sysconfig` does not always show why: Debian turns the
    optimizations on without mentioning them there.
    """
    return min(timeit.repeat("empty()", "def empty(): pass", number=calls, repeat=times)) * 1000


def machine() -> dict[str, str]:
    """Return a description of the machine."""
    return {
        "CPU": cpu_model((PROC / "cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}; a million calls take {call_milliseconds():.0f} ms",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
