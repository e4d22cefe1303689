#!/usr/bin/env bash
# Checks in environments of their own. `wheel`: what pip installs works alone, with the newest dependencies.
# `oldest`: the fast tests pass with the oldest dependencies that pyproject.toml admits.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$PYTHON" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --upgrade pip

case "${1:-}" in
wheel)
    "$work/env/bin/pip" install --quiet build
    "$work/env/bin/python" -m build --wheel --outdir "$work/dist" . >/dev/null
    "$work/env/bin/pip" install --quiet "$work"/dist/*.whl
    cd "$work"
    env/bin/detseg make-shapes --root shapes --train 4 --val 2 --test 2
    env/bin/detseg train --print-schema >/dev/null
    ;;
oldest)
    "$work/env/bin/python" tools/oldest_dependencies.py > "$work/oldest.txt"
    "$work/env/bin/pip" install --quiet --editable ".[test]" --constraint "$work/oldest.txt"
    "$work/env/bin/python" -m pytest -q -x -m "not slow" -n 2 --dist worksteal
    ;;
*)
    echo "usage: tools/check_packaging.sh wheel|oldest" >&2
    exit 2
    ;;
esac
