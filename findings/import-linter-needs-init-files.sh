#!/bin/bash
# import-linter: a module in a folder without __init__.py may import anything
#
# Guess:     A contract holds for every module that Python can import under the root package.
# Behaviour: import-linter looks for modules only in folders that have an __init__.py. Python imports from a folder without one, too
#            (a namespace package), but the linter does not see it: the contract is kept, and no message says that files were
#            left out.
# Matters:   One forgotten file takes a folder out of the architecture check, and the check stays green. Look for folders with
#            modules and without __init__.py in CI.
# Seen:      shop/model/reports/monthly.py imports shop.web, with __init__.py: BROKEN
#            the same without __init__.py: KEPT; Python imports it: yes
# Versions:  import-linter 2.17, grimp 3.20, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check import-linter==2.17 grimp==3.20
cd "$folder"

mkdir -p shop/web shop/model/reports
touch shop/__init__.py shop/web/__init__.py shop/model/__init__.py shop/model/reports/__init__.py
echo 'import shop.web' >shop/model/reports/monthly.py
cat >.importlinter <<'INI'
[importlinter]
root_package = shop

[importlinter:contract:layers]
name = layers
type = layers
layers =
    shop.web
    shop.model
INI

verdict() {
    PYTHONPATH=. timeout 60 venv/bin/lint-imports --no-cache 2>&1 | sed -n 's/^layers \([A-Z]*\).*/\1/p' || true
}

with=$(verdict)
rm shop/model/reports/__init__.py
without=$(verdict)
imports=no
if PYTHONPATH=. venv/bin/python -c 'import shop.model.reports.monthly'; then imports=yes; fi
echo "shop/model/reports/monthly.py imports shop.web, with __init__.py: $with"
echo "the same without __init__.py: $without; Python imports it: $imports"
if [ "$with/$without/$imports" != BROKEN/KEPT/yes ]; then
    echo 'The behaviour has changed.' >&2
    exit 1
fi
