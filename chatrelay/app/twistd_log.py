"""Set up the log of the process under twistd: its place, its format and its lowest level.

`chatrelay.app.logs` writes the lines, `chatrelay.app.json_log` formats events as JSON.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from contextlib import suppress
from typing import Any

import attrs
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
)
from twisted.scripts._twistd_unix import ServerOptions

from chatrelay.app.json_log import line_of
from chatrelay.app.logs import LogQueue, RotatedFile, descriptor_writer, syslog_render, write_to_syslog
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.permissions import why_not_found, why_not_usable, why_not_writable

# Twisted's documentation does not promise `twisted.scripts._twistd_unix`.


def in_foreground(twistd: ServerOptions) -> bool:
    """Return whether twistd stays in the foreground."""
    return bool(twistd["nodaemon"] or twistd["debug"])


@attrs.frozen
class TwistdLog:
    """The log of a process under twistd.

    :ivar observer: writes the events; None for the observer that twistd chooses itself.
    :ivar queue: holds the lines that wait to be written; None if the observer writes without a queue.
    :ivar file: the log file; None if there is none, or twistd opened it.
    """

    observer: ILogObserver | None = None
    queue: LogQueue | None = None
    file: RotatedFile | None = None

    def rotate(self) -> bool:
        """Begin a new log file after everything that was logged before is written.

        :returns: whether there is a log file.
        """
        if self.queue is None or self.file is None:
            return False
        self.queue.rotate(self.file.rotate)
        return True


def twistd_log(config: Config, twistd: ServerOptions) -> TwistdLog:
    """Return the log for twistd, in the place that twistd's options name, with the format and level of our options.

    :raises ConfigError: for options of twistd that exclude ``log-format``, or a file that can't be opened.
    """
    as_json = config.log_format == "json"
    if twistd["logger"]:
        if as_json:
            raise ConfigError(
                "log-format", "json excludes twistd's --logger, which has its own format: remove one of them"
            )
        return TwistdLog()
    if as_json and twistd["syslog"]:
        raise ConfigError(
            "log-format", "json excludes twistd's --syslog: remove it, and use --logfile or standard output"
        )
    render = line_of if as_json else formatEventAsClassicLogText
    file: RotatedFile | None = None
    if twistd["syslog"]:
        queue = LogQueue(syslog_render(twistd["prefix"]), write_to_syslog)
    elif twistd["logfile"] not in (None, "", "-") or not in_foreground(twistd):
        file = _log_file(twistd["logfile"] or "twistd.log")
        queue = LogQueue(render, file.write_some)
    else:
        descriptor = _descriptor(sys.stdout)
        if descriptor is None:  # not a file: another program has replaced it
            return TwistdLog(_leveled(FileLogObserver(sys.stdout, render), config))
        queue = LogQueue(render, descriptor_writer(descriptor), sys.stdout.encoding)
    atexit.register(queue.finish)
    if in_foreground(twistd):
        queue.start()
    return TwistdLog(_leveled(queue, config), queue, file)


def _leveled(observer: ILogObserver, config: Config) -> ILogObserver:
    # twistd itself logs every level, and a scanner could fill the log with debug messages.
    lowest = LogLevel.levelWithName(config.log_level)
    return FilteringLogObserver(observer, [LogLevelFilterPredicate(defaultLogLevel=lowest)])


def _log_file(path: str) -> RotatedFile:
    """Open the file that ``--logfile`` names."""
    if path == "-":
        raise ConfigError(
            "logfile", "- is standard output, which twistd has only with -n: give -n, too, or name a file", "--logfile"
        )
    try:
        return RotatedFile.fromFullPath(path)  # type: ignore[no-any-return]
    except OSError as error:
        path = os.path.abspath(error.filename or path)
        if error.errno == errno.ESPIPE:  # a pipe or a terminal, as /dev/stdout often is
            why = "it is not a file; the log goes to standard output with -n and without --logfile"
        else:
            folder = os.path.dirname(path)
            cause = why_not_found(path) or why_not_usable(path, write=True) or why_not_writable(folder)
            remedy = "give --logfile=FILE before chatrelay, or -n without --logfile for standard output"
            why = f"{cause or error.strerror}: {remedy}"
        raise ConfigError("logfile", f"{path} cannot be opened: {why}", "--logfile") from error


def _descriptor(stream: Any) -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        return int(stream.fileno())
    return None
