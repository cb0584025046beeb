# What CI runs is what is here. `make demo` needs Go alone; `make test` needs root
# on Debian and installs the rest.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
GOFLAGS_BUILD = -trimpath -ldflags "-s -w -X seeder/cmd/seeder/internal/cli.release=$(VERSION) -X seeder/cmd/seeder/internal/cli.commit=$(COMMIT)"
FUZZTIME ?= 10000x

# What was built is found again from every directory, by all targets alike: a new clone
# on a machine that has built before begins with that.
GOFLAGS ?= -trimpath
export GOFLAGS

.PHONY: build demo test unit cluster hosts fuzz sim bench chaos soak lint clean

build: ## bin/seeder
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -o bin/seeder ./cmd/seeder

demo: build ## four nodes on this machine, one announces an image, all get it
	bin/seeder demo

test: deps lint alerts conformance unit cluster dst-short fuzz test-ui hosts ## everything; as root on Debian

.PHONY: fresh
fresh: ## make demo and make test on Debian 12 and 13, each just installed; FRESH_TARGETS, FRESH_RELEASES, see test/fresh.sh; as root
	test/fresh.sh

.PHONY: deps
deps: ## what the tests need: runc, iproute2, podman, … (Debian packages)
	test/install.sh

lint: ## gofmt, vet, staticcheck, who may import whom
	@unformatted=$$(gofmt -l cmd docs internal p2p store test); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	go vet ./...
	cd test/tools/lint && go build -o ../../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck ./...
	cd test/ui && go vet ./... && ../../bin/staticcheck ./...
	test/imports.sh
	go run ./test/shape
	$(MAKE) --no-print-directory clients

.PHONY: clients
clients: ## seeder push for macOS and Windows compiles; part of lint
	for os in darwin windows; do for arch in amd64 arm64; do CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch go build -o /dev/null ./cmd/seeder || exit 1; done; done

.PHONY: shape
shape: ## lines, functions, types and imports of the code, and their limits; part of lint
	go run ./test/shape

.PHONY: alerts
alerts: ## the alert rules and the dashboard, by Prometheus' own checker
	PROMTOOL=$(CURDIR)/bin/prometheus/promtool go test -count=1 -run '^(TestAlerts|TestDashboard)$$' ./cmd/seeder

.PHONY: conformance
conformance: ## the registry of a daemon against the conformance suite of the OCI distribution-spec
	cd test/tools/conformance && CGO_ENABLED=0 go build -trimpath -o ../../../bin/conformance tool
	CONFORMANCE=$(CURDIR)/bin/conformance go test -count=1 -timeout 5m -run '^TestOCIConformance$$' ./cmd/seeder

unit: ## unit tests with the race detector; lint has vetted them
	go test -race -vet=off -shuffle=on -parallel 4 -timeout 30m $$(go list ./cmd/... ./docs/... ./internal/... ./p2p/... ./store/... | grep -v '/store/delta$$')
	go test -vet=off -shuffle=on ./store/delta # has no goroutines; under the race detector it takes two minutes
	go test -count=1 -vet=off -run '^TestDelta$$' ./store
	go test -count=1 -run '^TestEverySizeTravels$$' ./store/chunk
	go test -count=1 -run '^TestTables$$' ./test/bench ./test/delta

cluster: ## whole nodes in virtual time, up to 200, without the race detector, which takes five times the CPU
	go test -count=1 -run '^(TestCluster.*|TestSimulation)$$' ./p2p ./p2p/swarm

.PHONY: dst dst-short
dst: ## real nodes in virtual time under 10,000 faults: DST_SEED (random), DST_COURSES, DST_ROUNDS; DST_COURSE runs one course again
	DST_SEED=$${DST_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} DST_COURSES=$${DST_COURSES:-26} DST_ROUNDS=$${DST_ROUNDS:-6} \
		go test -count=1 -v -timeout 3h -run '^TestSimulation$$' ./test/dst

.PHONY: dst-mutations
dst-mutations: ## breaks the product in one way after the other and shows that a check of the simulation finds each; DST_MUTATIONS: some of them
	DST_MUTATIONS="$${DST_MUTATIONS:-all}" go test -count=1 -v -timeout 1h -run '^TestMutations$$' ./test/dst

dst-short: ## the same for a fixed seed and a fresh one, which is printed
	go test -count=1 -v -timeout 40m ./test/dst

fuzz: ## each fuzz target for FUZZTIME (a number of inputs, or a time like 10m)
	FUZZTIME=$(FUZZTIME) test/fuzz.sh

.PHONY: vuln
vuln: ## known vulnerabilities in what seeder calls, from GOVULNDB (https://vuln.go.dev); not part of test, which needs no such site
	test/vuln.sh

