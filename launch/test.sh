#!/usr/bin/env bash
# The test suite from a fresh clone: environment, then ruff and pytest.
#   launch/test.sh [pytest arguments]      launch/test.sh -m slow   runs the slow ones
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment requirements-test.txt
.venv/bin/python -m ruff check .
[ $# -gt 0 ] || set -- -m "not slow" --numprocesses 2 --dist loadgroup --no-loadscope-reorder
exec .venv/bin/python -m pytest "$@"
