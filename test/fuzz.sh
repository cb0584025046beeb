#!/bin/sh
# Runs each fuzz target for FUZZTIME: a number of inputs (20000x), which takes
# seconds, or a time (10m). A time may end with "context deadline exceeded" though
# nothing was found (golang/go#75804), so the short run does not use one.
set -eu

for file in $(grep -rl --include='*_test.go' '^func Fuzz' cmd disk p2p store); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "fuzz ${file%/*} $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-20000x}" -fuzzminimizetime 10x "./${file%/*}"
	done
done