# Both wait most of the time, and so run side by side: boot takes a quarter of the other.
hosts: build package containerds ## real hosts with real containerd, and what `make boot` runs; needs root
	go test -count=1 -timeout 45m -p 2 -parallel 3 ./test/boot ./test/harness ./test/attack ./test/hosts
	go test -count=1 -timeout 10m -run '^TestCPUGate$$' ./test/bench

.PHONY: boot
boot: build package containerds ## the packages and the unit, on three hosts that boot a real systemd, with what each step says; needs root
	go test -count=1 -v -timeout 20m ./test/boot

.PHONY: install uninstall
install: build man ## to PREFIX (/usr/local), below DESTDIR where that is set; starts nothing
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" SYSCONFDIR="$(SYSCONFDIR)" systemd/install.sh install

uninstall: ## stops seeder and removes what install laid; an edited configuration, the secret and /var/lib/seeder stay
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" SYSCONFDIR="$(SYSCONFDIR)" systemd/install.sh uninstall

PACKAGES ?= bin/packages
ARCHES ?= amd64 arm64

.PHONY: nfpm
nfpm:
	cd test/tools/nfpm && CGO_ENABLED=0 go build -trimpath -o ../../../bin/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm

.PHONY: package
package: man nfpm ## .deb and .rpm for ARCHES in PACKAGES (bin/packages), the same bytes from the same sources
	VERSION="$(VERSION)" OUT="$(PACKAGES)" ARCHES="$(ARCHES)" systemd/package.sh $(GOFLAGS_BUILD)

RELEASE ?= bin/release

.PHONY: release
release: man nfpm ## packages, static tarballs, SBOM, SHA256SUMS and an apt repository in RELEASE (bin/release); SIGNING_KEY signs them
	VERSION="$(VERSION)" OUT="$(RELEASE)" ARCHES="$(ARCHES)" systemd/release.sh $(GOFLAGS_BUILD)

# The versions of containerd that hosts of the tests run: those that k3s ships
# today, and 1.7. Each is a module of its own below test/tools.
CONTAINERDS = 1.7 2.2 2.3

.PHONY: containerds
containerds: $(CONTAINERDS:%=bin/containerd-%/containerd)

bin/containerd-%/containerd: test/tools/containerd-%/go.mod
	cd test/tools/containerd-$* && CGO_ENABLED=0 go build -trimpath -o ../../../bin/containerd-$*/ tool
	@touch $@

# The kubelets that `make kubelet` runs with, those of Kubernetes 1.36 and 1.37: their k3s are
# the newest. Modules below test/tools, too.
KUBELETS = 1.36 1.37

.PHONY: kubelet
kubelet: build containerds $(KUBELETS:%=bin/kubelet-%/kubelet) ## real kubelets with each containerd: the table of docs/compatibility.md; they build for 15 minutes; needs root
	KUBELET=1 KUBELET_REPORT=$(CURDIR)/docs/compatibility.md go test -count=1 -v -timeout 40m -parallel 6 -run '^TestKubelet$$' ./test/hosts

bin/kubelet-%/kubelet: test/tools/kubelet-%/go.mod
	cd test/tools/kubelet-$* && CGO_ENABLED=0 nice -n 10 go build -trimpath \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$(awk '$$1 == "k8s.io/kubernetes" { print $$2 }' go.mod)" \
		-o ../../../bin/kubelet-$*/ tool
	@touch $@

.PHONY: test-ui
test-ui: build ## the status page in Debian's Chromium; SCREENSHOTS=1 writes those of docs/images
	go test -c -o bin/seeder-page ./cmd/seeder/internal/web
	$(if $(SCREENSHOTS),mkdir -p docs/images)
	cd test/ui && SCREENSHOTS=$(if $(SCREENSHOTS),$(CURDIR)/docs/images) go test -count=1 -timeout 5m ./...

sim: ## the scheduler on simulated links and gossip, with 200 and 1,000 nodes; some ten minutes
	go test -c -o bin/sim ./p2p/swarm && bin/sim -test.run '^TestSimulation$$' -sim full
	go test -count=1 -v -run '^(TestClusterSpreads|TestClusterPartition)$$/^(200|1000)$$' ./p2p -cluster

bench: build containerds ## seeder against a registry and a loop over hosts, on real hosts; hours, BENCH_ADD=1 adds to what is there
	test/install.sh
	test -n "$(BENCH_ADD)" || rm -f docs/benchmarks.jsonl
	BENCH_OUT=$(CURDIR)/docs/benchmarks.jsonl go test -count=1 -timeout 24h -parallel 16 -run '^TestBench$$' ./test/bench
	BENCH_OUT=$(CURDIR)/docs/benchmarks.jsonl BENCH_REPORT=$(CURDIR)/docs/benchmarks.md go test -count=1 -run '^TestBenchReport$$' ./test/bench

