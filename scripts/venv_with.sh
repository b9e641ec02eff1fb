#!/usr/bin/env bash
# Make an environment with the packages of .venv and one more: scripts/venv_with.sh FOLDER REQUIREMENT. It is an
# environment of its own because some of our tests need that package, or what it brings, to be missing.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f "$1/.ready" ] && exit
.venv/bin/python -m venv --without-pip "$1"
ours=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
theirs=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$ours')" >"$theirs/base.pth"
.venv/bin/python -m pip --python "$1/bin/python" install --quiet --no-compile "$2"
touch "$1/.ready"
