#!/bin/sh
# Runs each fuzz target for FUZZTIME: a number of inputs (10000x), which takes
# seconds, or a time (10m). A time may end with "context deadline exceeded" though
# nothing was found (golang/go#75804), so the short run does not use one. Each package
# is built once, not once for each target.
set -eu

cache="$(go env GOCACHE)/fuzz/seeder"
bin="$PWD/bin/fuzz"
mkdir -p bin
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' cmd internal p2p store | xargs -n1 dirname | sort -u); do
	go test -c -fuzz . -o "$bin" "./$dir"
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go); do
		echo "fuzz $dir $target"
		(cd "$dir" && "$bin" -test.run '^$' -test.fuzz "^$target\$" -test.fuzzcachedir "$cache/$dir" \
			-test.fuzztime "${FUZZTIME:-10000x}" -test.fuzzminimizetime 10x)
	done
done