.PHONY: bench-quick
bench-quick: build containerds ## the table of README.md, one run of each cell; 3 hosts at 100 Mbit/s, 2 to 4 at 1 Gbit/s; under ten minutes
	test/install.sh
	rm -f bin/bench-quick.jsonl
	BENCH_OUT=$(CURDIR)/bin/bench-quick.jsonl BENCH_RUNS=1 BENCH_MB=100 BENCH_IMAGES="raw gzip" BENCH_WAYS="seeder registry loop" BENCH_HOSTS=3 BENCH_RATES=100mbit \
		go test -count=1 -timeout 10m -run '^TestBench$$' ./test/bench
	BENCH_OUT=$(CURDIR)/bin/bench-quick.jsonl BENCH_RUNS=1 BENCH_MB=100 BENCH_IMAGES="raw gzip" BENCH_WAYS="seeder registry loop" BENCH_HOSTS="2 3 4" BENCH_RATES=1000mbit \
		go test -count=1 -timeout 10m -run '^TestBench$$' ./test/bench
	BENCH_OUT=$(CURDIR)/bin/bench-quick.jsonl BENCH_TABLE=1 go test -count=1 -v -run '^TestBenchTable$$' ./test/bench

chaos: build containerds ## the chaos suite, longer than in `make test`, with CHAOS_SEED (random) and CHAOS_ROUNDS
	CHAOS_SEED=$${CHAOS_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} CHAOS_ROUNDS=$${CHAOS_ROUNDS:-60} CHAOS_HOLD=$${CHAOS_HOLD:-1} \
		go test -count=1 -v -timeout 6h -run '^TestChaos$$' ./test/hosts

soak: build containerds ## an hour of announcements under churn, and ten quiet minutes; SOAK_MINUTES
	SOAK_MINUTES=$${SOAK_MINUTES:-60} go test -count=1 -v -timeout 24h -run '^TestSoak$$' ./test/hosts

.PHONY: attack
attack: build containerds ## attacks on a daemon in network namespaces, in full size, with a table; needs root
	ATTACK=full go test -count=1 -v -timeout 10m -run '^TestAttack$$' ./test/attack

.PHONY: producers
producers: build containerds ## what podman, buildah, skopeo, umoci, Docker, crane and ko write, announced and run; a table. And what they and BuildKit push
	test/install.sh buildah skopeo umoci bzip2
	cd test/tools/producers && CGO_ENABLED=0 go build -trimpath -o ../../../bin/producers/ tool
	cd test/tools/buildkit && CGO_ENABLED=0 go build -trimpath -o ../../../bin/producers/ tool
	PRODUCERS=1 go test -count=1 -v -timeout 30m -run '^TestProducers$$' ./test/hosts
	go test -count=1 -v -timeout 10m -run '^TestPushIsAnnounce$$' ./test/hosts
	go test -count=1 -v -timeout 10m -run '^TestPushByBuildKit$$' ./test/hosts

.PHONY: bench-data
bench-data: ## throughput and allocations of the data path
	go test -run '^$$' -bench . -benchmem ./p2p/... ./store/...

.PHONY: bench-delta
BENCH_DELTA_REPORT ?= docs/deltas.md
bench-delta: ## what travels instead of a rebuilt layer: the table of docs/deltas.md, or of BENCH_DELTA_REPORT; BENCH_DELTA_MB (60), BENCH_DELTA_BIG_MB (5000), BENCH_DELTA_DIR (GOROOT/src); 20 minutes, 25 GB of disk
	cd test/tools/pgzip && go build -trimpath -o ../../../bin/pgzip .
	BENCH_DELTA=1 BENCH_DELTA_REPORT=$(abspath $(BENCH_DELTA_REPORT)) go test -count=1 -v -timeout 2h -run '^TestBenchDelta$$' ./test/delta

.PHONY: bench-deploy
bench-deploy: build containerds ## the deploy of a second build, whole and as a delta, 3 hosts at 25 Mbit/s and 8 at 100 Mbit/s and 1 Gbit/s: a table; BENCH_DEPLOY_MB (300); ten minutes
	BENCH_DEPLOY=1 go test -count=1 -v -timeout 1h -run '^TestDeploy$$' ./test/bench

.PHONY: bench-profile
bench-profile: containerds ## where seeder's CPU seconds go, by perf, in one cell of bench
	test/bench/profile.sh

.PHONY: bench-idle
bench-idle: build containerds ## what a host's seeder takes while nothing happens; five minutes
	BENCH_IDLE=1 go test -count=1 -v -run '^TestIdle$$' ./test/bench

.PHONY: man
man: ## man pages and completions below bin/share, with the date of SOURCE_DATE_EPOCH (that of the last commit)
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)} \
		go test -count=1 -run '^TestManPages$$' ./cmd/seeder -man $(CURDIR)/bin/share

clean:
	rm -rf bin
