#!/usr/bin/env bash
# The test suite. usage: test.sh all|lint|unit|race|kvm|lab|chaos
# Every test that needs KVM or the lab notes in a ledger whether it ran; a run in which all of a kind were
# skipped fails.
set -uo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
export CGO_ENABLED=0
what=${1:-all}
PEERVISOR_TEST_LEDGER=$(mktemp)
export PEERVISOR_TEST_LEDGER
trap 'rm -f "$PEERVISOR_TEST_LEDGER"' EXIT
failed=0

step() { # step NAME COMMAND...
  local name=$1 t0=$SECONDS; shift
  printf '==== %s\n' "$name"
  if "$@"; then printf '==== %s: ok, %ds\n' "$name" $((SECONDS - t0))
  else printf '==== %s: FAILED, %ds\n' "$name" $((SECONDS - t0)); failed=1; fi
}

packages() { $GO list ./... | grep -v -e '/tests\(/\|$\)' -e '/lab$'; }

format() { local f; f=$(gofmt -l $(git ls-files '*.go')); [ -z "$f" ] || { echo "gofmt would change:"; echo "$f"; return 1; }; }
lint() {
  step format format
  step vet $GO vet ./...
  step staticcheck $GO tool staticcheck ./...
  step errcheck $GO tool errcheck -ignoretests -exclude scripts/errcheck.txt ./...
  step house-rules $GO test ./internal/archtest
}
unit() { step unit $GO test -timeout 300s $(packages); }
race() { CGO_ENABLED=1 step race $GO test -race -short -timeout 600s $(packages | grep -v -e internal/archtest); }
kvm()  { step kvm $GO test -count=1 -timeout 600s ./kvm/... ./vmm ./tests/bare/...; }
lab()  { step lab $GO test -count=1 -timeout 1500s ./lab/... ./tests/lab/...; }
chaos() { step chaos env PEERVISOR_CHAOS_SECONDS="${CHAOS_SECONDS:-600}" $GO test -count=1 -timeout 0 -run Chaos ./tests/...; }

ledger() { # ledger KIND: fails if tests of the kind were there and none ran
  local ran skipped
  ran=$(grep -c "^$1 ran " "$PEERVISOR_TEST_LEDGER"); skipped=$(grep -c "^$1 skipped " "$PEERVISOR_TEST_LEDGER")
  echo "$1 tests: $ran ran, $skipped skipped"
  grep "^$1 skipped " "$PEERVISOR_TEST_LEDGER" | sed 's/^/  /'
  [ "$ran" -gt 0 ]
}

case $what in
  lint|unit|race|chaos) $what ;;
  kvm) kvm; step "KVM was there" ledger kvm ;;
  lab) lab; step "the lab was there" ledger lab ;;
  all)
    lint; unit; race; kvm; lab
    step "KVM was there" ledger kvm
    step "the lab was there" ledger lab ;;
  *) echo "usage: test.sh all|lint|unit|race|kvm|lab|chaos" >&2; exit 2 ;;
esac
exit $failed
