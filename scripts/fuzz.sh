#!/bin/sh
# fuzz.sh [PACKAGE...]
#
# Runs every fuzz target of the packages (all by default) for $FUZZTIME each, as many at a time as there are processors.
# What a target learns stays in Go's cache and serves the next run; an input that fails stays in the package's testdata/fuzz.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-5s}
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- ./...

# `go test -list` prints the targets of a package, then a line with its name.
$GO test -list '^Fuzz' "$@" >"$work/list" || { cat "$work/list"; exit 1; }
awk '/^Fuzz/ { names = names " " $1 } /^ok/ { if (names) print $2 names; names = "" }' "$work/list" >"$work/packages"

# One instrumented binary serves all targets of its package.
n=0
while read -r package targets; do
	n=$((n + 1))
	$GO test -c -fuzz=. -o "$work/$n.test" "$package" </dev/null
	for target in $targets; do
		echo "$work/$n.test $target $package $($GO list -f '{{.Dir}}' "$package")"
	done
done <"$work/packages" >"$work/targets"
echo "$(wc -l <"$work/targets") fuzz targets in $n packages, $FUZZTIME each, $jobs at a time"

cat >"$work/one" <<'ONE'
binary=$1 target=$2 package=$3 dir=$4
log=$binary.$target.log
once() {
	(cd "$dir" && "$binary" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$FUZZTIME" -test.parallel 1 -test.fuzzminimizetime 10x \
		-test.fuzzcachedir "$FUZZCACHE/$package") >"$log" 2>&1
}
# Go can mistake the end of the time for a failure when an input is still being tried; such a log has no failing input.
deadline() { grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input' "$log"; }
if once || { deadline && once; }; then
	echo "ok   $package $target: $(grep -o 'execs: [0-9]*' "$log" | tail -n 1)"
else
	echo "FAIL $package $target"
	cat "$log"
	exit 1
fi
ONE
FUZZCACHE=$($GO env GOCACHE)/fuzz
export FUZZTIME FUZZCACHE
if ! xargs -P "$jobs" -n 4 sh "$work/one" <"$work/targets"; then
	echo "fuzz: some targets failed" >&2
	exit 1
fi
