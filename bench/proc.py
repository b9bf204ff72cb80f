"""What Linux tells of processes and of the machine: CPU time, memory, model, kernel, what a sync takes.

The parsers take text and are pure; the rest reads /proc and one disk.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import timeit
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def cpu_ticks(stat: str) -> int:
    """User and system time of a process with all its threads, from the text of /proc/PID/stat.

    What children used that have ended and been waited for counts too.

    :returns: clock ticks, `TICKS_PER_SECOND` of which are a second.
    """
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    utime, stime, cutime, cstime = (int(field) for field in fields[11:15])
    return utime + stime + cutime + cstime


def resident_kib(status: str) -> int:
    """The resident memory of a process in KiB, from the text of /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError("no VmRSS: has the process ended?")


def cpu_model(cpuinfo: str) -> str:
    """The first processor's name, from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return "unknown"


def process_and_descendants(pid: int) -> list[int]:
    """A process, its children, theirs, and so on, as they are now."""
    found = [pid]
    for known in found:
        for children in (PROC / str(known) / "task").glob("*/children"):
            found.extend(int(child) for child in children.read_text().split())
    return found


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """CPU time that living processes have used so far, in seconds."""
    return sum(cpu_ticks((PROC / str(pid) / "stat").read_text()) for pid in pids) / TICKS_PER_SECOND


def resident_kib_of(pids: Iterable[int]) -> int:
    """Resident memory of living processes in KiB."""
    return sum(resident_kib((PROC / str(pid) / "status").read_text()) for pid in pids)


def sync_seconds(folder: Path, times: int = 100) -> list[float]:
    """How long one fdatasync of a freshly written 4 KiB takes in `folder`, measured `times` times, sorted."""
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
    """Sorted times of syncs in words."""
    worst = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    return f"median {statistics.median(taken) * 1000:.2f} ms, p99 {worst * 1000:.2f} ms"


def call_milliseconds(calls: int = 1_000_000, times: int = 5) -> float:
    """What so many calls of an empty function take in this Python, the best of a few times.

    How a Python was built makes up to a factor of two, and what it tells of its build does not say: Debian asks
    for the optimizations elsewhere than where they would be told.
    """
    return min(timeit.repeat("empty()", "def empty(): pass", number=calls, repeat=times)) * 1000


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "CPU": cpu_model((PROC / "cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}; a million calls take {call_milliseconds():.0f} ms",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
