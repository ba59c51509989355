#!/usr/bin/env bash
# Runs every fuzz target for the given time each. usage: fuzz.sh 30s [PACKAGE...]
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
time=${1:-30s}; shift || true
for pkg in ${*:-$($GO list ./...)}; do
  for target in $($GO test -list '^Fuzz' "$pkg" 2>/dev/null | grep '^Fuzz' || true); do
    echo "==== $pkg $target"
    $GO test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg"
  done
done
