"""What the rooms of the package may not import: pure rooms import no Autobahn, treq or reactor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from tests.support import ROOT

PURE = ("wire", "limits", "relay", "model", "interfaces")
"""Packages that are pure as a whole, and modules."""

PURE_PARTS = (
    *("auth.breaker", "auth.diagnosis", "auth.gunzip", "auth.headers", "auth.rechecks", "auth.session_index"),
    *("auth.throttle", "auth.verdicts", "config.options", "websocket.closing", "websocket.keepalive"),
    *("websocket.shutdown", "websocket.sweep"),
)
"""Modules that are pure in packages that are not."""

IMPURE = ("autobahn", "treq", "twisted.internet.reactor", "twisted.internet.tcp", "sqlite3")


def modules_of(room: str) -> list[str]:
    """List the modules of a package; a module is its own list."""
    place = ROOT / "chatrelay" / room
    return [f"{room}.{path.stem}" for path in sorted(place.glob("*.py"))] if place.is_dir() else [room]


def printed_by(code: str) -> str:
    """Return what a new Python process prints that runs this code in the repository, not in trial's folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Measured by coverage, it would have imported what coverage imports.
    environment = {name: value for name, value in environment.items() if not name.startswith("COV")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


class Purity(SynchronousTestCase):
    """Pure modules import no autobahn, no treq, no reactor."""

    def test_pure_packages_import_nothing_impure(self) -> None:
        self.check_purity(name for room in PURE for name in modules_of(room))

    def test_pure_parts_of_other_packages_import_nothing_impure(self) -> None:
        self.check_purity(PURE_PARTS)

    def check_purity(self, names: Iterable[str]) -> None:
        """Import each module in a new Python process, and check that it imports nothing impure."""
        code = (
            f"import sys; from importlib import import_module\n"
            f"for name in {list(names)!r}:\n"
            f"    import_module(f'chatrelay.{{name}}')\n"
            f"    found = [m for m in {IMPURE!r} if m in sys.modules]\n"
            f"    if found: sys.exit(print(name, *found))\n"
        )
        self.assertEqual(printed_by(code), "")

    def test_modules_around_the_protocol_do_not_import_it(self) -> None:
        ours = (
            *("websocket.factory", "websocket.protocol", "websocket.registry", "websocket.handshake"),
            *("websocket.compression", "relay.session", "auth.authenticator", "app.service"),
        )
        for name, unknown in (
            ("websocket.registry", ("autobahn", "treq")),
            ("websocket.handshake", ("autobahn.twisted", "treq", "twisted.internet.tcp")),
            ("websocket.compression", ("autobahn.twisted", "treq", "twisted.internet.tcp")),
        ):
            unknown = (*unknown, *(f"chatrelay.{other}" for other in ours if other != name))
            code = f"import sys, chatrelay.{name}; print(*[m for m in {unknown!r} if m in sys.modules])"
            self.assertEqual(printed_by(code), "", name)

    def test_listing_twistd_plugins_imports_nothing_of_ours(self) -> None:
        code = (
            "import sys; from twisted.plugin import getPlugins; from twisted.application.service import IServiceMaker;"
            "assert 'chatrelay' in [p.tapname for p in getPlugins(IServiceMaker)];"
            # Autobahn has plugins of its own, which may import what they like.
            "print(*[m for m in sys.modules if m.split('.')[0] in ('chatrelay', 'treq')])"
        )
        self.assertEqual(printed_by(code), "")

    def test_importing_the_package_imports_neither_twisted_nor_autobahn(self) -> None:
        code = "import sys, chatrelay; print(*[m for m in sys.modules if m.split('.')[0] in ('twisted', 'autobahn')])"
        self.assertEqual(printed_by(code), "")
