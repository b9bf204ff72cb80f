"""Check the links that Sphinx does not see: relative links, and paths of the repository that pages name.

References within docs/ are Sphinx's to check. External links need a network: ``make linkcheck``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SKIPPED = frozenset({"_build", "_trial_temp", "build", "changelog.d", "node_modules"})
"""Folders with files of other projects, with build results, and with news about files that are gone."""

LINK = re.compile(
    r"(?<![:\w`])`[^`<]*<([^`>]+)>`__?|\]\(([^)\s]+)\)|^\.\. (?:image|include|literalinclude):: (\S+)", re.MULTILINE
)
"""The target of a link: in reStructuredText, in Markdown, and of a directive."""

NAMED_PATH = re.compile(r"``((?:\.ci|bench|chatrelay|docs|examples|findings|tests|twisted)/[\w./-]*)``")
NAMED_PAGE = re.compile(r"\bdocs/[\w/-]+\.rst\b")
RST_HEADING = re.compile(r"^(\S.*)\n([=~^\"-])\2+$", re.MULTILINE)
MARKDOWN_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def files(root: Path, *suffixes: str) -> Iterator[Path]:
    """Find the files with one of these suffixes, except in folders that are hidden or in `SKIPPED`."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and (name == ".ci" or name[0] != "."))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffixes))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = MARKDOWN_HEADING if page.suffix == ".md" else RST_HEADING
    titles = [match[1] for match in headings.finditer(page.read_text("utf-8"))]
    return {re.sub("[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}


def broken(root: Path) -> Iterator[str]:
    """Find each broken link, and describe it."""
    for page in files(root, ".rst", ".md"):
        text, name = page.read_text("utf-8"), page.relative_to(root)
        for match in LINK.finditer(text):
            target, _, anchor = (match[1] or match[2] or match[3]).partition("#")
            if re.match(r"\w+:", target):
                continue
            found = page if not target else page.parent / target
            if not found.exists():
                yield f"{name}: there is no {target}"
            elif anchor and anchor not in anchors(found):
                yield f"{name}: {target or name} has no heading #{anchor}"
        for path in NAMED_PATH.findall(text):
            if not path.startswith("docs/_build") and not (root / path).exists():
                yield f"{name}: there is no {path}"
    for source in files(root, ".py", ".js", ".mjs", ".php", ".service", "Makefile"):
        for path in NAMED_PAGE.findall(source.read_text("utf-8")):
            if not (root / path).exists():
                yield f"{source.relative_to(root)}: there is no {path}"


if __name__ == "__main__":
    problems = list(broken(Path(sys.argv[1])))
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))
