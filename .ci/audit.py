"""
Has a package that chatrelay brings with it a known vulnerability?

    python .ci/audit.py /path/to/site-packages

Asks OSV about every distribution that is installed there, by pip-audit. The exit status is 0 where each was looked up
and nothing was found, 1 where something was, and 3 where not all could be looked up: then nothing is known, and nothing
is claimed. (pip-audit itself says in that case, with exit status 0, that it found no vulnerabilities.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

EXPLAINED: dict[str, str] = {}
"""Vulnerabilities that do not touch chatrelay: the identifier, and why."""

FOUND, NOT_AUDITED = 1, 3


def main(site_packages: str) -> int:
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "15", "--path", site_packages]
    audit = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        audited: list[dict[str, Any]] = json.loads(audit.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        said = audit.stderr.strip().splitlines() or ["nothing"]
        print(f"NOT AUDITED: pip-audit ended with {audit.returncode}, and said last: {said[-1]}")
        return NOT_AUDITED
    # chatrelay itself is in no database yet.
    skipped = [each["name"] for each in audited if "skip_reason" in each and each["name"] != "chatrelay"]
    findings = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none yet'}"
        for each in audited
        for found in each.get("vulns", ())
        if found["id"] not in EXPLAINED
    ]
    print(
        f"{len(audited)} distributions, {len(skipped)} of them not looked up, {len(findings)} findings",
        *findings,
        sep="\n",
    )
    if findings:
        return FOUND
    if skipped or not audited:
        print(f"NOT AUDITED: {', '.join(skipped) or 'nothing is installed there'}")
        return NOT_AUDITED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
