#!/usr/bin/env bash
# Measures how far this project is from Google's and the authors' code, and prints the table: bash scripts/parity.sh
# What is absent (../shared, its encoder, transformers) is named below the table and left out.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh tests/requirements.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" tests/parity_table.py
