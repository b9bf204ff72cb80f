#!/bin/bash
# Twisted: a test module that imports contextlib.suppress cannot run under trial
#
# Guess:     from contextlib import suppress at the top of a module of tests is an import like any other.
# Behaviour: Every test of a TestCase in that module fails with "TypeError: 'ABCMeta' object is not iterable": trial looks for an
#            attribute named suppress in the method, the class and the module, and treats it as a list of warnings to suppress.
# Matters:   The error names neither the import nor the module, and appears in tests that do not use it. Write
#            import contextlib, and contextlib.suppress.
# Seen:      from contextlib import suppress: TypeError
#            import contextlib: passed
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

cd "$folder"
for name in imports_suppress imports_contextlib; do
    line='from contextlib import suppress'
    [ "$name" = imports_suppress ] || line='import contextlib'
    cat >"test_$name.py" <<PYTHON
$line

from twisted.trial.unittest import SynchronousTestCase


class Tests(SynchronousTestCase):
    def test_nothing(self):
        pass
PYTHON
done

result() {
    if timeout 60 venv/bin/python -m twisted.trial "test_$1" >"$1.log" 2>&1; then
        echo passed
    else
        grep -o "TypeError: 'ABCMeta' object is not iterable" "$1.log" | head -n 1 | cut -d: -f1
    fi
}

with_name=$(result imports_suppress) without=$(result imports_contextlib)
echo "from contextlib import suppress: $with_name"
echo "import contextlib: $without"
if [ "$with_name" != TypeError ] || [ "$without" != passed ]; then
    echo 'The behaviour has changed.' >&2
    exit 1
fi
