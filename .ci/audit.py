"""
Look up the known vulnerabilities of the packages that chatrelay requires.

    python .ci/audit.py /path/to/site-packages

pip-audit looks up each distribution that is installed there: with OSV, or, where OSV cannot be reached, with the
package index. Where the index has no page for each version, its page of the package is read. That page has the
vulnerabilities of the newest version, and so counts only if the newest version is installed. The exit status is 0 when
all were looked up and nothing was found, 1 when something was found, and 3 when not all could be looked up. (In the
last case pip-audit itself reports, with exit status 0, that it found none.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distributions
from typing import Any

import requests  # pip-audit brings it
from packaging.utils import canonicalize_name
from packaging.version import Version

# The address of the index where pip itself has it; there is no public name for it.
from pip._internal.models.index import PyPI

EXPLAINED: dict[str, str] = {}
"""Vulnerabilities that do not touch chatrelay: the identifier, and why."""

FOUND, NOT_AUDITED = 1, 3

TIMEOUT = 15
"""Seconds that a source may take to answer."""

Findings = dict[str, list[str]]
"""What is known of each distribution that was looked up, by its normalized name: a line for each vulnerability."""


def main(site_packages: str) -> int:
    # chatrelay itself is in no database yet.
    versions = {canonicalize_name(each.name): each.version for each in distributions(path=[site_packages])}
    versions.pop(canonicalize_name("chatrelay"), None)
    known: Findings = {}
    for name, source in SOURCES.items():
        left = {name: version for name, version in versions.items() if name not in known}
        if left:
            found = {name: lines for name, lines in source(site_packages, left).items() if name in left}
            print(f"{name}: {len(found)} of {len(left)} distributions looked up")
            known |= found
    findings = [line for lines in known.values() for line in lines]
    missing = sorted(versions.keys() - known.keys())
    print(
        f"{len(versions)} distributions, {len(missing)} of them not looked up, {len(findings)} findings",
        *findings,
        sep="\n",
    )
    if findings:
        return FOUND
    if missing or not versions:
        print(f"NOT AUDITED: {', '.join(missing) or 'nothing is installed there'}")
        return NOT_AUDITED
    return 0


def by_pip_audit(service: str) -> Callable[[str, dict[str, str]], Findings]:
    """What pip-audit hears from one of its services."""

    def look_up(site_packages: str, versions: dict[str, str]) -> Findings:
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
        command += ["--progress-spinner", "off", "--timeout", str(TIMEOUT), "--path", site_packages]
        audit = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            audited: list[dict[str, Any]] = json.loads(audit.stdout)["dependencies"]
        except (json.JSONDecodeError, KeyError):
            said = audit.stderr.strip().splitlines() or ["nothing"]
            print(f"pip-audit ended with {audit.returncode}, and said last: {said[-1]}")
            return {}
        return {
            canonicalize_name(each["name"]): list(
                lines(each["name"], each["version"], ((v["id"], v["fix_versions"]) for v in each["vulns"]))
            )
            for each in audited
            if "skip_reason" not in each
        }

    return look_up


def by_newest_pages(_: str, versions: dict[str, str]) -> Findings:
    """What the index says on its page of each package about the newest version, where that is installed."""
    findings: Findings = {}
    with requests.Session() as session:
        for name, version in versions.items():
            try:
                answer = session.get(f"{PyPI.pypi_url}/{name}/json", timeout=TIMEOUT)
                answer.raise_for_status()
                page: dict[str, Any] = answer.json()
            except requests.RequestException as failure:
                print(f"{name}: {failure}")
                continue
            newest, told = page["info"]["version"], page.get("vulnerabilities")
            if Version(newest) != Version(version):
                print(f"{name}: {version} is installed, and the page is about {newest}")
            elif told is not None:
                valid = ((each["id"], each["fixed_in"]) for each in told if each.get("withdrawn") is None)
                findings[name] = list(lines(name, version, valid))
    return findings


def lines(name: str, version: str, vulnerabilities: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    """Those that are not explained, one line each."""
    for identifier, fixed_in in vulnerabilities:
        if identifier not in EXPLAINED:
            yield f"{name} {version}: {identifier}, fixed in {', '.join(fixed_in) or 'none yet'}"


SOURCES = {
    "pip-audit, with OSV": by_pip_audit("osv"),
    "pip-audit, with the package index": by_pip_audit("pypi"),
    "the index's pages of the newest versions": by_newest_pages,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
