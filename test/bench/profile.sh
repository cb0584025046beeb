#!/bin/sh
# Says where seeder's CPU seconds go in one cell of `make bench`: perf samples the
# seeders of this run, and each sample counts for the first of the parts below that is in
# its stack. GB are those that arrived, of all hosts together. As root, on a machine with
# nothing else to do; the cell is that of BENCH_IMAGES, BENCH_MB, BENCH_HOSTS, BENCH_RATES.
set -eu
cd "$(dirname "$0")/../.."

command -v perf >/dev/null 2>&1 || test/install.sh linux-perf
CGO_ENABLED=0 go build -trimpath -o bin/seeder ./cmd/seeder # with its symbols
go test -c -o bin/bench ./test/bench
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
export BENCH_IMAGES="${BENCH_IMAGES:-raw}" BENCH_MB="${BENCH_MB:-100}" BENCH_HOSTS="${BENCH_HOSTS:-8}" \
	BENCH_RATES="${BENCH_RATES:-200mbit}" BENCH_RUNS=1 BENCH_WAYS=seeder BENCH_OUT="$dir/samples"
(cd test/bench && perf record -q -g -e cpu-clock -F 499 -o "$dir/perf" -- ../../bin/bench -test.run '^TestBench$')
perf script -i "$dir/perf" -F comm,ip,sym --comm seeder 2>/dev/null >"$dir/stacks"
cat "$dir/samples"
sample() { sed -n "s/.*\"$1\":\([0-9.e+]*\).*/\1/p" "$dir/samples"; }
awk -v cpu="$(sample seeder_cpu_s)" -v bytes="$(sample bytes)" -v hosts="$(sample hosts)" '
	BEGIN {
		RS = ""; FS = "\n"
		part("garbage collection", "runtime\\.(gc|bgsweep|bgscavenge|sweepone|deductSweep)")
		part("scheduling of goroutines", "runtime\\.(schedule|findRunnable|park_m|mcall|goschedImpl|sysmon|mstart)")
		part("handshakes of TLS", "tls.*[hH]andshake")
		part("have streams, told", "haveStream")
		part("have streams, heard", "followHaves")
		part("zstd, compressing", "Codec..Encode")
		part("zstd, decompressing", "Codec..Decode")
		part("SHA-256", "sha256")
		part("frames to disk", "stage..*Blob..(Put|append)")
		part("to containerd", "Ingest|store..*blob..ingest|google.golang.org/grpc")
		part("chunks out: files, TLS, TCP, HTTP", "wire..*Server|net/http..*conn..serve")
		part("chunks in: TLS, TCP, HTTP", "wire..*Client|net/http..*persistConn")
		part("scheduling of chunks", "p2p/swarm")
		part("gossip", "memberlist|p2p/gossip")
		part("the rest", "")
	}
	function part(name, pattern) { names[++n] = name; patterns[n] = pattern }
	{ for (i = 1; i < n && $0 !~ patterns[i]; i++); count[i]++; all++ }
	END {
		per = cpu / (bytes * (hosts - 1) / 1e9)
		printf "\n| part | of all seeders | CPU-s per GB |\n|---|---|---|\n"
		for (i = 1; i <= n; i++) printf "| %s | %.1f %% | %.2f |\n", names[i], 100 * count[i] / all, per * count[i] / all
		printf "| all | 100 %% | %.1f |\n", per
	}' "$dir/stacks"
