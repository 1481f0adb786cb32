# Sourced by the launch scripts: makes .venv once, from the pinned requirements, and enters it.
#   environment FILE    FILE is requirements.txt or requirements-test.txt
environment() {
  local python stamp
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "mixjax needs Python 3.11 or newer; set PYTHON to one" >&2
    return 1
  }
  [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
  # The stamp holds what was installed: a changed pin installs again, an unchanged one costs nothing.
  stamp=.venv/installed-$1
  if ! cat requirements*.txt | cmp -s - "$stamp"; then
    echo "installing $1 into .venv (about a minute)"
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check -r "$1" || return 1
    cat requirements*.txt > "$stamp"
  fi
}
