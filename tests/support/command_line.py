"""The `chatrelay` command in a process of its own, without a terminal or on one."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

from tests.support import PATIENCE, ROOT


def arguments(words: tuple[object, ...], prelude: str = "") -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of `chatrelay COMMAND --message-log sqlite:LOG …`.

    :param prelude: Python to run before it begins.
    """
    name, log, *rest = map(str, words)
    program = f"import sys\n{prelude}\nfrom chatrelay.app.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    # Not in the coverage: a killed process reports nothing.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
    return [sys.executable, "-c", program, name, "--message-log", f"sqlite:{log}", *rest], environment


def on_a_terminal(*words: object, answer: str = "") -> tuple[int, str]:
    """Run the command on a terminal; return its exit status, and what the terminal received.

    :param answer: typed when it asks.
    """
    prelude = "import fcntl, termios, chatrelay.app.cli.terminal as terminal; terminal.Progress.MIN_SECONDS = 0; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    line, environment = arguments(words, prelude)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        line, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        said = ""
        until = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                said += os.read(ours, 4096).decode()
            except OSError:  # it has ended
                break
            if answer and said.endswith("[y/N] "):
                os.write(ours, answer.encode())
                answer = ""
        os.close(ours)
    return process.returncode, said.replace("\r\n", "\n")
