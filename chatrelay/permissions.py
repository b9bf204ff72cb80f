"""Why the file system refuses: which file or folder it is, whose it is, and who this process is.

It only looks. What it says is for a person who has an `OSError` and wants to know what to do.
"""

from __future__ import annotations

import os
import pwd
import stat

_EFFECTIVE = os.access in os.supports_effective_ids


def may(path: str, mode: int) -> bool:
    """Whether this process may use a path.

    :param mode: of ``os.R_OK``, ``os.W_OK`` and ``os.X_OK``.
    """
    return os.access(path, mode, effective_ids=_EFFECTIVE)


def user_name(uid: int) -> str:
    """The name of a user, or the number where there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def why_not_found(path: str) -> str | None:
    """Why there is nothing at a path that this process could look at: which folder on the way is missing or closed.

    :returns: None where all folders on the way to it can be passed.
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


def why_not_used(path: str, *, write: bool) -> str | None:
    """Why this process may not use a file that exists.

    :param write: whether it is to be written, too.
    :returns: None where it may, or there is no file.
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


def why_not_written_in(folder: str) -> str | None:
    """Why this process may not make files in a folder.

    :returns: None where it may, or there is no such folder.
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
    """Return what to say of a file that could not be read: its path, the cause, and whose it is where that matters.

    :param error: what opening or reading it raised; a `ValueError` where there can't be such a path.
    """
    if isinstance(error, ValueError):
        return f"{path!r}: {error}"
    why = error.strerror or str(error)
    if isinstance(error, PermissionError):
        why = why_not_found(path) or why_not_used(path, write=False) or why
    return f"{path} cannot be read: {why}"


def _this_user() -> str:
    return f"the user {user_name(os.geteuid())}"


def _whose(found: os.stat_result) -> str:
    return f"which belongs to {user_name(found.st_uid)} (mode {stat.S_IMODE(found.st_mode):04o})"
