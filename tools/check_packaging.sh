#!/usr/bin/env bash
# The checks of make check-all that need environments of their own: the wheel, and the oldest dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== the wheel, installed alone, with the newest dependencies"
"$PYTHON" -m venv "$work/newest"
"$work/newest/bin/pip" install --quiet --upgrade pip build
"$work/newest/bin/python" -m build --wheel --outdir "$work/dist" . >/dev/null
"$work/newest/bin/pip" install --quiet "$work"/dist/*.whl
(cd "$work" && newest/bin/detseg make-shapes --root shapes --train 4 --val 2 --test 2)
(cd "$work" && newest/bin/detseg train --print-schema >/dev/null)

echo "== the tests with the oldest dependencies that pyproject.toml admits"
"$PYTHON" -m venv "$work/oldest"
"$work/oldest/bin/pip" install --quiet --upgrade pip
"$work/oldest/bin/python" tools/oldest_dependencies.py > "$work/oldest.txt"
"$work/oldest/bin/pip" install --quiet --editable ".[test]" --constraint "$work/oldest.txt"
"$work/oldest/bin/python" -m pytest -q -m "not slow"
