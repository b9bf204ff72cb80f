"""Explain why the file system refuses access to a file: by its owner, its mode, and the user of this process.

This module changes no file, and must not know what a file is for. Its sentences explain an `OSError` to the operator.
"""

from __future__ import annotations

import os
import pwd
import stat

_EFFECTIVE = os.access in os.supports_effective_ids


def may(path: str, mode: int) -> bool:
    """Return whether this process may access a path.

    :param mode: the sum of ``os.R_OK``, ``os.W_OK`` and ``os.X_OK`` that is needed.
    """
    return os.access(path, mode, effective_ids=_EFFECTIVE)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if the user has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def why_not_found(path: str) -> str | None:
    """Return why this process can't reach a path: a folder on the way is missing or may not be entered.

    :returns: None if it can enter all folders on the way.
    """
    folder = os.path.dirname(os.path.abspath(path))
    ways = [folder]
    while (parent := os.path.dirname(ways[-1])) != ways[-1]:
        ways.append(parent)
    for way in reversed(ways):
        try:
            found = os.stat(way)
        except FileNotFoundError:
            return f"there is no folder {folder}"
        except OSError as error:
            return f"{way}: {error.strerror}"
        if not stat.S_ISDIR(found.st_mode):
            return f"{way} is not a folder"
        if not may(way, os.X_OK):
            return f"{_this_user()} may not enter the folder {way}, {_whose(found)}"
    return None


def why_not_usable(path: str, *, write: bool) -> str | None:
    """Return why this process may not read an existing file, or write it.

    :param write: whether it must be writable, too.
    :returns: None if the process may, or there is no file.
    """
    wanted = os.R_OK | (os.W_OK if write else 0)
    try:
        found = os.stat(path)
    except OSError:
        return None
    if may(path, wanted):
        return None
    verb = "read" if not may(path, os.R_OK) else "write"
    return f"{_this_user()} may not {verb} {path}, {_whose(found)}"


def why_not_writable(folder: str) -> str | None:
    """Return why this process may not make files in a folder.

    :returns: None if it may, or there is no such folder.
    """
    try:
        found = os.stat(folder)
    except OSError:
        return None
    if may(folder, os.W_OK | os.X_OK):
        return None
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"{folder} is on a file system that is mounted read-only"
    return f"{_this_user()} may not write in the folder {folder}, {_whose(found)}"


def cannot_be_read(path: str, error: OSError | ValueError) -> str:
    """Return the error message for a file that could not be read: its path, the cause, and the owner if it matters.

    :param error: raised by opening or reading it; a `ValueError` if the path is not valid.
    """
    if isinstance(error, ValueError):
        return f"{path!r}: {error}"
    why = error.strerror or str(error)
    if isinstance(error, PermissionError):
        why = why_not_found(path) or why_not_usable(path, write=False) or why
    return f"{path} cannot be read: {why}"


def _this_user() -> str:
    return f"the user {user_name(os.geteuid())}"


def _whose(found: os.stat_result) -> str:
    return f"which belongs to {user_name(found.st_uid)} (mode {stat.S_IMODE(found.st_mode):04o})"
