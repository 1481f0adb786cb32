#!/usr/bin/env bash
# The whole main job on the embedded gallery, from a fresh clone: environment, then recipe and report.
#   launch/quickstart.sh [WORKDIR] [more flags of mixjax.main]
# Interrupt it whenever you like: the same command goes on where it was.
set -euo pipefail
workdir=${1:-}
# A relative path is the caller's, not this repository's; a bucket's address stays as it is.
case $workdir in '' | /* | *://*) ;; *) workdir=$PWD/$workdir ;; esac
cd "$(dirname "$0")/.."
source launch/environment.sh
environment requirements.txt
workdir=${workdir:-runs/quickstart}
exec .venv/bin/python -m mixjax.main --config=configs/search.py --workdir="$workdir" "${@:2}"
