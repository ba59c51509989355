#!/usr/bin/env bash
# Boots a Linux guest: on this machine where its KVM can run an ordinary kernel, else in the lab.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=bin/peervisor
cmd=()
[ -t 0 ] && [ -t 1 ] || cmd=(-- uname -a)
if why=$($bin doctor --linux); then
  exec $bin run --rm "${cmd[@]}"
fi
echo "run: $why; booting in the lab, an emulated host on this machine" >&2
if [ ${#cmd[@]} = 0 ]; then
  exec $bin lab exec -- peervisor run --rm
fi
exec $bin lab exec -- peervisor run --rm "${cmd[@]}" </dev/null
