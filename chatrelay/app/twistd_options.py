"""Options of twistd's that name files and folders: whether they will do, before twistd finds out with a traceback."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from chatrelay.config.checks import ConfigError
from chatrelay.permissions import why_not_found, why_not_used, why_not_written_in

NO_PID_FILE = "give --pidfile= before chatrelay, for none, or --pidfile=FILE"


def check_places(twistd: Mapping[str, Any]) -> None:
    """Refuse files and folders that twistd can't use.

    :param twistd: its options, which count from the working directory of now.
    :raises ConfigError: with the remedy.
    """
    if twistd["chroot"]:  # what is in there has other names
        if not os.path.isdir(twistd["chroot"]):
            raise ConfigError("chroot", f"there is no folder {twistd['chroot']}", "--chroot")
        return
    if twistd["pidfile"]:
        _check_pid_file(twistd["pidfile"])
    rundir = twistd["rundir"]
    why = why_not_found(os.path.join(rundir, "x"))
    if why:
        raise ConfigError("rundir", f"{rundir} cannot be entered: {why}", "--rundir")


def _check_pid_file(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise ConfigError("pidfile", f"{path} is a folder: {NO_PID_FILE}", "--pidfile")
    why = why_not_found(path) or why_not_used(path, write=True) or why_not_written_in(folder)
    if why is None and _belongs_to_another(folder, path):
        why = "it belongs to another user"
    if why:
        raise ConfigError("pidfile", f"{path} cannot be written: {why}: {NO_PID_FILE}", "--pidfile")
    try:
        with open(path) as file:
            int(file.read(32))
    except FileNotFoundError:
        return
    except (ValueError, OSError):
        raise ConfigError(
            "pidfile",
            f"{path} does not hold the number of a process: remove it if no relay runs that has it, or {NO_PID_FILE}",
            "--pidfile",
        ) from None


def _belongs_to_another(folder: str, path: str) -> bool:
    """Whether a file may be written and not removed, as another user's in a folder such as ``/tmp``."""
    try:
        found, around = os.stat(path), os.stat(folder)
    except OSError:
        return False
    is_sticky = bool(around.st_mode & stat.S_ISVTX)
    return is_sticky and os.geteuid() not in (0, found.st_uid, around.st_uid)


def remove_own_pid_file(path: str) -> None:
    """Remove a pid file with the number of this very process, before twistd takes that for another that runs.

    It was left by one that was killed: in a container the next one has mostly the same number.

    :param path: ``--pidfile``; empty for none.
    """
    try:
        with open(path) as file:
            number = int(file.read(32))
        if number == os.getpid():
            os.remove(path)
    except (OSError, ValueError):  # there is none, or `check_places` says what is wrong with it
        pass
