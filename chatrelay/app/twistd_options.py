"""Check the options of twistd that name files and folders, because twistd itself fails with a traceback.

This module changes nothing but a stale pid file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from chatrelay.config.checks import ConfigError
from chatrelay.permissions import why_not_found, why_not_usable, why_not_writable

NO_PID_FILE = "give --pidfile= before chatrelay for no pid file, or --pidfile=FILE"


def check_places(twistd: Mapping[str, Any]) -> None:
    """Check that twistd can use the files and folders that its options name.

    :param twistd: its options. Relative paths start at the current working directory.
    :raises ConfigError: with the remedy.
    """
    if twistd["chroot"]:  # inside it, the other paths name other files
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
    why = why_not_found(path) or why_not_usable(path, write=True) or why_not_writable(folder)
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
            f"{path} does not contain a process number: remove it if no relay uses it, or {NO_PID_FILE}",
            "--pidfile",
        ) from None


def _belongs_to_another(folder: str, path: str) -> bool:
    """Return whether a file may be written but not removed, such as another user's file in ``/tmp``."""
    try:
        found, around = os.stat(path), os.stat(folder)
    except OSError:
        return False
    is_sticky = bool(around.st_mode & stat.S_ISVTX)
    return is_sticky and os.geteuid() not in (0, found.st_uid, around.st_uid)


def remove_own_pid_file(path: str) -> None:
    """Remove a pid file that contains the number of this process, which twistd would take for another running process.

    A killed relay leaves it behind, and in a container the next relay often has the same number.

    :param path: ``--pidfile``; empty for none.
    """
    try:
        with open(path) as file:
            number = int(file.read(32))
        if number == os.getpid():
            os.remove(path)
    except (OSError, ValueError):  # there is no file, or `check_places` reports what is wrong with it
        pass
