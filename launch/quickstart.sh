#!/usr/bin/env bash
# The whole main job on the embedded gallery, from a fresh clone: environment, then recipe and report.
#   launch/quickstart.sh [WORKDIR] [more flags of mixjax.main]
# Interrupt it whenever you like: the same command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment requirements.txt
workdir=${1:-runs/quickstart}
exec .venv/bin/python -m mixjax.main --config=configs/search.py --workdir="$workdir" "${@:2}"
