"""
A plugin for coverage (see pyproject.toml): measure a twistd that is ended by a signal.

After an orderly shutdown twistd ends by sending itself the signal again with the default action, so no atexit function
runs, and what coverage had measured in that process would be lost: every line that only the end-to-end tests reach.
"""

from __future__ import annotations

import os

import coverage


def coverage_init(reg: object, options: object) -> None:
    real_kill = os.kill

    def kill(pid: int, signal: int) -> None:
        measuring = coverage.Coverage.current()
        if pid == os.getpid() and measuring is not None:
            measuring.stop()
            measuring.save()
        real_kill(pid, signal)

    os.kill = kill
