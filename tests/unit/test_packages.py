"""The folders and modules of chatrelay: each folder is an installed package, and each module states its purpose.

The files are read as text, and not imported.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from tests.support import ROOT

MODULES = sorted((ROOT / "chatrelay").rglob("*.py"))


def test_each_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_each_package_is_installed() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    assert set(setup["options"]["packages"].split()) == packages | {"twisted.plugins"}


def test_each_module_states_its_purpose_in_one_line_and_then_its_boundary() -> None:
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        purpose, _, boundary = docstring.partition("\n\n")
        assert purpose.endswith(".") and "\n" not in purpose, path
        assert boundary, path


SEAMS = {"__init__.py", "__main__.py"}
"""Modules that may be short, because they are the entry of a package or a program."""


def test_each_module_has_40_to_500_lines() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > 500} == {}
    assert {path: count for path, count in lines.items() if count < 40 and path.name not in SEAMS} == {}


def module_name(path: Path) -> str:
    """Return the name by which the module in a file is imported."""
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported_by(source: str, modules: Collection[str]) -> set[str]:
    """Return which of these modules a source imports anywhere: also in a function, or for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "an import is absolute"
            submodules = {f"{node.module}.{name.name}" for name in node.names}.intersection(modules)
            found |= submodules
            if len(submodules) < len(node.names):
                found.add(node.module)  # for a name that is not a module
    return found.intersection(modules)


def cycle_in(imports: Mapping[str, Collection[str]]) -> list[str]:
    """Return the modules of one cycle, the first of them at both ends; empty if there is no cycle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle[::-1]  # each module is now followed by one that it imports
    return []


def public_names_in(source: str) -> set[str]:
    """Return the attributes that a source reads of the package `chatrelay`, and the names that it imports from it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "chatrelay":
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "chatrelay":
            found.update(name.name for name in node.names)
    return found


def imports_of_modules() -> dict[str, set[str]]:
    """Return which of chatrelay's modules each of them imports.

    The package `chatrelay` itself loads each public name from its module when the name is first used. So it is left
    out, and the use of a public name counts as an import of the name's module.
    """
    sources = {module_name(path): path.read_text("utf-8") for path in MODULES}
    public = ast.walk(ast.parse(sources.pop("chatrelay")))
    homes = {name.name: node.module for node in public if isinstance(node, ast.ImportFrom) for name in node.names}
    return {
        name: imported_by(source, sources.keys())
        | {home for name in public_names_in(source) if (home := homes.get(name)) in sources}
        for name, source in sources.items()
    }


def test_imports_for_type_checking_and_in_functions_are_found() -> None:
    source = (
        "import os, a.b\n"
        "from a import c, NAME\n"
        "from a.d import NAME\n"
        "if TYPE_CHECKING:\n    from a.e import f\n"
        "def g(): from a.h import NAME\n"
        "import elsewhere\n"
    )
    modules = {"a", "a.b", "a.c", "a.d", "a.e", "a.e.f", "a.h", "a.unknown"}
    assert imported_by(source, modules) == {"a", "a.b", "a.c", "a.d", "a.e.f", "a.h"}


def test_public_name_of_the_package_counts_as_an_import_of_its_module() -> None:
    assert public_names_in("import chatrelay\nchatrelay.build()\nfrom chatrelay import Config") == {"build", "Config"}
    assert "chatrelay.app.build" in imports_of_modules()["chatrelay.app.twistd"]


def test_cycle_is_found_and_named_in_the_order_of_its_imports() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    cycle = cycle_in({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()})
    assert list(pairwise(cycle)) in (
        [("a", "b"), ("b", "c"), ("c", "a")],
        [("b", "c"), ("c", "a"), ("a", "b")],
        [("c", "a"), ("a", "b"), ("b", "c")],
    )
    assert cycle_in({"a": {"a"}}) == ["a", "a"]


def test_no_modules_import_each_other_in_a_cycle_even_for_type_checking() -> None:
    assert cycle_in(imports_of_modules()) == []
