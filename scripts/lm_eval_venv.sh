#!/usr/bin/env bash
# Make .venv-lm-eval: the packages of .venv and lm-evaluation-harness, which brings `datasets`. It is an environment of
# its own because some of our tests need `datasets` to be missing.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f .venv-lm-eval/.ready ] && exit
.venv/bin/python -m venv --without-pip .venv-lm-eval
ours=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
theirs=$(.venv-lm-eval/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$ours')" >"$theirs/base.pth"
.venv/bin/python -m pip --python .venv-lm-eval/bin/python install --quiet --no-compile 'lm_eval>=0.4.13,<0.5'
touch .venv-lm-eval/.ready
