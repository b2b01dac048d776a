# Sourced by the scripts in hack/ and .ci/: finds Python, makes the virtual environment that requirements/dev.lock
# describes (once per user and lock file), and sets `python` to its interpreter. All it says goes to stderr.
# Callers may set PERDURE_PYTHON to a Python >= 3.11 of their choice.

set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/perdure
lock_file=$checkout/requirements/dev.lock

say() { printf '%s\n' "$*" >&2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in "${PERDURE_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11 or newer is needed and was not found; on Debian 12 or newer: apt-get install python3"
  return 1
}

ensure_venv_module() {
  "$1" -c 'import venv, ensurepip' 2>/dev/null && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "Python's venv module is missing; as root, run: apt-get install python3-venv"
    return 1
  fi
  say "==> installing Debian package python3-venv"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get -qq update && apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends python3-venv; } >/dev/null
}

use_venv() {
  local base digest venv
  base=$(find_python)
  digest=$({ cat "$lock_file"; "$base" -VV; echo "$base"; } | sha256sum | cut -c1-12)
  venv=$cache/venv-$digest
  if [ ! -e "$venv/complete" ]; then
    ensure_venv_module "$base"
    "$base" -m rig.venv "$venv" "$lock_file"
  fi
  python=$venv/bin/python
}

export PYTHONPATH=$checkout/hack:$checkout/controller
use_venv
