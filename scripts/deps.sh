#!/usr/bin/env bash
# Installs the Debian packages and Go modules that are missing. Says nothing when nothing is.
set -euo pipefail
cd "$(dirname "$0")/.."

# what for: build · kernels and initramfs · lab host and peers to measure against · tests
packages="
gcc libc6-dev make git ca-certificates
busybox-static
qemu-system-x86 qemu-utils e2fsprogs
iproute2 iperf3 fio acpica-tools
"

command -v "${GO:-go}" >/dev/null || { echo "deps: Go is not installed; see https://go.dev/doc/install (go.mod names the version)" >&2; exit 1; }

missing=
for p in $packages; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null) || status=none
  [ "$status" = installed ] || missing="$missing $p"
done
if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null; then
    echo "deps: this is not Debian; install what corresponds to:$missing" >&2; exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "deps: missing Debian packages; as root: apt-get install --no-install-recommends$missing" >&2; exit 1
  fi
  echo "deps: installing$missing" >&2
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2; rm -f "$log"; exit 1
  fi
  rm -f "$log"
fi
# apt's lists are needed to fetch kernels even where no package was missing.
if [ "$(id -u)" = 0 ] && ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; then
  apt-get update >/dev/null
fi
"${GO:-go}" mod download -x >/dev/null 2>&1 || "${GO:-go}" mod download
