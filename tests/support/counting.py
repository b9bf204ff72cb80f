"""Counts what a piece of Python does: the instructions of the interpreter, and the calls of functions in C.

The counts depend neither on the machine's load nor on its speed, so a difference of one per cent can be seen. They say
nothing about what happens inside a function in C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Self

Applies = Callable[[Any], bool]
"""Returns whether a call of a method is left out, from its object."""


def always(_: Any) -> bool:
    """Leave each call out."""
    return True


class Instructions:
    """Counts in a ``with`` block, in the thread that entered it.

    :param without: the code of the methods that are left out, with everything that they call, and for which objects.
    :param uncounted: the beginnings of the names of files whose own instructions and calls are not counted.
    :ivar counts: instructions of the interpreter, and calls of functions in C.
    """

    def __init__(self, without: Mapping[CodeType, Applies], uncounted: tuple[str, ...]) -> None:
        self._without = without
        self._uncounted = uncounted
        self._left_out: FrameType | None = None
        self._before: tuple[Any, Any] = (None, None)
        self.counts = {"instructions": 0, "calls of C": 0}

    def __enter__(self) -> Self:
        self._before = (sys.gettrace(), sys.getprofile())
        sys.setprofile(self._profile)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before[0])
        sys.setprofile(self._before[1])

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_lines = False
        if self._left_out is not None:
            return None
        applies = self._without.get(frame.f_code)
        if applies is not None and applies(frame.f_locals["self"]):
            self._left_out = frame
            return self._end
        frame.f_trace_opcodes = not frame.f_code.co_filename.startswith(self._uncounted)
        return self._instruction

    def _instruction(self, frame: FrameType, event: str, _: Any) -> Any:
        # While something is left out, only that runs: the callers have no events.
        self.counts["instructions"] += event == "opcode"
        return self._instruction

    def _end(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "return" and frame is self._left_out:
            self._left_out = None
        return self._end

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "c_call" and self._left_out is None and not frame.f_code.co_filename.startswith(self._uncounted):
            self.counts["calls of C"] += 1
