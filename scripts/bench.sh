#!/usr/bin/env bash
# Side-by-side measurements, written to docs/bench.md. usage: bench.sh [flags of tests/bench/run]
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
exec "${GO:-go}" run ./tests/bench/run "$@"
