#!/bin/sh
# run.sh [FLAGS] [DIR]
#
# Builds imgtool and compares it with other programs on the image DIR/debian.raw (default /tmp/images).
# Prints Markdown. RUNS=5 counted runs of each program; the flags are those of bench/compare:
#
#   -run REGEXP   only these comparisons        -list   their names
#   -big          also 60 GiB and 1 TiB images  -check  read every output back
#   -levels       also each level of compression, on one processor
#   -work DIR     where outputs go
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd "$here" && CGO_ENABLED=0 go build -trimpath -o "$bin/imgtool" ./cmd/imgtool && go build -o "$bin/compare" ./bench/compare)
"$bin/compare" -imgtool "$bin/imgtool" -n "${RUNS:-5}" "$@"
