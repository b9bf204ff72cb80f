"""What the kernel reports of a process: memory, CPU, descriptors, children (/proc)."""

from __future__ import annotations

import os
from pathlib import Path


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def forget_peak(pid: int) -> None:
    """Make `peak` count from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")


def peak(pid: int) -> int:
    """Return the most bytes of memory that a process has had.

    :raises ValueError: where the process has ended.
    """
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no VmHWM: has the process ended?")


def descriptors(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has had, in ticks of the system."""
    user, system = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def work_of(pid: int) -> tuple[float, float]:
    """Return the CPU seconds of a living process, and those with the seconds its threads waited for a processor."""
    cpu = waited = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        ran, queued, _ = map(int, (thread / "schedstat").read_text().split())
        cpu += ran
        waited += queued
    return cpu / 1e9, (cpu + waited) / 1e9
