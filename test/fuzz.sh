#!/bin/sh
# Runs each fuzz target for FUZZTIME (5s).
set -eu

for file in $(grep -rl --include='*_test.go' '^func Fuzz' cmd p2p store); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "fuzz ${file%/*} $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-5s}" "./${file%/*}"
	done
done
