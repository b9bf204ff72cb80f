"""The counting of calls: which calls count, where the module changes, and one real run."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

from bench.calls import Call, Recorder, Step, lines_of, most_frequent, table_of_lines
from tests.support import ROOT

FIRST = """
def alone():
    return 1

def through(call):
    return alone() + call()

def expressions():
    return [alone() for _ in range(2)], sum(alone() for _ in range(2))

def numbers():
    yield alone()
    yield alone()

def all_numbers():
    return list(numbers())
"""
SECOND = """
def other():
    return 2
"""


def made(*calls: tuple[str, str]) -> Step:
    """Return a step with these calls: (thread, module)."""
    return Step(tuple(Call(thread, module, "f", 0) for thread, module in calls))


class Counting(SynchronousTestCase):
    """What is recorded of a small package."""

    def setUp(self) -> None:
        self.package = Path(self.mktemp(), "small").resolve()
        self.package.mkdir(parents=True)
        self.first, self.second = self.module("first", FIRST), self.module("second", SECOND)

    def module(self, name: str, source: str) -> ModuleType:
        """Write and import a module of the package."""
        path = self.package / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"small.{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def step(self, action: Callable[[], object]) -> Step:
        """Return what an action calls."""
        recorder = Recorder(self.package)
        with recorder.installed():
            return recorder.step(action, quiet=0.0)

    def test_nested_calls_are_recorded_in_order_with_their_depth(self) -> None:
        step = self.step(lambda: self.first.through(self.second.other))
        self.assertEqual(
            [(call.module, call.function, call.depth) for call in step.calls],
            [("small.first", "through", 0), ("small.first", "alone", 1), ("small.second", "other", 1)],
        )
        self.assertEqual(step.figures, (3, 2, 2))

    def test_functions_outside_the_package_are_not_recorded(self) -> None:
        step = self.step(lambda: self.first.through(lambda: self.second.other()))
        self.assertEqual(
            [(call.function, call.depth) for call in step.calls], [("through", 0), ("alone", 1), ("other", 1)]
        )

    def test_comprehensions_are_not_calls_and_add_no_depth(self) -> None:
        step = self.step(self.first.expressions)
        self.assertEqual(
            [(call.function, call.depth) for call in step.calls], [("expressions", 0), *[("alone", 1)] * 4]
        )

    def test_resumed_generator_is_one_call(self) -> None:
        step = self.step(self.first.all_numbers)
        self.assertEqual([call.function for call in step.calls], ["all_numbers", "numbers", "alone", "alone"])

    def test_thread_started_meanwhile_is_recorded_by_its_name(self) -> None:
        def in_thread() -> None:
            thread = threading.Thread(target=self.second.other, name="writer")
            thread.start()
            thread.join()

        step = self.step(in_thread)
        self.assertEqual([(call.thread, call.module) for call in step.calls], [("writer", "small.second")])
        self.assertEqual(step.trace(), "  * small.second  other   [writer]")

    def test_call_outside_a_step_is_not_recorded(self) -> None:
        recorder = Recorder(self.package)
        before = sys.getprofile()
        with recorder.installed():
            self.first.alone()
            with contextlib.suppress(ZeroDivisionError):
                recorder.step(lambda: 1 / 0)
            self.first.alone()
            self.assertEqual(recorder.step(lambda: None, quiet=0.0).calls, ())
        self.assertEqual(sys.getprofile(), before)


class Figures(SynchronousTestCase):
    """The figures that are computed from the calls."""

    def test_changes_of_module_are_counted_for_each_thread(self) -> None:
        self.assertEqual(made(("main", "a"), ("writer", "b"), ("main", "a"), ("writer", "b")).changes, 2)
        self.assertEqual(made(("main", "a"), ("main", "b"), ("main", "a")).changes, 3)
        self.assertEqual(made().figures, (0, 0, 0))

    def test_most_frequent_run_is_chosen(self) -> None:
        usual, disturbed = made(("main", "a")), made(("main", "a"), ("main", "sweep"))
        self.assertEqual(most_frequent([disturbed, usual, usual]), (usual, 2))

    def test_lines_are_counted_with_the_largest_module_first(self) -> None:
        folder = Path("package")
        (folder / "inner").mkdir(parents=True)
        (folder / "small.py").write_text("1\n")
        (folder / "inner" / "large.py").write_text("1\n2\n3\n")
        counts = lines_of(folder.resolve())
        self.assertEqual(list(counts.items()), [("package/inner/large.py", 3), ("package/small.py", 1)])
        self.assertEqual(table_of_lines(counts).splitlines()[-1], "2 modules, 4 lines, median 2")

    def test_long_table_of_lines_shows_both_ends(self) -> None:
        rows = table_of_lines({f"{number}.py": 100 - number for number in range(20)}).splitlines()
        self.assertEqual(rows[0].split(), ["100", "0.py"])
        self.assertEqual(rows[5:7], ["   ...", "    85  15.py"])
        self.assertEqual(len(rows), 12)


class Run(SynchronousTestCase):
    """A real relay, in a process of its own."""

    def run_bench(self, *arguments: str) -> str:
        """Run the command; return what it prints."""
        command = [sys.executable, "-m", "bench.calls", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_message_of_v2_is_delivered_by_the_inbox_of_the_recipient(self) -> None:
        steps = re.split(r"^(?=message of v2, )", self.run_bench("v2", "--trace"), flags=re.MULTILINE)[1:]
        self.assertEqual(len(steps), 2)
        for step in steps:
            self.assertIn("chatrelay.relay.inbox  Cursor.offer", step)
            self.assertIn("chatrelay.relay.inbox  Cursor.answer", step)
            self.assertNotIn("Acquaintances.look_up", step)  # they know each other

    def test_traced_message_goes_through_several_modules_and_the_log_thread(self) -> None:
        said = self.run_bench("message", "--trace")
        steps = re.split(r"^(?=message, )", said, flags=re.MULTILINE)[1:]
        self.assertEqual(len(steps), 2, said)
        for step in steps:
            head, *path = step.splitlines()
            calls, changes, modules = map(int, re.findall(r"(\d+) (?:calls|changes|modules)", head))
            self.assertEqual(len(path), calls)
            self.assertEqual(sum(line.startswith("  *") for line in path), changes)
            self.assertGreaterEqual(modules, 5)
            self.assertTrue(all(line[4:].lstrip().startswith("chatrelay.") for line in path))
        self.assertIn("[message-log]", steps[0])
        self.assertNotIn("[message-log]", steps[1])
